"""The loop's decisions, with a run that has no server and no weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from r3agent.episodes.branches import BranchReport
from r3agent.episodes.failures import Failures
from r3agent.evaluate import Comparison, Decision, compare
from r3agent.records.branching import branch_of
from r3agent.records.summary import CollectSummary, summarise
from r3agent.records.trajectory import Trajectory
from r3agent.records.versions import BASE
from r3agent.run.config import load_config
from r3agent.run.loop import LoopReport, run_loop
from r3agent.run.stages import Run
from r3agent.store.registry import PolicyCard, Registry, checkpoints_dir, create_version, write_card
from tests.evaluate.episodes import episode

N_TASKS = 40
LEARNING = {"v0000": 5, "v0001": 15, "v0002": 25, "v0003": 35}
"""Tasks that a version does after reflecting: each is better than the one before."""
STUMBLING = {"v0000": 5, "v0001": 5, "v0002": 25, "v0003": 25}
"""The first and the third are no gain."""


class Killed(BaseException):
    """The process ended here."""


class Disk:
    """State that outlives a process: versions, the live pointer, comparisons; and a log of the stages that ended."""

    def __init__(self, directory: Path, skills: dict[str, int]) -> None:
        self.registry = Registry(directory)
        self.skills = skills
        self.comparisons: dict[tuple[str, str], Comparison] = {}
        self.decisions: dict[tuple[str, str], Decision] = {}
        self.log: list[str] = []


class FakeRun:
    """The part of a `Run` that `run_loop` needs, in milliseconds."""

    swaps_live = False

    def __init__(self, disk: Disk, settings: dict[str, Any], killed: tuple[str, str] | None = None) -> None:
        self.config = load_config(None, {f"loop.{key}": value for key, value in settings.items()})
        self.registry = disk.registry
        self.disk = disk
        self.killed = killed
        """`before` or `after`, and the stage."""

    def ensure_live(self) -> PolicyCard:
        self.registry.add_base("tiny", "org/tiny")
        if self.registry.live is None:
            self.registry.set_live(BASE)
        return self.registry.card(self.registry.live or BASE)

    def check_gate(self) -> None:
        pass

    def check_training(self) -> None:
        pass

    def serve_live(self) -> None:
        self.ensure_live()

    def collect(self, progress: Any, *, version: str) -> CollectSummary:
        with self._stage(f"collect with {version} for {self.registry.next_version()}"):
            progress(1, 1)
            return summarise([], resumed=3)

    def failures(self, version: str) -> Failures:
        found = episode("recorded", False, False, version="v0009")
        return Failures(begins=(branch_of(found),) if version == BASE else (), read=1)

    def branch(self, progress: Any, *, version: str, failures: Failures) -> BranchReport:
        with self._stage(f"branch {len(failures.begins)} off with {version}"):
            progress(1, 1)
            return BranchReport.of(failures, summarise([]))

    def train(self, progress: Any, *, resume: bool, start: str) -> PolicyCard:
        version = self.registry.next_version()
        with self._stage(f"train {version} from {start}"):
            progress("rows", {"rows": 8, "groups": 2, "repeated": 0 if start == BASE else 3})
            progress("step", {"step": 1, "steps": 1})
            if resume:
                self.disk.log.append(f"resume {version}")
            card = PolicyCard(version=version, name="tiny", kind="lora", base_model="org/tiny", parent=start)
            with create_version(self.registry.version_dir(version)) as directory:
                write_card(directory, card)
            return card

    def record_decision(self, before: str, after: str, decision: Decision) -> None:
        self.disk.decisions[before, after] = decision

    def deploy(self, version: str, *, passed: bool, by: str, reasons: Sequence[str]) -> PolicyCard:
        assert by == "gate"
        assert "met: " in reasons[0]
        with self._stage(f"deploy {version}"):
            self.registry.set_live(version, passed=passed)
            return self.registry.card(version)

    def rollback(self, to: str, *, by: str, reasons: Sequence[str]) -> PolicyCard:
        assert by == "gate"
        assert any("NOT met" in reason for reason in reasons)
        with self._stage(f"back to {to}"):
            self.registry.set_live(self.registry.rollback_target(to))
            return self.registry.card(to)

    decide = Run.decide

    def evaluate(self, before: str, after: str, progress: Any, *, for_gate: bool, alpha: float) -> Comparison:
        assert for_gate
        with self._stage(f"evaluate {after} against {before}"):
            comparison = compare(self._episodes(before), self._episodes(after))
            self.disk.comparisons[before, after] = comparison
            return comparison

    def comparison(self, before: str, after: str, *, for_gate: bool) -> Comparison | None:
        assert for_gate
        return self.disk.comparisons.get((before, after))

    def _episodes(self, version: str) -> list[Trajectory]:
        return [episode(str(i), False, i < self.disk.skills[version], version=version) for i in range(N_TASKS)]

    @contextmanager
    def _stage(self, stage: str) -> Generator[None]:
        if self.killed == ("before", stage):
            raise Killed
        yield
        self.disk.log.append(stage)
        if self.killed == ("after", stage):
            raise Killed


class Told:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.kinds: list[str] = []

    def stage(self, text: str, kind: str = "") -> None:
        self.stages.append(text)
        self.kinds.append(kind)

    def episodes(self, done: int, total: int) -> None: ...

    def steps(self, done: int, total: int) -> None: ...


def loop(disk: Disk, killed: tuple[str, str] | None = None, told: Told | None = None, **settings: int) -> LoopReport:
    run: Any = FakeRun(disk, settings, killed)
    return run_loop(run, told or Told())


def test_an_interrupted_training_is_trained_anew_on_demand(tmp_path: Path) -> None:
    disk = Disk(tmp_path, LEARNING)
    (checkpoints_dir(disk.registry.version_dir("v0001")) / "checkpoint-3").mkdir(parents=True)
    run: Any = FakeRun(disk, {"rounds": 1})
    run_loop(run, Told(), anew=True)
    assert [entry for entry in disk.log if entry.startswith(("resume", "train"))] == ["train v0001 from v0000"]


def promoted(report: LoopReport) -> list[tuple[int, bool]]:
    return [(r.round, r.decision.promote) for r in report.rounds]


def test_an_interrupted_training_is_resumed(tmp_path: Path) -> None:
    disk = Disk(tmp_path, LEARNING)
    (checkpoints_dir(disk.registry.version_dir("v0002")) / "checkpoint-3").mkdir(parents=True)
    told = Told()
    loop(disk, told=told, rounds=2)
    assert [entry for entry in disk.log if entry.startswith(("resume", "train"))] == [
        "train v0001 from v0000",
        "resume v0002",
        "train v0002 from v0001",
    ]
    # "" is estimated by none
    assert told.kinds == ["", "collect", "", "train", "evaluate", "", "collect", "", "", "evaluate", ""]
    assert "(3 stored before)" in told.stages[7]
    assert any(": resuming the interrupted training on 8 rows" in text for text in told.stages)


def test_every_version_that_passes_the_gate_is_the_next_ones_parent_and_rival(tmp_path: Path) -> None:
    disk = Disk(tmp_path, LEARNING)
    report = loop(disk, rounds=2)
    assert disk.log == [
        "collect with v0000 for v0001",
        "train v0001 from v0000",
        "evaluate v0001 against v0000",
        "deploy v0001",
        "collect with v0001 for v0002",
        "train v0002 from v0001",
        "evaluate v0002 against v0001",
        "deploy v0002",
    ]
    assert promoted(report) == [(1, True), (2, True)]
    assert report.live == disk.registry.live == "v0002"


def test_loop_mixes_fresh_tasks_and_recorded_failures(tmp_path: Path) -> None:
    disk, told = Disk(tmp_path, LEARNING), Told()
    loop(disk, told=told, rounds=2, branch=True)
    drawn = [entry for entry in disk.log if entry.startswith(("branch", "collect"))]
    assert drawn == ["branch 1 off with v0000", "collect with v0000 for v0001", "collect with v0001 for v0002"]
    assert told.stages[1] == "round 1 of 2: branching 1 recorded failure off with tiny"
    assert told.stages[3].endswith("; rewards differ in 0 groups and 0 of recorded failures")


def test_a_version_that_does_not_pass_is_never_live_and_the_next_starts_from_the_champion(tmp_path: Path) -> None:
    disk, told = Disk(tmp_path, STUMBLING), Told()
    report = loop(disk, told=told, rounds=3)
    assert disk.log == [
        "collect with v0000 for v0001",
        "train v0001 from v0000",
        "evaluate v0001 against v0000",
        "collect with v0000 for v0002",
        "train v0002 from v0000",
        "evaluate v0002 against v0000",
        "deploy v0002",
        "collect with v0002 for v0003",
        "train v0003 from v0002",
        "evaluate v0003 against v0002",
    ]
    assert promoted(report) == [(1, False), (2, True), (3, False)]
    assert report.live == "v0002"
    first, *_, last = [text for text in told.stages if ": training on " in text]
    assert first == "round 1 of 3: training on 8 rows in 2 groups of the run's episodes"
    assert last == f"{first.replace('round 1', 'round 3')}; v0002 or an ancestor was trained on 3 of them"
    [first, second] = [text for text in told.stages if "did not pass the gate" in text]
    assert first.startswith("v0001 did not pass the gate:\n  met: after reflection ")
    assert "\n  NOT met: p = 1 for a gain" in first
    assert first.endswith("\n  v0000 stays live")
    assert second.endswith("\n  v0002 stays live")


def test_between_evaluations_versions_are_sampled_and_trained_and_none_is_live(tmp_path: Path) -> None:
    disk = Disk(tmp_path, LEARNING)
    report = loop(disk, rounds=3, evaluate_every=2)
    assert disk.log == [
        "collect with v0000 for v0001",
        "train v0001 from v0000",
        "collect with v0001 for v0002",
        "train v0002 from v0001",
        "evaluate v0002 against v0000",
        "deploy v0002",
        "collect with v0002 for v0003",
        "train v0003 from v0002",
        "evaluate v0003 against v0002",  # the last one always is
        "deploy v0003",
    ]
    assert promoted(report) == [(2, True), (3, True)]


def test_versions_between_evaluations_go_with_the_one_that_did_not_pass(tmp_path: Path) -> None:
    disk = Disk(tmp_path, {"v0000": 5, "v0001": 15, "v0002": 5, "v0003": 25})
    report = loop(disk, rounds=3, evaluate_every=2)
    assert disk.log[4:6] == ["evaluate v0002 against v0000", "collect with v0000 for v0003"]
    assert disk.registry.card("v0003").parent == "v0000"
    assert disk.log[-2:] == ["evaluate v0003 against v0000", "deploy v0003"]
    assert report.live == "v0003"


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("evaluate_every", [1, 2])
@pytest.mark.parametrize("skills", [LEARNING, STUMBLING], ids=["learning", "stumbling"])
def test_a_loop_killed_at_any_stage_has_no_ungated_version_live_and_resumes(
    skills: dict[str, int], evaluate_every: int, moment: str, tmp_path: Path
) -> None:
    undisturbed = Disk(tmp_path / "undisturbed", skills)
    settings = {"rounds": 3, "evaluate_every": evaluate_every}
    expected = loop(undisturbed, **settings)
    passed = {f"v000{number}" for number, promote in promoted(expected) if promote}
    for number, stage in enumerate(undisturbed.log):
        disk = Disk(tmp_path / str(number), skills)
        with pytest.raises(Killed):
            loop(disk, killed=(moment, stage), **settings)
        registry = disk.registry
        assert registry.live in {BASE, *registry.passed}
        assert {*registry.passed} <= passed
        report = loop(disk, **settings)
        assert (promoted(report), report.live) == (promoted(expected), expected.live)
        assert list(dict.fromkeys(disk.log)) == undisturbed.log
        again = {s for s, n in Counter(disk.log).items() if n > 1}
        assert all(s.startswith("collect") for s in again)  # which finds what is done and keeps it


def test_a_loop_killed_after_every_stage_in_turn_ends_as_well(tmp_path: Path) -> None:
    undisturbed = Disk(tmp_path / "undisturbed", STUMBLING)
    loop(undisturbed, rounds=3)
    disk = Disk(tmp_path / "killed", STUMBLING)
    for stage in undisturbed.log:
        with pytest.raises(Killed):
            loop(disk, killed=("after", stage), rounds=3)
    assert loop(disk, rounds=3).live == "v0002"
    assert list(dict.fromkeys(disk.log)) == undisturbed.log


def test_a_finished_loop_does_nothing_again_and_says_so(tmp_path: Path) -> None:
    disk = Disk(tmp_path, STUMBLING)
    report = loop(disk, rounds=3)
    log = [*disk.log]
    again = loop(disk, rounds=3)
    assert disk.log == log
    assert [r.stored for r in again.rounds] == [True] * 3
    assert [r.model_copy(update={"stored": False}) for r in again.rounds] == [*report.rounds]
    disk.registry.set_live("v0000")  # rolled back by hand
    assert (loop(disk, rounds=3).live, again.champion) == ("v0000", "v0002")
    assert disk.log == log


@pytest.mark.parametrize(("skills", "live"), [(LEARNING, "v0001"), (STUMBLING, "v0000")])
def test_a_version_deployed_by_hand_is_gated_too(skills: dict[str, int], live: str, tmp_path: Path) -> None:
    disk = Disk(tmp_path, skills)
    with pytest.raises(Killed):
        loop(disk, killed=("after", "train v0001 from v0000"), rounds=1)
    disk.registry.set_live("v0001")
    told = Told()
    assert loop(disk, told=told, rounds=1).live == live
    assert ("v0001 was rolled back: tiny is live" in told.stages) == (live == "v0000")
    assert any("v0001, which is live, did not pass" in text for text in told.stages) == (live == "v0000")
    assert disk.registry.passed == (("v0001",) if live == "v0001" else ())


def test_more_rounds_go_on_from_the_champion(tmp_path: Path) -> None:
    disk = Disk(tmp_path, STUMBLING)
    loop(disk, rounds=1)
    done = len(disk.log)
    report = loop(disk, rounds=2)
    assert promoted(report) == [(1, False), (2, True)]
    assert disk.log[done:] == [
        "collect with v0000 for v0002",
        "train v0002 from v0000",
        "evaluate v0002 against v0000",
        "deploy v0002",
    ]


def test_the_level_is_spent_over_the_comparisons_and_handed_on_by_a_gain(tmp_path: Path) -> None:
    skills = [5, 5, 5, 5, 30, 30]
    report = loop(Disk(tmp_path, {f"v000{i}": skill for i, skill in enumerate(skills)}), rounds=5)
    reasons = [reason for r in report.rounds for reason in r.decision.reasons if "for a gain" in reason]
    levels = [float(reason.split("below ")[1]) for reason in reasons]
    assert levels == [0.05, 0.017, 0.0083, 0.005, 0.0083]
    assert promoted(report) == [(1, False), (2, False), (3, False), (4, True), (5, False)]


def test_a_decision_stays_when_its_round_is_between_evaluations_later(tmp_path: Path) -> None:
    disk = Disk(tmp_path, {"v0000": 5, "v0001": 5, "v0002": 15, "v0003": 25, "v0004": 35})
    loop(disk, rounds=3, evaluate_every=2)
    done = len(disk.log)
    report = loop(disk, rounds=4, evaluate_every=2)
    assert promoted(report) == [(2, True), (3, True), (4, True)]
    assert disk.log[done:] == [
        "collect with v0003 for v0004",
        "train v0004 from v0003",
        "evaluate v0004 against v0003",
        "deploy v0004",
    ]


def test_versions_are_compared_again_under_other_settings_and_not_trained_again(tmp_path: Path) -> None:
    disk = Disk(tmp_path, LEARNING)
    report = loop(disk, rounds=2)
    done = len(disk.log)
    disk.comparisons.clear()
    assert loop(disk, rounds=2) == report
    assert disk.log[done:] == ["evaluate v0001 against v0000", "evaluate v0002 against v0001"]
