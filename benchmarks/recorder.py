"""Latency that recording adds to a request: `Recorder.record` against writing the same trajectory in the request.

The trajectory is a complete episode (18 spans of 20 tokens, prompts of 100), as the graph returns it. Requests come one
after another with pauses, so that the recorder's thread writes concurrently. Reported are median wall times in
microseconds; the ratio is record / write.

    python benchmarks/recorder.py [--requests 300]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from graph_overhead import GENERATION, REFLECTIONS, TASK, never

from r3agent.episodes.graph import build_graph
from r3agent.recording.recorder import Recorder
from r3agent.records.trajectory import Trajectory
from r3agent.store.shards import TrajectoryWriter
from r3agent.testing import ScriptedPolicy

PAUSE_S = 0.005


def episode() -> dict[str, Any]:
    graph = build_graph(
        policy=ScriptedPolicy(GENERATION), verifier=never, reflections=REFLECTIONS, retries=1, blind_retries=1
    )
    return asyncio.run(graph.compile().ainvoke({"task": TASK}))["trajectory"]


def median_us(call: Callable[[dict[str, Any]], object], trajectory: dict[str, Any], requests: int) -> float:
    taken: list[float] = []
    for _ in range(requests):
        start = time.perf_counter()
        call(trajectory)
        taken.append(time.perf_counter() - start)
        time.sleep(PAUSE_S)
    return median(taken) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300)
    options = parser.parse_args()
    trajectory = episode()
    with tempfile.TemporaryDirectory() as directory:
        with TrajectoryWriter(f"{directory}/write", unique=True) as writer:
            write = median_us(lambda it: writer.append(Trajectory.model_validate(it)), trajectory, options.requests)
        with Recorder(f"{directory}/record") as recorder:
            record = median_us(recorder.record, trajectory, options.requests)
        assert recorder.counts.recorded == options.requests, recorder.counts
        with Recorder(f"{directory}/sampled", sample_rate=0) as recorder:
            left_out = median_us(recorder.record, trajectory, options.requests)
    times = {"record_us": record, "write_us": write, "sampled_out_us": left_out}
    print(json.dumps({**{name: round(us, 1) for name, us in times.items()}, "ratio": round(record / write, 2)}))


if __name__ == "__main__":
    main()
