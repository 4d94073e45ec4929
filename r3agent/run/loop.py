"""Loop of collect, train, evaluate, gate and deploy, until the run has `loop.rounds` versions.

The progress is read from the run directory, so a loop that was stopped at any moment resumes where it was. The gate
compares a version with the champion, the last one that passed, on tasks of the split `gate.split`. Both
versions' episodes are sampled for this comparison alone, and `gate.alpha` is spent over all comparisons, so that a long
loop does not promote an equal version by chance. Only a version that passes becomes live. After one that does not, the
next round starts from the champion again; between evaluations, each version samples the rows of the next one without
being live. `r3agent eval` gives the final result on the tasks of `eval.split`: they decided on no promotion, so its
numbers have no selection bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from r3agent._util.messages import count, listed
from r3agent.evaluate import Comparison, Decision, spend_alpha
from r3agent.records.trajectory import Record
from r3agent.records.versions import BASE, version_name, version_number
from r3agent.run.stages import Run
from r3agent.store.history import GATE


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
    stored: bool = False
    """True if an earlier call made the comparison, and this one only read it."""


class LoopReport(Record):
    """Every evaluated round, and the live version at the end."""

    rounds: tuple[RoundReport, ...]
    champion: str
    """The last version that passed the gate, or v0000."""
    live: str
    """Another version than the champion if it was deployed, or rolled back to, by hand."""


def run_loop(run: Run, reporter: Reporter, *, anew: bool = False) -> LoopReport:
    """Run rounds until the run has `loop.rounds` trained versions.

    Args:
        anew: train an interrupted version anew instead of resuming it.

    Raises:
        R3Error: a stage failed; finished work is kept, and the same call resumes there.
    """
    settings = run.config.loop
    run.check_gate()
    run.ensure_live()
    reporter.stage("loading torch and trl, and checking that the base model can be trained")
    run.check_training()
    run.serve_live()
    champion = parent = BASE
    reports: list[RoundReport] = []
    for number in range(1, settings.rounds + 1):
        version = version_name(number)
        evaluated = number % settings.evaluate_every == 0 or number == settings.rounds
        alpha = spend_alpha(run.config.gate.alpha, [report.decision.promote for report in reports])
        comparison = run.comparison(champion, version, for_gate=True)
        stored = comparison is not None
        if comparison is None:
            if version not in run.registry.versions():
                _grow(run, reporter, parent, f"round {number} of {settings.rounds}", anew=anew)
            if not evaluated:
                parent = version
                continue
            swap = "; the live server answers with their weights meanwhile" if run.swaps_live else ""
            reporter.stage(
                f"comparing {version} with {champion} on up to {count(run.config.gate_tasks, 'task')} of the "
                f"{run.config.gate.split} split{swap}",
                "evaluate",
            )
            comparison = run.evaluate(champion, version, reporter.episodes, for_gate=True, alpha=alpha)
        decision = run.decide(comparison, alpha)
        run.record_decision(champion, version, decision)
        reports.append(RoundReport(round=number, comparison=comparison, decision=decision, stored=stored))
        if decision.promote:
            champion = version
            _make_live(run, reporter, version, decision)
        elif not stored or run.registry.live == version:
            was_live = run.registry.live == version  # it was deployed by hand, or passed under other settings
            then = f"rolling back to {champion}" if was_live else f"{run.registry.live} stays live"
            reporter.stage(f"{version}{', which is live,' if was_live else ''} {decision.text()}\n  {then}")
            if was_live:
                back = run.rollback(champion, by=GATE, reasons=[f"{version}: {reason}" for reason in decision.reasons])
                reporter.stage(f"{version} was rolled back: {back.served_name} is live")
        parent = champion
    return LoopReport(rounds=tuple(reports), champion=champion, live=run.ensure_live().version)


def _make_live(run: Run, reporter: Reporter, version: str, decision: Decision) -> None:
    """Make a version that passed live, unless it or a newer one has been live: then a person went back."""
    registry = run.registry
    been_live = [v for v in (registry.live, registry.previous, *registry.passed) if v is not None]
    is_newest = version_number(version) > max(map(version_number, been_live), default=0)
    if is_newest or (version == registry.live and version not in registry.passed):
        report = run.deploy(version, passed=True, by=GATE, reasons=decision.reasons)
        reporter.stage(f"{version} passed the gate: {report.served_name} is live")


def _grow(run: Run, reporter: Reporter, parent: str, round_: str, *, anew: bool) -> None:
    """Collect with a version, which need not be live, and train the next one from it."""
    name = run.registry.card(parent).served_name
    branched = ""
    if run.config.loop.branch:
        found = run.failures(parent)
        what = listed(f"branching {count(len(found.begins), 'recorded failure')} off with {name}", found.lines())
        reporter.stage(f"{round_}: {what}", "branch" if found.begins else "")
        if found.begins:
            made = run.branch(reporter.episodes, version=parent, failures=found).summary
            branched = f" and {made.groups_with_variance} of recorded failures"
    reporter.stage(f"{round_}: collecting episodes of {count(run.config.collect.n, 'task')} with {name}", "collect")
    summary = run.collect(reporter.episodes, version=parent)
    resume = not anew and run.registry.has_checkpoint(run.registry.next_version())
    training = "resuming the interrupted training" if resume else "training"
    reporter.stage(
        f"{round_}: {count(summary.episodes, 'episode')} ({summary.resumed} stored before), "
        f"passed: {summary.first_try or 0:.1%} of first tries, "
        f"{summary.retry_after_reflection or 0:.1%} of retries after reflection; "
        f"{summary.tries_of_policy} of {count(summary.tries, 'try')} asked the policy; "
        f"rewards differ in {count(summary.groups_with_variance, 'group')}{branched}"
    )

    def report_step(stage: str, values: Mapping[str, Any]) -> None:
        if stage == "rows":
            stored = f"{count(values['rows'], 'row')} in {count(values['groups'], 'group')} of the run's episodes"
            before = f"; {parent} or an ancestor was trained on {n} of them" if (n := values["repeated"]) else ""
            # a training that is resumed takes less than a whole one
            reporter.stage(f"{round_}: {training} on {stored}{before}", "" if resume else "train")
        elif stage == "step":
            reporter.steps(values["step"], values["steps"])

    run.train(report_step, resume=resume, start=parent)
