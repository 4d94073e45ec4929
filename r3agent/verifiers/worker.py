"""Call functions that may hang, eat memory or crash in processes of their own: JSON goes in, JSON comes out.

A call that takes too much CPU time is killed by the kernel, on a busy machine no earlier than on an idle one; one that
takes too long by the clock is killed from here. A process that has died is replaced by the next call. Only functions of
a named module run there, nothing is pickled, and the user's `__main__` is not imported again.
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
"""Wall time of a call, by default: so many times its CPU seconds and so many seconds more, as it may sleep."""
START_S = 300.0
"""Seconds for a process to load its module and run its setup; a verifier may load a model."""
CLOSING_S = 5.0
"""Seconds for a process to end after it has closed its output."""

KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "LD_LIBRARY_PATH")
"""Environment variables that a process of untrusted input has."""

Reply: TypeAlias = dict[str, Any] | TimeoutError | None
"""Reply of a process; `None` where it ended instead, an error where it was too slow."""


class Worker:
    """Functions of a module, called in processes that are started when they are needed and kept for later calls.

    By default a process works on what a model wrote: it has neither the environment's secrets nor the standard streams,
    a limit of memory, and fixed hashes, because some generators iterate over sets.

    Args:
        module: loaded from its file, without the packages around it unless it imports them.
        setup: a function of the module and its arguments, called once in each process before any other.
        max_processes: calls beyond this number wait.
        is_trusted: the process has the whole environment, stderr, hashes of its own and all memory.
        name: of a process, in messages.
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
        self._slots = threading.BoundedSemaphore(max_processes)
        weakref.finalize(self, _end, self._all)

    def __call__(self, function: str, *arguments: Any, cpu_s: float = 0.0, wall_s: float | None = None) -> Any:
        """Return `module.function(*arguments)`.

        Args:
            cpu_s: seconds of CPU time that it may take; 0 is no limit.
            wall_s: seconds by the clock; default: many more than `cpu_s`.

        Raises:
            TimeoutError: it took too long; its process is ended.
            RuntimeError: it raised, with type and text; or its process died, or did not start.
        """
        wall_s = WALL_FACTOR * cpu_s + WALL_S if wall_s is None else wall_s
        with self._process() as process:
            reply = _exchange(process, [function, cpu_s, *arguments], wall_s)
            if isinstance(reply, TimeoutError) or process.returncode == -signal.SIGPROF:
                raise TimeoutError(f"took more than {cpu_s or wall_s:g} s")
            if reply is None:
                raise RuntimeError(f"{self.name} ended with {process.returncode}")
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply["value"]

    def start(self) -> None:
        """Start a process, so that the next call does not wait for its module and setup.

        Raises:
            RuntimeError: the module does not load, or the setup fails.
        """
        with self._process():
            pass

    def close(self) -> None:
        """End all processes, and the calls under way in them; a later call starts others."""
        _end(self._all)

    @contextmanager
    def _process(self) -> Generator[subprocess.Popen[str]]:
        """Lend a process to one caller; it is kept for the next unless it has ended or was left by an exception."""
        with self._slots:
            process = self._take()
            try:
                yield process
            except BaseException:
                self._discard(process)  # it may be in the middle of something
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
        with suppress(ValueError):
            self._all.remove(process)
        _end([process])

    def _start(self) -> subprocess.Popen[str]:
        process = self._spawn()
        self._all.append(process)
        function, *arguments = self._setup
        reply = _exchange(process, [function, 0.0, *arguments], START_S)
        if isinstance(reply, dict) and "error" not in reply:
            return process
        self._discard(process)
        if isinstance(reply, TimeoutError):
            raise RuntimeError(f"{self.name} has not started after {START_S:g} s")
        if reply is None:
            raise RuntimeError(f"{self.name} ended with {process.returncode} before it was asked")
        raise RuntimeError(f"{self.name} did not start: {reply['error']}")

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
            encoding="ascii",  # JSON escapes the rest, lone surrogates too
        )


def _exchange(process: subprocess.Popen[str], request: list[Any], wall_s: float) -> Reply:
    """Send a request and return the reply."""
    assert process.stdin is not None
    assert process.stdout is not None
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        process.kill()

    clock = threading.Timer(wall_s, expire)
    clock.daemon = True
    clock.start()
    line = ""
    with suppress(OSError, ValueError):  # it has ended, or `close` has ended it
        process.stdin.write(json.dumps(request, default=str) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
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
