"""A record reads back from its line with whatever an application put into it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from math import inf, nan
from types import MappingProxyType
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from r3agent.records.json_values import is_portable, json_bytes, json_value, parse_json
from r3agent.records.record import MENDED
from r3agent.records.trajectory import EpisodeError, Span, Task, Trajectory, Verdict


class Colour(Enum):
    RED = "red"


class Customer(BaseModel):
    name: str
    seen: set[int]


@dataclass
class Place:
    x: float


class Broken:
    def __str__(self) -> str:
        raise RuntimeError


def nested(levels: int) -> Any:
    value: Any = "core"
    for _ in range(levels):
        value = [value]
    return value


cyclic: dict[str, Any] = {}
cyclic["itself"] = cyclic

KEPT = [
    ((1, "a"), [1, "a"]),
    ({3, 1, 2}, [1, 2, 3]),
    (np.float32(1.5), 1.5),
    (np.int64(3), 3),
    (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
    (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
    (b"text", "text"),
    (b"\xff\x00", "/wA="),
    (Colour.RED, "red"),
    (Customer(name="Ann", seen={2, 1}), {"name": "Ann", "seen": [1, 2]}),
    (Place(0.5), {"x": 0.5}),
    (MappingProxyType({"a": 1}), {"a": 1}),
    ({2: "two", None: "none", True: "yes", (1, 2): "pair", Colour.RED: 1}, None),
    (2**70, 2**70),
    (-(10**400), -(10**400)),
    ("\ud83d\ude00", "\N{GRINNING FACE}"),
    (nested(80), nested(80)),
]
MENDABLE = [
    (inf, None),
    (np.float64("nan"), None),
    ("half \ud83d", "half \ufffd"),
    ({"\udc00": 1}, {"\ufffd": 1}),
    (10**5000, hex(10**5000)),
    (object(), "<object object>"),
    (Broken(), "<Broken>"),
    (cyclic, {"itself": None}),
]


def trajectory(value: Any) -> Trajectory:
    return Trajectory(
        task=Task.model_validate(
            {"messages": ({"role": "user", "content": "?", "extra": value},), "info": {"value": value}}
        ),
        spans=(Span(label="attempt", text="42", model="m", sampling={"value": value}),),
        metadata={"value": value},
    )


def values(record: Trajectory) -> list[Any]:
    (span,), task = record.spans, record.task
    return [task.messages[0]["extra"], task.info["value"], span.sampling["value"], record.metadata["value"]]


@pytest.mark.parametrize(("value", "kept"), KEPT, ids=range(len(KEPT)))
def test_values_with_a_json_form_read_back_equal(value: Any, kept: Any) -> None:
    record = trajectory(value)
    read = Trajectory.of_line(record.line())
    assert read == record
    assert MENDED not in read.metadata
    if kept is None:
        kept = {"2": "two", "null": "none", "true": "yes", "(1, 2)": "pair", "red": 1}
    assert values(read) == [kept] * 4
    assert len(record.task.digest) == 16


@pytest.mark.parametrize(("value", "kept"), MENDABLE, ids=range(len(MENDABLE)))
def test_other_values_are_mended_in_the_line(value: Any, kept: Any) -> None:
    copied = trajectory("").model_copy(update={"metadata": {"value": value}})  # not validated
    for record in (trajectory(value), copied):
        read = Trajectory.of_line(record.line())
        assert read.metadata["value"] == kept
        assert Trajectory.of_line(read.line()) == read
        json.loads(record.line(), parse_constant=pytest.fail)
    assert read.metadata[MENDED][0].startswith("metadata.value")


@pytest.mark.parametrize("foreign", [Colour.RED, nan, 2**64, np.float64(1), {1: 2}, {"\ud83d": 1}, nested(95), {1}])
def test_is_portable_refuses_what_readers_change(foreign: Any) -> None:
    assert not is_portable([foreign])
    assert is_portable(({"x": [1, 2.5, None, True, "\N{GRINNING FACE}"]},))


def test_depth_is_bounded() -> None:
    json_value(nested(50_000))
    assert Trajectory.of_line(trajectory(nested(50_000)).line())


def test_numbers_that_are_not_finite_stay_in_the_process() -> None:
    task = Task.model_validate({"messages": ({"role": "user", "content": "?"},), "info": {"least": -inf}})
    assert task.info["least"] == -inf


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
)


@given(ANY)
def test_portable_values_are_copied_as_they_are(value: Any) -> None:
    copied = json_value(value)
    assert is_portable(copied) or not is_portable(value)
    if is_portable(value):
        assert orjson.loads(orjson.dumps(value)) == copied
        assert copied is not value or not isinstance(value, dict | list)


@given(ANY)
def test_a_line_reads_back_whatever_is_in_it(value: Any) -> None:
    read = Trajectory.of_line(trajectory(value).line())
    assert Trajectory.of_line(read.line()) == read


@pytest.mark.parametrize("bad", [-inf, inf, nan, None, -9999.0])
@pytest.mark.parametrize(
    ("capability", "left"),
    [
        ("trainable-exact", "eval-only"),
        ("trainable-retokenised", "trainable-retokenised"),
        ("eval-only", "eval-only"),
    ],
)
def test_generation_drops_logprobs_that_are_no_numbers(bad: float | None, capability: str, left: str) -> None:
    tokens = {"token_ids": (1, 2), "prompt_token_ids": (3,)} if capability == "trainable-exact" else {}
    given = {"label": "attempt", "text": "42", "model": "m", "logprobs": (-0.1, bad), **tokens}
    span = Span.model_validate({**given, "capability": capability, "capability_note": "first"})
    assert (span.logprobs, span.capability) == (None, left)
    assert span.capability_note is not None
    assert span.capability_note.startswith("first; a logprob is not a number")
    assert Span.model_validate(span.model_dump(mode="json")) == span


def test_generation_with_half_a_character_is_not_tokenised_again() -> None:
    half = Span(label="attempt", text="ok \ud83d", model="m", capability="trainable-retokenised")
    assert (half.text, half.capability) == ("ok \ufffd", "eval-only")
    exact = {"token_ids": (1,), "prompt_token_ids": (3,), "logprobs": (-0.1,), "capability": "trainable-exact"}
    called = Span.model_validate({**half.model_dump(), **exact, "reasoning": "\udc00"})
    assert (called.capability, called.reasoning) == ("trainable-exact", "\ufffd")
    assert "half of a character" in (called.capability_note or "")


def test_texts_of_all_records_are_well_formed() -> None:
    assert Verdict(passed=True, score=1, feedback="\udc00").feedback == "\ufffd"
    assert EpisodeError(kind="E", message="\ud83d\ude00").message == "\N{GRINNING FACE}"
    task = Task(messages=({"role": "user", "content": "\ud83d"},))
    assert task == Task(messages=task.messages)  # with the same id


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b'{"n": 1180591620717411303424}', {"n": 2**70}),
        (b'{"n": -Infinity}', {"n": -inf}),
        (rb'{"s": "\ud83d"}', {"s": "\ud83d"}),
    ],
)
def test_parse_json_reads_what_any_library_writes(line: bytes, value: Any) -> None:
    assert parse_json(line) == value


@pytest.mark.parametrize("line", [b"{", b"", b"[" * 100_000])
def test_parse_json_refuses_other_text(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(line)


def test_json_bytes_writes_what_orjson_refuses() -> None:
    large = {"b": 2**70, "a": "\ud800"}
    assert json_bytes(large, sort_keys=True) == b'{"a":"\\ud800","b":1180591620717411303424}'
    assert json.loads(json_bytes({**large, "nan": nan})) == {"a": "\ufffd", "b": 2**70, "nan": None}


def test_json_bytes_writes_any_keys_and_depths() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    assert json.loads(json_bytes({(1, 2): 2**70})) == {"(1, 2)": 2**70}
    assert json_bytes(deep).startswith(b"[[[")
