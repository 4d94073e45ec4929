"""Draw of a round's tasks in which those that always pass or always fail are less frequent."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable

from r3agent.records.trajectory import Task, Trajectory


def settled(trajectories: Iterable[Trajectory]) -> set[str]:
    """Return the ids of the tasks whose tries, first ones and retries, all passed or all failed."""
    outcomes: defaultdict[str, set[bool]] = defaultdict(set)
    for trajectory in trajectories:
        outcomes[trajectory.task.id].update(t.passed for t in trajectory.tries if t.passed is not None)
    return {id_ for id_, seen in outcomes.items() if len(seen) == 1}


def thin_out(tasks: Iterable[Task], settled_ids: set[str], *, revisit: float, seed: int) -> list[Task]:
    """Keep each settled task with the chance `revisit`, and all others; the same seed keeps the same."""
    return [
        task for task in tasks if task.id not in settled_ids or random.Random(f"{seed}/{task.id}").random() < revisit
    ]
