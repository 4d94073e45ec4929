"""Blue/green deployment: start a new server on another port, then stop the old one when its requests are done.

`r3agent serve --run RUN` must supervise the old server; it writes `RUN/servers/PORT.json`. Clients find the new server
through the live pointer, so they must request `NAME@live`. The machine needs room for both: on a CPU, vLLM binds its
threads to the first cores, where two servers are slow and a busy one can keep the other from starting; set other cores
with `VLLM_CPU_OMP_THREADS_BIND`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r3agent._util.files import last_lines
from r3agent._util.reaping import reap
from r3agent._util.wait import wait_until
from r3agent.deploy.lora import addressed
from r3agent.deploy.merge import whole_weights
from r3agent.deploy.reload import replace_weights
from r3agent.deploy.server import Server
from r3agent.deploy.update import WeightUpdate
from r3agent.errors import ConfigError, DeployError

POLL_S = 0.2
GRACE_S = 2.0
"""Time for requests that were sent before the pointer moved to reach the old server."""
DRAIN_S = 120.0


@dataclass
class Restart(WeightUpdate):
    """Start a server with the version's weights, and finally stop the old one."""

    run_dir: Path
    timeout_s: float
    old: dict[str, Any] | None = None
    started: subprocess.Popen[bytes] | None = None

    def apply(self, server: Server) -> Server:
        card, adapter_dir = self.checkpoint.card, self.checkpoint.adapter_dir
        self.old = self._supervised(server)
        log = self.run_dir / "servers" / f"{card.version}.log"
        argv = [*self.old["argv"], "--port", "0", "--log", str(log.with_suffix(".server.log"))]
        command = [sys.executable, "-m", "r3agent", "serve", self.checkpoint.model, *argv, "--name", card.name]
        with log.open("wb") as out:
            self.started = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        successor = server.at(self._wait_for_address(self.started, log))
        if adapter_dir is not None and not successor.takes_adapters():
            with whole_weights(self.checkpoint) as weights:
                successor.pause()
                replace_weights(successor, weights, card.version)
        elif adapter_dir is not None:
            successor.load_adapter(card.served_name, addressed(adapter_dir))
        elif card.kind == "full":
            with suppress(DeployError):  # only the embedded server and vLLM in development mode store it
                successor.set_weight_version(card.version)
        return successor

    def undo(self, server: Server) -> str:
        if self.started is not None and self.started.poll() is None:
            self.started.terminate()
            self.started.wait()
        return f"{server.root} was not touched"

    def finish(self, server: Server) -> None:
        """Stop the old server when its requests have finished, or after `DRAIN_S` seconds."""
        assert self.old is not None
        assert self.started is not None
        reap(self.started)
        time.sleep(GRACE_S)
        wait_until(lambda: not ((load := server.load()) and load.requests), timeout_s=DRAIN_S, poll_s=POLL_S)
        with suppress(ProcessLookupError):
            os.kill(self.old["pid"], signal.SIGTERM)

    def _supervised(self, server: Server) -> dict[str, Any]:
        entries = self._entries()
        for entry in entries:
            if entry["base_url"].rstrip("/") == server.base_url.rstrip("/"):
                return entry
        here = f", only {', '.join(entry['base_url'] for entry in entries)}" if entries else ""
        raise ConfigError(
            f'deploy.strategy = "restart": {server.base_url} is not supervised here{here}; '
            f"start it with r3agent serve --run {self.run_dir}"
        )

    def _entries(self) -> list[dict[str, Any]]:
        """Return the entries of this run's supervised servers."""
        return [json.loads(path.read_bytes()) for path in sorted((self.run_dir / "servers").glob("*.json"))]

    def _wait_for_address(self, process: subprocess.Popen[bytes], log: Path) -> str:
        """Wait until the new server is healthy; return its address."""

        def address() -> str | None:
            for entry in self._entries():
                if entry["pid"] == process.pid:
                    return entry["base_url"]
            if (code := process.poll()) is not None:
                end = last_lines(log.read_text(encoding="utf-8", errors="replace"))
                raise DeployError(f"the new server ended with exit code {code}; {log} ends:\n{end}")
            return None

        if found := wait_until(address, timeout_s=self.timeout_s, poll_s=POLL_S):
            return found
        raise DeployError(
            f"the new server was not healthy within deploy.timeout_s = {self.timeout_s:g} s; see {log} and "
            f"{log.with_suffix('.server.log')}. Raise the limit; on a CPU, give it other cores than the old server's "
            "(VLLM_CPU_OMP_THREADS_BIND)"
        )
