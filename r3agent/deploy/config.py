"""Settings of deploying: the section `[deploy]` of r3.toml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from r3agent.deploy.fingerprint import TOLERANCE
from r3agent.records.trajectory import Record


class DeployConfig(Record):
    """Settings of bringing new weights onto the servers."""

    strategy: Literal["auto", "restart", "command"] = "auto"
    """`auto` loads an adapter beside the base and reloads full weights in place; `restart` replaces a server that
    `r3agent serve --run` supervises by a new one on another port; `command` runs a script of yours."""
    command: tuple[str, ...] = ()
    """The script and its arguments; the variables that it gets stand in `r3agent/deploy/command.py`."""
    replicas: tuple[str, ...] = ()
    """Base URLs of further servers that get the weights too, one after another, after `policy.base_url`."""
    keep: int = Field(default=2, ge=1)
    """Adapters of this run that stay loaded on the server, the live one included."""
    tolerance: float = Field(default=TOLERANCE, gt=0)
    """Most mean |server - checkpoint| logprob of the fingerprint, in nats per token."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Longest time for a restart, a command and the fingerprint check after it, and for one request to a server."""
