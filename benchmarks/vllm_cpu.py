"""Tokens/s of vLLM's CPU build under the settings that `r3agent serve --engine vllm` chooses among.

    python -m benchmarks.vllm_cpu [--model .venv/smollm2] [--rounds 2] [--settings rank16 float32_vs_default ...]

64 short chats are answered at the same time, with 16 tokens each, and with logprobs and token ids as r3agent requests
them. A server as r3agent starts it, but without adapters, runs all the time. Beside it runs one of the others after
another, each with one setting changed, and the two take turns, so that other work on the machine meets both. Servers
with adapters answer as one of rank 8 on every linear layer. The last line is one JSON object with medians over the
turns: `lora_cost` is the time of a token ÷ that without adapters, the others are tokens/s ÷ those of the first server.
All settings take a quarter of an hour. Needs `make vllm`, and `make smollm2` for the model; `--model bundled` needs
none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import orjson
import peft
import psutil
import torch
import transformers

from benchmarks.serve_throughput import completion_tokens
from r3agent.serve import ServerProcess, VLLMProcess
from r3agent.serve.process.process import LocalServer
from r3agent.store.models import find_checkpoint

BATCH, TOKENS, RANK = 64, 16, 8
BASE, ADAPTER = "model", "model@v0001"
WITHOUT_ADAPTERS = ("--no-enable-lora",)


class Setting(NamedTuple):
    """Options and environment of a server."""

    options: tuple[str, ...] = WITHOUT_ADAPTERS
    environment: Mapping[str, str] = {}


SETTINGS = {
    "rank8": Setting(("--max-lora-rank", "8")),
    "rank16": Setting(("--max-lora-rank", "16")),
    "rank64": Setting(("--max-lora-rank", "64")),
    "float32_vs_default": Setting((*WITHOUT_ADAPTERS, "--dtype", "float32")),
    "bfloat16_vs_default": Setting((*WITHOUT_ADAPTERS, "--dtype", "bfloat16")),
    "reserved_1_vs_default": Setting(environment={"VLLM_CPU_NUM_OF_RESERVED_CPU": "1"}),
    "nobind_vs_default": Setting(environment={"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}),
}

EMBEDDED = "embedded_vs_vllm"


def make_adapter(model: str, directory: Path) -> None:
    """Write an adapter of random weights."""
    torch.manual_seed(0)
    base: Any = transformers.AutoModelForCausalLM.from_pretrained(find_checkpoint(model))
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(str(directory))


@contextmanager
def vllm(model: str, setting: Setting, adapter: Path) -> Iterator[LocalServer]:
    """Run a vLLM server, with the adapter if it takes one."""
    before = dict(os.environ)
    os.environ.update({"VLLM_CPU_KVCACHE_SPACE": "1", **setting.environment})
    try:
        server = VLLMProcess(model, name=BASE, options=("--max-model-len", "256", *setting.options))
        server.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    try:
        if setting.options[0] != WITHOUT_ADAPTERS[0]:
            load = {"lora_name": ADAPTER, "lora_path": str(adapter)}
            httpx.post(f"{server.base_url}/load_lora_adapter", json=load, timeout=300).raise_for_status()
        yield server
    finally:
        server.stop()


async def throughput(base_url: str, model: str, n_tokens: int) -> float:
    """Send the requests at the same time; return the tokens/s."""
    address = urlsplit(base_url)
    settings: dict[str, Any] = {"model": model, "max_tokens": n_tokens, "ignore_eos": True, "temperature": 1.0}
    settings |= {"logprobs": True, "return_token_ids": True}

    async def client(number: int) -> int:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        body = {"messages": [{"role": "user", "content": f"Count to {number}."}], **settings}
        n = await completion_tokens(reader, writer, orjson.dumps(body))
        writer.close()
        return n

    begin = time.perf_counter()
    total = sum(await asyncio.gather(*map(client, range(BATCH))))
    return total / (time.perf_counter() - begin)


def cpu_s(server: LocalServer) -> float:
    """Return the seconds of CPU that a server and its processes have used."""
    leader = psutil.Process(server.pid)
    times = [process.cpu_times() for process in (leader, *leader.children(recursive=True))]
    return sum(time.user + time.system for time in times)


def rate(name: str, server: LocalServer, model: str) -> float:
    used = cpu_s(server)
    tokens_per_s = asyncio.run(throughput(server.base_url, model, TOKENS))
    ms = (cpu_s(server) - used) / (BATCH * TOKENS) * 1e3
    print(f"{name}: {tokens_per_s:.0f} tokens/s, {ms:.2f} ms of CPU for a token", flush=True)
    return tokens_per_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=".venv/smollm2", help="checkpoint directory or `bundled`")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each server")
    every = [*SETTINGS, EMBEDDED]
    parser.add_argument("--settings", nargs="+", choices=every, default=every, help="default: all")
    options = parser.parse_args()
    ratios: dict[str, float] = {}
    rates: list[float] = []

    def compare(name: str, server: LocalServer, model: str, default: LocalServer) -> None:
        asyncio.run(throughput(server.base_url, model, 1))  # warm
        turns: list[float] = []
        for _ in range(options.rounds):
            rates.append(rate("default", default, BASE))
            turns.append(rate(name, server, model) / rates[-1])
        ratios[name] = round(median(turns), 2)

    with tempfile.TemporaryDirectory() as directory:
        adapter = Path(directory)
        make_adapter(options.model, adapter)
        with vllm(options.model, Setting(), adapter) as default:
            asyncio.run(throughput(default.base_url, BASE, 1))
            for name in options.settings:
                if name == EMBEDDED:
                    with ServerProcess(options.model, name=BASE) as server:
                        compare(name, server, BASE, default)
                else:
                    with vllm(options.model, SETTINGS[name], adapter) as server:
                        compare(name, server, ADAPTER if name.startswith("rank") else BASE, default)
    cost = {name: round(1 / ratios.pop(name), 2) for name in ("rank8", "rank16", "rank64") if name in ratios}
    print(json.dumps({"lora_cost": cost, **ratios, "default_tokens_per_s": round(median(rates))}))


if __name__ == "__main__":
    main()
