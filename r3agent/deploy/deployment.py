"""Deploy a version, or return to an earlier one: load, compare the fingerprint, and only then move the live pointer."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from r3agent._util.checked import Word, checked
from r3agent._util.lock import file_lock
from r3agent.deploy.config import DeployConfig
from r3agent.deploy.lora import unload_old
from r3agent.deploy.report import DeployReport, LoadReport, attributes
from r3agent.deploy.rollout import OnServer, Rollout, roll_out
from r3agent.deploy.server import Server
from r3agent.errors import ConfigError, DeployError, RecordError
from r3agent.records.versions import BASE
from r3agent.store.history import PERSON, Event, record_event
from r3agent.store.registry import Registry
from r3agent.telemetry.tracing import VERSION, TraceSpan, begin

LOCK_FILE = "deploy.lock"
UNGATED = "nothing records that {version} passed the gate; `r3agent eval` of the run compares it with the base"


@checked
def deploy(
    version: str,
    *,
    registry: Registry,
    base_url: str,
    api_key: str | None = None,
    headers: Mapping[str, str] | None = None,
    proxy: str | None = None,
    verify: bool | str = True,
    config: DeployConfig | None = None,
    passed: bool = False,
    by: Word = PERSON,
    reasons: Sequence[str] = (),
    on_server: OnServer | None = None,
) -> DeployReport:
    """Load a version onto the running servers and make it live.

    The live pointer moves only when every server answers with the logprobs on the version's card; on failure the
    servers are restored. A version goes live with a warning if its card has no fingerprint, or if the fingerprint
    cannot distinguish it from the previous weights. Deploying a version again is harmless.

    Args:
        base_url: OpenAI API, ending in `/v1`; if a restart moved the live version, its new address is used instead.
        headers: further headers of every request, e.g. of a gateway.
        proxy, verify: as in `OpenAIPolicy`.
        passed: the version passed the gate; `live.json` records it. Otherwise, the report has a warning.
        by: who decided, for the run's history: `gate`, `person`, or a name.
        reasons: reasons of the decision, for the history.
        on_server: called before each server with the numbers of those that have the version and of all.

    Raises:
        ConfigError: there is no such version, or a setting does not work.
        BusyError: another deploy of this run is in progress; the message says whose.
        DeployError: the version is not live; the previous one still is.
    """
    access = {"api_key": api_key, "headers": headers, "proxy": proxy, "verify": verify}
    event = Event(event="deployed", version=version, by=by, reasons=tuple(reasons))
    return _go_live(event, registry, base_url, access, config or DeployConfig(), on_server, passed=passed)


def _go_live(
    event: Event,
    registry: Registry,
    base_url: str,
    access: Mapping[str, Any],
    config: DeployConfig,
    on_server: OnServer | None,
    *,
    passed: bool = False,
) -> DeployReport:
    """Load the version of an event, move the live pointer, and record the event."""
    version = event.version
    urls = [registry.live_base_url or base_url, *config.replicas]
    with (
        _traced("deploy", version) as span,
        _servers(urls, registry, access, config, f"deploying {version}") as servers,
    ):
        rollouts = roll_out(servers, registry, version, config, on_server)
        previous, first = registry.live, rollouts[0]
        changes = version != previous or (passed and version not in registry.passed)
        new_url = first.new.base_url if first.new is not first.old else None
        merges = first.merges if registry.card(version).kind == "lora" else None
        registry.set_live(version, base_url=new_url, passed=passed, merges_adapters=merges)
        registry.swapped_path.unlink(missing_ok=True)
        unloaded, warnings = _clean_up(rollouts, registry, config.keep)
        if changes:
            warnings += _record(registry, event.model_copy(update={"other": previous}))
        span.set(lambda: attributes(first.report, len(rollouts), previous))
    ungated = () if version in (BASE, *registry.passed) else (UNGATED.format(version=version),)
    report = first.report.model_copy(update={"warnings": (*first.report.warnings, *warnings, *ungated)})
    return DeployReport.model_validate({**report.model_dump(), "previous": previous, "unloaded": unloaded})


@checked
def load_version(
    version: str,
    *,
    registry: Registry,
    base_url: str,
    api_key: str | None = None,
    headers: Mapping[str, str] | None = None,
    proxy: str | None = None,
    verify: bool | str = True,
    config: DeployConfig | None = None,
    to_evaluate: bool = False,
) -> LoadReport:
    """Load a version as `deploy` does, but without moving the live pointer.

    An adapter is served beside the live version; full weights replace it, and so does an adapter on a server that takes
    none, so load the live version again afterwards.

    Args:
        to_evaluate: load it only onto `deploy.eval_base_url` or else the first server, not onto the replicas.
    """
    config = (config or DeployConfig()).model_copy(update={"strategy": "auto"})
    live_url = registry.live_base_url or base_url
    is_live = not (to_evaluate and config.eval_base_url)
    urls = [config.eval_base_url or live_url] if to_evaluate else [live_url, *config.replicas]
    access = {"api_key": api_key, "headers": headers, "proxy": proxy, "verify": verify}
    with _traced("load", version) as span, _servers(urls, registry, access, config, f"loading {version}") as servers:
        rollouts = roll_out(servers, registry, version, config, is_live=is_live)
        merges = rollouts[0].merges
        if is_live and version == (registry.live or BASE):
            if registry.card(version).kind == "lora" and merges != registry.merges_adapters:
                registry.set_live(version, merges_adapters=merges)
            registry.swapped_path.unlink(missing_ok=True)
        span.set(lambda: attributes(rollouts[0].report, len(rollouts)))
        _clean_up(rollouts, registry, config.keep)
    return rollouts[0].report


@checked
def rollback(
    *,
    registry: Registry,
    base_url: str,
    to: str | None = None,
    api_key: str | None = None,
    headers: Mapping[str, str] | None = None,
    proxy: str | None = None,
    verify: bool | str = True,
    config: DeployConfig | None = None,
    by: Word = PERSON,
    reasons: Sequence[str] = (),
    on_server: OnServer | None = None,
) -> DeployReport:
    """Return to an earlier version, `to` or else the previous one; load it again if needed, and verify it.

    Args:
        by, reasons: as `deploy`.

    Raises:
        ConfigError, BusyError, DeployError: as `deploy`, or there is no such earlier version.
    """
    access = {"api_key": api_key, "headers": headers, "proxy": proxy, "verify": verify}
    event = Event(event="rolled_back", version=registry.rollback_target(to), by=by, reasons=tuple(reasons))
    return _go_live(event, registry, base_url, access, config or DeployConfig(), on_server)


def _traced(purpose: str, version: str) -> TraceSpan:
    return begin(f"{purpose} {version}", lambda: {VERSION: version})


@contextmanager
def _servers(
    urls: Sequence[str],
    registry: Registry,
    access: Mapping[str, Any],
    config: DeployConfig,
    purpose: str,
) -> Generator[list[Server]]:
    """Yield servers of the run under a lock, for one deploy at a time."""
    if config.strategy == "restart" and config.replicas:
        raise ConfigError(
            f'deploy.strategy = "restart" with {len(config.replicas)} replicas: it replaces one supervised server; '
            'leave deploy.replicas empty, or use deploy.strategy = "command"'
        )
    with ExitStack() as stack:
        servers = [stack.enter_context(Server(url, timeout_s=config.timeout_s, **access)) for url in urls]
        stack.enter_context(file_lock(registry.run_dir / LOCK_FILE, purpose))
        yield servers


def _clean_up(rollouts: Sequence[Rollout], registry: Registry, keep: int) -> tuple[list[str], list[str]]:
    """Remove the old versions; the new one is already loaded, so a failure is only a warning.

    Returns:
        The unloaded served names, and the warnings.
    """
    unloaded: list[str] = []
    warnings: list[str] = []
    for report, update, old, new, _ in rollouts:
        try:
            if update is not None:
                update.finish(old)
            old_ones = unload_old(new, registry, keep=keep, in_use=report.version)
            unloaded += [name for name in old_ones if name not in unloaded]
        except DeployError as error:
            warnings.append(f"the old versions could not be removed: {error}")
    return unloaded, warnings


def _record(registry: Registry, event: Event) -> list[str]:
    """Add an event to the history; the version is live already, so a failure is only a warning."""
    try:
        record_event(registry.policies_dir, event)
    except RecordError as error:
        return [f"the history does not have it: {error}"]
    return []
