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

    The search takes a quarter of the CPU time of a collection, whose records are trees.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
