"""Stages of a run in its directory: collect, train, deploy, evaluate.

    RUN/r3.toml                       the settings
    RUN/trajectories/*.jsonl          episodes collected for training
    RUN/shards.name                   name of the run's folder at `collect.shards`, if its workers upload there
    RUN/policies/v0001/               a trained version with its card
    RUN/policies/history.jsonl        evaluations, decisions of the gate, deploys and rollbacks
    RUN/live.json                     the live version
    RUN/eval/v0001/*.jsonl            episodes of the frozen tasks, one folder per version
    RUN/eval/v0001.donor/*.jsonl      control branches of these episodes, one folder per control
    RUN/eval/forgetting/NAME/v0001/   episodes of the tasks of another source
    RUN/eval/v0000-v0001.test.*.json  comparison of two versions on the test split, one for each set of settings
    RUN/gate/v0002/                   the same for the gate of v0002, which shares no episode with other comparisons

A stage can be stopped at any moment: the directory stays consistent, and the next call does only what is missing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from r3agent._util.imports import require_extra
from r3agent.cards.readme import write_model_card
from r3agent.deploy import DeployReport, deploy, rollback
from r3agent.deploy.deployment import OnServer
from r3agent.errors import R3Error
from r3agent.evaluate import (
    Comparison,
    Decision,
    Evaluation,
    Forgetting,
    PowerPlan,
    compare,
    evaluate,
    forgetting,
    gate,
    plan_power,
)
from r3agent.evaluate.comparison import read_comparison, read_stored, write_comparison
from r3agent.evaluate.sentinel import lost
from r3agent.records.versions import BASE, version_name, version_number
from r3agent.run.collector import Progress
from r3agent.run.evaluations import DRAWN, Draw, Evaluations
from r3agent.run.made_with import made_with
from r3agent.run.trainable import check_rows
from r3agent.store.history import GATE, PERSON, Event, EventKind, history, last_event, record_event
from r3agent.store.registry import PolicyCard

logger = logging.getLogger(__name__)

LIMITS = {"min_lift", "max_regression", "alpha", "max_leaks", "max_length_factor", "max_disagreement"}
"""Settings of `[gate]` that decide on a comparison."""


class Run(Evaluations):
    """The stages of a run, in its directory."""

    def train(
        self,
        on_progress: Callable[[str, Mapping[str, Any]], None] | None = None,
        *,
        resume: bool = False,
        force: bool = False,
        start: str | None = None,
    ) -> PolicyCard:
        """Train a new policy version, or resume an interrupted training.

        Args:
            start: version to start from; default: the live one.
        """
        metrics, parent = self.metrics, self.card(start)
        check_rows(self, parent, on_progress)
        self.ensure_live()  # only after that: in a new run it contacts the server
        from r3agent.train import PolicyStart, train  # imports torch, so only after the checks above

        version, earlier = self.registry.next_version(), map(self.registry.card, self.registry.versions())
        steps = sum(one.metrics.get("steps", 0) for one in earlier)

        def report(stage: str, values: Mapping[str, Any]) -> None:  # by the first process alone
            if stage == "saved":
                self._report_training(version)
                self._write_model_card(version)
            if on_progress:
                on_progress(stage, values)

        return train(
            self.stored(),
            start=PolicyStart.of(parent, self.registry.version_dir(parent.version)),
            version=version,
            out_dir=self.registry.version_dir(version),
            config=self.config.train.model_copy(update={"report_to": "none"}),
            resume=resume,
            force=force,
            progress=metrics.following(report, steps),
            made_with=made_with(self.config, self.verifier_name),
        )

    def _report_training(self, version: str) -> None:
        """Report the metrics of a training as a whole."""
        found = self.registry.card(version).metrics
        rows = {name: value for name, value in found["rows"].items() if isinstance(value, int)}
        whole = {name: found[name] for name in ("train", "drift", "steps", "seconds")}
        self.metrics.log("training", {"rows": rows, **whole}, version_number(version))

    def deploy(
        self,
        version: str | None = None,
        *,
        passed: bool = False,
        by: str = PERSON,
        reasons: Sequence[str] = (),
        on_server: OnServer | None = None,
    ) -> DeployReport:
        """Load a version, by default the newest, into the server and make it live; `passed` says the gate agrees."""
        self.ensure_live()
        why: Any = {"passed": passed, "by": by, "reasons": reasons, "on_server": on_server}
        report = deploy(version or self.registry.versions()[-1], **why, **self.server_settings())
        self._write_model_card(report.version)
        return report

    def rollback(
        self, to: str | None = None, *, by: str = PERSON, reasons: Sequence[str] = (), on_server: OnServer | None = None
    ) -> DeployReport:
        """Return to an earlier version."""
        report = rollback(to=to, by=by, reasons=reasons, on_server=on_server, **self.server_settings())
        self._write_model_card(report.version)
        return report

    def evaluate(
        self,
        before: str,
        after: str,
        progress: Progress | None = None,
        *,
        for_gate: bool = False,
        alpha: float | None = None,
    ) -> Comparison:
        """Compare two versions on the same frozen tasks: first try, after reflection, and the blind-retry control.

        Where the gate uses `eval.split`, its comparison of the two versions is the final one.

        Args:
            for_gate: compare on tasks of `gate.split` that are drawn for `after`, with episodes of both versions that
                no other comparison uses, and only until the gate can decide; default: on the tasks of `eval.split`.
            alpha: level of the gate's decision; default: `gate.alpha`.
        """
        draw, decided = self._draw(after, for_gate), None
        if for_gate:
            decided = self.comparison(before, after, for_gate=True)
        elif self.config.gate.split == self.config.eval.split:
            gates = self._draw(after, for_gate=True)
            decided = read_comparison(*self._comparison_file(before, after, gates))
            if decided is not None and draw.controls:
                draw, decided = replace(gates, controls=draw.controls), None
        if decided is not None:
            return decided
        others = self._others(draw)
        if for_gate and self.config.has_sequential_gate:
            comparison = self._compare_in_batches(before, after, draw, alpha, progress)
        else:
            comparison = self._compare(before, after, draw, progress)
        found, shown = list[Forgetting](), {**comparison.examples}
        for name, source, run, drawn in others:
            versions = run._evaluations([before, after], drawn, progress)
            found.append(forgetting(name, *versions, budget=source.budget))
            shown |= {name: examples} if (examples := lost(*versions)) else {}
        comparison = comparison.model_copy(update={"forgetting": tuple(found), "examples": shown})
        path, settings = self._comparison_file(before, after, draw)
        file, by = path.relative_to(self.directory).as_posix(), GATE if for_gate else PERSON
        with suppress(R3Error):  # a damaged one is written anew
            events = history(self.registry.policies_dir, after)
            if any(event.file == file for event in events) and read_comparison(path, settings) == comparison:
                return comparison  # nothing has changed since it was recorded
        drawn = draw.eval.model_dump(include=DRAWN) | ({"spare": draw.spare} if draw.spare else {})
        write_comparison(path, settings, comparison, drawn=drawn, tasks=draw.task_ids if for_gate else ())
        self._record("evaluated", after, before, file=file, by=by)
        self.metrics.log(
            "gate" if for_gate else "eval", comparison.model_dump(exclude={"draw", "examples"}), version_number(after)
        )
        return comparison

    def decide(self, comparison: Comparison, alpha: float | None = None) -> Decision:
        """Decide on a promotion by the limits of section [gate].

        Args:
            alpha: level of the test; default: `gate.alpha`.
        """
        limits = self.config.gate.model_dump(include=LIMITS)
        return gate(comparison, **{**limits, **({} if alpha is None else {"alpha": alpha})})

    def _compare(
        self, before: str, after: str, draw: Draw, progress: Progress | None, order: Sequence[str] | None = None
    ) -> Comparison:
        episodes = self._evaluations([before, after], draw, progress)
        given: Any = {"prices": self.config.policy.prices, "order": order, "second": self._second_verdicts(episodes)}
        return compare(*episodes, mixed=True, **given)  # ids have all settings

    def _compare_in_batches(
        self, before: str, after: str, draw: Draw, alpha: float | None, progress: Progress | None
    ) -> Comparison:
        """Compare on the first tasks of a draw, a batch more each time, until the gate can decide.

        The stored episodes of a gate that was stopped are compared in the same batches, so that it decides the same.
        """
        end, order = 0, draw.task_ids
        while True:
            end += self.config.gate.batch
            part = replace(draw, tasks=draw.tasks[:end])
            comparison = self._compare(before, after, part, progress, order)
            if end >= len(order) or self.decide(comparison, alpha).final:
                return comparison

    def record_decision(self, before: str, after: str, decision: Decision) -> None:
        """Record a decision of the gate, unless it is the last one about this version."""
        kind: EventKind = "passed" if decision.promote else "failed"
        last = last_event(self.registry.policies_dir, after, "passed", "failed")
        if last is None or (last.event, last.reasons) != (kind, decision.reasons):
            compared = last_event(self.registry.policies_dir, after, "evaluated", other=before, by=GATE)
            details: Any = decision.model_dump(include={"reasons", "alpha", "blocked_by"})
            self._record(kind, after, before, file=compared and compared.file, **details)

    def has_passed(self, version: str) -> bool:
        """Return True for the base, and for a version that passed the gate when that decided on it last."""
        last = last_event(self.registry.policies_dir, version, "passed", "failed")  # an earlier release recorded none
        return version in (BASE, *self.registry.passed) if last is None else last.event == "passed"

    def _record(self, event: EventKind, version: str, other: str, **details: Any) -> None:
        record_event(self.registry.policies_dir, Event(event=event, version=version, other=other, **details))
        self._write_model_card(version)

    def _write_model_card(self, version: str) -> None:
        """Write the model card anew; a failure is only a warning, because all that it says is recorded elsewhere."""
        try:
            write_model_card(self.directory, version)
        except R3Error as error:
            logger.warning("the model card of %s is not up to date: %s", version, error)

    def measure(self, version: str, progress: Progress | None = None) -> Evaluation:
        """Measure one version on the frozen tasks of `eval.split`, without a comparison."""
        (episodes,) = self._evaluations([version], self._draw(version), progress)
        measured = evaluate(episodes, mixed=True, prices=self.config.policy.prices)
        self.metrics.log("eval", {"candidate": measured.model_dump()}, version_number(version))
        return measured

    def plan_evaluation(self, before: str, after: str) -> PowerPlan:
        """Say which lift the evaluation of two versions can show, and how many tasks `eval.lift` needs.

        The discordance is that of the newest stored comparison after a reflection, of these versions if there is one.
        """
        given: dict[str, Any] = {}
        paths = [*self.directory.glob("eval/v*-v*.json"), *self.directory.glob("gate/v*/v*-v*.json")]
        for path in sorted(paths, key=lambda path: (path.name.startswith(f"{before}-{after}."), path.stat().st_mtime)):
            with suppress(R3Error):  # one that is damaged is reported where it is used
                if (change := read_stored(path).comparison.after_reflection) is not None:
                    given = {"known": change, "measured_on": path.name.partition(".")[0]}
        n_tasks = len(self._draw(after).tasks)
        return plan_power(n_tasks, lift=self.config.eval.lift, **given)

    def comparison(self, before: str, after: str, *, for_gate: bool = False) -> Comparison | None:
        """Return the stored result of `evaluate`, if it was made with the current settings and tasks.

        A gate decides once: its comparison stays also if the settings of `DRAWN` have changed since.
        """
        if not for_gate:
            return read_comparison(*self._comparison_file(before, after, self._draw(after)))
        for path in sorted(self._folder(after, for_gate).glob(f"{before}-{after}.*.json")):
            stored = read_stored(path)
            draw = self._draw(after, for_gate, stored)
            if stored.settings == self._comparison_file(before, after, draw)[1]:
                return stored.comparison
        return None

    def check_gate(self) -> None:
        """Draw tasks for a gate, so that a split without any is known before a round is spent on it.

        Raises:
            ConfigError: `gate.split` has no task, a source of `eval.forgetting` has none, or `gate.verifier` cannot be
                used.
        """
        self._second_verdicts([])
        self._others(self._draw(version_name(1), for_gate=True))

    def check_training(self) -> None:
        """Check the settings of training and its base model, before episodes are collected for it.

        Raises:
            ConfigError: the extra is missing, the base model cannot be trained, or `train.report_to` cannot be used.
        """
        require_extra("trl", "train")
        self.ensure_live()
        from r3agent.train import PolicyStart
        from r3agent.train.run import check_start

        start = PolicyStart.of(self.registry.card(BASE), self.registry.version_dir(BASE))
        check_start(start, self.config.train)
