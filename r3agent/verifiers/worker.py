"""Call functions that may hang, use too much memory or crash, in child processes that take and return JSON.

The kernel kills a call that takes too much CPU time, no earlier on a busy machine than on an idle one; this module
kills one that takes too much wall time. The next call replaces a process that has died. Only functions of a named
module run there, nothing is pickled, and the user's `__main__` is not imported again.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

from r3agent.verifiers.child import serve

MAX_PROCESSES = min(4, os.cpu_count() or 1)
MEMORY_BYTES = 4 * 2**30
WALL_FACTOR, WALL_S = 10, 60
"""Factor and addend that give a call's default wall time from its CPU seconds, as it may sleep."""
START_S = 300.0
"""Seconds for a process to load its module and run its setup; a verifier may load a model."""
CLOSING_S = 5.0
"""Seconds for a process to end after closing its output."""

KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "LD_LIBRARY_PATH")
"""Environment variables that are passed to a process with untrusted input."""

Reply: TypeAlias = dict[str, Any] | TimeoutError | None
"""Reply of a process; `None` if the process ended, an error if it was too slow."""


class StartError(RuntimeError):
    """Failure of a process to load its module or to run its setup."""


class Worker:
    """Pool of processes that call a module's functions, started on demand and reused.

    By default a process handles text from a model: it has no secrets from the environment, no standard streams, a
    memory limit, and fixed hashes, because some generators iterate over sets.

    Args:
        module: module to load from its file, without its parent packages unless it imports them.
        setup: function of the module and its arguments, called once in each process before any other.
        max_processes: maximum number of processes; more calls wait.
        is_trusted: give the process the whole environment, stderr, random hashes and unlimited memory.
        name: name of a process in messages.
    """

    def __init__(
        self,
        module: str,
        *,
        setup: Sequence[Any] = (),
        max_processes: int = MAX_PROCESSES,
        is_trusted: bool = False,
        name: str = "",
    ) -> None:
        self.module, self.name = module, name or f"the process of {module}"
        self._setup, self._is_trusted = [*setup] or [None], is_trusted
        self._all: list[subprocess.Popen[str]] = []
        self._idle: list[subprocess.Popen[str]] = []
        self._closings = 0
        self._lock = threading.Lock()
        """Guard of `_all` and `_closings`: a process is in the list, or it sees that `close` was called."""
        self._slots = threading.BoundedSemaphore(max_processes)
        weakref.finalize(self, _end, self._all)

    def __call__(self, function: str, *arguments: Any, cpu_s: float = 0.0, wall_s: float | None = None) -> Any:
        """Return `module.function(*arguments)`.

        Args:
            cpu_s: limit of CPU seconds; 0 for none.
            wall_s: limit of wall seconds; by default far more than `cpu_s`.

        Raises:
            TimeoutError: the call took too long; its process is killed.
            StartError: the process did not start.
            RuntimeError: the call raised (with type and text), or its process died or was closed.
            ValueError: an argument contains itself, so it has no JSON.
        """
        wall_s = WALL_FACTOR * cpu_s + WALL_S if wall_s is None else wall_s
        request = _encode(function, cpu_s, *arguments)
        with self._process() as process:
            reply = _exchange(process, request, wall_s)
            if isinstance(reply, TimeoutError) or process.returncode == -signal.SIGPROF:
                raise TimeoutError(f"took more than {cpu_s or wall_s:g} s")
            if reply is None:
                raise RuntimeError(f"{self.name} ended with {process.returncode}")
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply["value"]

    def start(self) -> None:
        """Start a process, so that the next call does not wait for loading and setup.

        Raises:
            StartError: the module does not load, or the setup fails.
            RuntimeError: `close` stopped the process.
        """
        with self._process():
            pass

    def close(self) -> None:
        """Stop all processes, those being started too, and the calls running in them; a later call starts new ones."""
        with self._lock:
            self._closings += 1
            processes = [*self._all]
            self._all.clear()
        _end(processes)

    @contextmanager
    def _process(self) -> Generator[subprocess.Popen[str]]:
        """Lend a process to one caller, and keep it for the next unless it has ended or the caller raised."""
        with self._slots:
            process = self._take()
            try:
                yield process
            except BaseException:
                self._discard(process)  # it may be in the middle of a call
                raise
            self._idle.append(process)

    def _take(self) -> subprocess.Popen[str]:
        while True:
            try:
                process = self._idle.pop()
            except IndexError:
                return self._start()
            if process.poll() is None:
                return process
            self._discard(process)

    def _discard(self, process: subprocess.Popen[str]) -> None:
        with self._lock, suppress(ValueError):
            self._all.remove(process)
        _end([process])

    def _start(self) -> subprocess.Popen[str]:
        function, *arguments = self._setup
        request = _encode(function, 0.0, *arguments)
        closings = self._closings
        process = self._spawn()
        try:
            with self._lock:
                self._all.append(process)
                is_closed = self._closings != closings
            if is_closed:
                raise RuntimeError(f"{self.name} was closed while it started")
            reply = _exchange(process, request, START_S)
            if isinstance(reply, TimeoutError):
                raise StartError(f"{self.name} has not started after {START_S:g} s")
            if reply is None:
                raise StartError(f"{self.name} ended with {process.returncode} before it was asked")
            if "error" in reply:
                raise StartError(f"{self.name} did not start: {reply['error']}")
        except BaseException:
            self._discard(process)
            raise
        return process

    def _spawn(self) -> subprocess.Popen[str]:
        spec = importlib.util.find_spec(self.module)
        environment = {name: text for name, text in os.environ.items() if self._is_trusted or name in KEPT}
        environment["PYTHONPATH"] = os.pathsep.join(place for place in sys.path if place)
        if not self._is_trusted:
            environment |= {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        memory = 0 if self._is_trusted else MEMORY_BYTES
        return subprocess.Popen(
            [sys.executable, "-P", serve.__file__, self.module, (spec and spec.origin) or "", str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if self._is_trusted else subprocess.DEVNULL,
            env=environment,
            encoding="ascii",  # JSON escapes everything else, lone surrogates too
        )


def _encode(function: str | None, cpu_s: float, *arguments: Any) -> str:
    return json.dumps([function, cpu_s, *arguments], default=str) + "\n"


def _exchange(process: subprocess.Popen[str], request: str, wall_s: float) -> Reply:
    """Send a request and return the reply."""
    assert process.stdin is not None
    assert process.stdout is not None
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        process.kill()

    clock = threading.Timer(wall_s, expire)
    clock.daemon = True
    line = ""
    try:
        clock.start()
        with suppress(OSError, ValueError):  # it has ended, or `close` has stopped it
            process.stdin.write(request)
            process.stdin.flush()
            line = process.stdout.readline()
    finally:
        clock.cancel()
    if line.endswith("\n") and not expired.is_set():
        return json.loads(line)
    with suppress(subprocess.TimeoutExpired):
        process.wait(CLOSING_S)
    process.kill()
    process.wait()
    return TimeoutError() if expired.is_set() else None


def _end(processes: list[subprocess.Popen[str]]) -> None:
    while processes:
        process = processes.pop()
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):  # unread requests
                    stream.close()
