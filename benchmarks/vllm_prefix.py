"""Prefix-cache hits of vLLM if the 8 reflections of a failure are requested with one n = 8 call, or with 8 calls.

    python benchmarks/vllm_prefix.py [--failures 24]

The prompts are long (about 300 tokens), and the cache is emptied before each of the two. Reported are the prompt tokens
looked up and found, from vLLM's /metrics, and the seconds. The last line is one JSON object. Needs vLLM: `make vllm`,
or $R3AGENT_VLLM_PYTHON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from r3agent import OpenAIPolicy, Sampling
from r3agent.records.prompts import REFLECT
from r3agent.serve.process.vllm import VLLMProcess
from r3agent.tasks import find_tasks

G = 8


def conversations(n: int, seed: int) -> list[list[dict[str, Any]]]:
    """Make failed tries of long tasks, with eight problems in one message."""
    tasks = find_tasks("countdown", 8 * n, seed=seed)
    asked = ["\n".join(t.messages[-1]["content"] for t in tasks[i::n]) for i in range(n)]
    return [
        [
            {"role": "user", "content": text},
            {"role": "assistant", "content": "<answer> 1 + 2 </answer>"},
            {"role": "user", "content": REFLECT},
        ]
        for text in asked
    ]


def cache(root: str) -> tuple[float, float]:
    """Return the tokens looked up and found since the server started."""
    families = text_string_to_metric_families(httpx.get(f"{root}/metrics").text)
    values = {sample.name: sample.value for family in families for sample in family.samples}
    return values["vllm:prefix_cache_queries_total"], values["vllm:prefix_cache_hits_total"]


async def measure(base_url: str, prompts: list[list[dict[str, Any]]], n: int) -> dict[str, float]:
    root = base_url.removesuffix("/v1")
    httpx.post(f"{root}/reset_prefix_cache").raise_for_status()
    before, start = cache(root), time.perf_counter()
    async with OpenAIPolicy(base_url, "policy", sampling=Sampling(max_tokens=24), concurrency=32) as policy:
        await asyncio.gather(*(policy.sample(p, n=n) for p in prompts for _ in range(G // n)))
    took, after = time.perf_counter() - start, cache(root)
    queries, hits = (b - a for a, b in zip(before, after, strict=True))
    return {"hit_rate": round(hits / queries, 3), "seconds": round(took, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--failures", type=int, default=24)
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    with VLLMProcess("bundled", name="policy", options=["--dtype", "float32", "--block-size", "16"]) as server:
        asyncio.run(measure(server.base_url, conversations(4, seed=9), G))  # warm
        prompts = conversations(options.failures, seed=1)
        for name, n in (("one call, n = 8", G), ("8 calls", 1)):
            results[name] = asyncio.run(measure(server.base_url, prompts, n))
            print(name, results[name])
    print(json.dumps(results))


if __name__ == "__main__":
    main()
