"""Latency that the gateway adds to a call, against the same calls without it, on an endpoint that answers at once.

The endpoint, the gateway (`r3agent gateway`) and the clients are three processes. A connection sends a call, reads its
answer, and pauses, as an agent does while its tools run: the pauses are such that all connections together send
`--rate` calls a second, through the gateway and directly in alternating turns of one run. `added_p50_ms` and
`added_p99_ms` are the differences of the percentiles at 64 connections. Then 1,000 connections send at once, without
pauses: `calls_per_s` is what the gateway takes at most, and `failed` counts the calls of all turns that were not
answered whole, `cpu_ms_per_call` is the CPU time of the gateway with its start, and `exact_share` is the share of the
stored spans that are trainable-exact.

    python -m benchmarks.gateway [--rate 100] [--seconds 10] [--turns 3]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import psutil

import r3agent
from benchmarks.stub import MESSAGES, Reader, http, percentile, stub_server

CONNECTIONS = (1, 64, 1000)
BURST = 4
"""Calls of each of 1,000 connections without pauses."""

STEPS = 10
"""Calls of an episode, at most."""


class Turn(NamedTuple):
    """Calls of one turn."""

    ms: list[float]
    failed: int
    seconds: float


async def turn(port: int, path: str, connections: int, *, calls: int, pause_s: float) -> Turn:
    """Let each connection make some calls, with a pause of about `pause_s` before each."""
    body = json.dumps({"model": "stub", "messages": MESSAGES}).encode()
    taken: list[float] = []
    failed = 0

    async def client(number: int) -> None:
        nonlocal failed
        stream, writer = await asyncio.open_connection("127.0.0.1", port)
        left = calls
        try:
            while left:
                await asyncio.sleep(random.uniform(0, 2 * pause_s))
                place = path.format(f"{number}-{left // STEPS}")
                request = http(f"POST {place} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k", body)
                start = time.perf_counter()
                writer.write(request)
                head, content = await Reader(stream).message()
                taken.append((time.perf_counter() - start) * 1e3)
                failed += not (head.startswith(b"HTTP/1.1 200") and content.endswith(b"}") and len(content) > 300)
                left -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            failed += left
        finally:
            writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(connections)))
    return Turn(taken, failed, time.perf_counter() - start)


async def measure(ports: dict[str, int], rate: float, seconds: float, turns: int) -> dict[str, float]:
    taken: dict[tuple[str, int], list[float]] = defaultdict(list)
    failed = 0
    for number in range(turns):
        for connections in CONNECTIONS:
            pause_s = connections / min(rate, 20 * connections)
            calls = max(1, round(seconds / pause_s))
            for way, port in ports.items():
                base = f"/episodes/{way}-{number}-{connections}-{{}}/attempt/v1" if way == "gateway" else "/v1"
                done = await turn(port, f"{base}/chat/completions", connections, calls=calls, pause_s=pause_s)
                taken[way, connections] += done.ms
                failed += done.failed
    burst = await turn(ports["gateway"], "/episodes/burst-{}/attempt/v1/chat/completions", 1000, calls=BURST, pause_s=0)
    results: dict[str, float] = {"failed": failed + burst.failed, "calls_per_s": round(1000 * BURST / burst.seconds)}
    for connections in CONNECTIONS:
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            direct = percentile(taken["direct", connections], share)
            through = percentile(taken["gateway", connections], share)
            results[f"direct_{name}_ms_{connections}"] = round(direct, 2)
            results[f"added_{name}_ms_{connections}"] = round(through - direct, 2)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    with stub_server() as direct, tempfile.TemporaryDirectory() as store:
        command = [sys.executable, "-m", "r3agent", "gateway", "--upstream", f"http://127.0.0.1:{direct}/v1"]
        command += ["--out", store, "--port", "0", "--json"]
        environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        gateway = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environ)
        assert gateway.stderr is not None
        line = gateway.stderr.readline()
        port = int(line.split("/v1", 1)[0].rpartition(":")[2])
        ports = {"direct": direct, "gateway": port}
        results = asyncio.run(measure(ports, options.rate, options.seconds, options.turns))
        times = psutil.Process(gateway.pid).cpu_times()
        stopped = time.perf_counter()
        gateway.send_signal(signal.SIGTERM)
        gateway.wait()
        results["store_s"] = round(time.perf_counter() - stopped, 2)
        spans = [span for trajectory in r3agent.load(store) for span in trajectory.spans]
    results["exact_share"] = sum(span.capability == "trainable-exact" for span in spans) / len(spans)
    results["spans"] = len(spans)
    results["cpu_ms_per_call"] = round((times.user + times.system) * 1e3 / len(spans), 2)
    for name, value in results.items():
        print(f"{name:24} {value}")
    last = {"added_p50_ms": results["added_p50_ms_64"], "added_p99_ms": results["added_p99_ms_64"], **results}
    names = ["added_p50_ms", "added_p99_ms", *(f"added_{p}_ms_{n}" for n in CONNECTIONS for p in ("p50", "p99"))]
    print(
        json.dumps({name: last[name] for name in [*names, "calls_per_s", "cpu_ms_per_call", "failed", "exact_share"]})
    )


if __name__ == "__main__":
    main()
