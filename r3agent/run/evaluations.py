"""Episodes of evaluations and gates: their tasks, their controls, and those of other sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Self

from r3agent._util.aio import run_in_thread_loop
from r3agent._util.lock import file_lock
from r3agent.episodes.config import EpisodeLimits
from r3agent.episodes.jobs import Job, episode_jobs
from r3agent.errors import RecordError
from r3agent.evaluate import smallest_lift
from r3agent.evaluate.comparison import StoredComparison
from r3agent.evaluate.power import ASSUMED, POWER
from r3agent.evaluate.sentinel import Second
from r3agent.evaluate.sequential import detectable
from r3agent.evaluate.settings import sampled_alike
from r3agent.policy import Sampling
from r3agent.records.branching import Control
from r3agent.records.trajectory import Task, Trajectory
from r3agent.records.versions import version_number
from r3agent.run.collector import Progress
from r3agent.run.config import EvalConfig, OtherSource, TaskConfig
from r3agent.run.controls import control_branches
from r3agent.run.directory import IDENTITY, digest
from r3agent.run.rounds import Rounds
from r3agent.run.second import second_verdicts
from r3agent.store.index import entries
from r3agent.store.trajectories import load
from r3agent.tasks import find_tasks, in_run
from r3agent.verifiers import find_verifier

DRAWN = {"n", "samples", "seed"}
"""Settings of `[eval]` that decide how many episodes are drawn, and on which tasks."""


@dataclass(frozen=True)
class Draw:
    """Tasks of one evaluation, and the place of its episodes."""

    eval: EvalConfig
    split: str
    seed: int
    tasks: Sequence[Task | Trajectory]
    """Tasks, or the beginnings of control branches."""
    samples: int
    """Episodes of each."""
    sampling: Sampling
    folder: Path
    """Folder of the comparison and, by version, of the episodes."""
    limits: EpisodeLimits
    controls: tuple[Control, ...] = ()
    """Controls of these episodes."""
    control: str = ""
    """Control that these episodes are branches of."""
    spare: int = 0
    """Number of tasks that were drawn besides, so that those of earlier gates could be left out."""
    like: Trajectory | None = None
    """Newest episode: those for which the server refused other sampling fields do not count."""

    @property
    def wanted(self) -> int:
        """Number of episodes of each version."""
        return len(self.tasks) * self.samples

    def store(self, version: str) -> Path:
        """Return the folder of a version's episodes."""
        return self.folder / (f"{version}.{self.control}" if self.control else version)

    @property
    def task_ids(self) -> list[str]:
        """Ids of the tasks in the order of the draw."""
        return [task.id for task in self.tasks if isinstance(task, Task)]

    def accepts(self, episode: Trajectory) -> bool:
        return self.like is None or sampled_alike(episode, self.like)


