"""Serve calls of one module's functions, one JSON line per call and per reply; `worker.py` starts it as a script.

The called code may print, read its input or end the process without corrupting the lines.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import resource
import signal
import sys
from contextlib import suppress
from types import ModuleType


def main(module: str, file: str, memory_bytes: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which stops this process
    requests = os.fdopen(os.dup(0), encoding="ascii")
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    loaded = _load(module, file)
    if limit := int(memory_bytes):
        with suppress(ValueError, OSError):  # a system that has no such limit, or a lower one
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    for line in requests:
        function, cpu_s, *arguments = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, cpu_s)  # nothing catches its signal, so it kills the process
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
    main(*sys.argv[1:])
