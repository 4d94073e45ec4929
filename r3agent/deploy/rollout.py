"""Rollout of a version to servers, one after another: choose the method, load, compare the fingerprint, or restore."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeAlias

from r3agent._util.wait import wait_until
from r3agent.deploy.config import DeployConfig
from r3agent.deploy.fingerprint import check, fingerprint_of, measure
from r3agent.deploy.report import LoadReport, doubts
from r3agent.deploy.server import Server
from r3agent.deploy.strategy import Choice, choose
from r3agent.deploy.update import UNCHANGED, WeightUpdate
from r3agent.errors import DeployError
from r3agent.records.versions import BASE, is_version
from r3agent.store.registry import FingerprintSequence, Registry

POLL_S = 1.0

OnServer: TypeAlias = Callable[[int, int], None]
"""Callback before each server of a deploy, with the number of those that have the version, and of all."""


class Rollout(NamedTuple):
    """Rollout of a version to one server."""

    report: LoadReport
    update: WeightUpdate | None
    old: Server
    """Server before the update."""
    new: Server
    """Server that has the version; differs from `old` only after a restart."""
    merges: bool
    """True if the server takes no adapters, and the version's was merged."""


def roll_out(
    servers: Sequence[Server],
    registry: Registry,
    version: str,
    config: DeployConfig,
    on_server: OnServer | None = None,
    *,
    is_live: bool = True,
) -> list[Rollout]:
    """Update one server after another; if one fails, restore the earlier ones too.

    If live weights are replaced, the run's marker says so until the caller knows what is live.

    Args:
        on_server: called before each server with the numbers of those that have the version and of all.
        is_live: the servers are those of the live version.

    Raises:
        DeployError: the servers are as they were, or the message says what they are.
    """
    fingerprint = fingerprint_of(registry, version)
    choices = _choose(servers, registry, version, config)
    merged_before, swapped_before, lost = registry.merges_adapters, registry.swapped_path.exists(), list[Server]()
    if is_live and choices[0].merges and not merged_before:  # before the one name of all versions has other weights
        registry.set_live(registry.live or BASE, merges_adapters=True)
    marker = registry.swapped_path if is_live else None
    rollouts: list[Rollout] = []
    for server, choice in zip(servers, choices, strict=True):
        if on_server is not None:
            on_server(len(rollouts), len(servers))
        try:
            rollouts.append(_update(server, choice, version, fingerprint, config, lost, marker))
        except DeployError as error:
            others = [f"{one.old.root}: {_undo(one.update, one.old, lost)}" for one in reversed(rollouts)]
            # A server that could not be put back may have any weights, whose version only the server can name.
            if registry.merges_adapters != merged_before and not lost:
                registry.set_live(registry.live or BASE, merges_adapters=merged_before)
            if not (swapped_before or lost):
                registry.swapped_path.unlink(missing_ok=True)
            raise _failure(error, server, servers, registry, others) from error
    return rollouts


def _choose(servers: Sequence[Server], registry: Registry, version: str, config: DeployConfig) -> list[Choice]:
    """Choose the method for each server, and refuse what cannot work before any server is touched."""
    card = registry.card(version)
    choices: list[Choice] = []
    for server in servers:
        try:
            choices.append(choice := choose(card, registry, config, server))
            if choice.update is not None:
                choice.update.check()
            if card.name not in (served := server.models()):
                raise DeployError(
                    f"{card.name!r} is the base model of this run, the server at {server.root} has "
                    f"{', '.join(served)}; serve it under this name or deploy to its own server"
                )
            if choice.merges != choices[0].merges:
                with_adapters, without = (server, servers[0]) if choices[0].merges else (servers[0], server)
                raise DeployError(
                    f"{with_adapters.root} takes adapters and {without.root} does not: a version would have two "
                    "names; start both with --enable-lora or both without"
                )
        except DeployError as error:
            raise _failure(error, server, servers, registry) from error
    return choices


def _failure(
    error: DeployError, server: Server, servers: Sequence[Server], registry: Registry, others: Sequence[str] = ()
) -> DeployError:
    """Make the error of a deploy from that of a server, with the state of the others and the live version."""
    failure = f"{server.root}: {error}" if len(servers) > 1 else str(error)
    return DeployError(f"{'; '.join([failure, *others])}; {registry.live or 'nothing'} stays live")


def _update(
    server: Server,
    choice: Choice,
    version: str,
    fingerprint: Sequence[FingerprintSequence],
    config: DeployConfig,
    lost: list[Server],
    marker: Path | None,
) -> Rollout:
    """Update a server, or put it back; one that this fails for is added to `lost`.

    Args:
        marker: file to make before the live weights are replaced.
    """
    strategy, update, name, merges = choice
    try:
        if strategy == "reload" and fingerprint:
            found = measure(server, name, fingerprint, tolerance=config.tolerance)
            # A version trained from this one may be near enough to it to pass for it.
            names_other = is_version(named := server.weight_version()) and named != version
            if found.verdict == "arrived" and not names_other:
                strategy, update = "none", None
                with suppress(DeployError):  # a server that was restarted with these weights does not name them
                    server.set_weight_version(version)
        if marker is not None and strategy not in ("none", "lora"):
            marker.touch()
        new = server if update is None else update.apply(server)
        report = None
        if fingerprint:
            report = wait_until(
                lambda: check(new, name, fingerprint, tolerance=config.tolerance),
                timeout_s=config.timeout_s if strategy == "command" else 0.0,  # its servers may still be loading
                poll_s=POLL_S,
                first_s=POLL_S,
                retry_on=DeployError,
            )
        if update is not None:
            update.confirm(report)
    except DeployError as error:
        raise DeployError(f"{error}; {_undo(update, server, lost)}") from error
    loaded = LoadReport(
        version=version,
        served_name=name,
        base_url=new.base_url,
        strategy=strategy,
        fingerprint=report,
        warnings=doubts(version, report),
    )
    return Rollout(loaded, update, server, new, merges)


def _undo(update: WeightUpdate | None, server: Server, lost: list[Server]) -> str:
    try:
        return UNCHANGED if update is None else update.undo(server)
    except DeployError as error:
        lost.append(server)
        return f"and putting the server back failed: {error}"
