"""Record of the live version: the file `live.json` of a run."""

from __future__ import annotations

from typing import Literal

from r3agent.records.trajectory import VersionedRecord


class LivePointer(VersionedRecord):
    """Pointer to the live version and to the previous one."""

    schema_version: Literal[1] = 1
    version: str
    previous: str | None = None
    base_url: str | None = None
    """Base URL of its server, if a restart moved it to another address."""
    passed: tuple[str, ...] = ()
    """Versions that became live because they passed the gate, oldest first."""
    merges_adapters: bool = False
    """True if the server takes no adapters, so that they are merged into its weights, under the base model's name."""
