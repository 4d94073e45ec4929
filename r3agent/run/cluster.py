"""Collection over a Ray cluster: every worker collects parts of the episodes, into shards of its own.

A part is a call of `collect`, which runs what its shards lack. So a part whose worker or node died is run again
elsewhere, and only its missing episodes are sampled. Workers open the run directory, on storage that all nodes share,
or upload their shards to `collect.shards`, from where those of a part are fetched into the run when it has ended. They
import agents and verifiers by name; keys are in the environment of the nodes.
"""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from r3agent._util.files import decode, write_atomically
from r3agent._util.imports import require_extra
from r3agent.episodes.collect import HOPELESS, Part, count_outdated
from r3agent.episodes.jobs import Job, episode_jobs
from r3agent.episodes.quota import CollectLimits, Quota
from r3agent.errors import ConfigError, R3Error
from r3agent.records.summary import CollectSummary, Tally
from r3agent.records.trajectory import Task, Trajectory, new_id
from r3agent.run.collector import Collector, Progress
from r3agent.run.part import Ended, Failed, collect_part, folder_of, packed, request_of
from r3agent.store.counting import count
from r3agent.store.fetch import Fetcher
from r3agent.store.index import latest_entries
from r3agent.store.remote import RemoteShards

logger = logging.getLogger(__name__)

SLOTS_PER_CPU = 2
"""Number of parts that run on one CPU at once, so that one goes on while the last episodes of another end."""

LEAST, MOST = 8, 1024
"""Minimum and maximum number of episodes in a part."""

RETRIES = 5
"""Number of times that a part may lose its worker."""

WAIT_S = 10
"""Seconds after which it is checked how many CPUs the cluster has."""

CONNECT_S = 10
"""Seconds in which the cluster must accept a connection."""

OBJECT_STORE = 100 * 2**20
"""Bytes of the object store of a node that is started here; tasks are small."""


NAME_FILE = "shards.name"
"""File of a run directory with the name of its folder at `collect.shards`, which several runs may share."""


def collect_on_cluster(
    run: Collector,
    version: str,
    base_url: str | None,
    tasks: Sequence[Task | Trajectory],
    limits: Mapping[str, Any],
    spending: CollectLimits,
    *,
    progress: Progress | None = None,
    on_tally: Callable[[Tally], None] | None = None,
) -> CollectSummary:
    """Collect on the Ray cluster at `collect.address`, or on one that is started on this machine.

    Args:
        base_url: server of the version, if it is not the live one.
        limits: limits of the episodes, and their samples.
        spending: budgets; running parts share what is left of them.
        progress, on_tally: called as by `collect`, after each part.

    Raises:
        ConfigError: Ray is not installed, the cluster cannot be reached or has no CPU, or a worker cannot open the run
            or shares no place for its shards.
        R3Error: the endpoint fails, the first episodes all errored, or a part lost its workers too often; what is
            stored stays.
    """
    start, out, identity = time.monotonic(), run.directory / "trajectories", run.collect_identity(version, limits)
    jobs, tally = episode_jobs(tasks, **identity), Tally()
    quota = Quota(spending, tally, run.config.policy.prices)
    out.mkdir(parents=True, exist_ok=True)
    remote = _remote_shards(run)
    fetcher = remote and Fetcher(remote, out)
    if fetcher:
        fetcher.fetch()  # what the workers of a driver that died have uploaded
    stored = latest_entries(out)
    outdated = count_outdated(stored.values(), jobs, identity["policy_name"])
    kept = {id_ for id_, entry in stored.items() if id_ in jobs and entry.error is None}
    count(tally, out, [entry for id_, entry in stored.items() if id_ in kept])
    del stored
    missing = [id_ for id_ in jobs if id_ not in kept]
    todo = deque(missing[: spending.max_episodes])
    request: dict[str, Any] = {
        **request_of(run, remote),
        "path": [os.getcwd(), *sys.path],
        "version": version,
        "base_url": base_url,
        "limits": dict(limits),
    }

    def take(part: Part, ended: Ended) -> None:
        quota.spend(None if ended.tally.uncounted else ended.tally.tokens_sampled, ended.cost)
        if fetcher:
            fetcher.fetch(folder_of(part))
            ended = _as_fetched(run, part, ended)
        todo.extendleft(reversed(ended.left))
        tally.merge(ended.tally)
        tally.cost = quota.cost
        if tally.errors.total() == tally.episodes >= min(HOPELESS, len(jobs)):
            raise R3Error(
                f"the first {tally.episodes} episodes all errored: {dict(tally.errors)}; `r3agent inspect "
                f"{run.directory}` has the messages; mend that and collect again: episodes that errored are run anew"
            )
        if on_tally:
            on_tally(tally)
        if progress:
            progress(tally.episodes, len(jobs))

    if todo:
        with _cluster(run.config.collect.address):
            try:
                _distribute(request, jobs, todo, tally, quota, take)
            finally:
                if fetcher:
                    fetcher.fetch()
    summary = tally.summary(resumed=len(kept), outdated=outdated, seconds=time.monotonic() - start)
    return summary.model_copy(update=quota.report(left=len(jobs) - tally.episodes))


