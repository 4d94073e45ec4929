"""Collections that are killed with SIGKILL at random moments, as are their servers, and resumed until nothing is left.

The servers fail at random (`--rate`). In each round, a process collects into a run directory; it is killed and started
again until it ends by itself. Sometimes a server is killed instead and comes back on its port, and sometimes a second
process collects into the same run, and must be refused. A new round begins until there were `--kills` kills. At the end
of a round the store must have each episode without an error exactly once, each span its parent, and no unreadable line
besides torn ones. The last line has `kills`, of which `server_kills`, the episodes `asked` and `completed`,
`duplicates`, `orphans`, `unreadable` lines, the processes `refused`, and those that `ended` with an error.

    python -m benchmarks.kill_sweep [--kills 50] [--episodes 200] [--servers 1] [--rate 0.1] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import signal
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.faulty import RIGHT, FaultyEndpoint, processes
from r3agent.errors import BusyError, R3Error
from r3agent.records.trajectory import Trajectory
from r3agent.run.stages import Run
from r3agent.store.shards import Unreadable, read

LONGEST_S = 2.0
"""Maximum time from the start of a process to a kill."""

BUSY, FAILED = 3, 4
"""Exit codes of a process that was refused, or that ended with an error."""

FOLLOWING = 0.1
"""Share of kills after which a second process tries to collect into the run."""


def sweep(
    kills: int, episodes: int, *, folder: Path, servers: int = 1, rate: float = 0.1, seed: int = 0
) -> Counter[str]:
    """Run rounds until there were `kills` kills, and return the counts."""
    draw, counts = random.Random(seed), Counter[str]()
    with ExitStack() as stack:
        running = [stack.enter_context(FaultyEndpoint(rate, seed=seed + 1000 * i)) for i in range(servers)]
        while counts["kills"] < kills:
            run = folder / f"round-{counts['rounds']}"
            run.mkdir()
            write_tasks(run, episodes)
            collect_with_kills(run, running, episodes, draw, counts, kills)
            counts += counts_of(run, episodes)
            counts["rounds"] += 1
    return counts


def collect_with_kills(
    run: Path, servers: list[FaultyEndpoint], episodes: int, draw: random.Random, counts: Counter[str], kills: int
) -> None:
    """Collect into a run until it is whole, and kill until there were enough kills."""
    while True:
        collector = start(run, servers, episodes)
        while counts["kills"] < kills:
            collector.join(draw.uniform(0, LONGEST_S))
            if collector.exitcode is not None:
                break
            if draw.random() < FOLLOWING:
                second = start(run, servers, episodes)
                second.join()
                counts["refused"] += second.exitcode == BUSY
            if draw.random() < 0.7:
                collector.kill()
                break
            server = draw.choice(servers)
            counts.update(("kills", "server_kills"))
            server.kill()
            time.sleep(draw.uniform(0, 1))
            server.start()
        collector.join()
        if collector.exitcode == 0:
            return
        counts["kills"] += collector.exitcode == -signal.SIGKILL
        counts["ended"] += collector.exitcode == FAILED


def start(run: Path, servers: list[FaultyEndpoint], episodes: int) -> Any:
    process = processes.Process(target=_collect, args=(run, [server.url for server in servers], episodes), daemon=True)
    process.start()
    return process


def _collect(run: Path, urls: list[str], episodes: int) -> None:
    """Collect until no episode has an error, and exit."""
    logging.disable()
    settings: dict[str, Any] = {
        "policy.base_url": urls[0],
        "policy.base_urls": urls[1:],
        "policy.model": "scripted",
        "policy.timeout_s": 1.0,
        "policy.outage_s": 30.0,
        "task.source": str(run / "tasks.jsonl"),
        "task.verifier": "exact",
        "collect.n": episodes,
        "collect.reflections": 2,
    }
    try:
        while Run(run, settings).collect().errors:
            pass
    except BusyError:
        os._exit(BUSY)
    except R3Error as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(FAILED)
    os._exit(0)


def write_tasks(run: Path, episodes: int) -> None:
    tasks = [{"id": f"t{i}", "prompt": f"question {i}", "answer": RIGHT} for i in range(2 * episodes)]
    (run / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))


def counts_of(run: Path, episodes: int) -> Counter[str]:
    """Count what the store of a finished run has."""
    unreadable: list[Unreadable] = []
    stored = list(read(run, unreadable=unreadable))
    whole = Counter(trajectory.trajectory_id for trajectory in stored if trajectory.error is None)
    return Counter(
        asked=episodes,
        completed=len(whole),
        tasks=len({(t.task.id, t.sample) for t in stored}),
        duplicates=whole.total() - len(whole),
        orphans=sum(map(orphans, stored)),
        unreadable=len(unreadable),
        with_errors=len(stored) - whole.total(),
    )


def orphans(trajectory: Trajectory) -> int:
    ids = {None, *(span.span_id for span in trajectory.spans)}
    return sum(span.parent_id not in ids for span in trajectory.spans)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--episodes", type=int, default=200, help="episodes of a round")
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.1, help="share of the requests that meet a fault")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts = sweep(folder=Path(folder), **options)
    names = ("kills", "server_kills", "rounds", "asked", "completed", "tasks", "duplicates", "orphans", "unreadable")
    counts_by_name = {name: counts[name] for name in (*names, "with_errors", "refused", "ended")}
    print(json.dumps({**counts_by_name, "seconds": round(time.monotonic() - begin, 1)}))


if __name__ == "__main__":
    main()
