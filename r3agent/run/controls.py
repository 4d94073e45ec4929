"""Control branches of an evaluation: a failed first try, and a reflection that was not written for it."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from hashlib import sha256

from r3agent.evaluate.cells import error_of
from r3agent.records.branching import Control, control_of
from r3agent.records.trajectory import Span, Trajectory


def control_branches(control: Control, episodes: Iterable[Trajectory], *, text: str, seed: int) -> list[Trajectory]:
    """Return the beginnings of the control branches of an evaluation's failed first tries; none if one has no donor.

    Args:
        episodes: episodes of one version; those with an error have no branch.
        text: reflection of the control `generic`.
        seed: seed of the choice of the donors.
    """
    failed = [t for t in episodes if error_of(t) is None and _reflections(t)]
    if control == "generic":
        return [control_of(t, control, text) for t in failed]
    donors = Donors(failed, seed)
    found = [(t, donors.of(t)) for t in failed]
    branches = [control_of(t, control, donor[1], donor=donor[0]) for t, donor in found if donor is not None]
    return branches if len(branches) == len(failed) else []


class Donors:
    """Reflections to give to other tasks.

    The tasks are in a random order that the seed decides, and each takes the reflection on the next one, so that all
    are used about equally often. Of several samples of that task, the one with the same index is taken.
    """

    def __init__(self, episodes: Iterable[Trajectory], seed: int) -> None:
        self._seed = seed
        self._of_task: defaultdict[str, list[tuple[str, Span]]] = defaultdict(list)
        for trajectory in sorted(episodes, key=lambda t: (t.sample, t.trajectory_id)):
            reflection = _reflections(trajectory)[0]
            if not reflection.unanswered:
                self._of_task[trajectory.task.id].append((trajectory.trajectory_id, reflection))
        self._order = sorted((self._key(task), task) for task in self._of_task)

    def of(self, trajectory: Trajectory) -> tuple[str, Span] | None:
        """Return the reflection on another task with the id of its trajectory; `None` if there is no other."""
        task = trajectory.task.id
        after = bisect_right(self._order, (self._key(task), task))
        donor = self._order[after % len(self._order)][1] if self._order else task
        return None if donor == task else self._of_task[donor][trajectory.sample % len(self._of_task[donor])]

    def _key(self, task: str) -> str:
        return sha256(f"{self._seed} {task}".encode()).hexdigest()


def _reflections(trajectory: Trajectory) -> list[Span]:
    """List the reflections on the first try, if it failed."""
    attempt = trajectory.attempt
    return [] if attempt is None or attempt.passed else trajectory.children(attempt, "reflect")
