"""SIGTERM as Ctrl-C."""

from __future__ import annotations

import signal
from types import FrameType


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle a signal as the handler of Ctrl-C does; a running event loop has its own, which cancels the main task.

    `signal.default_int_handler` would raise in any task of the loop, and asyncio keeps what a task raises.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):  # a background job of a shell ignores Ctrl-C
        handler = signal.default_int_handler
    handler(number, frame)
