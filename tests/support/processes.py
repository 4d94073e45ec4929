"""Servers that a test starts: waited for until they answer, and ended with all they have started."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from r3agent._util.wait import wait_until

START_S = 300.0
"""Patience with a machine that has much else to do, in seconds."""


@contextmanager
def started(
    command: Sequence[str | Path], *, healthy: str, env: Mapping[str, str], cwd: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The process, once a GET of `healthy` is answered at all."""
    with log.open("wb") as output, subprocess.Popen(command, env=env, cwd=cwd, stdout=output, stderr=output) as process:
        tree = psutil.Process(process.pid)
        try:

            def is_up() -> bool:
                assert process.poll() is None, log.read_text()
                return answers(healthy)

            assert wait_until(is_up, timeout_s=START_S), f"{healthy} does not answer:\n{log.read_text()}"
            yield process
        finally:
            if process.poll() is None:
                family = [tree, *tree.children(recursive=True)]
                process.terminate()
                _, left = psutil.wait_procs(family, timeout=30)
                for one in left:
                    one.kill()


def answers(url: str) -> bool:
    try:
        httpx.get(url, timeout=30)
    except httpx.TransportError:
        return False
    return True
