"""Response to one request for completions as it arrives, whole or streamed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from r3agent.errors import EndpointError
from r3agent.http.client import Content
from r3agent.policy.parse import BROKEN_STREAM, check_choices
from r3agent.policy.stream import Assembly, OnDelta, read_body


class Reception:
    """Receiver of a response, which each try of the request begins anew.

    Args:
        where: beginning of error messages.
        on_delta: called with each delta of a stream, and with the whole texts if there is none.
    """

    def __init__(self, where: str, on_delta: OnDelta | None) -> None:
        self._where, self._on_delta = where, on_delta
        self._content = b""
        self._body: Any = None
        self._assembly = Assembly()
        self._has_told = False

    @property
    def beginning(self) -> bytes:
        """Content that arrived, for the message if it is no completion."""
        return self._content or self._assembly.beginning.encode()

    def tell(self, index: int, text: str) -> None:
        self._has_told = True
        if self._on_delta is not None:
            self._on_delta(index, text)

    def take(self, content: Content) -> None:
        """Take a whole response; raise a `ValueError` if another try may give a better one."""
        self._content = content.text
        self._body = read_body(*content)
        check_choices(self._body)

    def begin(self) -> Callable[[Any], None]:
        """Begin a stream, and return the function that takes its chunks."""
        self._assembly = Assembly(self.tell)
        return self._assembly.take

    def may_repeat(self) -> bool:
        return not self._has_told

    def end(self) -> None:
        """End a stream.

        Raises:
            EndpointError: it broke off.
            ValueError: it has no choices.
        """
        if self._assembly.is_broken_off:
            raise EndpointError(f"{self._where}: {BROKEN_STREAM}")
        check_choices(self._assembly.body)

    def answer(self) -> dict[str, Any]:
        """Return the body of the completion."""
        return self._body if self._content else self._assembly.body
