"""Collect trajectories: run the loop over many tasks concurrently and store each episode when it ends.

Stored episodes are kept: the same call again runs only episodes that are missing or ended with an error. An error of
one episode (a prompt too long, a verifier that raises, a task that the endpoint always fails on) is recorded with it.
If the endpoint itself fails, the collection ends: `Endurance` tells the two apart.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field
from typing_extensions import Unpack

from r3agent._util.aio import gather_all
from r3agent._util.checked import AtLeastOne, checked
from r3agent.episodes.agents.base import Environment
from r3agent.episodes.assembly import assemble
from r3agent.episodes.config import COLLECT_REFLECTIONS, EpisodeConfig, EpisodeOptions, EpisodePrompts
from r3agent.episodes.endurance import Endurance, endpoint_error
from r3agent.episodes.jobs import Job, episode_jobs
from r3agent.episodes.quota import CollectLimits, Quota
from r3agent.episodes.run_episode import run_episode
from r3agent.errors import R3Error
from r3agent.http.slots import Gate
from r3agent.policy import Paced, Policy, Pooled, Versioned, prices_of, sampling_of
from r3agent.records.summary import CollectSummary, Tally
from r3agent.records.trajectory import SOURCE, SPLIT, Task, Trajectory
from r3agent.records.versions import served_version
from r3agent.store.counting import count
from r3agent.store.entry import Entry, counts_of
from r3agent.store.index import EntryReader, latest_entries
from r3agent.store.shards import Fsync, TrajectoryWriter
from r3agent.verifiers import Verifier

CONCURRENCY = 64
"""Number of concurrent episodes if the policy does not tell what its server bears."""

MOST = 512
"""Maximum number of concurrent episodes if the policy tells it."""

RAMP, RAMP_PER_S = 64, 250
"""Number of episodes that begin at once, and of those that begin each second after them."""

HOPELESS = 16
"""Number of episodes after which a collection stops, if all of them ended with an error."""


class Part(NamedTuple):
    """Share of a collection that many calls make, each with shards of its own."""

    prefix: str
    """Beginning of the names of its shards; stored episodes of other shards are not searched."""
    ids: Collection[str]
    """Episodes that it runs."""
    answered: Job | None = None
    """Episode of another part that succeeded, by which an endpoint that fails is known."""


@checked
async def collect(
    tasks: Iterable[Task | Mapping[str, Any] | Trajectory],
    *,
    policy: Policy,
    verifier: Verifier,
    out: str | Path,
    policy_name: str = "",
    version: str | None = None,
    accept: Callable[[Trajectory], bool] | None = None,
    verifier_name: str = "",
    verifier_params: Mapping[str, Any] | None = None,
    agent: object | None = None,
    tools: Sequence[Any] = (),
    environment: Environment | None = None,
    agent_name: str = "",
    samples: AtLeastOne = 1,
    first_sample: Annotated[int, Field(ge=0)] = 0,
    concurrency: AtLeastOne | None = 64,
    rerun_errors: bool = True,
    metadata: Mapping[str, Any] | None = None,
    on_episode: Callable[[int, int], None] | None = None,
    on_tally: Callable[[Tally], None] | None = None,
    limits: CollectLimits | None = None,
    fsync: Fsync = "interval",
    part: Part | None = None,
    **options: Unpack[EpisodeOptions],
) -> CollectSummary:
    """Run one episode for each task and sample, and append the trajectories to the store at `out`.

    A stored episode counts as done if it is of the same task (messages, tools, info and gold), policy, verifier, agent
    and settings; after a change of one of them, the episodes are run anew, and the stored ones stay.

    Args:
        tasks: tasks, as records or as their JSON; a `Trajectory` of `branch_of` continues a recorded failure.
        policy_name: served name with its version; default: the policy's `model`, with the version that is live at the
            start if the name leaves it open.
        version: policy version that all spans must have, or else a stored episode does not count as done; default: that
            of the live policy, or else any.
        accept: returns False for a stored episode that does not count as done; default: all do.
        verifier_name: recorded with each trajectory.
        verifier_params: settings of the verifier.
        agent: maker of the tries, as in `build_graph`, as are `tools` and `environment`.
        agent_name: recorded with each trajectory of an agent or with tools; default: a name of the agent. Another name
            makes other episodes: change it with the agent's code.
        samples: episodes per task.
        first_sample: index of the first of them; another one draws new episodes of the same tasks from the same policy.
        concurrency: maximum number of concurrent episodes; with `None` half as many as requests that the server
            bears, if the policy tells it, as `OpenAIPolicy(..., adaptive=True)` does.
        rerun_errors: run episodes that are stored with an error again. In an evaluation, drawing again only what failed
            would favour answers that do not fail, so it passes False; the errors stay unless all episodes errored.
        metadata: recorded with each trajectory, beside the hash of the prompts.
        on_episode: called with (done, total) after each episode.
        on_tally: called with the counts so far, once before the first episode and after each.
        limits: budgets of this call and time limit of an episode; default: none.
        fsync: time at which episodes are on disk for good; the death of the process alone loses none that has ended.
        part: run some of the episodes, also if the first of them all errored; what is stored in the part's shards
            counts as spent. Default: all.
        options: as in `build_graph`; 8 reflections by default, and errors of an agent are recorded with their try.

    Raises:
        ConfigError: an argument, the tasks, the limits or the directory are invalid.
        EndpointError, AccessError, ProtocolError: the endpoint fails; finished episodes are stored.
        VerifierError: the endpoint of the judge fails.
        RecordError: the store cannot be read, or the disk is full.
        R3Error: the first episodes all ended with an error.
    """
    config = EpisodeConfig.of({"reflections": COLLECT_REFLECTIONS, "agent_errors": "record", **options})
    config = config.model_copy(update={"sampling": config.sampling or sampling_of(policy)})
    made_by: Any = {"agent": agent, "tools": tools, "environment": environment}
    nodes = assemble(policy=policy, verifier=verifier, **made_by, **config.options())
    agent_name = agent_name or _name_of(**made_by)
    if not policy_name:
        model = getattr(policy, "model", "")
        policy_name = model if isinstance(model, str) else ""
        if isinstance(policy, Versioned) and (policy_name := await policy.versioned_name()) != model:
            version = version or served_version(policy_name)  # another may be live before the end
    jobs = episode_jobs(
        tasks,
        policy_name=policy_name,
        verifier_name=verifier_name,
        verifier_params=verifier_params,
        agent_name=agent_name,
        tools=tools,
        samples=samples,
        first_sample=first_sample,
        **config.options(),
    )

    if part:
        jobs = {id_: jobs[id_] for id_ in part.ids}
    prompts = [getattr(config, name) for name in EpisodePrompts.model_fields]
    named = {"agent": agent_name} if agent_name else {}
    metadata = {"prompts": sha256(json.dumps(prompts).encode()).hexdigest()[:16], **named, **(metadata or {})}

    limits = limits or CollectLimits()
    start, tally = time.monotonic(), Tally()
    quota = Quota(limits, tally, prices_of(policy))
    with TrajectoryWriter(out, prefix=part.prefix if part else "", fsync=fsync) as writer:
        if part:
            stored, reader = latest_entries(out, prefix=part.prefix), EntryReader()
            for entry in stored.values():
                quota.add(reader.read(entry))
        else:
            stored = latest_entries(out, version=version, accept=accept)
        kept = {id_: entry for id_, entry in stored.items() if id_ in jobs}
        if rerun_errors or all(t.error for t in kept.values()):
            kept = {id_: t for id_, t in kept.items() if t.error is None}
        count(tally, out, [kept[id_] for id_ in jobs if id_ in kept])
        resumed, queue = len(kept), iter([(id_, job) for id_, job in jobs.items() if id_ not in kept])
        if on_tally:
            on_tally(tally)

        def store(episode: Trajectory) -> None:
            counts = counts_of(episode)
            writer.append(episode, counts)
            tally.add_counts(counts, episode.trajectory_id, episode.parent_id, task_id=episode.task.id)
            quota.add(episode)
            tally.in_flight, tally.cost = gate.inside, quota.cost
            if on_tally:
                on_tally(tally)
            if on_episode:
                on_episode(tally.episodes, len(jobs))
            if episode.error and not part and tally.errors.total() == tally.episodes == min(HOPELESS, len(jobs)):
                raise R3Error(
                    f"the first {tally.episodes} episodes all errored, the last one with {episode.error.kind}: "
                    f"{episode.error.message}; mend that and collect again: episodes that errored are run anew"
                )

        async def answers_again() -> bool:
            answered = jobs[tally.answered] if tally.answered else part and part.answered
            if answered is None:
                return False
            again = await run_episode(nodes, answered.task, answered.sample, max_attempts=1)
            return endpoint_error(again.cause) is None

        pace = policy if concurrency is None and isinstance(policy, Paced) else None
        gate = Gate(lambda: concurrency or CONCURRENCY if pace is None else max(1, pace.room() // 2))
        n_workers = min(MOST if pace else concurrency or CONCURRENCY, len(jobs) - resumed)
        endurance = Endurance(store, answers_again, n_workers=min(n_workers, gate.limit))
        drained = asyncio.Event()

        async def work(number: int) -> None:
            if number >= RAMP:  # connections are opened one after another
                with suppress(TimeoutError):
                    await asyncio.wait_for(drained.wait(), (number - RAMP) / RAMP_PER_S)
            while not drained.is_set():
                async with gate:
                    id_, job = next(queue, (None, None))
                    if id_ is None or job is None or not quota.begin():
                        drained.set()
                        return
                    errors_before = endurance.errors
                    begin = job.begin and job.begin.model_copy(update={"trajectory_id": id_})
                    with policy.episode() if isinstance(policy, Pooled) else nullcontext() as seat:
                        given: Any = {"timeout_s": limits.episode_timeout_s, "policy": seat, "begin": begin}
                        named: Any = {"trajectory_id": id_, "agent": agent_name}
                        ended = await run_episode(nodes, job.task, job.sample, **given, **named)
                    own = {**ended.episode.metadata, **_metadata(metadata, begin)}
                    named = {"verifier": verifier_name, "metadata": own}
                    episode = ended.episode.model_copy(update=named)
                    await endurance.take(episode, ended.cause, errors_before=errors_before)

        await gather_all(work(number) for number in range(n_workers))
        await endurance.end()
    summary = tally.summary(
        resumed=resumed, outdated=count_outdated(stored.values(), jobs, policy_name), seconds=time.monotonic() - start
    )
    return summary.model_copy(update=quota.report(left=len(jobs) - tally.episodes))


def _metadata(metadata: Mapping[str, Any], begin: Trajectory | None) -> dict[str, Any]:
    """Return the metadata of an episode; the task of a recorded one is not from the source and split of the others."""
    if begin is None:
        return dict(metadata)
    return {**begin.metadata, **{name: value for name, value in metadata.items() if name not in (SOURCE, SPLIT)}}


def _name_of(agent: object | None, tools: Sequence[Any], environment: Environment | None) -> str:
    """Return a name of what makes the tries; empty if each is one completion."""
    if agent is not None:
        names = (getattr(agent, attribute, None) for attribute in ("name", "__qualname__"))
        return next((name for name in names if isinstance(name, str) and name), type(agent).__qualname__)
    return "tools" if tools else "environment" if environment else ""


def count_outdated(stored: Iterable[Entry], jobs: Mapping[str, Job], policy_name: str) -> int:
    """Count the stored episodes of the same tasks, samples and policy version that have the id of no job."""
    wanted = {(job.begin and job.begin.parent_id, job.task.id, job.sample) for job in jobs.values()}
    version = served_version(policy_name)
    others = [t for t in stored if t.trajectory_id not in jobs and t.error is None]
    return sum((t.parent_id, t.task_id, t.sample) in wanted and version in (None, *t.versions) for t in others)
