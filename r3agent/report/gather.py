"""Gathering of a report's content from a run directory: everything is optional, and nothing is written or refused."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple
from zlib import crc32

from r3agent.errors import ConfigError, R3Error, RecordError
from r3agent.records.credit import groups
from r3agent.records.trajectory import Trajectory
from r3agent.report.bodies import Credit, body
from r3agent.report.browser import Browser
from r3agent.report.comparisons import comparisons, evaluations, headline
from r3agent.report.decisions import decisions
from r3agent.report.rounds import Statistics
from r3agent.report.versions import steps, timeline, trained_rows, version_list
from r3agent.run.config import CONFIG_FILE, Config, load_config
from r3agent.store.batches import StoredTrajectories
from r3agent.store.index import entries
from r3agent.store.models import resolve_model
from r3agent.store.registry import Registry
from r3agent.store.shards import OTHER_STORES, STORES, shards
from r3agent.train.advantages import STD_EPSILON
from r3agent.train.tokenizer import TokenTexts, token_texts

LIMIT = 20_000
"""Number of trajectories that a page lists by default; its figures count all of them."""


class Content(NamedTuple):
    """Content of a report."""

    facts: dict[str, Any]
    browser: Browser


def gather(run: Path, *, limit: int = LIMIT) -> Content:
    """Read a run directory, or a store without a run.

    Args:
        limit: number of trajectories to list, about; of more, an even sample of the tasks is listed.

    Raises:
        ConfigError: there is no such directory.
        SchemaVersionError: another version of r3agent wrote its records.
    """
    if not run.is_dir():
        raise ConfigError(f"{run}: there is no such directory; name a run, or a store of trajectories")
    notes: list[str] = []
    config, registry = _config(run, notes), Registry(run)
    texts = _token_texts(config, notes)
    found = comparisons(run, notes)
    stores = stores_of(run)
    n_stored = sum(1 for _, store in stores for _ in entries(store, report=False))
    share = min(1.0, limit / n_stored) if n_stored else 1.0
    statistics, browser = Statistics(config.policy.prices), Browser()
    rows = trained_rows(registry)
    for name, store in stores:
        for batch in _batches(store, notes):
            credit = _credit(batch, config)
            for trajectory in batch:
                statistics.add(name, trajectory)
                if crc32(trajectory.task.id.encode(errors="replace")) < share * 2**32:
                    browser.add(name, trajectory, body(trajectory, texts=texts, credit=credit, rows=rows))
    cards = version_list(registry, notes)
    facts = {
        "run": run.resolve().name,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": config.task.source or _listed(statistics.sources),
        "verifier": config.task.verifier or _listed(statistics.verifiers),
        "model": config.policy.model,
        "headline": headline(found, registry, statistics.episodes),
        "versions": cards,
        "evaluations": evaluations(found),
        "comparisons": [{k: v for k, v in one.items() if k not in ("draw", "examples")} for one in found],
        "decisions": decisions(found, registry, browser.ids, notes),
        "rounds": statistics.rounds(),
        "spending": statistics.spending(),
        "currency": config.policy.prices.currency if config.policy.prices else None,
        "failures": statistics.failures(),
        "steps": steps(registry),
        "timeline": timeline(cards, found, registry, statistics.last_at),
        "episodes": statistics.episodes,
        "listed": len(browser),
        "notes": list(dict.fromkeys(notes)),
    }
    return Content(facts, browser)


def stores_of(run: Path) -> list[tuple[str, Path]]:
    """List the stores of a run by their names in it, those for training first."""
    paths = [path for pattern in (*STORES, *OTHER_STORES) for path in sorted(run.glob(pattern)) if path.is_dir()]
    if not paths and not (run / CONFIG_FILE).exists() and shards(run):
        return [(".", run)]
    return [(path.relative_to(run).as_posix(), path) for path in paths]


def _config(run: Path, notes: list[str]) -> Config:
    file = run / CONFIG_FILE
    try:
        return load_config(file if file.is_file() else None, {})
    except R3Error as error:
        notes.append(f"{CONFIG_FILE} is not read: {error}")
        return load_config(None, {})


def _token_texts(config: Config, notes: list[str]) -> TokenTexts | None:
    try:
        return token_texts(resolve_model(config.policy.base_model))
    except R3Error as error:
        notes.append(f"tokens are shown by their ids: {error}")
        return None


def _batches(store: Path, notes: list[str]) -> Iterator[list[Trajectory]]:
    try:
        yield from StoredTrajectories(store).batches()
    except RecordError as error:
        notes.append(f"{store} is not read to its end: {error}")


def _credit(batch: list[Trajectory], config: Config) -> dict[tuple[str, str], Credit]:
    """Compute the reward of each span that training would credit, and its advantage in its group."""
    labels: Any = config.train.credit
    found: dict[tuple[str, str], Credit] = {}
    for label, source in labels.items():
        for group in groups(batch, label, source):
            mean, n = fmean(group.rewards_G), len(group.rewards_G)
            scale = 1.0
            if config.train.scale_rewards == "group" and group.has_variance:
                scale = stdev(group.rewards_G) + STD_EPSILON
            for trajectory, span, earned in zip(group.trajectories_G, group.spans_G, group.rewards_G, strict=True):
                credit = Credit(earned, (earned - mean) / scale, n)
                found[trajectory.trajectory_id, span.span_id] = credit
    return found


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(filter(None, names)))
