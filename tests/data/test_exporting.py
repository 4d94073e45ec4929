"""Export: other libraries read what is written, and nothing that may not be trained on is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset, load_from_disk
from openai.types.chat.chat_completion import Choice

from r3agent import ConfigError, RecordError, Span, Task, Trajectory, Verdict, load
from r3agent.cli.main import main
from r3agent.data import export
from r3agent.store.trajectories import features

from .stores import collected

CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}


def tool_try(number: int, passed: bool) -> Trajectory:
    """A try of two steps: a call of a tool, and an answer."""
    task = Task(
        id="t",
        messages=({"role": "user", "content": "Look?"},),
        tools=({"type": "function", "function": {"name": "look", "parameters": {}}},),
    )
    verdict = Verdict(passed=passed, score=float(passed))
    first = Span(span_id="1", label="attempt", text="", model="m", tool_calls=(CALL,), policy_version="v0000")
    result = {"role": "tool", "tool_call_id": "1", "content": "seen"}
    last = Span(
        span_id="2", parent_id="1", label="attempt", text="Yes.", model="m", request=(result,), verdict=verdict,
        policy_version="v0000",
    )  # fmt: skip
    return Trajectory(task=task, sample=number, spans=(first, last))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_export_to_datasets_keeps_whole_records(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    episodes = collected(tmp_path / "store", "a", "b")
    assert export(episodes, tmp_path / "disk", to="hf").rows == 2
    assert export(episodes, tmp_path / "one.parquet", to="hf").rows == 2
    assert capfd.readouterr() == ("", "")
    parquet = load_dataset(
        "parquet",
        data_files=str(tmp_path / "one.parquet"),
        split="train",
        features=features(),
        cache_dir=str(tmp_path / "cache"),
    )
    for dataset in (load_from_disk(str(tmp_path / "disk")), parquet):
        assert [Trajectory.model_validate(row) for row in dataset] == episodes
    assert {path.name for path in tmp_path.iterdir()} == {"store", "disk", "one.parquet", "cache"}


def test_export_to_trl_has_conversations_of_its_types(tmp_path: Path) -> None:
    from trl.data_utils import is_conversational

    episodes = [*collected(tmp_path / "store", "a"), *collected(tmp_path / "held", "b", split="test")]
    out = tmp_path / "sft.jsonl"
    report = export(episodes, out, to="trl")
    assert (report.rows, report.episodes, report.left_out) == (1, 2, {"held_out": 1})
    (row,) = rows(out)
    assert row["completion"] == [{"role": "assistant", "content": "Add."}]
    assert [message["role"] for message in row["prompt"]] == ["user", "assistant", "user"]
    export(episodes, out.with_name("dpo.jsonl"), to="trl", type="preference")
    (pair,) = rows(out.with_name("dpo.jsonl"))
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("Add.", "Multiply.")
    export(episodes, out.with_name("kto.jsonl"), to="trl", type="unpaired-preference")
    marked = rows(out.with_name("kto.jsonl"))
    assert [(row["completion"][0]["content"], row["label"]) for row in marked] == [("Add.", True), ("Multiply.", False)]
    assert all(map(is_conversational, [row, pair, *marked]))


def test_export_to_trl_has_tools_and_steps(tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    export([tool_try(0, True), tool_try(1, False)], out, to="trl", label="attempt", type="preference")
    (pair,) = rows(out)
    assert [message["role"] for message in pair["chosen"]] == ["assistant", "tool", "assistant"]
    assert pair["chosen"][0]["tool_calls"][0]["function"]["arguments"] == {"at": "x"}
    assert pair["tools"][0]["function"]["name"] == "look"


def test_export_to_art_has_groups_of_choices(tmp_path: Path) -> None:
    (episode,) = collected(tmp_path / "store", "a")
    out = tmp_path / "art.jsonl"
    assert export([episode], out, to="art").rows == 1
    (group,) = rows(out)
    assert [member["reward"] for member in group["trajectories"]] == [1.0, 0.0]
    for member, span in zip(group["trajectories"], (s for s in episode.spans if s.label == "reflect"), strict=True):
        *prompt, last = member["messages_and_choices"]
        assert [message["role"] for message in prompt] == ["user", "assistant", "user"]
        choice = Choice(**last)
        assert choice.message.content == span.text
        assert choice.logprobs is not None
        assert [token.logprob for token in choice.logprobs.content or ()] == list(span.logprobs or ())
        assert last["token_ids"] == list(span.token_ids or ())
        assert last["prompt_token_ids"] == list(span.prompt_token_ids or ())
        ids = {"trajectory_id": episode.trajectory_id, "span_id": span.span_id}
        assert member["metadata"] == {**episode.metadata, **ids}
    export([tool_try(0, True), tool_try(1, False)], out.with_name("steps.jsonl"), to="art", label="attempt")
    (group,) = rows(out.with_name("steps.jsonl"))
    asked, call, result, answer = group["trajectories"][0]["messages_and_choices"]
    assert (asked["role"], result["role"]) == ("user", "tool")
    assert Choice(**call).finish_reason == "tool_calls"
    assert Choice(**answer).logprobs is None


def test_export_refuses_what_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    episodes = collected(tmp_path / "store", "a", script="right")
    with pytest.raises(RecordError, match="0 rows of 1 episode with label reflect"):
        export(episodes, tmp_path / "out", to="trl")
    with pytest.raises(RecordError, match="no trajectories"):
        export([], tmp_path / "out", to="hf")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").touch()
    with pytest.raises(ConfigError, match="exists"):
        export(episodes, tmp_path / "out", to="hf")
    words = ["data", "export", str(tmp_path / "store"), "--to", "trl", "--label", "attempt"]
    assert main([*words, "--out", str(tmp_path / "new.jsonl")]) == 0
    assert "has 1 row of 1 episode" in capsys.readouterr().out
    assert len(load(tmp_path / "store")) == 1
