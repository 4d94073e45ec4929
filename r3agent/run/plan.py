"""Plans of a run's stages: what they would need, from what is stored and was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from r3agent.episodes.collect import CONCURRENCY
from r3agent.episodes.jobs import episode_jobs
from r3agent.records.trajectory import Record, Trajectory
from r3agent.records.usage import usage_of
from r3agent.records.versions import BASE
from r3agent.run.stages import Run
from r3agent.run.trainable import check_rows
from r3agent.store.shards import read, shards
from r3agent.train.config import PolicyStart

if TYPE_CHECKING:
    from r3agent.train.plan import TrainPlan


class CollectPlan(Record):
    """Estimate of a collection: means over stored episodes without an error, times those that are left."""

    episodes: int
    """Episodes of the round."""
    stored: int
    """Number of them that are stored without an error, and not run again."""
    measured: int
    """Stored episodes of the run, of any round, that the estimate is made from; without any, it is `None`."""
    tokens_sampled: int | None = None
    calls: int | None = None
    """Calls of the policy."""
    cost: float | None = None
    """Cost at the policy's prices; `None` without prices, or if the endpoint counts no tokens."""
    bytes: int | None = None
    """Bytes on disk."""
    episode_s: float | None = None
    """Seconds of an episode: latencies on the longest path of its calls, since siblings are sampled at once."""
    seconds: float | None = None
    """Duration with `in_flight` episodes at these latencies."""
    in_flight: int


def plan_collection(run: Run) -> CollectPlan:
    """Plan a run's next collection; no server is contacted, and nothing is written.

    Raises:
        ConfigError: a setting or the task is invalid.
    """
    run.check_subject()
    identity = run.collect_identity(run.registry.live or BASE, run.limits_of_round())
    jobs = episode_jobs(run.tasks_of_round(), **identity)
    prices, in_flight = run.config.policy.prices, run.config.collect.concurrency or CONCURRENCY
    out = run.directory / "trajectories"
    files = shards(out) if out.is_dir() else []
    stored, n, n_read, tokens, calls, seconds = set[str](), 0, 0, 0, 0, 0.0
    cost: float | None = 0.0
    for trajectory in read(out) if files else ():
        n_read += 1
        if trajectory.error is not None or not trajectory.sampled:
            continue
        if trajectory.trajectory_id in jobs:
            stored.add(trajectory.trajectory_id)
        n += 1
        tokens += usage_of(trajectory.sampled).sampled
        calls += len(trajectory.sampled)
        seconds += _longest_path_s(trajectory)
        paid = prices and prices.cost(trajectory.sampled)
        cost = None if paid is None or cost is None else cost + paid
    plan = CollectPlan(episodes=len(jobs), stored=len(stored), measured=n, in_flight=in_flight)
    if not n:
        return plan
    factor = (len(jobs) - len(stored)) / n
    return plan.model_copy(
        update={
            "tokens_sampled": round(tokens * factor),
            "calls": round(calls * factor),
            "cost": cost and cost * factor,
            "bytes": round(sum(path.stat().st_size for path in files) / n_read * n * factor),
            "episode_s": round(seconds / n, 3),
            "seconds": round(seconds * factor / in_flight, 1),
        }
    )


def plan_run_training(run: Run, on_progress: Callable[[str, Mapping[str, Any]], None] | None = None) -> TrainPlan:
    """Plan the training of a run's next version; no server is contacted, and nothing is written.

    Raises:
        ConfigError: the extra or the store is missing, or the base model cannot be trained.
        TrainingError: no row can be trained on.
    """
    parent, registry = run.card(), run.registry
    check_rows(run, parent, on_progress)
    from r3agent.train.plan import plan_training

    start = PolicyStart.of(parent, registry.version_dir(parent.version))
    return plan_training(run.stored(), start=start, config=run.config.train, policies_dir=registry.policies_dir)


def _longest_path_s(trajectory: Trajectory) -> float:
    ends: dict[str | None, float] = {}
    for span in trajectory.spans:  # parents come before their children
        ends[span.span_id] = ends.get(span.parent_id, 0.0) + (span.latency_s or 0.0)
    return max(ends.values(), default=0.0)
