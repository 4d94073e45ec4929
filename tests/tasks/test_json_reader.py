"""JSON in parts: as the whole text, wherever it is divided."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r3agent.errors import ConfigError
from r3agent.tasks.json_values import JsonReader, json_stream
from tests.support.trees import json_values

VALUES = st.lists(json_values, max_size=4)
SPACES = st.sampled_from(["\n", " \n", "\r\n", "\n\n  "])
PART = st.integers(1, 9) | st.just(10**6)


def parts(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


def read(text: str, size: int) -> list[tuple[int, Any]]:
    reader, found = JsonReader(parts(text, size), "f"), list[tuple[int, Any]]()
    while reader.skip():
        line = reader.line
        found.append((line, [*reader.items()] if reader.is_array() else reader.value()))
    return found


@given(VALUES, SPACES, st.none() | st.just(1), PART)
def test_parts_are_read_as_the_whole(values: list[Any], space: str, indent: int | None, size: int) -> None:
    text = space.join(json.dumps(value, indent=indent) for value in values)
    assert read(text, size) == [*json_stream(text, "f")]


@pytest.mark.parametrize("size", [1, 3, 10**6])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1}\n{"a" 2}', r"f:2: not JSON: Expecting ':' delimiter: line 2 column 6;"),
        ('{"a": 1}\nno json\n', r"f:2: not JSON: Expecting value: line 2 column 1;"),
        ('{"a": 1}\n {"b":\n nope, "c": 1}\n' + '{"a": 1}\n' * 20, r"f:2: not JSON: Expecting value: line 3 column 2;"),
        ("[1,\n2", r"f:\d: not JSON: Expecting ',' delimiter: line 2 column 2;"),
        ("[1 2]", r"f:1: not JSON: Expecting ',' delimiter: line 1 column 4;"),
        ("[1, 2]]", r"f:1: not JSON: Expecting value: line 1 column 7;"),
        ('"abc', r"f:1: not JSON: Unterminated string starting at: line 1 column 1;"),
        ('[{"a": 1, "a": 2}]', r"f:1: not JSON: the key 'a' is there twice;"),
        ("[" * 100_000, r"f:1: not JSON: .*recursion"),
    ],
)
def test_what_is_not_json_is_refused_with_its_place(text: str, says: str, size: int) -> None:
    if len(text) > 1000:
        size = max(size, 1000)
    with pytest.raises(ConfigError, match=says):
        read(text, size)
