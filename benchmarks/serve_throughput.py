"""Tokens/s of the embedded server, measured through HTTP, against a bare `model.generate` of the same model.

    python benchmarks/serve_throughput.py [--model bundled] [--tokens 64] [--n 1]

64 completions of Countdown prompts are running at any time, each of the same number of tokens. The server is a separate
process and returns logprobs and token ids, as r3agent requests them; this process only sends and counts. `generate`
runs in a third process with the same prompts, batch 64 and sampling, and returns only tokens. The two take turns; the
ratio is the median over the turns. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from statistics import median
from urllib.parse import urlsplit

import orjson

from r3agent.serve import ServerProcess
from r3agent.tasks.countdown import generate

BATCH = 64
WAVES = 4
"""Number of batches in one round."""
ROUNDS = 9

GENERATE = """
import sys, time
import torch
from r3agent.serve import load_model
from r3agent.tasks.countdown import generate

path, batch, waves, n_tokens = sys.argv[1], *map(int, sys.argv[2:])
served = load_model(path)
chats = [task.messages for task in generate(batch, seed=0)]
inputs = served.tokenizer.apply_chat_template(
    chats, add_generation_prompt=True, padding=True, padding_side="left", return_dict=True, return_tensors="pt"
)
settings = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=n_tokens, min_new_tokens=n_tokens)
with torch.inference_mode():
    served.model.generate(**inputs, **settings)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(waves):
            served.model.generate(**inputs, **settings)
        print(waves * batch * n_tokens / (time.perf_counter() - start), flush=True)
"""
"""Program that prints the tokens/s of one round for each line of input."""


async def completion_tokens(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> int:
    """Send one request on an open connection, and return its number of tokens."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    headers = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(headers.split(b"content-length: ")[1].split(b"\r\n")[0])
    answer = orjson.loads(await reader.readexactly(length))
    if "error" in answer:
        raise SystemExit(f"the server answered: {answer['error']['message']}")
    return answer["usage"]["completion_tokens"]


async def server_tokens_per_s(base_url: str, n: int, n_tokens: int) -> float:
    address = urlsplit(base_url)
    bodies = [
        orjson.dumps(
            {
                "messages": task.messages,
                "n": n,
                "max_tokens": n_tokens,
                "ignore_eos": True,
                "temperature": 1.0,
                "logprobs": True,
                "return_token_ids": True,
            }
        )
        for task in generate(BATCH * WAVES // n, seed=0)
    ]

    async def client() -> int:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        total = 0
        while bodies:
            total += await completion_tokens(reader, writer, bodies.pop())
        writer.close()
        return total

    start = time.perf_counter()
    total = sum(await asyncio.gather(*(client() for _ in range(BATCH // n))))
    return total / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled", help="checkpoint directory or `bundled`")
    parser.add_argument("--tokens", type=int, default=64, help="of each completion")
    parser.add_argument("--n", type=int, default=1, help="completions of one request; divides 64")
    options = parser.parse_args()

    command = [sys.executable, "-c", GENERATE, options.model, str(BATCH), str(WAVES), str(options.tokens)]
    baseline = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    assert baseline.stdin is not None
    assert baseline.stdout is not None
    served: list[float] = []
    generated: list[float] = []
    with ServerProcess(options.model) as server:
        asyncio.run(server_tokens_per_s(server.base_url, options.n, options.tokens))
        for round_number in range(1, ROUNDS + 1):
            baseline.stdin.write("\n")
            generated.append(float(baseline.stdout.readline()))
            served.append(asyncio.run(server_tokens_per_s(server.base_url, options.n, options.tokens)))
            print(f"round {round_number}: server {served[-1]:.0f} tokens/s, generate {generated[-1]:.0f} tokens/s")
    baseline.stdin.close()
    baseline.wait()
    result = {
        "ratio": round(median(s / g for s, g in zip(served, generated, strict=True)), 3),
        "server_tokens_per_s": round(median(served)),
        "generate_tokens_per_s": round(median(generated)),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
