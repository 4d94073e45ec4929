"""Many episodes against an endpoint that fails on a share of the requests: all accounted for, in flat memory.

The endpoint is a process of its own that answers a tenth of the requests (`--rate`) with one of
`r3agent.testing.FAULTS`, except the fatal ones. Half of the first tries fail and are followed by two reflections and
their retries. The last line has the episodes `asked`, those `completed` and the recorded `errors` by kind, whose sum
must be `asked`, as must the `stored` ids; `duplicates` of ids, `orphans` (spans without their parent), `unreadable`
lines, the resident memory after the first tenth of the episodes and at the end, in MiB, and the duration.

    python -m benchmarks.soak [--episodes 20000] [--rate 0.1] [--concurrency 64] [--max-tries 2] [--seed 0]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.faulty import RIGHT, FaultyEndpoint
from benchmarks.kill_sweep import orphans
from r3agent import OpenAIPolicy, Task, collect
from r3agent._util.cycles import rare_garbage_collection
from r3agent.records.summary import CollectSummary
from r3agent.store.shards import Unreadable, read


def memory_mib() -> float:
    return round(psutil.Process().memory_info().rss / 2**20, 1)


async def soak(url: str, out: Path, episodes: int, concurrency: int, max_tries: int) -> tuple[CollectSummary, float]:
    """Collect, and return the summary and the memory after the first tenth."""
    at_start = 0.0

    def on_episode(done: int, total: int) -> None:
        nonlocal at_start
        if done == total // 10:
            at_start = memory_mib()
        if done % 1000 == 0:
            print(f"{done} of {total}, {memory_mib():g} MiB", flush=True)

    tasks = [Task(id=f"t{i}", messages=({"role": "user", "content": f"question {i}"},)) for i in range(episodes)]
    async with OpenAIPolicy(url, "scripted", timeout_s=2.0, max_tries=max_tries) as policy:
        summary = await collect(
            tasks,
            policy=policy,
            verifier=lambda task, answer: answer == RIGHT,
            out=out,
            concurrency=concurrency,
            reflections=2,
            on_episode=on_episode,
        )
    return summary, at_start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--episodes", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=0.1, help="share of the requests that meet a fault")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--max-tries", type=int, default=2, help="tries of a request; few leave errors")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, FaultyEndpoint(options.rate, seed=options.seed) as endpoint:
        with rare_garbage_collection():
            soaking = soak(endpoint.url, Path(folder), options.episodes, options.concurrency, options.max_tries)
            summary, rss_start_mib = asyncio.run(soaking)
        rss_end_mib, seconds = memory_mib(), round(time.monotonic() - begin, 1)
        unreadable: list[Unreadable] = []
        ids: set[str] = set()
        n_stored = n_orphans = 0
        for trajectory in read(folder, unreadable=unreadable):
            ids.add(trajectory.trajectory_id)
            n_stored, n_orphans = n_stored + 1, n_orphans + orphans(trajectory)
    found = {
        "asked": options.episodes,
        "completed": summary.episodes - sum(summary.errors.values()),
        "errors": summary.errors,
        "stored": len(ids),
        "duplicates": n_stored - len(ids),
        "orphans": n_orphans,
        "unreadable": len(unreadable),
        "rss_start_mib": rss_start_mib,
        "rss_end_mib": rss_end_mib,
        "seconds": seconds,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
