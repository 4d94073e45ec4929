"""Store of trajectories: bytes and rates, the start of a collection that resumes, and rows of a large store.

Generated episodes have an attempt, 8 reflections with a retry each, and a blind retry, of 64 tokens with logprobs each.
`load_rate` is the rate of `load` divided by that of parsing the same records with validation, in alternating turns over
the same lines, with all of them kept; `load_used_rate` the same where the tokens of every span are read too, and
`load_parquet_rate` and `load_parquet_used_rate` those of the same records in Parquet. `validated_ms` is the time that
the parsing takes for a trajectory. `bytes_per_trajectory` is a line's size and `parquet_ratio` its size over that in
Parquet; `parquet_write_ms` is the time of packing a trajectory, and `entry_parquet_ms` that of reading one by its entry
in the index, as `reverify` does one by one. A collection whose episodes are all stored but one starts in `resume_s`
seconds, from the call to the first request, and `resume_mib` more memory than the process has with its tasks:
`--stored` episodes of one attempt and two reflections with a retry each. Training rows are made as `train` makes them,
of `--rows` such episodes, by default the same: `peak_gib` is the peak memory of the process that makes them and reads
them once, `rows_per_s` its rate. A million of these episodes are 22 GB.

    python -m benchmarks.store [--turns 5] [--stored 100000] [--rows 1000000]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from r3agent import Trajectory, collect, load
from r3agent.episodes.jobs import Job, episode_jobs
from r3agent.records.trajectory import Span, Task, Verdict
from r3agent.store import parquet
from r3agent.store.entry import counts_of
from r3agent.store.index import EntryReader, latest_entries
from r3agent.store.shards import TrajectoryWriter, shards
from r3agent.testing import ScriptedPolicy
from r3agent.verifiers import Answer

RECORDS = 200
PROMPT, TOKENS = 120, 64
SHARD = 20_000
"""Number of episodes in a shard."""


def span(label: Any, parent: Span | None, draw: random.Random, passed: bool | None = None) -> Span:
    depth = 1 if parent is None else 2 + (label == "retry")
    return Span(
        parent_id=parent and parent.span_id,
        label=label,
        text=" ".join(f"word{draw.randrange(1000)}" for _ in range(TOKENS)),
        prompt_token_ids=tuple(draw.randrange(50_000) for _ in range(PROMPT * depth)),
        token_ids=tuple(draw.randrange(50_000) for _ in range(TOKENS)),
        logprobs=tuple(-draw.expovariate(2) for _ in range(TOKENS)),
        model="policy@v0000",
        policy_version="v0000",
        sampling={"temperature": 1.0, "max_tokens": 256, "seed": draw.randrange(10**6)},
        finish_reason="stop",
        prompt_tokens=PROMPT * depth,
        completion_tokens=TOKENS,
        latency_s=0.1,
        capability="trainable-exact",
        request=() if parent is None else ({"role": "user", "content": "Please try again. " * 10},),
        verdict=None if passed is None else Verdict(passed=passed, score=float(passed)),
    )


def episode(task: Task, draw: random.Random, *, reflections: int = 8, **fields: Any) -> Trajectory:
    attempt = span("attempt", None, draw, passed=False)
    spans = [attempt]
    for _ in range(reflections):
        spans.append(reflection := span("reflect", attempt, draw))
        spans.append(span("retry", reflection, draw, passed=draw.random() < 0.3))
    if reflections > 2:
        spans.append(span("retry", attempt, draw, passed=False))
    return Trajectory(task=task, spans=tuple(spans), **fields)


def task(i: int) -> Task:
    return Task(messages=({"role": "user", "content": f"Question {i}. " * 20},))


def cpu(action: Callable[[], object]) -> float:
    start = time.process_time()
    kept = action()
    seconds = time.process_time() - start
    del kept
    return seconds


def rates(turns: int) -> dict[str, float]:
    """Measure reading, in CPU time of one process."""
    draw = random.Random(0)
    records = [episode(task(i), draw) for i in range(RECORDS)]
    with tempfile.TemporaryDirectory() as folder:
        store, packed = Path(folder, "store"), Path(folder, "packed")
        with TrajectoryWriter(store) as writer:
            written = cpu(lambda: [writer.append(record) for record in records])
        records.clear()  # garbage is searched for among them
        lines = shards(store)[0].read_bytes().splitlines()
        packed.mkdir()
        packing = cpu(lambda: parquet.write_lines(packed / "00000.parquet", lines))
        size = (packed / "00000.parquet").stat().st_size

        by_entry = [*latest_entries(packed).values()]

        def one_by_one() -> list[Trajectory]:
            reader = EntryReader()
            return [reader.read(entry) for entry in by_entry]

        def used(directory: Path) -> list[Trajectory]:
            read = load(directory)
            for s in (s for t in read for s in t.spans):
                assert len(s.token_ids or ()) == len(s.logprobs or ()) == TOKENS <= len(s.prompt_token_ids or ())
            return read

        gc.collect()
        gc.freeze()  # a search for garbage among all objects of the libraries takes as long as 100 records
        validated_s, entry_s, found = list[float](), list[float](), dict[str, list[float]]()
        for _ in range(turns):
            entry_s.append(cpu(one_by_one))
            validated_s.append(cpu(lambda: [Trajectory.of_line(line) for line in lines]))
            for name, directory in (("load", store), ("load_parquet", packed)):
                found.setdefault(f"{name}_rate", []).append(validated_s[-1] / cpu(partial(load, directory)))
                found.setdefault(f"{name}_used_rate", []).append(validated_s[-1] / cpu(partial(used, directory)))
    ratios = {name: round(statistics.median(values), 2) for name, values in found.items()}
    return {
        "bytes_per_trajectory": round(sum(map(len, lines)) / RECORDS),
        "parquet_ratio": round(sum(map(len, lines)) / size, 2),
        "write_ms": round(written / RECORDS * 1e3, 3),
        "parquet_write_ms": round(packing / RECORDS * 1e3, 3),
        "entry_parquet_ms": round(statistics.median(entry_s) / RECORDS * 1e3, 3),
        "validated_ms": round(statistics.median(validated_s) / RECORDS * 1e3, 3),
        **ratios,
    }


async def never(task: Task, answer: Answer) -> bool:
    return False


def stored_jobs(numbers: range) -> dict[str, Job]:
    return episode_jobs([task(i) for i in numbers], policy_name="policy@v0000", reflections=2)


def fill(store: Path, n: int) -> None:
    """Write all episodes of a collection but the last; 100 different ones stand for all."""
    draw = random.Random(0)
    made = [episode(task(i), draw, reflections=2) for i in range(100)]
    counted = [counts_of(record) for record in made]
    for first in range(0, n, SHARD):
        with TrajectoryWriter(store, fsync="never") as writer:
            numbers = range(first, min(n, first + SHARD))
            for i, (id_, job) in zip(numbers[: n - 1 - first], stored_jobs(numbers).items(), strict=False):
                own = {"trajectory_id": id_, "task": job.task}
                writer.append(made[i % 100].model_copy(update=own), counted[i % 100])


def peak_mib() -> float:
    """Return the peak of this program's memory; that of `getrusage` may be the parent's."""
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) / 1024


class FirstRequestError(Exception):
    """The policy was asked."""


class Asked(ScriptedPolicy):
    async def sample(self, *args: Any, **given: Any) -> Any:
        raise FirstRequestError


def resume(store: Path, n: int) -> dict[str, float]:
    """Resume a collection, in a process of its own, up to the first request."""
    tasks = [task(i) for i in range(n)]
    before, start, cpu_start = peak_mib(), time.monotonic(), time.process_time()
    asked: Any = Asked([])
    with suppress(FirstRequestError):
        asyncio.run(collect(tasks, policy=asked, policy_name="policy@v0000", verifier=never, out=store, reflections=2))
    seconds, cpu_s = time.monotonic() - start, time.process_time() - cpu_start
    return {"resume_s": round(seconds, 2), "resume_cpu_s": round(cpu_s, 2), "resume_mib": round(peak_mib() - before)}


def rows(store: Path) -> dict[str, float]:
    """Make training rows, in a process of its own."""
    from r3agent.store.batches import StoredTrajectories
    from r3agent.train import TrainConfig
    from r3agent.train.rows import file_rows

    start = time.monotonic()
    made, report = file_rows(StoredTrajectories(store), config=TrainConfig(recipe="paper"), version="v0000")
    seconds = time.monotonic() - start
    assert sum(1 for _ in made) == report.rows
    return {
        "trajectories": report.trajectories,
        "rows": report.rows,
        "rows_per_s": round(report.rows / seconds),
        "peak_gib": round(peak_mib() / 1024, 3),
    }


def in_process(*arguments: object) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.store", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def measure(turns: int, stored: int, n_rows: int) -> dict[str, float]:
    results = rates(turns)
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), stored)
        results |= {"stored": stored, **in_process("--stored", stored, "--resume-in", folder)}
        if stored == n_rows:
            return results | in_process("--rows-of", folder)
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), n_rows)
        return results | in_process("--rows-of", folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--stored", type=int, default=10_000)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--resume-in", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rows-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rows_of:
        print(json.dumps(rows(options.rows_of)))
        return
    if options.resume_in:
        print(json.dumps(resume(options.resume_in, options.stored)))
        return
    results = measure(options.turns, options.stored, options.rows or options.stored)
    for name, value in results.items():
        print(f"{name:24} {value}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
