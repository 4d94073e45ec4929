"""Endpoint that answers every request at once, in a process of its own, and the messages that are sent to it.

Every answer has 64 tokens with logprobs and ids. A request with `"hold":true` is answered after 10 s, and one with
`"n":8` gets eight choices.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import resource
import signal
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

TOKENS, PROMPT_TOKENS = 64, 256
HOLD_S = 10.0

MESSAGES = [{"role": "user", "content": "one two three " * 60}]
IDS = list(range(1000, 1000 + TOKENS))
CHOICE = {
    "message": {"role": "assistant", "content": "word " * TOKENS, "tool_calls": []},
    "logprobs": {"content": [{"token": "word ", "logprob": -0.5, "bytes": None, "top_logprobs": []}] * TOKENS},
    "finish_reason": "stop",
    "token_ids": IDS,
}


@contextmanager
def stub_server() -> Generator[int]:
    """Run the endpoint; yield its port."""
    ours, theirs = multiprocessing.Pipe()
    stub = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    stub.start()
    try:
        yield ours.recv()
    finally:
        stub.terminate()


def serve(port_of: Connection) -> None:
    """Send the answer to the body of every request, until the process ends."""
    answers = {n: http("HTTP/1.1 200 OK", json.dumps(answer_of(n)).encode()) for n in (1, 8)}

    async def handle(stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                _, body = await Reader(stream).message()
                if b'"hold":true' in body:
                    await asyncio.sleep(HOLD_S)
                writer.write(answers[8 if b'"n":8' in body else 1])
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=4096)
        port_of.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    allow_files()
    asyncio.run(main())


def answer_of(n: int) -> dict[str, Any]:
    sampled = TOKENS * n
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "stub",
        "choices": [{"index": i, **CHOICE} for i in range(n)],
        "prompt_token_ids": list(range(PROMPT_TOKENS)),
        "usage": {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": sampled,
            "total_tokens": PROMPT_TOKENS + sampled,
        },
    }


def http(start: str, body: bytes) -> bytes:
    return f"{start}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class Reader(NamedTuple):
    """Reader of HTTP messages with a length."""

    stream: asyncio.StreamReader

    async def message(self) -> tuple[bytes, bytes]:
        head = await self.stream.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        return head, await self.stream.readexactly(length)


def allow_files() -> None:
    """Let this process open as many files as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
