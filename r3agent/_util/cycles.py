"""Garbage collection of a process whose main work is to collect episodes."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager

THRESHOLDS = (20_000, 20, 20)
"""Thresholds of the collector, which are 700, 10 and 10 by default."""


@contextmanager
def rare_garbage_collection() -> Generator[None]:
    """Search for cycles less often, and not among the objects that exist already.

    The search takes a quarter of the CPU time of a collection, whose records are trees. Objects that the application
    froze stay frozen.
    """
    before = gc.get_threshold()
    was_frozen = gc.get_freeze_count() > 0
    if not was_frozen:
        gc.collect()
        gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        if not was_frozen:
            gc.unfreeze()
