"""Selection of stored lines by episode, by a value of the metadata, or by a pattern in any of their texts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from r3agent.errors import ConfigError
from r3agent.records.branching import DONOR, MADE_WITH
from r3agent.records.json_values import parse_json
from r3agent.records.record import MENDED
from r3agent.records.trajectory import AT_ONCE, CONTROL, EPISODE, LINE_CHECKSUM, RECORDED, SPLIT

INTERNAL = {*MADE_WITH, SPLIT, RECORDED, CONTROL, DONOR, AT_ONCE, MENDED, LINE_CHECKSUM}
"""Metadata keys that r3agent writes for itself."""


@dataclass(frozen=True)
class Selection:
    """Request to forget: one of the three is given."""

    episodes: tuple[str, ...] = ()
    """Ids, beginnings of ids, or names under which a gateway recorded episodes."""
    where: tuple[str, str] | None = None
    """Key of the metadata, with dots for a key within a value, and the value."""
    pattern: re.Pattern[str] | None = None

    @classmethod
    def of(cls, episodes: tuple[str, ...], where: str | None, pattern: str | None) -> Selection:
        """Read the arguments of `forget`.

        Raises:
            ConfigError: not one of them is given, or it selects everything or nothing.
        """
        if sum(map(bool, (episodes, where, pattern))) != 1 or "" in episodes:
            raise ConfigError("forget: name episodes, or a KEY=VALUE of the metadata, or a pattern; one of the three")
        if episodes:
            return cls(episodes=episodes)
        if where is not None:
            key, equals, value = where.partition("=")
            if not key or not equals:
                raise ConfigError(f"where = {where!r}: no KEY=VALUE; give one, such as user=anna")
            return cls(where=(key, value))
        try:
            compiled = re.compile(str(pattern))
        except re.error as error:
            raise ConfigError(f"pattern {pattern!r}: {error}; write a regular expression of Python") from None
        if compiled.search(""):
            raise ConfigError(f"pattern {pattern!r}: it is found in every text; write one that needs a character")
        return cls(pattern=compiled)

    @property
    def kind(self) -> str:
        if self.pattern is not None:
            return "pattern"
        return f"metadata {self.where[0]}" if self.where is not None else "episode"

    @property
    def digest(self) -> str:
        """Hash of what was asked for, by which whoever knows it can find the receipt."""
        given = self.pattern.pattern if self.pattern is not None else "=".join(self.where or self.episodes)
        return sha256(given.encode(errors="surrogatepass")).hexdigest()

    def matches(self, line: Mapping[str, Any]) -> bool:
        """Return True for a trajectory, a label, or a part of one in a gateway's journal, that has what is asked for.

        An episode is found by `names` instead, because a beginning must be that of one id alone.
        """
        metadata = line.get("metadata")
        if self.pattern is not None:
            return any(self.pattern.search(text) for text in _texts(line))
        if self.where is not None:
            return isinstance(metadata, dict) and self.where[1] in _values(metadata, self.where[0])
        return False

    def keys(self, line: Mapping[str, Any]) -> Iterator[str]:
        """Yield the keys of a line's metadata, as deep within values as the one that is asked for."""
        if self.where is not None:
            yield from _keys(line.get("metadata"), self.where[0].count("."))

    @staticmethod
    def names(line: Mapping[str, Any], given: str) -> bool:
        """Return True if `given` is the name of the line's episode, its id, or the beginning of its id."""
        metadata = line.get("metadata")
        name = metadata.get(EPISODE) if isinstance(metadata, dict) else None
        return name == given or str(line.get("trajectory_id", "")).startswith(given)

    def in_text(self, content: bytes) -> bool:
        """Return True if a line that is no record has what is asked for, so that it may be a part of an episode."""
        text = content.decode(errors="replace")
        if self.pattern is not None:
            return self.pattern.search(text) is not None
        if self.where is None:
            return False
        forms = {json.dumps(self.where[1]), json.dumps(self.where[1], ensure_ascii=False), self.where[1]}
        key = json.dumps(self.where[0].rpartition(".")[2])
        return any(f"{key}:{form}" in text.replace('": ', '":') for form in forms)


def shown_keys(keys: Iterable[str]) -> list[str]:
    """Sort the keys of metadata that a message lists: not those that r3agent writes for itself."""
    return sorted({*keys} - INTERNAL)


def parsed(content: bytes) -> dict[str, Any] | None:
    """Parse a line; return `None` if it is no JSON object."""
    with suppress(ValueError):
        data = parse_json(content.decode("utf-8-sig", errors="replace"))
        return data if isinstance(data, dict) else None
    return None


def _keys(value: Any, depth: int) -> Iterator[str]:
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield key
        yield from (f"{key}.{below}" for below in (_keys(inner, depth - 1) if depth else ()))


def _values(metadata: Mapping[str, Any], key: str) -> list[str]:
    """Return the texts of the value at a key, and of its items if it is a list."""
    found: Any = metadata.get(key)
    if key not in metadata:
        first, dot, rest = key.partition(".")
        inner = metadata.get(first)
        return _values(inner, rest) if dot and isinstance(inner, dict) else []
    items = found if isinstance(found, list) else [found]
    return [item if isinstance(item, str) else json.dumps(item) for item in items]


def _texts(value: Any, key: str = "") -> Iterator[str]:
    """Yield every text of a record, also those in the JSON of a call's arguments."""
    if isinstance(value, str):
        yield value
        if key == "arguments":
            with suppress(ValueError, RecursionError):
                yield from _texts(json.loads(value))
    elif isinstance(value, dict):
        for name, part in value.items():
            yield name
            yield from _texts(part, name)
    elif isinstance(value, list):
        for part in value:
            if not isinstance(part, int | float):
                yield from _texts(part)
