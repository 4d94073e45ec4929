"""Deploy a version, or return to an earlier one: load, canary, and only then the live pointer."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from r3agent._util.lock import file_lock
from r3agent._util.wait import wait_until
from r3agent.deploy.config import DeployConfig
from r3agent.deploy.fingerprint import CanaryReport, canary_of, check, measure
from r3agent.deploy.lora import unload_old
from r3agent.deploy.server import Server
from r3agent.deploy.strategy import Change, Strategy, choose
from r3agent.errors import ConfigError, DeployError
from r3agent.records.trajectory import Record
from r3agent.store.registry import CanarySequence, Registry

LOCK_FILE = "deploy.lock"
POLL_S = 1.0


class LoadReport(Record):
    """A version that the server answers with."""

    version: str
    served_name: str
    """The model name that clients ask for."""
    base_url: str
    """Of the server that has it, the first one of several."""
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


class Placed(NamedTuple):
    """A version on one server."""

    report: LoadReport
    change: Change | None
    old: Server
    """Where it was asked for."""
    new: Server
    """Where it is."""


def deploy(
    version: str,
    *,
    registry: Registry,
    base_url: str,
    api_key: str | None = None,
    config: DeployConfig | None = None,
) -> DeployReport:
    """Bring a version onto the running servers and make it live.

    The live pointer moves only when every server answers with the logprobs on the version's card; on failure the
    servers are put back as they were. A version whose card has no canary, or that differs too little from the one
    before to be told apart, goes live with a warning. Deploying a version again is harmless.

    Args:
        base_url: of the OpenAI API, ending in `/v1`; where a restart moved the live version, that address counts.

    Raises:
        ConfigError: there is no such version, or a setting does not work.
        BusyError: another deploy of this run is under way, and whose.
        DeployError: the version is not live; what was is still.
    """
    config = config or DeployConfig()
    with _servers(registry, base_url, api_key, config, f"deploying {version}") as servers:
        placed = _roll_out(servers, registry, version, config)
        previous, first = registry.live, placed[0]
        registry.set_live(version, base_url=first.new.base_url if first.new is not first.old else None)
        unloaded, warnings = _tidy(placed, registry, config.keep)
    report = first.report.model_copy(update={"warnings": (*first.report.warnings, *warnings)})
    return DeployReport.model_validate({**report.model_dump(), "previous": previous, "unloaded": unloaded})


def load_version(
    version: str,
    *,
    registry: Registry,
    base_url: str,
    api_key: str | None = None,
    config: DeployConfig | None = None,
) -> LoadReport:
    """Bring a version onto the servers without making it live, e.g. to evaluate it: as `deploy`, but for the pointer.

    An adapter is served beside the live version; full weights take its place until the next `deploy`.
    """
    config = (config or DeployConfig()).model_copy(update={"strategy": "auto"})
    with _servers(registry, base_url, api_key, config, f"loading {version}") as servers:
        return _roll_out(servers, registry, version, config)[0].report


def rollback(
    *,
    registry: Registry,
    base_url: str,
    to: str | None = None,
    api_key: str | None = None,
    config: DeployConfig | None = None,
) -> DeployReport:
    """Return to an earlier version, `to` or the one before: loaded again if it was unloaded, and with its canary.

    Raises:
        ConfigError, BusyError, DeployError: as `deploy`; and there is no such earlier version.
    """
    target = registry.rollback_target(to)
    return deploy(target, registry=registry, base_url=base_url, api_key=api_key, config=config)


@contextmanager
def _servers(
    registry: Registry, base_url: str, api_key: str | None, config: DeployConfig, purpose: str
) -> Generator[list[Server]]:
    """All servers of the run, for one deploy at a time."""
    if config.strategy == "restart" and config.replicas:
        raise ConfigError(
            f'deploy.strategy = "restart" with {len(config.replicas)} replicas: it replaces one supervised server; '
            'leave deploy.replicas empty, or use deploy.strategy = "command"'
        )
    urls = [registry.live_base_url or base_url, *config.replicas]
    with ExitStack() as stack:
        servers = [stack.enter_context(Server(url, api_key=api_key, timeout_s=config.timeout_s)) for url in urls]
        stack.enter_context(file_lock(registry.run_dir / LOCK_FILE, purpose))
        yield servers


def _roll_out(servers: Sequence[Server], registry: Registry, version: str, config: DeployConfig) -> list[Placed]:
    """One server after another; when one fails, those before it are put back too."""
    placed: list[Placed] = []
    for server in servers:
        try:
            placed.append(_place(server, registry, version, config))
        except DeployError as error:
            where = f"{server.root}: " if len(servers) > 1 else ""
            said = [f"{where}{error}", *(f"{p.old.root}: {_undone(p.change, p.old)}" for p in reversed(placed))]
            raise DeployError(f"{'; '.join(said)}; {registry.live or 'nothing'} stays live") from error
    return placed


def _place(server: Server, registry: Registry, version: str, config: DeployConfig) -> Placed:
    card = registry.card(version)
    canary = canary_of(registry, version)
    strategy, change = choose(
        card, registry, wanted=config.strategy, command=config.command, timeout_s=config.timeout_s
    )
    if change is not None:
        change.check()
    if card.name not in (served := server.models()):
        raise DeployError(
            f"{card.name!r} is the base model of this run, the server at {server.root} has {', '.join(served)}; "
            "serve it under this name or deploy to its own server"
        )
    try:
        if strategy == "reload" and canary and _has_arrived(server, card.served_name, canary, config.tolerance):
            strategy, change = "none", None
        new = server if change is None else change.apply(server)
        wait_s = config.timeout_s if strategy == "command" else 0.0
        report = _checked(new, card.served_name, canary, config.tolerance, wait_s) if canary else None
    except DeployError as error:
        raise DeployError(f"{error}; {_undone(change, server)}") from error
    loaded = LoadReport(
        version=version,
        served_name=card.served_name,
        base_url=new.base_url,
        strategy=strategy,
        canary=report,
        warnings=_doubts(version, report),
    )
    return Placed(loaded, change, server, new)


def _checked(
    server: Server, served_name: str, canary: Sequence[CanarySequence], tolerance: float, wait_s: float
) -> CanaryReport:
    """The canary; asked again for `wait_s` seconds where weights may still be on their way."""
    return wait_until(
        lambda: check(server, served_name, canary, tolerance=tolerance),
        timeout_s=wait_s,
        poll_s=POLL_S,
        retry_on=DeployError,
    )


def _has_arrived(server: Server, served_name: str, canary: Sequence[CanarySequence], tolerance: float) -> bool:
    return measure(server, served_name, canary, tolerance=tolerance).verdict == "arrived"


def _undone(change: Change | None, server: Server) -> str:
    try:
        return "the server is as it was" if change is None else change.undo(server)
    except DeployError as error:
        return f"and putting the server back failed: {error}"


def _tidy(placed: Sequence[Placed], registry: Registry, keep: int) -> tuple[list[str], list[str]]:
    """The version is live; something old that stays is no reason to say otherwise."""
    unloaded: list[str] = []
    warnings: list[str] = []
    for _, change, old, new in placed:
        try:
            if change is not None:
                change.finish(old)
            unloaded += [name for name in unload_old(new, registry, keep=keep) if name not in unloaded]
        except DeployError as error:
            warnings.append(f"what was there before could not be cleared away: {error}")
    return unloaded, warnings


def _doubts(version: str, report: CanaryReport | None) -> tuple[str, ...]:
    if report is None:
        return (f"{version} has no canary: nobody checked that the server answers with its weights",)
    if report.verdict == "indistinguishable":
        return (
            f"{version} differs too little from the weights it was trained from to tell them apart on this server: "
            f"its logprobs are {report.gap:.3g} nats per token from the new and {report.parent_gap:.3g} from the old",
        )
    return ()