def _distribute(
    request: Mapping[str, Any],
    jobs: Mapping[str, Job],
    todo: deque[str],
    tally: Tally,
    quota: Quota,
    take: Callable[[Part, Ended], None],
) -> None:
    """Run parts until nothing is left to do or a limit is reached."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    worker = ray.remote(num_cpus=1 / SLOTS_PER_CPU, max_retries=RETRIES, scheduling_strategy="SPREAD")(collect_part)
    name, number, running = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{new_id()}", 0, dict[Any, tuple[Part, CollectLimits]]()
    try:
        while True:
            slots = _slots(bool(running))
            # Until an episode succeeds, a few run alone: if all fail, the cluster spends nothing on others.
            size = min(MOST, max(LEAST, math.ceil(len(todo) / slots / 2))) if tally.answered else HOPELESS
            while todo and len(running) < (slots if tally.answered else 1):
                share = quota.share(slots - len(running), [lent for _, lent in running.values()])
                if share is None:
                    break
                ids = [todo.popleft() for _ in range(min(size, len(todo)))]
                answered = jobs.get(tally.answered or "")
                part, number = Part(f"{name}-{number:06d}-", ids, answered), number + 1
                given = {_key(jobs[id_]): packed(jobs[id_].begin or jobs[id_].task) for id_ in ids}
                running[worker.remote(request, [*given.values()], part, share)] = part, share
            if not running:
                return
            for reference in ray.wait([*running], num_returns=1, timeout=WAIT_S)[0]:
                ended = ray.get(reference)
                part, _ = running.pop(reference)
                if isinstance(ended, Failed):
                    raise (ConfigError if ended.is_config else R3Error)(f"on a worker: {ended.message}")
                take(part, ended)
    except RayTaskError as error:
        raise R3Error(
            f"on a worker: {str(error.cause or error).strip().splitlines()[-1]}; every node needs r3agent and what the "
            "agent and the verifier import"
        ) from error
    except RayError as error:
        raise R3Error(
            f"a part lost its worker more than {RETRIES} times: {type(error).__name__}: {error}; what is stored stays: "
            "collect again"
        ) from error
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _remote_shards(run: Collector) -> RemoteShards | None:
    """Return the folder of a run at `collect.shards`."""
    if not run.config.collect.shards:
        return None
    file = run.directory / NAME_FILE
    if not file.exists():
        name = re.sub(r"[^\w.-]", "-", run.directory.resolve().name)
        write_atomically(file, f"{name}-{new_id()}\n")
    return RemoteShards(run.config.collect.shards, decode(file.read_bytes(), str(file)).strip())


def _as_fetched(run: Collector, part: Part, ended: Ended) -> Ended:
    """Count the episodes of a part that are in the store; one that was damaged on the way is left to do.

    Raises:
        ConfigError: none is there, which sampling them again would not change.
    """
    out = run.directory / "trajectories"
    stored, tally = latest_entries(out, prefix=part.prefix), Tally()
    if (n := len(part.ids) - len(ended.left)) and not stored:
        raise ConfigError(
            f"collect.shards = {run.config.collect.shards!r}: a worker uploaded {n} episodes, and none is there; "
            "name a place that the nodes and this machine share, such as s3://BUCKET/FOLDER"
        )
    count(tally, out, stored.values())
    return ended._replace(tally=tally, left=[id_ for id_ in part.ids if id_ not in stored])


def _key(job: Job) -> str:
    """Name what a job begins with: several samples of it are one item of a part."""
    return job.task.id if job.begin is None else job.begin.trajectory_id


def _slots(waits: bool) -> int:
    """Return the number of parts that the cluster can run at once.

    Raises:
        ConfigError: it has no CPU, and no part waits for one.
    """
    import ray

    cpus = int(ray.cluster_resources().get("CPU", 0))
    if not cpus and not waits:
        raise ConfigError("the Ray cluster has no CPU; add nodes with `ray start --address ADDRESS --num-cpus N`")
    if not cpus:
        logger.warning("the Ray cluster has no CPU left: the collection waits for a node")
    return max(1, SLOTS_PER_CPU * cpus)


@contextmanager
def _cluster(address: str) -> Generator[None]:
    """Connect to a cluster, or start one; the connection of the calling program stays as it is."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    require_extra("ray", "ray")
    import ray

    _check_answers(address)
    if ray.is_initialized():
        yield
        return
    given: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.WARNING}
    if not address:
        given |= {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE}
        given |= {"_node_ip_address": "127.0.0.1"}
    try:
        ray.init(**given)
    except Exception as error:  # it has no class of its own
        where = f"collect.address = {address!r}" if address else "Ray does not start on this machine"
        raise ConfigError(f"{where}: {error}; {_remedy(address)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _remedy(address: str) -> str:
    """Return what helps if Ray does not start, or no cluster of it is at an address."""
    if address in ("", "auto"):
        return "start a cluster with `ray start --head`, and pass --address with the HOST:PORT that it prints"
    return (
        "pass --address with the HOST:PORT that `ray start --head` prints; its nodes need the versions of Ray and of "
        "Python of this machine"
    )


def _check_answers(address: str) -> None:
    """Refuse an address where nothing answers, for which Ray would wait minutes."""
    if address in ("", "auto"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError, ValueError) as error:
        raise ConfigError(
            f"collect.address = {address!r}: {error}; give the HOST:PORT that `ray start --head` prints, port 6379 "
            "unless another was chosen"
        ) from error
