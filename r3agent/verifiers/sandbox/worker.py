"""Code that may hang, eat memory or crash on what a model wrote, in a process of its own: JSON goes in, JSON comes out.

What runs there is a function of this package, by name; only its arguments come from outside. A call that takes too
much CPU time is killed by the kernel, on a busy machine no earlier than on an idle one. Nothing is pickled, the user's
`__main__` is not imported again, and the process has neither the environment's secrets nor its standard streams.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Generator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

MAX_PROCESSES = min(4, os.cpu_count() or 1)
MEMORY_BYTES = 4 * 2**30
WALL_FACTOR, WALL_S = 10, 60
"""A call is given up after so many times its CPU seconds and so many seconds more: it sleeps, or the machine does."""
START_S = 300
"""Within which `start` must have loaded the module."""

KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "LD_LIBRARY_PATH")
"""Of the environment."""


class Worker:
    """Functions of a module, called in processes that are started when they are needed and live on for the next call.

    Args:
        module: what the processes load, from its file and without the packages around it, which takes a second less;
            so it imports nothing of this one.
    """

    def __init__(self, module: str) -> None:
        self.module = module
        self._idle: list[subprocess.Popen[str]] = []
        self._places = threading.BoundedSemaphore(MAX_PROCESSES)
        self._end = weakref.finalize(self, _end, self._idle)

    def __call__(self, function: str, *arguments: Any, cpu_s: float) -> Any:
        """What `module.function(*arguments)` returns, within so many seconds of CPU time.

        Raises:
            TimeoutError: it took too long.
            RuntimeError: it raised, with type and text; or its process died.
        """
        with self._process() as process:
            reply = _exchange(process, [function, cpu_s, *arguments], WALL_FACTOR * cpu_s + WALL_S)
            if reply is None and process.returncode in (-signal.SIGPROF, -signal.SIGALRM):
                raise TimeoutError(f"took more than {cpu_s:g} s")
            if reply is None:
                raise RuntimeError(f"the process of {self.module} ended with {process.returncode}")
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply["value"]

    def start(self) -> None:
        """Have a process that has loaded the module, so that the next call does not wait for that.

        Raises:
            RuntimeError: it does not load.
        """
        with self._process() as process:
            if _exchange(process, [None, 0.0], START_S) is None:
                raise RuntimeError(f"the process of {self.module} ended with {process.returncode} before it was asked")

    def close(self) -> None:
        """End the processes that are idle; the next call starts others."""
        _end(self._idle)

    @contextmanager
    def _process(self) -> Generator[subprocess.Popen[str], None, None]:
        """A process that nobody else talks to, kept for the next unless it has ended."""
        with self._places:
            try:
                process = self._idle.pop()
            except IndexError:
                process = _start(self.module)
            try:
                yield process
            except BaseException:
                _end([process])  # it may be in the middle of something
                raise
            self._idle.append(process)


def _start(module: str) -> subprocess.Popen[str]:
    spec = importlib.util.find_spec(module)
    path = os.pathsep.join(place for place in sys.path if place)
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    # Hashes are fixed because some generators iterate over sets.
    environment |= {"PYTHONPATH": path, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", __file__, module, spec.origin if spec and spec.origin else ""],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
        encoding="ascii",  # JSON escapes the rest, lone surrogates too
    )


def _exchange(process: subprocess.Popen[str], request: list[Any], wall_s: float) -> dict[str, Any] | None:
    """The reply, or `None` where the process ended instead."""
    assert process.stdin is not None
    assert process.stdout is not None
    clock = threading.Timer(wall_s, process.send_signal, [signal.SIGALRM])
    clock.daemon = True
    clock.start()
    try:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        line = ""
    finally:
        clock.cancel()
    if not line:
        process.wait()
        return None
    return json.loads(line)


def _end(processes: list[subprocess.Popen[str]]) -> None:
    while processes:
        process = processes.pop()
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):  # what it did not read any more
                    stream.close()


def serve(module: str, file: str) -> None:
    """Answer requests on the standard streams until they end; what the called code prints goes nowhere."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    loaded = _load(module, file)
    with suppress(ValueError, OSError):  # a system that has no such limit, or a lower one
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    for line in sys.stdin:
        function, cpu_s, *arguments = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, cpu_s)  # whose signal, with nobody to catch it, ends the process
        try:
            reply = json.dumps({"value": function and getattr(loaded, function)(*arguments)})
        except Exception as error:
            reply = json.dumps({"error": f"{type(error).__name__}: {error}"})
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(reply + "\n")
        replies.flush()


def _load(module: str, file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(module, file) if file.endswith(".py") else None
    if spec is None or spec.loader is None:
        return importlib.import_module(module)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


if __name__ == "__main__":
    serve(*sys.argv[1:])
