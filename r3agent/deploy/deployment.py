"""Deploy a version, or return to an earlier one: load, canary, and only then the live pointer."""

from __future__ import annotations

from collections.abc import Sequence

from r3agent.deploy.canary import TOLERANCE, CanaryReport, canary_of, check, measure
from r3agent.deploy.lora import unload_old
from r3agent.deploy.server import Server
from r3agent.deploy.strategy import Change, Strategy, choose
from r3agent.errors import ConfigError, DeployError
from r3agent.lock import locked
from r3agent.registry import CanarySequence, Registry
from r3agent.trajectory import Record

LOCK_FILE = "deploy.lock"


class LoadReport(Record):
    """A version that the server answers with."""

    version: str
    served_name: str
    """The model name that clients ask for."""
    strategy: Strategy
    canary: CanaryReport | None
    """`None`: the version has none, so what the server answers with was not verified."""
    warnings: tuple[str, ...]


class DeployReport(LoadReport):
    """A version that is live now."""

    previous: str | None
    """Live until then."""
    unloaded: tuple[str, ...]
    """Served names of old versions that were taken off the server."""


def deploy(
    version: str,
    *,
    registry: Registry,
    base_url: str,
    api_key: str | None = None,
    keep: int = 2,
    tolerance: float = TOLERANCE,
    timeout_s: float = 120.0,
) -> DeployReport:
    """Bring a version onto a running server and make it live.

    The live pointer moves only when the server answers with the logprobs on the version's card; on failure the server
    is put back as it was. A version whose card has no canary, or that differs too little from the one before to be
    told apart, goes live with a warning. Deploying a version again is harmless.

    Args:
        base_url: of the OpenAI API, ending in `/v1`.
        keep: adapters of this run that stay on the server, the live one included.
        tolerance: of the canary, in nats per token; see `canary.py`.
        timeout_s: for one request to the server.

    Raises:
        ConfigError: there is no such version, or an argument does not work.
        BusyError: another deploy of this run is under way, and whose.
        DeployError: the version is not live; what was is still.
    """
    if keep < 1:
        raise ConfigError(f"keep = {keep}: the live adapter has to stay; pass at least 1")
    with (
        Server(base_url, api_key=api_key, timeout_s=timeout_s) as server,
        locked(registry.run_dir / LOCK_FILE, f"deploying {version}"),
    ):
        loaded = _load(server, registry, version, tolerance)
        previous = registry.live
        registry.set_live(version)
        unloaded, warnings = _tidy(server, registry, keep)
    loaded = loaded.model_copy(update={"warnings": (*loaded.warnings, *warnings)})
    return DeployReport.model_validate({**loaded.model_dump(), "previous": previous, "unloaded": unloaded})


def load_version(
    version: str,
    *,
    registry: Registry,
    base_url: str,
    api_key: str | None = None,
    tolerance: float = TOLERANCE,
    timeout_s: float = 120.0,
) -> LoadReport:
    """Bring a version onto the server without making it live, e.g. to evaluate it: as `deploy`, but for the pointer.

    An adapter is served beside the live version; full weights take its place until the next `deploy`.
    """
    with (
        Server(base_url, api_key=api_key, timeout_s=timeout_s) as server,
        locked(registry.run_dir / LOCK_FILE, f"loading {version}"),
    ):
        return _load(server, registry, version, tolerance)


def rollback(
    *,
    registry: Registry,
    base_url: str,
    to: str | None = None,
    api_key: str | None = None,
    keep: int = 2,
    tolerance: float = TOLERANCE,
    timeout_s: float = 120.0,
) -> DeployReport:
    """Return to an earlier version, `to` or the one before: loaded again if it was unloaded, and with its canary.

    Raises:
        ConfigError, DeployError: as `deploy`; and there is no such earlier version.
    """
    return deploy(
        registry.rollback_target(to),
        registry=registry,
        base_url=base_url,
        api_key=api_key,
        keep=keep,
        tolerance=tolerance,
        timeout_s=timeout_s,
    )


def _load(server: Server, registry: Registry, version: str, tolerance: float) -> LoadReport:
    card = registry.card(version)
    canary = canary_of(registry, version)
    strategy, change = choose(card, registry)
    if change is not None:
        change.check()
    if card.name not in (served := server.models()):
        raise DeployError(
            f"{card.name!r} is the base model of this run, the server at {server.root} has {', '.join(served)}; "
            "serve it under this name or deploy to its own server"
        )
    try:
        if strategy == "reload" and canary and _has_arrived(server, card.served_name, canary, tolerance):
            strategy, change = "none", None
        if change is not None:
            change.apply(server)
        report = check(server, card.served_name, canary, tolerance=tolerance) if canary else None
    except DeployError as error:
        raise DeployError(f"{error}; {_undone(change, server)}; {registry.live or 'nothing'} stays live") from error
    return LoadReport(
        version=version,
        served_name=card.served_name,
        strategy=strategy,
        canary=report,
        warnings=_doubts(version, report),
    )


def _has_arrived(server: Server, served_name: str, canary: Sequence[CanarySequence], tolerance: float) -> bool:
    return measure(server, served_name, canary, tolerance=tolerance).verdict == "arrived"


def _undone(change: Change | None, server: Server) -> str:
    try:
        return "the server is as it was" if change is None else change.undo(server)
    except DeployError as error:
        return f"and putting the server back failed: {error}"


def _tidy(server: Server, registry: Registry, keep: int) -> tuple[list[str], list[str]]:
    """The version is live; an old one that stays loaded is no reason to say otherwise."""
    try:
        return unload_old(server, registry, keep=keep), []
    except DeployError as error:
        return [], [f"old adapters could not be unloaded: {error}"]


def _doubts(version: str, report: CanaryReport | None) -> tuple[str, ...]:
    if report is None:
        return (f"{version} has no canary: nobody checked that the server answers with its weights",)
    if report.verdict == "indistinguishable":
        return (
            f"{version} differs too little from the weights it was trained from to tell them apart on this server: "
            f"its logprobs are {report.gap:.3g} nats per token from the new and {report.parent_gap:.3g} from the old",
        )
    return ()
