"""Recording in production: a request queues its trajectory, and a thread of this process writes it to disk.

    recorder = Recorder(run="runs/prod", sample_rate=0.1, redact=without_emails)  # where the app starts

    result = await graph.ainvoke({"task": task})  # in every request
    recorder.record(result["trajectory"])

    recorder.close()  # where the app shuts down

`record` never waits for the disk and never raises into the request: lost trajectories are counted, and the first loss
of each kind is logged. Each process, i.e. each web worker, writes its own shard. A worker that is forked after the
recorder was created starts with its own queue, thread, counts and shard. A process that is killed loses its queue and
at most its own last line.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args

import orjson
from pydantic import Field

from r3agent._util.checked import AtLeastOne, checked
from r3agent._util.shared import Shared
from r3agent.errors import ConfigError, R3Error
from r3agent.recording.redaction import Redact, redact_trajectory
from r3agent.records.json_values import is_portable
from r3agent.records.trajectory import Trajectory
from r3agent.store.lines import encode, encode_json
from r3agent.store.shards import TrajectoryWriter, store_of_run

logger = logging.getLogger(__name__)

SHUTDOWN_S = 10.0
"""Seconds that `close` waits for the disk."""

GATHER_S = 0.02
"""Pause of the thread between batches, so that it does not take the interpreter's lock for each trajectory."""

SHARE, CREDIT_S = 0.05, 0.5
"""Share of the thread's time that validation may take, and seconds of it that may be taken at once."""

CountName: TypeAlias = Literal["recorded", "sampled_out", "dropped", "failed"]


class Counts(NamedTuple):
    """Numbers of trajectories that one process passed to `record`; all others are still queued."""

    recorded: int
    """Trajectories written to disk."""
    sampled_out: int
    """Trajectories left out by `sample_rate`."""
    dropped: int
    """Trajectories dropped because the queue was full or the recorder closed."""
    failed: int
    """Trajectories lost to an error of the disk or of `redact`, and invalid ones; at hundreds a second, not all are
    checked, and `r3agent data check` finds the rest."""


