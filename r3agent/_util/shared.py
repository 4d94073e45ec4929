"""Base of objects with connections, locks or threads, which no copy and no file can have."""

from __future__ import annotations

from typing import Any, NoReturn, Self

from r3agent.errors import ConfigError


class Shared:
    """Object whose copies, deep ones too, share what it holds, and which cannot be pickled."""

    def __copy__(self) -> Self:
        new = object.__new__(type(self))
        vars(new).update(vars(self))
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def __reduce__(self) -> NoReturn:
        raise ConfigError(
            f"{type(self).__name__} cannot be pickled: it may hold a key, and has connections or threads of this "
            "process; pass its settings, and make it in the process that uses it"
        )