class Evaluations(Rounds):
    """A run directory whose versions are evaluated on tasks that are drawn for it."""

    _second: Second = {}
    """Verdicts of the second verifier so far: a sequential gate looks at the same answers several times."""

    def _folder(self, after: str, for_gate: bool) -> Path:
        return self.directory / "gate" / after if for_gate else self.directory / "eval"

    def _draw(self, after: str, for_gate: bool = False, stored: StoredComparison | None = None) -> Draw:
        """Draw the tasks of an evaluation.

        Args:
            stored: comparison of a gate whose tasks to draw again, without those that the source lacks by now.
        """
        self.check_subject()
        settings, sampling, spare = self.config.eval, self.config.sampling, 0
        split, seed, controls = settings.split, settings.seed, settings.controls
        if for_gate:
            settings, spare, tasks = self._draw_for_gate(after, stored)
            sampling, controls = sampling.at("gate", after), ()
            split, seed = self.config.gate.split, settings.seed * 1000 + version_number(after)
        else:
            tasks = self.draw_tasks(settings.n, split=split, seed=seed)
        limits = EpisodeLimits(blind_retries=settings.blind_retries)
        folder = self._folder(after, for_gate)
        return Draw(settings, split, seed, tasks, settings.samples, sampling, folder, limits, controls, spare=spare)

    def _draw_for_gate(self, after: str, stored: StoredComparison | None) -> tuple[EvalConfig, int, list[Task]]:
        """Draw tasks in random order: those that no earlier gate used, then those that decided least often.

        Returns:
            settings, number of tasks that were drawn besides, and the tasks.
        """
        drawn = {"n": self.config.gate_tasks} if stored is None else {**stored.drawn}
        used = Counter(self._tasks_of_gates_before(after)) if stored is None else Counter[str]()
        spare = drawn.pop("spare", len(used))
        settings, split = self.config.eval.model_copy(update=drawn), self.config.gate.split
        seed = settings.seed * 1000 + version_number(after)
        tasks = self.draw_tasks(settings.n, split=split, seed=seed, spare=spare)
        if stored is not None:
            by_id = {task.id: task for task in tasks}
            return settings, spare, [by_id[id_] for id_ in stored.tasks or by_id if id_ in by_id]
        if self.config.has_sequential_gate:  # it may end after the first tasks, and a file may be sorted
            tasks = Random(seed).sample(tasks, len(tasks))
        tasks = sorted(tasks, key=lambda task: used[task.id])[: settings.n]
        if repeated := sum(task.id in used for task in tasks):
            self._warn_once(
                f"{repeated} of {len(tasks)} tasks of the gate of {after} decided on an earlier version too: split "
                f"{split} of {self.config.task.source} has no others; give the source more tasks, or gate.n fewer"
            )
        if self.config.has_sequential_gate and len(tasks) < settings.n:
            self._warn_once(self._fewer_for_gate(len(tasks)))
        return settings, spare, tasks

    def _fewer_for_gate(self, n: int) -> str:
        """Say what the sequential test loses on fewer tasks than it should have."""
        gate = self.config.gate
        seen = 100 * detectable(ASSUMED, planned=n, level=gate.alpha / 2), smallest_lift(n, ASSUMED, alpha=gate.alpha)
        sequential, fixed = ("no gain" if p is None or p > 99 else f"a gain of {p:.1f} points" for p in seen)
        return (
            f"the gate has {n} of {self.config.gate_tasks} tasks: if {ASSUMED:.0%} of the outcomes differ, its "
            f'sequential test finds {sequential} with {POWER:.0%}, and gate.test = "fixed" {fixed}; set that, or give '
            f"split {gate.split} of {self.config.task.source} more tasks"
        )

    def _tasks_of_gates_before(self, after: str) -> Iterator[str]:
        """List the tasks that decided on earlier versions, once for each of these."""
        for folder in self.directory.glob("gate/v*/"):
            if version_number(folder.name) < version_number(after):
                yield from {entry.task_id for store in folder.glob("v*/") for entry in entries(store, report=False)}

    def _others(self, draw: Draw) -> list[tuple[str, OtherSource, Self, Draw]]:
        """Return each source of `eval.forgetting`, with a run of it and the draw of its first tries.

        Raises:
            ConfigError: a source has no task, or its verifier cannot be used.
        """
        return [(name, source, *self._of_source(name, source, draw)) for name, source in draw.eval.forgetting.items()]

    def _of_source(self, name: str, source: OtherSource, draw: Draw) -> tuple[Self, Draw]:
        other = copy(self)
        task = TaskConfig(**source.model_dump(exclude={"n", "budget"}))
        other.config = self.config.model_copy(update={"task": task})
        other.verifier_name = IDENTITY["task.verifier"](other.config)
        other._verifier = find_verifier(other.verifier_name, **task.verifier_params)
        found = in_run(task.source, self.directory)
        tasks = find_tasks(found, source.n, seed=draw.seed, split=draw.split, **task.params)
        folder, limits = draw.folder / "forgetting" / name, EpisodeLimits(max_attempts=1)
        return other, replace(draw, tasks=tasks, samples=1, folder=folder, limits=limits, controls=())

    def _comparison_file(self, before: str, after: str, draw: Draw) -> tuple[Path, str]:
        """Return the path of a comparison, and the digest of the seed of its draw and of the ids of its episodes."""
        chosen: list[Any] = []
        if draw.controls:
            chosen += [draw.controls, draw.eval.generic_reflection]
        if draw.eval.forgetting:
            chosen.append({name: source.model_dump() for name, source in draw.eval.forgetting.items()})
        jobs = ([*self._jobs(version, draw)] for version in (before, after))
        settings = digest([draw.eval.seed, *jobs, *chosen])
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
        episodes = [(version, self._evaluated(version, draw)) for version in versions]
        return [[*found, *self._controlled(version, draw, found, progress)] for version, found in episodes]

    def _controlled(
        self, version: str, draw: Draw, episodes: list[Trajectory], progress: Progress | None
    ) -> list[Trajectory]:
        """Load the control branches of these episodes; collect those that are missing."""
        found: list[Trajectory] = []
        for control in draw.controls:
            begins = control_branches(control, episodes, text=draw.eval.generic_reflection, seed=draw.seed)
            if not begins:
                self._warn_once(
                    f"control {control} of {version}: 0 branches; it needs a failed first try, and a donor for each, "
                    "with a whole reflection on another task"
                )
                continue
            branched = replace(draw, tasks=begins, samples=1, limits=EpisodeLimits(), control=control)
            self._complete([version], branched, progress)
            found += self._evaluated(version, branched)
        return found

    def _complete(self, versions: list[str], draw: Draw, progress: Progress | None) -> list[str]:
        """Collect the episodes that are missing; return the versions that lacked any."""
        missing = [version for version in versions if not self._is_evaluated(version, draw)]
        with self._put_back():
            for version in missing:
                self._evaluate(version, draw, progress)
                self._refuse_strays(version, draw)
        return missing

    def _evaluate(self, version: str, draw: Draw, progress: Progress | None) -> None:
        with file_lock(draw.folder / f".{draw.store(version).name}.lock", f"evaluating {version}"):
            self._collect(
                self.registry.card(version),
                self._load_to_evaluate(version),
                draw.tasks,
                draw.split,
                draw.store(version),
                progress,
                self._evaluation_identity(version, draw),
                settings=digest([self.episode_digest(), draw.eval.blind_retries]),
                version=version,
                accept=draw.accepts,
                rerun_errors=False,
            )

    def _evaluated(self, version: str, draw: Draw) -> list[Trajectory]:
        """Load the stored episodes of the tasks as they are, under the current settings, by this version alone."""
        folder, jobs = draw.store(version), self._jobs(version, draw)
        stored = load(folder, version=version, accept=draw.accepts) if folder.is_dir() else []
        return [t for t in stored if t.trajectory_id in jobs]

    def _jobs(self, version: str, draw: Draw) -> dict[str, Job]:
        return episode_jobs(draw.tasks, **self._evaluation_identity(version, draw))

    def _evaluation_identity(self, version: str, draw: Draw) -> dict[str, Any]:
        return self._identity(version, draw.sampling, samples=draw.samples, **draw.limits.model_dump())

    def _refuse_strays(self, version: str, draw: Draw) -> None:
        """Refuse an evaluation for which other weights answered, e.g. because the server was restarted meanwhile."""
        if strays := draw.wanted - len(self._evaluated(version, draw)):
            raise RecordError(
                f"{strays} of {draw.wanted} episodes were not answered by {version} alone, or not like the others: its "
                "weights were replaced, or the server was restarted or refuses other sampling fields, meanwhile; "
                "evaluate again, which collects these episodes anew"
            )

    def _is_evaluated(self, version: str, draw: Draw) -> bool:
        """Return True if no episode is missing, so that no server is needed; one with an error is not run again."""
        evaluated = self._evaluated(version, draw)
        return len(evaluated) == draw.wanted and any(t.error is None for t in evaluated)

    def _second_verdicts(self, versions: Iterable[Iterable[Trajectory]]) -> Second:
        """Let the second verifier of section [gate], if there is one, judge the answers of all episodes."""
        if not self.config.gate.verifier:
            return {}
        episodes = [t for version in versions for t in version]
        self._second = run_in_thread_loop(second_verdicts(episodes, self.config, self._second))
        return self._second
