"""Controls of an evaluation, and the check of forgetting, with a server that answers from a script."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from r3agent.cli.main import main
from r3agent.data import forget
from r3agent.errors import ConfigError
from r3agent.evaluate import gate, table
from r3agent.records.branching import DONOR
from r3agent.records.credit import groups
from r3agent.records.summary import summarise
from r3agent.records.trajectory import Trajectory
from r3agent.run.controls import control_branches
from r3agent.run.stages import Run
from r3agent.store.history import history
from r3agent.store.trajectories import load
from r3agent.train.rows import left_out
from tests.run.test_stages import reopened, with_version
from tests.support.chatting import ChattingEndpoint, subject

N_TASKS = 6
CONTROLS = {"eval__controls": ["generic", "donor"]}


def reply(body: dict[str, Any]) -> str:
    """Every first try fails; v0001 passes after the reflection on its own task, and forgot how to answer `old`."""
    texts = [m["content"] for m in body["messages"]]
    task = texts[0].partition(":")[0]
    if task.startswith("old"):
        return "5" if body["model"] == "tiny@v0001" else "6"
    if "Reflect" in texts[-1]:
        return f"hint {task}"
    return "6" if body["model"] == "tiny@v0001" and f"hint {task}" in texts else "5"


@pytest.fixture
def run(tmp_path: Path, endpoint: ChattingEndpoint) -> Run:
    settings = {**subject(endpoint, tmp_path, N_TASKS), "eval.n": N_TASKS, "eval.split": "all"}
    run = Run(tmp_path / "run", settings)
    run.write_config()
    return with_version(run)


def stored(run: Run, name: str) -> list[Trajectory]:
    return load(run.directory / "eval" / name)


def test_evaluate_tells_a_reflection_from_its_controls(run: Run, endpoint: ChattingEndpoint) -> None:
    plain = run.evaluate("v0000", "v0001")
    asked = len(endpoint.chats)
    found = reopened(run, **CONTROLS).evaluate("v0000", "v0001")
    assert len(endpoint.chats) == asked + 2 * 2 * N_TASKS  # one retry of each failed try, for each control
    new = found.candidate
    assert new.after_reflection == plain.candidate.after_reflection
    assert [cell and cell.rate for cell in (new.after_reflection, new.generic_reflection, new.donor_reflection)] == [
        1,
        0,
        0,
    ]
    assert new.lift_over_donor is not None
    assert (new.lift_over_donor.points, new.lift_over_donor.p_value) == (100, 2 / 2**N_TASKS)
    assert found.lift_over_generic is not None
    assert (found.lift_over_generic.points, found.lift_over_generic.n_up) == (100, N_TASKS)
    assert "lift over donor" in table(found)
    asked = len(endpoint.chats)
    assert reopened(run, **CONTROLS).evaluate("v0000", "v0001") == found
    assert reopened(run).evaluate("v0000", "v0001") == plain
    assert len(endpoint.chats) == asked


def test_evaluate_records_a_comparison_once(run: Run) -> None:
    found = run.evaluate("v0000", "v0001")
    [path] = run.directory.glob("eval/whole.*.json")
    written = path.stat().st_mtime_ns
    assert reopened(run).evaluate("v0000", "v0001") == found
    [event] = [e for e in history(run.registry.policies_dir, "v0001") if e.event == "evaluated"]
    assert (event.by, path.stat().st_mtime_ns) == ("person", written)
    path.write_text("{")
    assert reopened(run).evaluate("v0000", "v0001") == found  # a damaged file is written anew
    assert '"settings"' in path.read_text()


def test_control_branches_are_neither_trained_nor_counted(run: Run) -> None:
    reopened(run, **CONTROLS).evaluate("v0000", "v0001")
    episodes = {t.trajectory_id: t for t in stored(run, "v0001")}
    for control in ("generic", "donor"):
        branches = stored(run, f"v0001.{control}")
        assert len(branches) == N_TASKS
        for branch in branches:
            [attempt, given, retry] = branch.spans
            parent = episodes[str(branch.parent_id)]
            own = parent.spans[1]
            assert (branch.control, given.purpose, given.token_ids) == (control, f"{control} reflection", None)
            assert (attempt, given.request, [*branch.sampled]) == (parent.spans[0], own.request, [retry])
            assert given.text != own.text
            assert branch.prompt(retry)[-2:] == [given.turn, *retry.request]
            assert branch.policy_versions == ("v0001",)
        counts = summarise(branches)
        assert (counts.retry_after_reflection, counts.retry_blind, counts.groups) == (None, None, 0)
        assert {*left_out(branches).values()} == {"control"}
        assert [group for label in ("attempt", "reflect", "retry") for group in groups(branches, label)] == []
    taken = [t.metadata[DONOR] for t in stored(run, "v0001.donor")]
    assert sorted(taken) == sorted(episodes)  # each is used once, and never on its own task


def test_donor_without_another_task_is_left_out(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    alone = reopened(run, eval__n=1, **CONTROLS).measure("v0001")
    assert (alone.generic_reflection and alone.generic_reflection.rate, alone.donor_reflection) == (0, None)
    assert "donor of v0001: 0 branches; it needs a failed first try, and a donor for each" in caplog.text


def test_donors_are_all_there_or_none(run: Run) -> None:
    run.measure("v0001")
    one, other, *_ = stored(run, "v0001")
    cut = other.changed(spans=[s.model_copy(update={"text": "", "finish_reason": "length"}) for s in other.spans])
    assert len(control_branches("donor", [one, other], text="", seed=0)) == 2
    assert control_branches("donor", [one, cut], text="", seed=0) == []
    drawn = [control_branches("donor", stored(run, "v0001"), text="", seed=seed) for seed in (0, 0, 1)]
    first, again, others = ([branch.metadata[DONOR] for branch in branches] for branches in drawn)
    assert first == again != others


def test_control_branches_with_errors_leave_their_cell(run: Run, endpoint: ChattingEndpoint) -> None:
    run.evaluate("v0000", "v0001")
    answer = endpoint.reply
    endpoint.reply = lambda body: "5"
    found = reopened(run, **CONTROLS, eval__generic_reflection="Once more.").measure("v0001")
    assert found.generic_reflection is not None
    [path] = (run.directory / "eval" / "v0001.generic").glob("*.jsonl")
    assert path.read_text().count("Once more.") == N_TASKS
    endpoint.reply = answer
    assert reopened(run, **CONTROLS).measure("v0001").generic_reflection == found.generic_reflection
    assert path.parent.is_dir()
    assert len(stored(run, "v0001.generic")) == 2 * N_TASKS  # another text makes other branches


def test_gate_takes_no_controls_and_a_decided_one_gets_them(run: Run, endpoint: ChattingEndpoint) -> None:
    run = reopened(run, gate__split="all", **CONTROLS)
    decided = run.evaluate("v0000", "v0001", for_gate=True)
    assert decided.candidate.generic_reflection is None
    asked = len(endpoint.chats)
    final = run.evaluate("v0000", "v0001")
    assert len(endpoint.chats) == asked + 2 * 2 * N_TASKS
    assert final.after_reflection == decided.after_reflection
    assert final.candidate.generic_reflection is not None
    assert run.comparison("v0000", "v0001", for_gate=True) == decided


@pytest.fixture
def old(tmp_path: Path) -> str:
    """Tasks of another source, with the ids of the run's own."""
    lines = ({"id": str(i), "prompt": f"old {i}: what is 2 * 3?", "answer": "6"} for i in range(40))
    (path := tmp_path / "old.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def test_forgetting_is_sampled_under_both_versions_and_blocks(run: Run, old: str, endpoint: ChattingEndpoint) -> None:
    checked = {"source": old, "verifier": "exact", "n": 5, "budget": 20}
    run = reopened(run, gate__split="all", eval__forgetting={"old": checked})
    found = run.evaluate("v0000", "v0001", for_gate=True)
    [check] = found.forgetting
    assert check.change is not None
    assert (check.source, check.change.points, check.change.n_tasks, check.within) == ("old", -100, 5, False)
    [folder] = (run.directory / "gate").glob("v*/forgetting/old/v0001")
    assert [len(t.spans) for t in load(folder)] == [1] * 5
    decision = gate(found, min_lift=0, max_regression=100, alpha=0.05)
    assert (decision.promote, decision.reasons[-1]) == (False, f"NOT met: {check.condition}")
    asked = len(endpoint.chats)
    assert run.comparison("v0000", "v0001", for_gate=True) == found
    assert (
        reopened(run, gate__split="gate", eval__forgetting={"old": {**checked, "budget": 100}})
        .evaluate("v0000", "v0001")
        .forgetting[0]
        .within
    )
    assert len(endpoint.chats) > asked  # the final evaluation draws tasks of its own


def test_forgetting_of_a_source_that_is_away_samples_nothing(run: Run, endpoint: ChattingEndpoint) -> None:
    asked = len(endpoint.chats)
    with pytest.raises(ConfigError, match=re.escape("away.jsonl")):
        reopened(run, eval__forgetting={"old": {"source": "away.jsonl"}}).evaluate("v0000", "v0001")
    assert len(endpoint.chats) == asked


def test_forget_erases_other_sources_and_controls(run: Run, old: str) -> None:
    settings = {"eval__forgetting": {"old": {"source": old, "verifier": "exact", "n": 3}}, **CONTROLS}
    reopened(run, **settings).evaluate("v0000", "v0001")
    assert any("old" in path.read_text() for path in run.directory.glob("eval/forgetting/old/v*/*.jsonl"))
    [whole] = run.directory.glob("eval/whole.*.json")
    shown = json.loads(whole.read_text())["comparison"]["examples"]["old"]
    forget(run.directory, episodes=[shown[0]["trajectory_id"]])
    assert json.loads(whole.read_text())["comparison"]["examples"]["old"] == shown[1:]
    donor = stored(run, "v0001.donor")[0].metadata[DONOR]
    receipt = forget(run.directory, episodes=[donor])
    assert len(receipt.episodes) == 1 + 2 + 1  # its own controls, and the one that it gave its reflection to
    forget(run.directory, where="split=all")
    texts = [path.read_text() for path in run.directory.glob("eval/**/*.jsonl") if path.parent.name != "index"]
    assert texts
    assert not any(texts)
    assert "excerpt" not in whole.read_text()


def test_plan_evaluation_takes_the_stored_discordance(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["r3agent.evaluate.power"], "ENOUGH_TASKS", N_TASKS)
    assumed = run.plan_evaluation("v0000", "v0001")
    assert (assumed.n_tasks, assumed.discordance, assumed.measured_on) == (N_TASKS, 0.2, "")
    assert main(["eval", "--run", str(run.directory), "--after", "v0001", "--lift", "50", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert (found["plan"]["lift"], found["plan"]["tasks_needed"]) == (50, 15)
    assert found["plan"]["smallest_lift"] == pytest.approx(100 * 0.8 ** (1 / 6), abs=0.01)  # six gains of six
    assert "a lift of 50 points after a reflection needs 15 tasks" in printed.err
    assert found["finding"].startswith("v0001 is better than v0000 after a reflection: +100.0 points")
    measured = run.plan_evaluation("v0000", "v0001")
    assert (measured.discordance, measured.measured_on) == (1.0, "v0000-v0001")
