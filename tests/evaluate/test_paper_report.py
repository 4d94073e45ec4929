"""Report of the paper's protocol, of `benchmarks/paper/report.py`: from a run and its commands to Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper.report import line_of, result_of, section
from r3agent.evaluate import compare, forgetting
from r3agent.records.trajectory import Span, Trajectory
from r3agent.store.registry import PolicyCard, create_version, write_card
from r3agent.store.shards import TrajectoryWriter
from r3agent.train.lineage import STEPS_FILE
from tests.evaluate.episodes import episode
from tests.support.registries import tiny_registry

METRICS = {"rows": {"rows": 40}, "drift": {"kl": 0.25}, "steps": 3, "seconds": 60.0}
BRANCHED = {
    "branches": 4,
    "summary": {"groups_with_variance": 2, "retry_after_reflection": 0.5, "tokens_sampled": 300},
}


def played(version: str, *, reflected: bool) -> list[Trajectory]:
    """Return episodes of one task that passes at first, and of two that do not; each span has one token."""
    drawn = [episode("easy", True, version=version)]
    drawn += [episode(task, False, reflected, task == "odd", version=version) for task in ("hard", "odd")]
    texts = {"reflect": f"`{version}` reflects"}

    def with_text(span: Span) -> Span:
        return span.model_copy(update={"text": texts.get(span.label, "no"), "completion_tokens": 1})

    return [t.model_copy(update={"spans": tuple(map(with_text, t.spans))}) for t in drawn]


def store(folder: Path, episodes: list[Trajectory]) -> None:
    with TrajectoryWriter(folder) as writer:
        for one in episodes:
            writer.append(one)


def report(commands: Path, **reports: dict[str, Any]) -> None:
    """Write reports of commands that took half a minute each."""
    commands.mkdir(exist_ok=True)
    for name, found in reports.items():
        file = commands / f"{name.replace('_', '-')}.json"
        file.write_text(json.dumps({"seconds": 30, "report": found}))


def trained(run: Path) -> None:
    """Make a registry with one trained version."""
    card = PolicyCard(version="v0001", name="tiny", kind="lora", base_model="org/tiny", parent="v0000", metrics=METRICS)
    with create_version(tiny_registry(run).version_dir("v0001")) as directory:
        write_card(directory, card)
        steps = [{"kl": 0.5, "clip_ratio/region_mean": 0.25}, {"kl": 1.5, "clip_ratio/region_mean": 0.125}]
        (directory / STEPS_FILE).write_text("".join(f"{json.dumps(step)}\n" for step in steps))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of a complete seed with one round, and with another source."""
    run, before, after = tmp_path / "run", played("v0000", reflected=False), played("v0001", reflected=True)
    trained(run)
    for name, episodes in (("v0000", before), ("v0001", after)):
        store(run / "eval" / name, episodes)
        store(run / "eval" / "forgetting" / "sums" / name, episodes[:1])
    sums = forgetting("sums", before[:1], after[:1], budget=2)
    compared = compare(before, after).model_copy(update={"forgetting": (sums,)}).model_dump(mode="json")
    commands = {"init": {}, "collect": {"tokens_sampled": 100}, "branch_1": BRANCHED, "train_1": {}, "deploy_1": {}}
    report(tmp_path / "commands", **commands, eval={**compared, "decision": {}})
    return tmp_path


def warm_up(folder: Path) -> None:
    """Add the stage of a warm-up."""
    trained(folder / "warm-up")
    cells = {"first_try": {"rate": 0.25}, "after_reflection": {"rate": 0.5}, "blind_retry": None}
    reports = {"collect": {"tokens_sampled": 70}, "eval": {**cells, "policy": "v0000"}, "train_1": {}, "export": {}}
    report(folder / "warm-up-commands", **reports)


def test_result_has_rounds_tokens_and_duration(folder: Path) -> None:
    result = result_of(folder)
    [first] = result["rounds"]
    assert (first["failures"], first["groups_with_variance"], first["retry_success"]) == (4, 2, 0.5)
    assert (first["tokens"], first["rows"], first["steps"], first["kl_to_base"]) == (300, 40, 3, 0.25)
    # each version: 1 + 4 + 4 spans, and 1 on the other source
    assert result["tokens"] == {"failures": 100, "reflections": 300, "evaluation": 20}
    assert result["minutes"] == 3
    assert result["comparison"]["after_reflection"]["points"] == pytest.approx(200 / 3)
    assert "warm_up" not in result


def test_result_shows_reflections_on_common_failures(folder: Path) -> None:
    found = result_of(folder)["reflections"]
    assert sorted(entry["task"] for entry in found) == ["`hard`", "`odd`"]
    for entry in found:
        assert entry["before"] == {"reflection": "`'v0000' reflects`", "passed": False}
        assert entry["after"] == {"reflection": "`'v0001' reflects`", "passed": True}


def test_result_has_the_warm_up(folder: Path) -> None:
    warm_up(folder)
    found = result_of(folder)["warm_up"]
    assert (found["rows"], found["tokens"], found["minutes"]) == (40, 70, 2)
    assert found["base"] == {"first_try": {"rate": 0.25}, "after_reflection": {"rate": 0.5}, "blind_retry": None}


def test_section_reads_results_that_were_stored(folder: Path) -> None:
    plain = json.loads(json.dumps(result_of(folder)))
    warm_up(folder)
    text = section({0: plain, 3: json.loads(json.dumps(result_of(folder)))})
    tokens = "100 for failures, 300 for reflections, 20 for evaluation"
    assert text.startswith(f"Seed 0: 3.0 minutes; tokens sampled: {tokens}.\n\n```\n")
    assert f"Seed 3: 3.0 minutes; tokens sampled: {tokens}.\n\nBefore it, 2.0 minutes of supervised training" in text
    assert "first try 25.0 %, after reflection 50.0 %. v0000 is the version that it made." in text
    assert text.count("| 1 | 4 | 2 | 50.0 | 300 | 40 | 3 | 0.25 | 1.5 | 0.25 |") == 2
    assert text.count("Reflections of seed 0 on the 5 test tasks") == text.count("Reflections of seed") == 1
    assert "- Task: `hard`\n    - before (the retry failed): `'v0000' reflects`\n    - after (the retry passed)" in text


def test_line_has_a_figure_of_each_seed(folder: Path) -> None:
    result = result_of(folder)
    line = line_of("tiny", {0: result, 3: {**result, "minutes": 5.0}})
    assert (line["config"], line["seeds"], line["n_tasks"]) == ("tiny", [0, 3], [3, 3])
    assert line["after_reflection"]["points"] == [66.67, 66.67]
    assert line["blind_retry"] == {"points": [0.0, 0.0], "p": [1.0, 1.0]}
    assert "lift_over_donor" not in line  # the control was not drawn
    assert line["reflection_tokens"] == [[1.0, 1.0], [1.0, 1.0]]
    assert line["forgetting"] == {"sums": [0.0, 0.0]}
    assert (line["tokens"], line["minutes"]) == ([420, 420], [3.0, 5.0])
