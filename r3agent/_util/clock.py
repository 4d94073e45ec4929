"""Time for deadlines that outlive a process."""

from __future__ import annotations

import time

_AHEAD_S = time.time() - time.monotonic()


def steady_time() -> float:
    """Return seconds since the epoch by the clock as it was set when the process began, so that they never go back."""
    return time.monotonic() + _AHEAD_S
