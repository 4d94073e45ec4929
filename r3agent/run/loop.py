"""Collect, train, deploy, evaluate, gate: round after round, until the run has its versions.

What is done is read off the run directory, so that a loop stopped at any moment goes on where it was. The gate
compares a version with the last one that passed it, on tasks of the split `gate.split`; a version that does not pass is
rolled back, and the next round starts from the one that did. The final word is `r3agent eval`: its tasks, those of
`eval.split`, have then decided nothing, so that what was chosen on others has no luck in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from r3agent.evaluate import Comparison, Decision, gate
from r3agent.records.trajectory import Record
from r3agent.records.versions import BASE, version_name
from r3agent.run.stages import Run


class Reporter(Protocol):
    """Reporter of what the loop is doing."""

    def stage(self, text: str, kind: str = "") -> None:
        """Report that a stage begins, of a kind whose stages take about as long, or what came of one."""
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
    """Every evaluated round, and what is live at the end."""

    rounds: tuple[RoundReport, ...]
    live: str


def run_loop(run: Run, reporter: Reporter) -> LoopReport:
    """Work until the run has `loop.rounds` trained versions.

    Raises:
        R3Error: a stage failed; what was done stays, and the same call goes on from there.
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
    """Collect with the live policy and train the next version from it."""
    reporter.stage(
        f"{round_}: collecting episodes of {run.config.collect.n} tasks with {run.ensure_live().served_name}", "collect"
    )
    summary = run.collect(reporter.episodes)
    reporter.stage(
        f"{round_}: {summary.episodes} episodes, first try {summary.first_try or 0:.1%}, retry after reflection "
        f"{summary.retry_after_reflection or 0:.1%}; training on {summary.groups_with_variance} groups",
        "train",
    )
    resume = run.registry.has_checkpoint(run.registry.next_version())
    if resume:
        reporter.stage(f"{round_}: going on with the training that was interrupted")

    def report_step(stage: str, values: Mapping[str, Any]) -> None:
        if stage == "step":
            reporter.steps(values["step"], values["steps"])

    run.train(report_step, resume=resume)
