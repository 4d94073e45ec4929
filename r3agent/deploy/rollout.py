"""Rollout of a version to servers, one after another: choose the method, load, compare the fingerprint, or restore."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeAlias

from r3agent._util.wait import wait_until
from r3agent.deploy.config import DeployConfig
from r3agent.deploy.fingerprint import check, fingerprint_of, measure
from r3agent.deploy.report import LoadReport, doubts
from r3agent.deploy.server import Server
from r3agent.deploy.strategy import choose
from r3agent.deploy.update import UNCHANGED, WeightUpdate
from r3agent.errors import DeployError
from r3agent.records.versions import BASE, is_version
from r3agent.store.registry import Registry

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

    Args:
        on_server: called before each server with the numbers of those that have the version and of all.
        is_live: the servers are those of the live version.

    Raises:
        DeployError: the servers are as they were, or the message says what they are.
    """
    rollouts: list[Rollout] = []
    registry.card(version)  # raises if there is none
    for server in servers:
        if on_server is not None:
            on_server(len(rollouts), len(servers))
        try:
            rollouts.append(_update(server, registry, version, config, is_live=is_live))
            _check_names(rollouts)
        except DeployError as error:
            failure = f"{server.root}: {error}" if len(servers) > 1 else str(error)
            others = [f"{one.old.root}: {_undo(one.update, one.old)}" for one in reversed(rollouts)]
            raise DeployError(f"{'; '.join([failure, *others])}; {registry.live or 'nothing'} stays live") from error
    return rollouts


def _check_names(rollouts: Sequence[Rollout]) -> None:
    """Raise `DeployError` if the last server has the version under another name than the first."""
    first, last = rollouts[0], rollouts[-1]
    if first.merges != last.merges:
        with_adapters, without = (last, first) if first.merges else (first, last)
        raise DeployError(
            f"{with_adapters.old.root} takes adapters and {without.old.root} does not: a version would have two names; "
            "start both with --enable-lora or both without"
        )


def _update(server: Server, registry: Registry, version: str, config: DeployConfig, *, is_live: bool) -> Rollout:
    card = registry.card(version)
    fingerprint = fingerprint_of(registry, version)
    strategy, update, name, merges = choose(card, registry, config, server)
    if update is not None:
        update.check()
    if card.name not in (served := server.models()):
        raise DeployError(
            f"{card.name!r} is the base model of this run, the server at {server.root} has {', '.join(served)}; "
            "serve it under this name or deploy to its own server"
        )
    if merges and is_live and not registry.merges_adapters:  # before the one name of all versions has other weights
        registry.set_live(registry.live or BASE, merges_adapters=True)
    try:
        if strategy == "reload" and fingerprint:
            found = measure(server, name, fingerprint, tolerance=config.tolerance)
            # A version trained from this one may be near enough to it to pass for it.
            names_other = is_version(named := server.weight_version()) and named != version
            if found.verdict == "arrived" and not names_other:
                strategy, update = "none", None
                with suppress(DeployError):  # a server that was restarted with these weights does not name them
                    server.set_weight_version(version)
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
        raise DeployError(f"{error}; {_undo(update, server)}") from error
    loaded = LoadReport(
        version=version,
        served_name=name,
        base_url=new.base_url,
        strategy=strategy,
        fingerprint=report,
        warnings=doubts(version, report),
    )
    return Rollout(loaded, update, server, new, merges)


def _undo(update: WeightUpdate | None, server: Server) -> str:
    try:
        return UNCHANGED if update is None else update.undo(server)
    except DeployError as error:
        return f"and putting the server back failed: {error}"
