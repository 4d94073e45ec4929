"""Limits of application code that hangs, swallows its cancellation, or exits."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from contextlib import suppress

import pytest

from r3agent._util.within import OverrunError, within

SWALLOWS = """
import asyncio
from r3agent._util.within import OverrunError, within

async def swallows():
    while True:
        try:
            await asyncio.sleep(1000)
        except BaseException:
            pass

async def main():
    try:
        await within(0.1, swallows, name="swallows", grace_s=0.1)
    except OverrunError:
        print("left behind")

asyncio.run(main())
"""


async def answer() -> int:
    await asyncio.sleep(0)
    return 3


async def exits() -> None:
    raise SystemExit(3)


async def late() -> int:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return 3
    return 4


async def test_within_returns_or_raises_as_its_code() -> None:
    assert await within(60, answer, name="answer") == 3
    with pytest.raises(SystemExit):
        await within(None, exits, name="exits")
    with pytest.raises(OverrunError, match="it took longer"):
        await within(0.01, late, name="late")


async def test_within_leaves_behind_what_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    ends, cancelled = asyncio.Event(), list[str]()

    async def goes_on() -> None:
        while not ends.is_set():
            try:
                await ends.wait()
            except asyncio.CancelledError:
                cancelled.append("once")

    with caplog.at_level(logging.WARNING), pytest.raises(OverrunError):
        await within(
            0.01, goes_on, name="agent 'stubborn'", grace_s=0.01, before_cancelling=lambda: cancelled.append("")
        )
    assert "agent 'stubborn' goes on after it was cancelled" in caplog.text
    assert cancelled == ["", "once"]
    assert len(asyncio.all_tasks()) == 1
    ends.set()


async def test_within_leaves_code_behind_if_its_caller_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    ends = asyncio.Event()

    async def goes_on() -> None:
        while not ends.is_set():
            with suppress(asyncio.CancelledError):
                await ends.wait()

    with caplog.at_level(logging.WARNING), pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await within(None, goes_on, name="agent", grace_s=0.01)
    assert "agent goes on" in caplog.text
    ends.set()


def test_within_holds_up_neither_loop_nor_interpreter() -> None:
    done = subprocess.run([sys.executable, "-c", SWALLOWS], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "left behind\n")
