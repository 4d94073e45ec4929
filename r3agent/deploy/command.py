"""The user's own way onto a cluster: a script that is told where the checkpoint is."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

from r3agent._util.files import last_lines
from r3agent.deploy.server import Server
from r3agent.deploy.weights import check_checkpoint
from r3agent.errors import DeployError
from r3agent.store.checkpoint import Checkpoint


@dataclass
class Command:
    """Run a script; the canary then waits until the servers behind the address answer with the version.

    In its environment: `R3AGENT_VERSION`, `R3AGENT_SERVED_NAME`, `R3AGENT_CHECKPOINT` (the adapter's directory, or
    that of the full weights), `R3AGENT_BASE_MODEL`, `R3AGENT_KIND` and `R3AGENT_BASE_URL`. It has to be repeatable.
    """

    command: tuple[str, ...]
    checkpoint: Checkpoint
    timeout_s: float

    def check(self) -> None:
        check_checkpoint(self.checkpoint)

    def apply(self, server: Server) -> Server:
        card, adapter_dir = self.checkpoint.card, self.checkpoint.adapter_dir
        told = {
            "R3AGENT_VERSION": card.version,
            "R3AGENT_SERVED_NAME": card.served_name,
            "R3AGENT_CHECKPOINT": str(adapter_dir or self.checkpoint.model),
            "R3AGENT_BASE_MODEL": card.base_path,
            "R3AGENT_KIND": card.kind,
            "R3AGENT_BASE_URL": server.base_url,
        }
        shown = " ".join(self.command)
        try:
            done = subprocess.run(
                self.command,
                env={**os.environ, **told},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=self.timeout_s,
                check=False,
            )
        except OSError as error:
            raise DeployError(f"deploy.command {shown!r}: {error.strerror}; check its path and mode") from error
        except subprocess.TimeoutExpired:
            raise DeployError(f"deploy.command {shown!r} did not end within {self.timeout_s:g} s") from None
        if done.returncode:
            output = last_lines(done.stdout.decode(errors="replace"))
            raise DeployError(f"deploy.command {shown!r} ended with exit code {done.returncode}; it said:\n{output}")
        return server

    def undo(self, server: Server) -> str:
        return f"what {self.command[0]} did stays; deploy the live version again to bring it back"

    def finish(self, server: Server) -> None:
        pass
