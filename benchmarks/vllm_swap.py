"""Longest time without an answer while new weights are deployed to a real vLLM server, for each strategy.

    python benchmarks/vllm_swap.py [--clients 4]

Two versions are trained from 48 collected episodes, an adapter and full weights. Then each goes live while `--clients`
clients request short Countdown completions, each at most three times a second: the adapter is loaded (`lora`), full
weights are reloaded in place (`reload`), and a new server replaces the old one (`restart`). An error ends the
benchmark. The last line is one JSON object: the longest time between two answers, and its ratio to the longest one
before the swap. Needs vLLM: `make vllm`, or $R3AGENT_VLLM_PYTHON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from r3agent import OpenAIPolicy, Sampling
from r3agent.deploy import DeployConfig, deploy
from r3agent.run.stages import Run
from r3agent.tasks import find_tasks
from r3agent.testing import traffic_through

SETTINGS: dict[str, Any] = {
    "task.source": "countdown",
    "sampling.max_tokens": 24,
    "collect.n": 48,
    "train.learning_rate": 1e-3,
    "train.batch_size": 64,
}
OPTIONS = ["--dtype", "float32", "--max-model-len", "256", "--enforce-eager"]


@contextmanager
def supervised_vllm(run_dir: Path, options: Sequence[str]) -> Iterator[str]:
    """Start vLLM with `r3agent serve --run`; yield its base URL; finally stop it, or the server that replaced it.

    Args:
        options: options of vLLM.
    """
    words = ["serve", "bundled", "--engine", "vllm", "--name", "bundled", "--port", "0", "--run", str(run_dir)]
    command = [sys.executable, "-m", "r3agent", *words, "--", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            for pid in supervisors(run_dir):
                os.kill(pid, signal.SIGTERM)
                psutil.Process(pid).wait(60)


def supervisors(run_dir: Path) -> list[int]:
    """Return the process ids of a run's supervisors."""
    return [json.loads(entry.read_text())["pid"] for entry in (run_dir / "servers").glob("*.json")]


async def measure(run: Run, change: Callable[[], object], clients: int) -> dict[str, float]:
    prompts = [task.messages for task in find_tasks("countdown", 64, seed=1)]
    base_url = run.registry.live_base_url or run.config.policy.base_url
    live = {"registry": run.registry, "sampling": Sampling(max_tokens=24)}
    async with OpenAIPolicy(base_url, "bundled@live", **live) as policy:
        traffic = await traffic_through(
            change,
            lambda number: policy.sample(prompts[number % 64]),
            clients=clients,
            pause_s=0.3,
            before_s=5.0,
            more=10,
        )
    drawn = [generation for answer in traffic.answers for generation in answer]
    return {
        "gap_ms": round(traffic.gap_s * 1e3),
        "ratio": round(traffic.gap_s / traffic.usual_gap_s, 1),
        "requests": len(drawn),
        "of_unknown_version": sum(generation.policy_version is None for generation in drawn),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=4)
    clients = parser.parse_args().clients
    results: dict[str, dict[str, float]] = {}

    def swapped(name: str, run: Run, change: Callable[[], object]) -> None:
        results[name] = asyncio.run(measure(run, change, clients))
        print(name, results[name], flush=True)

    with tempfile.TemporaryDirectory() as directory:
        adapters, weights = Path(directory) / "adapters", Path(directory) / "weights"
        with supervised_vllm(weights, OPTIONS) as base_url:
            lora, full = (
                Run(path, {**SETTINGS, "policy.base_url": base_url, "train.method": method})
                for path, method in ((adapters, "lora"), (weights, "full"))
            )
            for run in (lora, full):
                run.collect()
                run.train()
            swapped("lora", lora, lambda: lora.deploy("v0001"))
            lora.rollback()
            unload(base_url, "bundled@v0001")
            swapped("reload", full, lambda: full.deploy("v0001"))
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "1"  # on a CPU; the old server is on core 0
            restart = DeployConfig(strategy="restart")
            where = {"registry": full.registry, "base_url": base_url, "config": restart}
            swapped("restart", full, lambda: deploy("v0000", **where))
    print(json.dumps(results))


def unload(base_url: str, name: str) -> None:
    """Unload an adapter, which would block the reload of full weights."""
    httpx.post(f"{base_url}/unload_lora_adapter", json={"lora_name": name}).raise_for_status()


if __name__ == "__main__":
    main()
