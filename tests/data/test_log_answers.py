"""Answers in logs that are JSON themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from r3agent import load
from r3agent.data import import_logs

ASKED = [{"role": "user", "content": "Answer as JSON."}]
EXACT, PARSED = "trainable-retokenised", "eval-only"


def imported(tmp_path: Path, row: dict[str, Any]) -> tuple[str, str]:
    """Text and capability of the answer in a row."""
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps(row))
    import_logs([log], tmp_path / "store")
    [found] = load(tmp_path / "store")
    [span] = found.spans
    return span.text, span.capability


@pytest.mark.parametrize(
    ("output", "text", "capability"),
    [
        ('{"answer":  42}', '{"answer":  42}', EXACT),
        ('{"message": "done", "code": 3}', '{"message": "done", "code": 3}', EXACT),
        ('[{"name": "a"}, {"name": "b"}]', '[{"name": "a"}, {"name": "b"}]', EXACT),
        ({"answer": 42}, '{"answer": 42}', PARSED),
        ({"output": "done", "why": "x"}, '{"output": "done", "why": "x"}', PARSED),
        ([1, 2], "[1, 2]", PARSED),
        (42, "42", PARSED),
        ({"role": "assistant", "content": '{"answer": 42}'}, '{"answer": 42}', EXACT),
        ([*ASKED, {"role": "assistant", "content": "4"}], "4", EXACT),
        ({"content": "4", "additional_kwargs": {}}, "4", EXACT),
        ({"output": "4"}, "4", EXACT),
    ],
)
def test_import_of_langfuse_keeps_an_answer_of_json(tmp_path: Path, output: Any, text: str, capability: str) -> None:
    row = {"id": "o", "traceId": "t", "type": "GENERATION", "input": ASKED, "output": output}
    assert imported(tmp_path, row) == (text, capability)


@pytest.mark.parametrize(
    "outputs",
    [
        {"output": '{"answer": 42}'},
        {"generations": [[{"text": '{"answer": 42}', "type": "ChatGeneration"}]]},
        {"choices": [{"index": 0, "message": {"role": "assistant", "content": '{"answer": 42}'}}], "id": "x"},
    ],
)
def test_import_of_langsmith_keeps_an_answer_of_json(tmp_path: Path, outputs: Any) -> None:
    row = {"id": "r", "trace_id": "t", "run_type": "llm", "inputs": {"messages": ASKED}, "outputs": outputs}
    assert imported(tmp_path, row) == ('{"answer": 42}', EXACT)
