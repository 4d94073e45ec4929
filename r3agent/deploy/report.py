"""Reports of a version that is loaded, or live."""

from __future__ import annotations

from typing import Any
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


def attributes(report: LoadReport, servers: int, previous: str | None = None) -> dict[str, Any]:
    """Return the attributes of the span of a deploy."""
    return {
        "r3agent.deploy.strategy": report.strategy,
        "r3agent.deploy.served_name": report.served_name,
        "r3agent.deploy.servers": servers,
        "r3agent.deploy.fingerprint": report.fingerprint and report.fingerprint.verdict,
        "r3agent.deploy.previous": previous,
    }


def doubts(version: str, report: FingerprintReport | None) -> tuple[str, ...]:
    """Return the warnings of a version that is loaded, by the measure of its fingerprint."""
    if report is None:
        return (f"{version} has no fingerprint: nobody checked that the server answers with its weights",)
    if report.verdict == "indistinguishable":
        return (
            f"{version} and the weights it was trained from cannot be told apart on this server: its logprobs are "
            f"{report.gap:.3g} nats per token from the new and {report.parent_gap:.3g} from the old; bfloat16 rounds "
            "small changes of an adapter away: train longer, or serve in float32",
        )
    return ()