class Recorder(AbstractContextManager["Recorder"], Shared):
    """Recorder of a running application's trajectories; a context manager, or `close` it at shutdown.

    The interpreter's exit closes it too, but a web server may kill its workers without a clean exit.

    Args:
        directory: the store; several recorders, processes and machines may write into one.
        run: a run directory, in place of `directory`: its stages find what is recorded, and keep apart the tasks of
            its gate and test.
        sample_rate: share of the trajectories to keep, chosen by a hash of the id, so all workers choose alike.
        redact: function that takes a text and returns it without private data. It runs in the request, before
            anything is queued. Spans whose text it changes are not trained on, because their tokens contain the text.
        queue_size: maximum number of queued trajectories; further ones are dropped and counted.

    Raises:
        ConfigError: a setting is out of range, the directory cannot be written, or `run` is no run.
    """

    @checked
    def __init__(
        self,
        directory: str | Path | None = None,
        *,
        run: str | Path | None = None,
        sample_rate: Annotated[float, Field(ge=0, le=1)] = 1.0,
        redact: Redact | None = None,
        queue_size: AtLeastOne = 1000,
    ) -> None:
        if (directory is None) == (run is None):
            raise ConfigError(f"Recorder({directory!r}, run={run!r}): give a store, or a run with `run`, and not both")
        self.directory = Path(directory) if directory is not None else store_of_run(str(run))
        self.sample_rate = sample_rate
        self.queue_size = queue_size
        self._redact = redact
        TrajectoryWriter(self.directory).close()  # raise here rather than in the thread
        self._begin()
        _open.add(self)

    def __copy__(self) -> Recorder:
        return self  # a second queue would need a second thread

    def _begin(self) -> None:
        """Start with an empty queue; the first trajectory starts the thread and its shard."""
        self._changed = threading.Condition()  # not held while writing to disk
        self._waiting: list[Trajectory | bytes] = []
        self._n_writing = 0
        """Number of trajectories taken by the thread and not yet written."""
        self._counts: Counter[CountName] = Counter()
        self._closed = False
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def counts(self) -> Counts:
        """Counts of this process."""
        with self._changed:
            return Counts(*(self._counts[name] for name in get_args(CountName)))

    def record(self, trajectory: Trajectory | Mapping[str, Any]) -> None:
        """Queue a trajectory, its JSON, or the graph's output with it; never wait for the disk and never raise."""
        try:
            if isinstance(trajectory, Mapping):
                trajectory = trajectory.get("trajectory") or trajectory
            if not isinstance(trajectory, Trajectory) and "trajectory_id" not in trajectory:
                self._count("failed", "it has no trajectory_id; pass the result of a graph that ended, or a Trajectory")
                return
            is_record = isinstance(trajectory, Trajectory)
            trajectory_id = trajectory.trajectory_id if is_record else trajectory["trajectory_id"]
            if not self._keeps(trajectory_id):
                self._count("sampled_out")
                return
            if self._redact is None:
                self._put(trajectory if is_record else _snapshot(trajectory))
            else:
                record = trajectory if is_record else Trajectory.model_validate(trajectory)
                self._put(redact_trajectory(record, self._redact))
        except Exception as error:  # the request must not fail
            # Omit the message, which may quote unredacted text.
            self._count("failed", f"a {type(error).__name__} before it was queued")

    def flush(self, timeout_s: float = SHUTDOWN_S) -> bool:
        """Wait until the queue is written to disk; return False on a timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._n_writing, timeout_s)

    def close(self, timeout_s: float = SHUTDOWN_S) -> bool:
        """Stop recording and write the queue; on a timeout, drop the rest and return False."""
        _open.discard(self)
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._closing.set()
        done = self.flush(timeout_s)
        with self._changed:
            n_dropped, self._waiting = len(self._waiting), []
        if n_dropped:
            self._count("dropped", f"the disk took longer than {timeout_s:g} s at shutdown", n_dropped)
        if self._thread is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
        return done

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keeps(self, trajectory_id: str) -> bool:
        if self.sample_rate == 1:
            return True
        drawn = int.from_bytes(sha256(trajectory_id.encode()).digest()[:8], "big")
        return drawn < self.sample_rate * 2**64

    def _count(self, name: CountName, why: str = "", n: int = 1) -> None:
        """Count trajectories, and log the first loss of each kind with `why`."""
        with self._changed:
            is_first = not self._counts[name]
            self._counts[name] += n
        if why and is_first:
            logger.warning(
                "%s: a trajectory is not recorded (%s): %s; further ones are only counted", self.directory, name, why
            )

    def _put(self, trajectory: Trajectory | bytes) -> None:
        with self._changed:
            is_full = len(self._waiting) + self._n_writing >= self.queue_size
            if not is_full and not self._closed:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._write, name="r3agent-recorder", daemon=True)
                    self._thread.start()
                self._waiting.append(trajectory)
                self._changed.notify_all()
                return
        self._count("dropped", "the recorder is closed" if self._closed else f"{self.queue_size} wait for the disk")

    # ---- the recorder's thread ----

    def _write(self) -> None:
        writer: TrajectoryWriter | None = None
        checks = _Checks()
        while batch := self._next_batch():
            for trajectory in batch:
                try:
                    writer = writer or TrajectoryWriter(self.directory, unique=True, indexed=False)
                    writer.append_line(checks.line(trajectory))
                except (R3Error, OSError) as error:
                    self._count("failed", str(error))
                except Exception as error:  # a record that is not JSON-safe; the thread continues
                    self._count("failed", f"a {type(error).__name__} when it was written")
                else:
                    self._count("recorded")
                with self._changed:
                    self._n_writing -= 1
                    self._changed.notify_all()
            self._closing.wait(GATHER_S)
        if writer is not None:
            try:
                writer.close()
            except OSError as error:
                logger.warning("%s: %s when the shard was closed", self.directory, error)

    def _next_batch(self) -> list[Trajectory | bytes]:
        """Wait for trajectories and take all of them; an empty list means that the recorder is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            batch, self._waiting = self._waiting, []
            self._n_writing = len(batch)
            return batch


class _Checks:
    """Validation of what is recorded, which takes a small share of the time, because the interpreter's lock is held.

    Beyond it, the JSON is stored as it is, without a checksum, and validated by those who read it.
    """

    def __init__(self) -> None:
        self._credit_s, self._since = CREDIT_S, time.monotonic()

    def line(self, trajectory: Trajectory | bytes) -> bytes:
        began = time.monotonic()
        self._credit_s = min(CREDIT_S, self._credit_s + SHARE * (began - self._since))
        self._since = began
        if self._credit_s <= 0 and isinstance(trajectory, bytes):
            return trajectory + b"\n"
        line = encode_json(trajectory) if isinstance(trajectory, bytes) else encode(trajectory)
        self._credit_s -= time.monotonic() - began
        return line


def _snapshot(trajectory: Mapping[str, Any]) -> Trajectory | bytes:
    """Keep what an application may change: as JSON, which the thread validates, or else as a record."""
    task = trajectory.get("task")
    own = trajectory.get("metadata"), task.get("info") if isinstance(task, dict) else None
    if not any(own) or is_portable(own):  # orjson would make null of NaN, and text of dates
        with suppress(TypeError):  # it is not all JSON
            return orjson.dumps(trajectory)
    return Trajectory.model_validate(trajectory)


_open: set[Recorder] = set()


def _close_all() -> None:
    for recorder in list(_open):
        recorder.close()


def _after_fork() -> None:
    for recorder in list(_open):
        recorder._begin()  # pyright: ignore[reportPrivateUsage]


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork)  # the child has the queue and its lock, but not the thread
