"""Latency that recording adds to a request: `Recorder.record` against a plain dump and write of the trajectory there.

The trajectory is a complete episode (18 spans of 20 tokens, prompts of 100), as the graph returns it. The plain form is
`orjson.dumps` and one `os.write`, which checks nothing. Requests come one after another with pauses, so that the
recorder's thread writes concurrently; reported are median wall times in microseconds, and `ratio` is record / plain.

Then an event loop records 1,000 a second: `lag_ms` is the 99th percentile of how late its timers are, in milliseconds,
with the recorder, with the plain form and with neither; it is the median of rounds of one second, in turn.

    python benchmarks/recorder.py [--requests 300] [--rounds 7]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import orjson
from graph_overhead import GENERATION, REFLECTIONS, TASK, never

from r3agent.episodes.graph import build_graph
from r3agent.recording.recorder import Recorder
from r3agent.testing import ScriptedPolicy

Call = Callable[[dict[str, Any]], object]

PAUSE_S = 0.005

RATE = 1000
"""Trajectories a second of the event loop."""


def episode() -> dict[str, Any]:
    graph = build_graph(
        policy=ScriptedPolicy(GENERATION), verifier=never, reflections=REFLECTIONS, retries=1, blind_retries=1
    )
    return asyncio.run(graph.compile().ainvoke({"task": TASK}))["trajectory"]


def median_us(call: Call, trajectory: dict[str, Any], requests: int) -> float:
    taken: list[float] = []
    for _ in range(requests):
        start = time.perf_counter()
        call(trajectory)
        taken.append(time.perf_counter() - start)
        time.sleep(PAUSE_S)
    return median(taken) * 1e6


async def lag_ms(call: Call, trajectory: dict[str, Any]) -> float:
    """Return the 99th percentile of the delays of timers that call `call`."""
    began, late = time.perf_counter(), list[float]()
    for i in range(RATE):
        due = began + i / RATE
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        late.append(max(0.0, time.perf_counter() - due))
        call(trajectory)
    return sorted(late)[int(0.99 * len(late))] * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    trajectory = episode()
    with tempfile.TemporaryDirectory() as directory:
        plain = os.open(f"{directory}/plain", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

        def dump_and_write(it: dict[str, Any]) -> None:
            os.write(plain, orjson.dumps(it) + b"\n")

        write = median_us(dump_and_write, trajectory, options.requests)
        with Recorder(f"{directory}/record", queue_size=10**6) as recorder:
            record = median_us(recorder.record, trajectory, options.requests)
            calls: dict[str, Call] = {
                "recorder": recorder.record,
                "plain": dump_and_write,
                "neither": id,
            }
            lags: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(options.rounds):
                for name, call in calls.items():
                    lags[name].append(asyncio.run(lag_ms(call, trajectory)))
                    recorder.flush(60)
            assert recorder.counts.recorded == options.requests + options.rounds * RATE, recorder.counts
        with Recorder(f"{directory}/sampled", sample_rate=0) as recorder:
            left_out = median_us(recorder.record, trajectory, options.requests)
    times = {"record_us": record, "plain_us": write, "sampled_out_us": left_out}
    report = {**{name: round(us, 1) for name, us in times.items()}, "ratio": round(record / write, 2)}
    print(json.dumps({**report, "lag_ms": {name: round(median(ms), 2) for name, ms in lags.items()}}))


if __name__ == "__main__":
    main()
