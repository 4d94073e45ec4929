"""Tasks to trajectories: the graph run over many tasks at once, each episode stored as it ends.

What is stored stays: the same call again does the episodes that are missing or errored, and no other. An error
of one episode (a prompt too long, a verifier that raises) is recorded with it. An error of the endpoint ends the
collection, because every further episode would meet it too.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
from langgraph.graph.state import CompiledStateGraph

from r3agent.errors import AccessError, ConfigError, EndpointError, ProtocolError, R3Error
from r3agent.graph import build_graph
from r3agent.policy import Policy, Sampling
from r3agent.store import TrajectoryWriter, load
from r3agent.trajectory import EpisodeError, Record, Span, Task, Trajectory, mean_success
from r3agent.verifiers import Verifier

ENDPOINT_ERRORS = (EndpointError, AccessError, ProtocolError)
HOPELESS = 16
"""When this many first episodes all errored, the rest would too."""


class CollectSummary(Record):
    """What a collection holds, counted over the episodes of one call and those it found done."""

    episodes: int
    resumed: int
    """Of these, stored by an earlier call."""
    errors: dict[str, int]
    first_try: float | None
    """Share of first attempts that passed."""
    retry_after_reflection: float | None
    """Share of retries after a reflection that passed."""
    retry_blind: float | None
    """Share of blind retries that passed."""
    groups: int
    """Failed tries with reflections."""
    groups_with_variance: int
    """Of these, what GRPO can learn from: not all reflections earned the same."""
    tokens_sampled: int
    capabilities: dict[str, int]
    """Spans by what they are good for."""
    notes: dict[str, int]
    """Why spans are less than trainable-exact."""
    seconds: float


async def collect(
    tasks: Iterable[Task],
    *,
    policy: Policy,
    verifier: Verifier,
    out: str | Path,
    policy_name: str = "",
    verifier_name: str = "",
    samples: int = 1,
    max_attempts: int = 2,
    reflections: int = 8,
    retries: int = 1,
    blind_retries: int = 0,
    sampling: Sampling | None = None,
    concurrency: int = 64,
    metadata: dict[str, Any] | None = None,
    on_episode: Callable[[int, int], None] | None = None,
    **prompts: str,
) -> CollectSummary:
    """Run one episode for each task and sample, and append the trajectories to the store at `out`.

    Args:
        policy_name: served name with its version; episodes of another are not mistaken for done.
        samples: episodes of each task.
        concurrency: episodes under way at once.
        on_episode: called with (done, total) after each.
        prompts: `reflect_prompt`, `retry_prompt`, `blind_retry_prompt` of `build_graph`.

    Raises:
        ConfigError: the limits or the directory do not work.
        EndpointError, AccessError, ProtocolError: the endpoint fails for every episode; those done are stored.
        R3Error: the first episodes all errored.
    """
    graph_settings = {
        "max_attempts": max_attempts,
        "reflections": reflections,
        "retries": retries,
        "blind_retries": blind_retries,
        **prompts,
    }
    graph = build_graph(policy=policy, verifier=verifier, sampling=sampling, **graph_settings).compile()
    identity = {"policy": policy_name, **graph_settings, "sampling": sampling and sampling.model_dump(mode="json")}
    stored = {t.trajectory_id: t for t in load(out) if t.error is None}
    jobs = [(episode_id(task, sample, identity), task, sample) for task in tasks for sample in range(samples)]
    if not jobs:
        raise ConfigError("there are no tasks to collect; check --n and the task source")
    missing = [job for job in jobs if job[0] not in stored]
    done = [stored[job[0]] for job in jobs if job[0] in stored]
    resumed, fresh_errors = len(done), 0
    start = time.monotonic()

    with TrajectoryWriter(out) as writer:

        async def work(queue: Iterable[tuple[str, Task, int]]) -> None:
            nonlocal fresh_errors
            for trajectory_id, task, sample in queue:
                episode = await run_episode(graph, task)
                episode = episode.model_copy(
                    update={
                        "trajectory_id": trajectory_id,
                        "sample": sample,
                        "verifier": verifier_name,
                        "metadata": metadata or {},
                    }
                )
                writer.append(episode)
                done.append(episode)
                fresh_errors += episode.error is not None
                if fresh_errors == len(done) - resumed == min(HOPELESS, len(missing)):
                    assert episode.error is not None
                    raise R3Error(
                        f"the first {fresh_errors} episodes all errored, the last one with "
                        f"{episode.error.kind}: {episode.error.message}"
                    )
                if on_episode:
                    on_episode(len(done), len(jobs))

        queue = iter(missing)
        await together(work(queue) for _ in range(min(concurrency, len(missing))))
    return summarise(done, resumed=resumed, seconds=time.monotonic() - start)


async def run_episode(graph: CompiledStateGraph[Any, Any, Any, Any], task: Task) -> Trajectory:
    """One episode; an error of its own ends it and is recorded with the spans it grew until then.

    Raises:
        EndpointError, AccessError, ProtocolError: no episode can do without the endpoint.
    """
    spans: list[dict[str, Any]] = []
    error = None
    try:
        async for state in graph.astream({"task": task.model_dump(mode="json")}, stream_mode="values"):
            spans = state.get("spans", spans)
    except ENDPOINT_ERRORS:
        raise
    except R3Error as raised:
        error = EpisodeError(kind=type(raised).__name__, message=str(raised))
    return Trajectory(task=task, spans=tuple(Span.model_validate(span) for span in spans), error=error)


def episode_id(task: Task, sample: int, identity: dict[str, Any]) -> str:
    """The same for the same task, sample, policy and settings, so that a resumed collection knows what is done."""
    return sha256(orjson.dumps([task.id, sample, identity], option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def summarise(episodes: Sequence[Trajectory], *, resumed: int = 0, seconds: float = 0.0) -> CollectSummary:
    """Count what trajectories hold; errored ones only as errors."""
    whole = [t for t in episodes if t.error is None]
    spans = [s for t in episodes for s in t.spans]
    retries = [(t.is_blind(s), s) for t in whole for s in t.spans if s.label == "retry"]
    groups = [group for t in whole for group in t.groups()]
    return CollectSummary(
        episodes=len(episodes),
        resumed=resumed,
        errors=dict(Counter(t.error.kind for t in episodes if t.error)),
        first_try=mean_success(t.attempt for t in whole if t.attempt),
        retry_after_reflection=mean_success(s for blind, s in retries if not blind),
        retry_blind=mean_success(s for blind, s in retries if blind),
        groups=len(groups),
        groups_with_variance=sum(group.has_variance for group in groups),
        tokens_sampled=sum(s.completion_tokens or 0 for s in spans),
        capabilities=dict(Counter(s.capability for s in spans)),
        notes=dict(Counter(s.capability_note for s in spans if s.capability_note)),
        seconds=round(seconds, 2),
    )
