"""Foreground supervision of a server for `r3agent serve`: run it as a child, register its address, stop it cleanly."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from r3agent._util.files import write_atomically
from r3agent.serve.process.process import LocalServer


def supervise(server: LocalServer, *, run_dir: Path | None = None, argv: Sequence[str] = ()) -> None:
    """Start a server, print `serving NAME on URL` when it is healthy, and stop it on SIGINT.

    Args:
        run_dir: run with an entry `servers/PORT.json` while the server is healthy: its address (`base_url`), the
            supervisor (`pid`; SIGTERM stops both), and the flags of `r3agent serve` to start another one like it
            (`argv`, without the model, its name, the port and the log).

    Raises:
        EndpointError: the server did not start, or ended by itself.
        ConfigError: the server cannot start with these settings.
    """
    try:
        print(f"starting {server.name}; its output goes to {server.log_path}", file=sys.stderr)
        for choice in server.choices:
            print(choice, file=sys.stderr)
        with server, _registered(server, run_dir, argv):
            print(f"serving {server.name} on {server.base_url}", flush=True)
            server.watch()
    except KeyboardInterrupt:
        pass  # a requested stop


@contextmanager
def _registered(server: LocalServer, run_dir: Path | None, argv: Sequence[str]) -> Generator[None]:
    """Keep the server's entry `servers/PORT.json` in its run while the block runs."""
    if run_dir is None:
        yield
        return
    path = run_dir / "servers" / f"{urlsplit(server.base_url).port}.json"
    entry = {"base_url": server.base_url, "pid": os.getpid(), "argv": list(argv)}
    write_atomically(path, json.dumps(entry, indent=2) + "\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
