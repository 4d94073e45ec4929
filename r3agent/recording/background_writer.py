"""The recorder's thread: its queue, the writing to disk, and counts of what was written and lost."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

from r3agent.errors import R3Error
from r3agent.records.trajectory import Trajectory
from r3agent.store.shards import TrajectoryWriter

logger = logging.getLogger(__name__)

CountName: TypeAlias = Literal["recorded", "sampled_out", "dropped", "failed"]


class Counts(NamedTuple):
    """Numbers of the trajectories that one process handed over; the rest is waiting."""

    recorded: int
    """Written to disk."""
    sampled_out: int
    """Left out by `sample_rate`."""
    dropped: int
    """Too many were waiting, or the recorder was closed."""
    failed: int
    """No trajectory, or `redact` raised, or the disk refused it."""


class BackgroundWriter:
    """Queue and thread of one process; the thread and its shard start with the first trajectory.

    The lock is released while the disk is written to.
    """

    def __init__(self, directory: Path, queue_size: int) -> None:
        self._directory = directory
        self._queue_size = queue_size
        self._changed = threading.Condition()
        self._waiting: list[Trajectory] = []
        self._in_hand = 0
        """Number taken by the thread and not yet written."""
        self._counts: Counter[CountName] = Counter()
        self._closed = False
        self._thread: threading.Thread | None = None

    def counts(self) -> Counts:
        with self._changed:
            return Counts(*(self._counts[name] for name in get_args(CountName)))

    def count(self, name: CountName, why: str = "", n: int = 1) -> None:
        """Count trajectories; the first loss of each kind is logged with `why`."""
        with self._changed:
            is_first = not self._counts[name]
            self._counts[name] += n
        if why and is_first:
            logger.warning("%s: a trajectory was %s: %s; further ones are only counted", self._directory, name, why)

    def put(self, trajectory: Trajectory) -> None:
        with self._changed:
            full = len(self._waiting) + self._in_hand >= self._queue_size
            if not full and not self._closed:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._write, name="r3agent-recorder", daemon=True)
                    self._thread.start()
                self._waiting.append(trajectory)
                self._changed.notify_all()
                return
        self.count("dropped", "the recorder is closed" if self._closed else f"{self._queue_size} wait for the disk")

    def flush(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._in_hand, timeout_s)

    def close(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        done = self.flush(timeout_s)
        with self._changed:
            given_up, self._waiting = len(self._waiting), []
        if given_up:
            self.count("dropped", f"the disk took longer than {timeout_s:g} s at shutdown", given_up)
        if self._thread is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
        return done

    def _write(self) -> None:
        writer: TrajectoryWriter | None = None
        while batch := self._next_batch():
            for trajectory in batch:
                try:
                    writer = writer or TrajectoryWriter(self._directory, unique=True)
                    writer.append(trajectory)
                except (R3Error, OSError) as error:
                    self.count("failed", str(error))
                except Exception as error:  # a record that cannot be written as JSON; the thread goes on
                    self.count("failed", f"a {type(error).__name__} when it was written")
                else:
                    self.count("recorded")
                with self._changed:
                    self._in_hand -= 1
                    self._changed.notify_all()
        if writer is not None:
            try:
                writer.close()
            except OSError as error:
                logger.warning("%s: %s when the shard was closed", self._directory, error)

    def _next_batch(self) -> list[Trajectory]:
        """Wait for trajectories and take them all; an empty list means that the writer is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            batch, self._waiting = self._waiting, []
            self._in_hand = len(batch)
            return batch
