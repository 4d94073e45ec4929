"""A process that judges what it is sent: JSON lines in, JSON lines out. Run by `workers.py` as `python -m`.

A verifier may print, read its input or end the process: none of it reaches the lines.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any, BinaryIO

import orjson

from r3agent.errors import R3Error
from r3agent.records.trajectory import Span, Task
from r3agent.verifiers import Verifier, close, find_verifier, judge, warm_up


def main() -> None:
    lines, out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "r+b") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)
    asked: dict[str, Any] = orjson.loads(lines.readline())
    try:
        verifier = find_verifier(asked["verifier"], **asked["params"])
        warm_up(verifier)
    except (R3Error, RuntimeError) as error:
        _say(out, {"error": str(error)})
        return
    _say(out, {})
    asyncio.run(_serve(verifier, lines, out))


async def _serve(verifier: Verifier, lines: BinaryIO, out: BinaryIO) -> None:
    try:
        await _answer(verifier, lines, out)
    finally:
        await close(verifier)


async def _answer(verifier: Verifier, lines: BinaryIO, out: BinaryIO) -> None:
    for line in lines:
        asked: dict[str, Any] = orjson.loads(line)
        task, message = Task.model_validate(asked["task"]), asked["message"]
        calls = message.get("tool_calls") or ()
        span = Span(label="attempt", model="audit", text=message.get("content") or "", tool_calls=calls)
        start = time.perf_counter()
        try:
            (verdict,) = await judge(verifier, task, [span])
            said: dict[str, Any] = (
                {"error": "the verdict is pending: what is decided later cannot be audited"}
                if verdict is None
                else {"passed": verdict.passed, "score": verdict.score}
            )
        except Exception as error:  # of the verifier
            said = {"error": str(error)}
        _say(out, {**said, "seconds": time.perf_counter() - start})


def _say(out: BinaryIO, said: dict[str, Any]) -> None:
    out.write(orjson.dumps(said) + b"\n")
    out.flush()


if __name__ == "__main__":
    main()
