"""Stages of a run in its directory: collect, train, deploy, evaluate.

    RUN/r3.toml                       the settings
    RUN/trajectories/*.jsonl          episodes collected for training
    RUN/policies/v0001/               a trained version with its card
    RUN/policies/history.jsonl        evaluations, decisions of the gate, deploys and rollbacks
    RUN/live.json                     the live version
    RUN/live.swapped                  exists while a server has other weights than the live ones, to sample with them
    RUN/eval/v0001/*.jsonl            episodes of the frozen tasks, one folder per version
    RUN/eval/v0000-v0001.test.*.json  comparison of two versions on the test split, one for each set of settings
    RUN/gate/v0002/                   the same for the gate of v0002, which shares no episode with other comparisons

A stage can be stopped at any moment: the directory stays consistent, and the next call does only what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from r3agent._util.imports import require_extra
from r3agent._util.lock import file_lock
from r3agent.deploy import DeployReport, deploy, rollback
from r3agent.episodes.config import EpisodeLimits
from r3agent.episodes.jobs import Job, episode_jobs
from r3agent.errors import RecordError
from r3agent.evaluate import Comparison, Decision, Evaluation, compare, evaluate
from r3agent.evaluate.comparison import read_comparison, read_drawn, write_comparison
from r3agent.evaluate.settings import sampled_alike
from r3agent.policy import Sampling
from r3agent.records.trajectory import Task, Trajectory
from r3agent.records.versions import BASE, version_name, version_number
from r3agent.run.collector import Progress
from r3agent.run.config import EvalConfig
from r3agent.run.directory import digest
from r3agent.run.made_with import made_with
from r3agent.run.rounds import Rounds
from r3agent.store.history import PERSON, Event, EventKind, history, record_event
from r3agent.store.registry import PolicyCard
from r3agent.store.trajectories import load

DRAWN = {"n", "samples", "seed"}
"""Settings of `[eval]` that decide how many episodes are drawn, and on which tasks."""


@dataclass(frozen=True)
class Draw:
    """Tasks of one evaluation, and the place of its episodes."""

    eval: EvalConfig
    split: str
    tasks: list[Task]
    sampling: Sampling
    folder: Path
    """Folder of the comparison and, by version, of the episodes."""
    like: Trajectory | None = None
    """Newest episode: those for which the server refused other sampling fields do not count."""

    def accepts(self, episode: Trajectory) -> bool:
        return self.like is None or sampled_alike(episode, self.like)


class Run(Rounds):
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
        trajectories, parent = self.stored(), self.ensure_live()
        parent = self.registry.card(start) if start is not None else parent
        from r3agent.train import PolicyStart, train  # imports torch, so only after the checks above

        version = self.registry.next_version()
        return train(
            trajectories,
            start=PolicyStart.of(parent, self.registry.version_dir(parent.version)),
            version=version,
            out_dir=self.registry.version_dir(version),
            config=self.config.train,
            resume=resume,
            force=force,
            progress=on_progress,
            made_with=made_with(self.config, self.verifier_name),
        )

    def deploy(
        self, version: str | None = None, *, passed: bool = False, by: str = PERSON, reasons: Sequence[str] = ()
    ) -> DeployReport:
        """Load a version, by default the newest, into the server and make it live; `passed` says the gate agrees."""
        self.ensure_live()
        why: Any = {"passed": passed, "by": by, "reasons": reasons}
        return deploy(version or self.registry.versions()[-1], **why, **self.server_settings())

    def rollback(self, to: str | None = None, *, by: str = PERSON, reasons: Sequence[str] = ()) -> DeployReport:
        """Return to an earlier version."""
        return rollback(to=to, by=by, reasons=reasons, **self.server_settings())

    def evaluate(
        self, before: str, after: str, progress: Progress | None = None, *, for_gate: bool = False
    ) -> Comparison:
        """Compare two versions on the same frozen tasks: first try, after reflection, and the blind-retry control.

        Where the gate uses `eval.split`, its comparison of the two versions is the final one.

        Args:
            for_gate: compare on tasks of `gate.split` that are drawn for `after`, with episodes of both versions that
                no other comparison uses; default: on the tasks of `eval.split`.
        """
        draw, decided = self._draw(after, for_gate), None
        if for_gate:
            decided = self.comparison(before, after, for_gate=True)
        elif self.config.gate.split == self.config.eval.split:
            decided = read_comparison(*self._comparison_file(before, after, self._draw(after, for_gate=True)))
        if decided is not None:
            return decided
        comparison = compare(*self._evaluations([before, after], draw, progress), mixed=True)  # ids have all settings
        path, settings = self._comparison_file(before, after, draw)
        write_comparison(path, settings, comparison, drawn=draw.eval.model_dump(include=DRAWN))
        self._record("evaluated", after, before, file=path.relative_to(self.directory).as_posix())
        return comparison

    def record_decision(self, before: str, after: str, decision: Decision) -> None:
        """Record a decision of the gate, unless it is the last one about this version."""
        kind: EventKind = "passed" if decision.promote else "failed"
        decided = [e for e in history(self.registry.policies_dir, after) if e.event in ("passed", "failed")]
        if not decided or (decided[-1].event, decided[-1].reasons) != (kind, decision.reasons):
            self._record(kind, after, before, reasons=decision.reasons)

    def _record(self, event: EventKind, version: str, other: str, **details: Any) -> None:
        record_event(self.registry.policies_dir, Event(event=event, version=version, other=other, **details))

    def measure(self, version: str, progress: Progress | None = None) -> Evaluation:
        """Measure one version on the frozen tasks of `eval.split`, without a comparison."""
        (episodes,) = self._evaluations([version], self._draw(version), progress)
        return evaluate(episodes, mixed=True)

    def comparison(self, before: str, after: str, *, for_gate: bool = False) -> Comparison | None:
        """Return the stored result of `evaluate`, if it was made with the current settings and tasks.

        A gate decides once: its comparison stays also if the settings of `DRAWN` have changed since.
        """
        paths = sorted(self._folder(after, for_gate).glob(f"{before}-{after}.*.json"))
        for drawn in [None, *map(read_drawn, paths if for_gate else ())] if paths else ():
            draw = self._draw(after, for_gate, drawn)
            if stored := read_comparison(*self._comparison_file(before, after, draw)):
                return stored
        return None

    def check_gate(self) -> None:
        """Draw tasks for a gate, so that a split without any is known before a round is spent on it.

        Raises:
            ConfigError: `gate.split` has no task.
        """
        self._draw(version_name(1), for_gate=True)

    def check_training(self) -> None:
        """Check the settings of training and its base model, before episodes are collected for it.

        Raises:
            ConfigError: the extra is missing, the base model cannot be trained, or `train.report_to` cannot be used.
        """
        require_extra("trl", "train")
        from r3agent.train import PolicyStart
        from r3agent.train.run import check_start

        self.ensure_live()
        start = PolicyStart.of(self.registry.card(BASE), self.registry.version_dir(BASE))
        check_start(start, self.config.train)

    def _folder(self, after: str, for_gate: bool) -> Path:
        return self.directory / "gate" / after if for_gate else self.directory / "eval"

    def _draw(self, after: str, for_gate: bool = False, drawn: Mapping[str, int] | None = None) -> Draw:
        self.check_subject()
        settings, sampling = self.config.eval.model_copy(update=drawn), self.config.sampling
        split, seed = settings.split, settings.seed
        if for_gate:
            split, seed = self.config.gate.split, seed * 1000 + version_number(after)
            sampling = sampling.at("gate", after)
        tasks = self.draw_tasks(settings.n, split=split, seed=seed)
        return Draw(settings, split, tasks, sampling, self._folder(after, for_gate))

    def _comparison_file(self, before: str, after: str, draw: Draw) -> tuple[Path, str]:
        """Return the path of a comparison, and the digest of the seed of its draw and of the ids of its episodes."""
        settings = digest([draw.eval.seed, *([*self._jobs(version, draw)] for version in (before, after))])
        return draw.folder / f"{before}-{after}.{draw.split}.{settings[:8]}.json", settings

    def _evaluations(self, versions: list[str], draw: Draw, progress: Progress | None) -> list[list[Trajectory]]:
        """Load the episodes of each version on the tasks; collect those that are missing.

        Those for which the server refused other sampling fields than for the newest are collected anew.
        """
        self.ensure_live()
        collected = self._complete(versions, draw, progress)
        stored = [t for v in collected or versions for t in self._evaluated(v, draw) if t.spans]
        draw = replace(draw, like=sorted(stored, key=lambda t: t.created_at)[-1])
        self._complete(versions, draw, progress)
        return [self._evaluated(version, draw) for version in versions]

    def _complete(self, versions: list[str], draw: Draw, progress: Progress | None) -> list[str]:
        """Collect the episodes that are missing; return the versions that lacked any."""
        missing = [version for version in versions if not self._is_evaluated(version, draw)]
        with self._put_back(missing):
            for version in missing:
                self._evaluate(version, draw, progress)
                self._refuse_strays(version, draw)
        return missing

    def _evaluate(self, version: str, draw: Draw, progress: Progress | None) -> None:
        with file_lock(draw.folder / f".{version}.lock", f"evaluating {version}"):
            self._collect(
                self.registry.card(version),
                self._load_to_evaluate(version),
                draw.tasks,
                draw.split,
                draw.folder / version,
                progress,
                self._evaluation_identity(version, draw),
                settings=digest([self.episode_digest(), draw.eval.blind_retries]),
                version=version,
                accept=draw.accepts,
                rerun_errors=False,
            )

    def _evaluated(self, version: str, draw: Draw) -> list[Trajectory]:
        """Load the stored episodes of the tasks as they are, under the current settings, by this version alone."""
        folder, jobs = draw.folder / version, self._jobs(version, draw)
        stored = load(folder, version=version, accept=draw.accepts) if folder.is_dir() else []
        return [t for t in stored if t.trajectory_id in jobs]

    def _jobs(self, version: str, draw: Draw) -> dict[str, Job]:
        return episode_jobs(draw.tasks, **self._evaluation_identity(version, draw))

    def _evaluation_identity(self, version: str, draw: Draw) -> dict[str, Any]:
        limits = EpisodeLimits(blind_retries=draw.eval.blind_retries)
        return self._identity(version, draw.sampling, samples=draw.eval.samples, **limits.model_dump())

    def _refuse_strays(self, version: str, draw: Draw) -> None:
        """Refuse an evaluation for which other weights answered, e.g. because the server was restarted meanwhile."""
        wanted = len(draw.tasks) * draw.eval.samples
        if strays := wanted - len(self._evaluated(version, draw)):
            raise RecordError(
                f"{strays} of {wanted} episodes were not answered by {version} alone, or not like the others: its "
                "weights were replaced, or the server was restarted or refuses other sampling fields, meanwhile; "
                "evaluate again, which collects these episodes anew"
            )

    def _is_evaluated(self, version: str, draw: Draw) -> bool:
        """Return True if no episode is missing, so that no server is needed; one with an error is not run again."""
        evaluated = self._evaluated(version, draw)
        return len(evaluated) == len(draw.tasks) * draw.eval.samples and any(t.error is None for t in evaluated)
