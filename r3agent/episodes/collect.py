"""Collect trajectories: run the graph over many tasks concurrently and store each episode when it ends.

Stored episodes are kept: the same call again runs only episodes that are missing or ended with an error. An error of
one episode (a prompt too long, a verifier that raises) is recorded with it. An error of the endpoint ends the
collection, because every further episode would fail too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from langgraph.graph.state import CompiledStateGraph
from typing_extensions import Unpack

from r3agent._util.aio import gather_all
from r3agent.episodes.config import COLLECT_REFLECTIONS, EpisodeConfig, EpisodeContext, EpisodeOptions
from r3agent.episodes.graph import build_graph
from r3agent.errors import AccessError, ConfigError, EndpointError, ProtocolError, R3Error
from r3agent.policy import Policy
from r3agent.records.summary import CollectSummary, summarise
from r3agent.records.trajectory import EpisodeError, Span, Task, Trajectory
from r3agent.store.shards import TrajectoryWriter
from r3agent.store.trajectories import load
from r3agent.verifiers import Verifier

ENDPOINT_ERRORS = (EndpointError, AccessError, ProtocolError)
HOPELESS = 16
"""Number of episodes after which a collection stops, if all of them ended with an error."""


class Job(NamedTuple):
    """One episode to run."""

    trajectory_id: str
    task: Task
    sample: int


async def collect(
    tasks: Iterable[Task],
    *,
    policy: Policy,
    verifier: Verifier,
    out: str | Path,
    policy_name: str = "",
    version: str | None = None,
    verifier_name: str = "",
    samples: int = 1,
    concurrency: int = 64,
    metadata: dict[str, Any] | None = None,
    on_episode: Callable[[int, int], None] | None = None,
    **options: Unpack[EpisodeOptions],
) -> CollectSummary:
    """Run one episode for each task and sample, and append the trajectories to the store at `out`.

    Args:
        policy_name: served name with its version; stored episodes of another policy do not count as done.
        version: policy version that all spans must have, or else a stored episode does not count as done; default: any.
        verifier_name: recorded with each trajectory; stored episodes of another verifier do not count as done.
        samples: episodes per task.
        concurrency: maximum number of concurrent episodes.
        metadata: recorded with each trajectory.
        on_episode: called with (done, total) after each episode.
        options: as in `build_graph`; 8 reflections by default.

    Raises:
        ConfigError: the tasks, the limits or the directory are invalid.
        EndpointError, AccessError, ProtocolError: the endpoint fails for every episode; finished episodes are stored.
        VerifierError: the endpoint of the judge fails.
        RecordError: the store cannot be read, or the disk is full.
        R3Error: the first episodes all ended with an error.
    """
    config = EpisodeConfig.of({"reflections": COLLECT_REFLECTIONS, **options})
    graph = build_graph(policy=policy, verifier=verifier, **config.options()).compile()
    graph = graph.with_config(recursion_limit=3 * config.max_attempts + 2)
    if concurrency < 1:
        raise ConfigError(f"concurrency = {concurrency}: must be at least 1")
    jobs = _jobs(tasks, samples, {"policy": policy_name, "verifier": verifier_name, **_identity(config)})

    start = time.monotonic()
    with TrajectoryWriter(out) as writer:
        stored = {t.trajectory_id: t for t in load(out, version=version) if t.error is None}
        done = [stored[job.trajectory_id] for job in jobs if job.trajectory_id in stored]
        missing = [job for job in jobs if job.trajectory_id not in stored]
        resumed = len(done)
        queue = iter(missing)

        async def work() -> None:
            for job in queue:
                episode = await run_episode(graph, job.task, job.sample)
                episode = episode.model_copy(
                    update={
                        "trajectory_id": job.trajectory_id,
                        "verifier": verifier_name,
                        "metadata": metadata or {},
                    }
                )
                writer.append(episode)
                done.append(episode)
                if on_episode:
                    on_episode(len(done), len(jobs))
                if len(done) == min(HOPELESS, len(jobs)):
                    _refuse_hopeless(done)

        await gather_all(work() for _ in range(min(concurrency, len(missing))))
    return summarise(done, resumed=resumed, seconds=time.monotonic() - start)


async def run_episode(graph: CompiledStateGraph[Any, Any, Any, Any], task: Task, sample: int = 0) -> Trajectory:
    """Run one episode; record an error of the episode with the spans sampled before it.

    Raises:
        EndpointError, AccessError, ProtocolError: the endpoint fails, so every other episode would fail too.
        VerifierError: the endpoint of the judge fails.
    """
    state: dict[str, Any] = {}
    error = None
    try:
        given, context = {"task": task.model_dump(mode="json")}, EpisodeContext(sample=sample)
        async for reached in graph.astream(given, stream_mode="values", context=context):
            state = reached
    except ENDPOINT_ERRORS:
        raise
    except R3Error as raised:
        if isinstance(raised.__cause__, ENDPOINT_ERRORS):
            raise  # the endpoint of a judge failed: no other episode can be judged either
        error = EpisodeError(kind=type(raised).__name__, message=str(raised))
    else:
        if "trajectory" not in state:
            message = "the verifier interrupted the graph to ask a person; a collection cannot wait for an answer"
            error = EpisodeError(kind="VerifierError", message=message)
    spans = tuple(Span.model_validate(span) for span in state.get("spans", ()))
    return Trajectory(task=task, sample=sample, spans=spans, error=error)


def episode_id(task: Task, sample: int, identity: dict[str, Any]) -> str:
    """Hash task, sample, policy and settings into an id by which a resumed collection finds finished episodes."""
    key = orjson.dumps([task.id, sample, identity], default=dict, option=orjson.OPT_SORT_KEYS)
    return sha256(key).hexdigest()[:16]


def _identity(config: EpisodeConfig) -> dict[str, Any]:
    """Return the settings that are hashed into an episode's id; `reflect_sampling` only if it is set."""
    return {name: value for name, value in config if name != "reflect_sampling" or value is not None}


def _jobs(tasks: Iterable[Task], samples: int, identity: dict[str, Any]) -> list[Job]:
    jobs: dict[str, Job] = {}
    for task, sample in product(tasks, range(samples)):
        job = Job(episode_id(task, sample, identity), task, sample)
        if job.trajectory_id in jobs:
            raise ConfigError(f"task id {task.id!r} appears twice; ids must be unique")
        jobs[job.trajectory_id] = job
    if not jobs:
        raise ConfigError(f"there is nothing to collect, with samples = {samples}; check --n and the task source")
    return list(jobs.values())


def _refuse_hopeless(done: Sequence[Trajectory]) -> None:
    last = done[-1].error
    if last is not None and all(episode.error for episode in done):
        raise R3Error(
            f"the first {len(done)} episodes all errored, the last one with {last.kind}: {last.message}; mend that and "
            "collect again: episodes that errored are run anew"
        )
