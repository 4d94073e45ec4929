"""Deployment settings: the `[deploy]` section of r3.toml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from r3agent.deploy.fingerprint import TOLERANCE
from r3agent.records.trajectory import Record


class DeployConfig(Record):
    """Settings for loading new weights onto the servers."""

    strategy: Literal["auto", "restart", "command"] = "auto"
    """`auto` loads an adapter beside the base model, or reloads full weights in place; on a server that takes no
    adapters, it merges one into the base model's. `restart` starts a new server on another port in place of the one
    that `r3agent serve --run` supervises. `command` runs your own script."""
    command: tuple[str, ...] = ()
    """Script and its arguments; docs/deploy.md lists the environment variables that it gets."""
    replicas: tuple[str, ...] = ()
    """Base URLs of more servers to update, one after another, after `policy.base_url`."""
    eval_base_url: str = ""
    """Base URL of another server for evaluations, and for collecting with a version that is not live. Empty: the live
    server, where full weights replace the live ones for that time."""
    keep: int = Field(default=2, ge=1)
    """Number of this run's adapters that stay loaded on the server, including the live one."""
    tolerance: float = Field(default=TOLERANCE, gt=0)
    """Largest mean |server - checkpoint| logprob gap of the fingerprint, in nats per token."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Time limit of a restart, of a command with the fingerprint check after it, and of each request to a server."""
