"""Reports of a version that is loaded, or live."""

from __future__ import annotations

from warnings import warn

from pydantic import AliasChoices, ConfigDict, Field

from r3agent.deploy.fingerprint import FingerprintReport
from r3agent.deploy.strategy import Strategy
from r3agent.records.trajectory import Record


class LoadReport(Record):
    """Report of a version that is loaded on the server."""

    model_config = ConfigDict(serialize_by_alias=True)

    version: str
    served_name: str
    """Model name for clients to request."""
    base_url: str
    """Address of the server that has the version; the first if there are several."""
    strategy: Strategy
    fingerprint: FingerprintReport | None = Field(
        validation_alias=AliasChoices("fingerprint", "canary"), serialization_alias="canary"
    )
    """Named `canary` in JSON. `None` if the version has no fingerprint, so the server's weights were not verified."""
    warnings: tuple[str, ...]

    @property
    def canary(self) -> FingerprintReport | None:
        """Deprecated alias of `fingerprint`."""
        warn("LoadReport.canary is now fingerprint; canary is removed in 0.3", DeprecationWarning, stacklevel=2)
        return self.fingerprint


class DeployReport(LoadReport):
    """Report of a version that is now live."""

    previous: str | None
    """Version that was live before."""
    unloaded: tuple[str, ...]
    """Served names of the old versions that were unloaded from the server."""
