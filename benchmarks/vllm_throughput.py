"""Tokens/s of a collection through r3agent, against a bare load generator that sends the same requests to vLLM.

    python benchmarks/vllm_throughput.py [--model bundled] [--tasks 96] [--turns 3]

r3agent collects Countdown episodes (8 reflections of each failure and their retries) with at most 32 concurrent
requests. The same request bodies are then sent again over bare sockets, in the same order and concurrency, and the
responses are read but not parsed. Both run in turns on the same vLLM server; the last line is one JSON object with the
median ratio. Needs vLLM: `make vllm`, or $R3AGENT_VLLM_PYTHON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import orjson

from r3agent import OpenAIPolicy, Sampling, collect
from r3agent.serve.process.vllm import VLLMProcess
from r3agent.tasks import find_tasks
from r3agent.verifiers import find_verifier

CONCURRENCY = 32


async def collected(base_url: str, model: str, n: int, seed: int) -> tuple[float, list[bytes]]:
    """Collect episodes; return the tokens/s and the request bodies."""
    bodies: list[bytes] = []

    class KeepingPolicy(OpenAIPolicy):
        async def _ask(self, target: Any, body: dict[str, Any], *args: Any) -> Any:  # pyright: ignore
            bodies.append(orjson.dumps({"model": target.model, **body}))
            return await super()._ask(target, body, *args)

    tasks = find_tasks("countdown", n, seed=seed)
    sampling = Sampling(max_tokens=24, seed=seed)
    async with KeepingPolicy(base_url, model, concurrency=CONCURRENCY) as policy:
        with tempfile.TemporaryDirectory() as out:
            start = time.perf_counter()
            summary = await collect(
                tasks,
                policy=policy,
                verifier=find_verifier("countdown"),
                out=Path(out),
                reflections=8,
                sampling=sampling,
                concurrency=CONCURRENCY,
            )
            took = time.perf_counter() - start
    assert not summary.errors, summary.errors
    return summary.tokens_sampled / took, bodies


async def replayed(base_url: str, bodies: Sequence[bytes]) -> float:
    """Send the same requests with minimal code; return the tokens/s."""
    address, queue, total = urlsplit(base_url), iter(bodies), 0

    async def client() -> None:
        nonlocal total
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        for body in queue:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            headers = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert headers.startswith(b"http/1.1 200"), headers
            length = int(headers.split(b"content-length: ")[1].split(b"\r\n")[0])
            answer = await reader.readexactly(length)
            total += int(answer.rpartition(b'"completion_tokens":')[2].split(b",")[0].strip(b" }"))
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CONCURRENCY)))
    return total / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled", help="checkpoint directory or `bundled`")
    parser.add_argument("--tasks", type=int, default=96)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    ratios: list[float] = []
    with VLLMProcess(options.model, name="policy", options=["--dtype", "float32", "--max-num-seqs", "64"]) as server:
        asyncio.run(collected(server.base_url, "policy", 8, seed=0))  # warm
        for turn in range(1, options.turns + 1):
            ours, bodies = asyncio.run(collected(server.base_url, "policy", options.tasks, seed=turn))
            bare = asyncio.run(replayed(server.base_url, bodies))
            ratios.append(ours / bare)
            print(f"turn {turn}: {len(bodies)} requests, r3agent {ours:.0f} tokens/s, bare {bare:.0f} tokens/s")
    print(json.dumps({"ratio": round(median(ratios), 3), "concurrency": CONCURRENCY}))


if __name__ == "__main__":
    main()
