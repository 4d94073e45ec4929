"""Statistics of a store: what is counted, and what the verb prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from r3agent import Span, Verdict, label
from r3agent.cli.main import main
from r3agent.data import stats
from r3agent.errors import ConfigError
from r3agent.records.branching import branch_of
from r3agent.records.trajectory import AT_ONCE
from r3agent.store.shards import TrajectoryWriter
from tests.support.trees import span, tree

from .stores import collected


def test_stats_count_episodes_groups_and_passes(tmp_path: Path) -> None:
    collected(tmp_path, "a", "b", source="s.jsonl", split="train")
    collected(tmp_path, "c", script="right", split="test")
    (open_,) = [t for t in collected(tmp_path, "d", script="never right") if t.metadata["user"] == "d"]
    label(tmp_path, open_, passed=True, by="me")  # on the last try
    found = stats(tmp_path)
    assert (found.episodes, found.tasks, found.branches, found.unreadable) == (4, 4, 0, 0)
    assert found.outcomes == {"passed": 4}
    assert found.labels == {"attempt": 4, "reflect": 6, "retry": 6}
    assert (found.groups, found.groups_with_variance) == (3, 3)
    first, after = found.pass_rates["first_try"], found.pass_rates["retry_after_reflection"]
    assert (first.rate, first.n_tasks, after.rate, after.n_tasks) == (0.25, 4, 0.5, 3)
    assert first.low < 0.25 < first.high
    assert {key: share.episodes for key, share in found.splits.items()} == {"test": 1, "train": 2, "unknown": 1}
    assert {key: share.episodes for key, share in found.sources.items()} == {"s.jsonl": 2, "unknown": 2}
    assert found.splits["test"].first_try is not None
    assert found.splits["test"].first_try.rate == 1.0
    files = (path for path in tmp_path.rglob("*.jsonl") if path.parent.name != "index")
    assert found.bytes == sum(path.stat().st_size for path in files)
    assert found.tokens_sampled == sum(share.tokens_sampled for share in found.versions.values()) > 0


def test_stats_verb_prints_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collected(tmp_path, "a", source="s.jsonl")
    (shard,) = tmp_path.glob("*.jsonl")
    with shard.open("a") as file:
        file.write('{"task": 3}\n')
    assert main(["data", "stats", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "1 episode of 1 task" in text
    assert "groups with variance" in text
    assert re.search(r"passed +1 episode +a try is right", text)
    assert re.search(r"first try +0.0% \(.*\), mean of 1 task +0 of 1 try passed\n", text)
    assert "split" not in text  # no record has one
    assert f"lines that are no records: 1, see r3agent data check {tmp_path}" in text
    assert main(["data", "stats", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == stats(tmp_path).model_dump(mode="json")


def test_stats_count_the_retries_that_no_rate_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = span("attempt", passed=False)
    reflections = [span("reflect", first) for _ in range(2)]
    retries = [span("retry", reflection, passed=i == 1) for i, reflection in enumerate(reflections)]
    with TrajectoryWriter(tmp_path) as writer:
        writer.append(tree(first, *reflections, *retries).changed(metadata={AT_ONCE: 1}))
    found = stats(tmp_path)
    assert (found.pass_rates["retry_after_reflection"].tries, found.uneven_retries) == (1, 1)
    assert main(["data", "stats", str(tmp_path)]) == 0
    assert re.search(r"retries in no rate +1 try +drawn after others had failed", capsys.readouterr().out)


def test_stats_count_a_branch_for_the_source_of_its_parent(tmp_path: Path) -> None:
    (episode,) = collected(tmp_path, "a", source="s.jsonl", split="train")
    with TrajectoryWriter(tmp_path) as writer:
        writer.append(branch_of(episode))
        writer.append(branch_of(episode).changed(parent_id="elsewhere"))
    found = stats(tmp_path)
    assert {key: share.episodes for key, share in found.sources.items()} == {"s.jsonl": 2, "unknown": 1}
    assert (found.branches, found.splits["train"].episodes) == (2, 3)


def test_stats_rate_the_retries_of_branches_apart(tmp_path: Path) -> None:
    (episode,) = collected(tmp_path, "a")
    begin = branch_of(episode)
    blind = Span(label="retry", parent_id=begin.spans[-1].span_id, text="41", model="m", verdict=Verdict.failed("no"))
    with TrajectoryWriter(tmp_path) as writer:
        writer.append(begin.changed(spans=(*begin.spans, blind)))
    rates = stats(tmp_path).pass_rates
    assert {kind: (rate.passed, rate.tries) for kind, rate in rates.items()} == {
        "first_try": (0, 1),
        "retry_after_reflection": (1, 2),
        "branch_retry_blind": (0, 1),
    }


def test_stats_refuse_what_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such directory"):
        stats(tmp_path / "nowhere")
