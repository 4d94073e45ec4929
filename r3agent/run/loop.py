"""Loop of collect, train, deploy, evaluate and gate, until the run has `loop.rounds` versions.

The progress is read from the run directory, so a loop that was stopped at any moment resumes where it was. The gate
compares a version with the last one that passed, on tasks of the split `gate.split`. A version that does not pass is
rolled back, and the next round starts from the last one that did. `r3agent eval` gives the final result on the tasks of
`eval.split`: they decided on no promotion, so its numbers have no selection bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from r3agent.evaluate import Comparison, Decision, gate
from r3agent.records.trajectory import Record
from r3agent.records.versions import BASE, version_name
from r3agent.run.stages import Run


class Reporter(Protocol):
    """Receiver of the loop's progress."""

    def stage(self, text: str, kind: str = "") -> None:
        """Report that a stage begins, or the result of one; stages of one kind take about the same time."""
        ...

    def episodes(self, done: int, total: int) -> None:
        """Report how many episodes of the current stage are done."""
        ...

    def steps(self, done: int, total: int) -> None:
        """Report how many optimizer steps of the current stage are done."""
        ...


class RoundReport(Record):
    """One evaluated round."""

    round: int
    comparison: Comparison
    decision: Decision


class LoopReport(Record):
    """Every evaluated round, and the live version at the end."""

    rounds: tuple[RoundReport, ...]
    live: str


def run_loop(run: Run, reporter: Reporter) -> LoopReport:
    """Run rounds until the run has `loop.rounds` trained versions.

    Raises:
        R3Error: a stage failed; finished work is kept, and the same call resumes there.
    """
    settings, split = run.config.loop, run.config.gate.split
    run.serve_live()
    champion = BASE
    reports: list[RoundReport] = []
    for number in range(1, settings.rounds + 1):
        version = version_name(number)
        evaluated = number % settings.evaluate_every == 0 or number == settings.rounds
        comparison = run.comparison(champion, version, split=split) if evaluated else None
        if comparison is None:
            if version not in run.registry.versions():
                _grow(run, reporter, f"round {number} of {settings.rounds}")
            if version == run.registry.versions()[-1]:
                report = run.deploy(version)
                reporter.stage(f"{report.served_name} is live")
            if not evaluated:
                continue
            reporter.stage(
                f"comparing {version} with {champion} on {run.config.eval.n} frozen tasks of the {split} split",
                "evaluate",
            )
            comparison = run.evaluate(champion, version, reporter.episodes, split=split)
        decision = gate(comparison, **run.config.gate.model_dump(exclude={"split"}))
        reports.append(RoundReport(round=number, comparison=comparison, decision=decision))
        if decision.promote:
            champion = version
        elif run.registry.live == version:
            reporter.stage(f"{version} did not pass the gate ({'; '.join(decision.reasons)}): back to {champion}")
            run.rollback(champion)
    return LoopReport(rounds=tuple(reports), live=run.ensure_live().version)


def _grow(run: Run, reporter: Reporter, round_: str) -> None:
    """Collect with the live policy and train the next version."""
    reporter.stage(
        f"{round_}: collecting episodes of {run.config.collect.n} tasks with {run.ensure_live().served_name}", "collect"
    )
    summary = run.collect(reporter.episodes)
    resume = run.registry.has_checkpoint(run.registry.next_version())
    training = "resuming the interrupted training" if resume else "training"
    reporter.stage(
        f"{round_}: {summary.episodes} episodes, first try {summary.first_try or 0:.1%}, retry after reflection "
        f"{summary.retry_after_reflection or 0:.1%}; {training} on {summary.groups_with_variance} groups",
        "" if resume else "train",  # a training that is resumed takes less than a whole one
    )

    def report_step(stage: str, values: Mapping[str, Any]) -> None:
        if stage == "step":
            reporter.steps(values["step"], values["steps"])

    run.train(report_step, resume=resume)
