"""Recording in production: a request hands over its trajectory and goes on; a thread of this process writes it.

    recorder = Recorder("runs/prod/trajectories", sample_rate=0.1, redact=without_emails)  # where the app starts

    result = await graph.ainvoke({"task": task})  # in every request
    recorder.record(result["trajectory"])

    recorder.close()  # where the app shuts down

It never waits for the disk and never raises into the request: what it cannot keep is counted, and the first loss of
each kind is logged. Each process, that is each web worker, writes a shard of its own; a worker that was forked after
the recorder was made begins with its own queue, thread, counts and shard. A process that is killed loses what is in its
queue and tears at most its own last line.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from r3agent.errors import ConfigError
from r3agent.recording.background_writer import BackgroundWriter, Counts
from r3agent.recording.redaction import Redact, redact_trajectory
from r3agent.records.trajectory import Trajectory
from r3agent.store.shards import TrajectoryWriter

SHUTDOWN_S = 10.0
"""Time that `close` waits for the disk."""


class Recorder:
    """Stores trajectories of a running application; a context manager, else `close` it at shutdown.

    The exit of the interpreter closes it too, but a web server may end its workers without one.

    Args:
        directory: the store; several recorders, processes and machines may write into one.
        sample_rate: share of the trajectories that is kept, chosen by a hash of the id: every worker chooses alike.
        redact: function from a text to what may be kept of it. It runs in the request, before anything is queued.
            Spans whose text it changes are not trained on, because their tokens spell what was taken out.
        queue_size: trajectories that may wait for the disk; further ones are dropped and counted.

    Raises:
        ConfigError: a setting is out of range, or the directory cannot be written.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        sample_rate: float = 1.0,
        redact: Redact | None = None,
        queue_size: int = 1000,
    ) -> None:
        if not 0 <= sample_rate <= 1:
            raise ConfigError(f"sample_rate = {sample_rate}: must be from 0 to 1, the share that is kept")
        if queue_size < 1:
            raise ConfigError(f"queue_size = {queue_size}: must be at least 1")
        self.directory = Path(directory)
        self.sample_rate = sample_rate
        self.queue_size = queue_size
        self._redact = redact
        TrajectoryWriter(self.directory).close()  # raises here rather than in the thread
        self._writer = BackgroundWriter(self.directory, queue_size)
        _open.add(self)

    @property
    def counts(self) -> Counts:
        """Counts of this process."""
        return self._writer.counts()

    def record(self, trajectory: Trajectory | Mapping[str, Any]) -> None:
        """Take a trajectory, or its JSON as the graph returns it; never waits for the disk and never raises."""
        try:
            is_record = isinstance(trajectory, Trajectory)
            trajectory_id = trajectory.trajectory_id if is_record else trajectory["trajectory_id"]
            if not self._keeps(trajectory_id):
                self._writer.count("sampled_out")
                return
            record = trajectory if is_record else Trajectory.model_validate(trajectory)
            if self._redact is not None:
                record = redact_trajectory(record, self._redact)
            self._writer.put(record)
        except Exception as error:  # whatever was handed over, the request goes on
            # Without its message, which may quote what was to be redacted.
            self._writer.count("failed", f"a {type(error).__name__} before it was queued")

    def flush(self, timeout_s: float = SHUTDOWN_S) -> bool:
        """Wait until everything taken is written; return False if that takes longer."""
        return self._writer.flush(timeout_s)

    def close(self, timeout_s: float = SHUTDOWN_S) -> bool:
        """Take nothing more and write what was taken; return False if that takes longer, which drops the rest."""
        _open.discard(self)
        return self._writer.close(timeout_s)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keeps(self, trajectory_id: str) -> bool:
        drawn = int.from_bytes(sha256(trajectory_id.encode()).digest()[:8], "big")
        return drawn < self.sample_rate * 2**64

    def _begin_anew(self) -> None:
        self._writer = BackgroundWriter(self.directory, self.queue_size)


_open: set[Recorder] = set()


def _close_all() -> None:
    for recorder in list(_open):
        recorder.close()


def _after_fork() -> None:
    for recorder in list(_open):
        recorder._begin_anew()  # pyright: ignore[reportPrivateUsage]


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork)  # the child has the queue and its lock, but not the thread
