"""`r3agent serve` in the foreground: the server as a child, its address where others find it, a clean stop."""

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
        run_dir: its `servers/PORT.json` says, while the server is healthy, where it is (`base_url`), who supervises
            it (`pid`: SIGTERM stops both) and the flags of `r3agent serve` that make another like it (`argv`:
            all but the model, its name, the port and the log).

    Raises:
        EndpointError: the server did not start, or ended by itself.
        ConfigError: it cannot be started like this.
    """
    try:
        print(f"starting {server.name}; its output goes to {server.log_path}", file=sys.stderr)
        with server, _registered(server, run_dir, argv):
            print(f"serving {server.name} on {server.base_url}", flush=True)
            server.watch()
    except KeyboardInterrupt:
        pass  # as asked


@contextmanager
def _registered(server: LocalServer, run_dir: Path | None, argv: Sequence[str]) -> Generator[None]:
    """Keep the server's entry in its run, `servers/PORT.json`, while the block runs."""
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
