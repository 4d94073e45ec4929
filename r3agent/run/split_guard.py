"""Guard against leakage between train, gate and test splits: no task of a run may be in two of them.

The built-in sources separate the splits by a hash of the id. A user's own source may not, so every draw is checked
against all earlier draws of the run, in this process or an earlier one. What an application recorded was drawn from no
split: training leaves out recorded tasks that are held out, and draws of the gate and the test leave out recorded tasks
that a version was trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

import orjson

from r3agent.errors import ConfigError
from r3agent.records.task import prompt_key
from r3agent.records.trajectory import HELD_OUT, SOURCE, SPLIT, Task, Trajectory
from r3agent.run.config import Config
from r3agent.store.index import entries
from r3agent.store.shards import STORES, store_at
from r3agent.tasks import RECORDED, in_run, is_finite, read_tasks, split_by_prompt
from r3agent.tasks.splits import APART, Split, split_of
from r3agent.train.lineage import ROWS_FILE


class SplitGuard:
    """Check that no task of a run is drawn from two splits, and find the split of recorded tasks.

    Args:
        run: directory of the run, whose stores say which tasks it has drawn.
        config: its settings, which say what will be drawn.
    """

    def __init__(self, run: Path, config: Config) -> None:
        self._run = run
        self._config = config
        self._drawn: dict[str, str] | None = None
        self._found_frozen = False

    def admit(self, tasks: Sequence[Task], split: str) -> list[Task]:
        """Return the tasks of a draw; the gate and the test leave out recorded ones that a version was trained on.

        Draws from `all` may mix splits and are not checked.

        Raises:
            ConfigError: a task was drawn from another split before.
        """
        if split not in APART:
            return [*tasks]
        drawn = self._read()
        trained = self._trained() if split in HELD_OUT else set[str]()
        admitted = [task for task in tasks if trained.isdisjoint(_keys(task))]
        for task in admitted:
            if (before := drawn.setdefault(task.id, split)) != split:
                raise ConfigError(
                    f"task {task.id!r} was drawn from split {split!r}, and by this run from {before!r} before: train, "
                    "gate and test must share no task; make the source keep them apart, and use another --run"
                )
            _note_prompt(drawn, prompt_key(task.messages), split)
        return admitted

    def with_splits(self, trajectories: Iterable[Trajectory]) -> list[Trajectory]:
        """Fill in the split of trajectories that say none, such as those of an application.

        It is the split from which the run drew a task of the same id or the same prompt, the one that is held out if
        there are two, or else that of the id, or, where tasks are the recorded ones, of the prompt.
        """
        trajectories = [*trajectories]
        if not all(map(says_split, trajectories)):
            self._find_frozen_tasks()
        return [t if says_split(t) else self._with_split(t) for t in trajectories]

    def held_out(self, trajectories: Iterable[Trajectory]) -> set[str]:
        """Return the ids of trajectories whose tasks are held out, by their records or by the draws of this run.

        A record that another run wrote knows nothing of this one's draws.
        """
        trajectories = [*trajectories]
        self._find_frozen_tasks()
        bare = [t if says_split(t) else self._with_split(t) for t in trajectories]
        drawn = self._read()
        return {
            t.trajectory_id
            for t in bare
            if t.metadata[SPLIT] in HELD_OUT or any(drawn.get(key) in HELD_OUT for key in _keys(t.task))
        }

    def _find_frozen_tasks(self) -> None:
        """Draw the tasks that are held out, so that recorded ones among them are found by their prompts.

        An endless source has more of them, which later gates draw.
        """
        if not self._config.task.source or self._found_frozen:
            return  # no stage has drawn any
        self._found_frozen = True
        task, evaluation, source = self._config.task, self._config.eval, in_run(self._config.task.source, self._run)
        finite = is_finite(source)
        if source != task.source and not store_at(self._run).is_dir():
            return  # nothing is recorded yet
        n = None if finite else evaluation.n
        for split in HELD_OUT:
            if finite or split in (self._config.gate.split, evaluation.split):  # a user's own source may have no other
                self.admit(read_tasks(source, n, seed=evaluation.seed, split=split, **task.params), split)

    def _with_split(self, trajectory: Trajectory) -> Trajectory:
        task, drawn = trajectory.task, self._read()
        known = [drawn[key] for key in _keys(task) if key in drawn]
        own = split_by_prompt(task) if self._config.task.source.startswith(RECORDED) else split_of(task.id)
        split = min(known, key=lambda split: split not in HELD_OUT, default=own)
        return trajectory.changed(metadata={**trajectory.metadata, SPLIT: split})

    def _read(self) -> dict[str, str]:
        """Return the splits of the tasks that the run has drawn, by id and by prompt; read late: it takes a while."""
        if self._drawn is None:
            self._drawn = {}
            for store in STORES:
                for directory in self._run.glob(f"{store}/"):
                    for stored in entries(directory, report=False):
                        if stored.split in APART and stored.source is not None:
                            self._drawn[stored.task_id] = stored.split
                            _note_prompt(self._drawn, stored.prompt, stored.split)
        return self._drawn

    def _trained(self) -> set[str]:
        """Return ids and prompts of the recorded tasks that a version was trained on, in this process or another."""
        files = self._run.glob(f"policies/v*/{ROWS_FILE}")
        trained = {orjson.loads(line)[0] for file in files for line in file.read_bytes().splitlines()}
        return {
            key
            for stored in (entries(self._run / "trajectories", report=False) if trained else ())
            if stored.split not in get_args(Split) and stored.trajectory_id in trained
            for key in (stored.task_id, stored.prompt)
        }


def says_split(trajectory: Trajectory) -> bool:
    """Return True if the record says which split its task was drawn from, or that it is held out.

    An application's own `train` is no draw of a run.
    """
    metadata = trajectory.metadata
    return metadata.get(SPLIT) in (HELD_OUT if metadata.get(SOURCE) is None else get_args(Split))


def _note_prompt(drawn: dict[str, str], prompt: str, split: str) -> None:
    """Note the split of a prompt; if tasks of several splits have it, it is held out."""
    if drawn.get(prompt) not in HELD_OUT:
        drawn[prompt] = split


def _keys(task: Task) -> tuple[str, str]:
    return task.id, prompt_key(task.messages)
