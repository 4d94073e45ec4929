"""Calls in the text of a reply, read whole and in pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest

from r3agent.serve.http.tool_calls import CallReader


def call(name: str = "f", **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def read(pieces: list[str]) -> tuple[str, list[tuple[str, Any]]]:
    """The text and the calls of a reply that comes in pieces."""
    reader = CallReader()
    read = [reader.read(piece, last=i == len(pieces)) for i, piece in enumerate(pieces, start=1)]
    functions = [call["function"] for _, calls in read for call in calls]
    assert reader.n_calls == len(functions)
    return "".join(text for text, _ in read), [(f["name"], json.loads(f["arguments"])) for f in functions]


@pytest.mark.parametrize(
    ("reply", "text", "calls"),
    [
        ("", "", []),
        (" no call \n", " no call \n", []),
        ("a < b <tool", "a < b <tool", []),
        (call(a=1), "", [("f", {"a": 1})]),
        ("Look:\n" + call(a=[1, {"b": "ü"}]), "Look:", [("f", {"a": [1, {"b": "ü"}]})]),
        (f" {call()}\n{call('g')} ", "", [("f", {}), ("g", {})]),
        (f"x {call()} and {call('g')}y", "x andy", [("f", {}), ("g", {})]),
        (call(a="<tool_call>{}"), "", [("f", {"a": "<tool_call>{}"})]),
        (f"<tool_call> {call()}", "<tool_call>", [("f", {})]),
        (f"</tool_call>{call()}", "</tool_call>", [("f", {})]),
        (f"{call()}\n<tool_call>{{", "\n<tool_call>{", [("f", {})]),
    ],
)
def test_call_reader_reads_pieces_as_the_whole(reply: str, text: str, calls: list[Any]) -> None:
    assert read([reply]) == (text, calls)
    assert read([*reply, ""]) == (text, calls)
    for cut in range(len(reply)):
        assert read([reply[:cut], reply[cut:]]) == (text, calls)


@pytest.mark.parametrize(
    "inner",
    [
        *("", "{", "f(1)", "[1]", "1", '{"name": "f"}', '{"arguments": {}}', '{"name": "", "arguments": {}}'),
        *('{"name": 1, "arguments": {}}', '{"name": "f", "arguments": [1]}', '{"name": "f", "arguments": {"a": NaN}}'),
        *('{"name": "f", "arguments": {}} more', "[" * 100_000),
    ],
)
def test_call_reader_leaves_a_broken_call_as_text(inner: str) -> None:
    broken = f"<tool_call>{inner}</tool_call>"
    assert read([broken]) == (broken, [])
    assert read([broken[:13], broken[13:] + call()]) == (broken, [("f", {})])
