"""Deploy weights to a cluster through a user's script, which gets the checkpoint's path."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

from r3agent._util.files import last_lines
from r3agent.deploy.server import Server
from r3agent.deploy.update import WeightUpdate
from r3agent.errors import DeployError


@dataclass
class Command(WeightUpdate):
    """Run a script; the deploy then waits until the servers behind the address answer with the version's fingerprint.

    The script's environment has `R3AGENT_VERSION`, `R3AGENT_SERVED_NAME`, `R3AGENT_CHECKPOINT` (the directory of the
    adapter or the full weights), `R3AGENT_BASE_MODEL`, `R3AGENT_KIND` and `R3AGENT_BASE_URL`. It must be repeatable.
    """

    command: tuple[str, ...]
    timeout_s: float

    def apply(self, server: Server) -> Server:
        card = self.checkpoint.card
        variables = {
            "R3AGENT_VERSION": card.version,
            "R3AGENT_SERVED_NAME": card.served_name,
            "R3AGENT_CHECKPOINT": str(self.checkpoint.adapter_dir or self.checkpoint.model),
            "R3AGENT_BASE_MODEL": card.base_path,
            "R3AGENT_KIND": card.kind,
            "R3AGENT_BASE_URL": server.base_url,
        }
        name = f"deploy.command {' '.join(self.command)!r}"
        try:
            done = subprocess.run(
                self.command,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=self.timeout_s,
                check=False,
            )
        except OSError as error:
            raise DeployError(f"{name}: {error.strerror}; check its path and mode") from error
        except subprocess.TimeoutExpired:
            raise DeployError(f"{name} did not end within {self.timeout_s:g} s") from None
        if done.returncode:
            end = last_lines(done.stdout.decode(errors="replace"))
            raise DeployError(f"{name} ended with exit code {done.returncode}; its output ends:\n{end}")
        return server

    def undo(self, server: Server) -> str:
        return f"what {self.command[0]} did stays; deploy the live version again to bring it back"
