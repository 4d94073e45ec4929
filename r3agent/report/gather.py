"""Gathering of a report's content from a run directory: everything is optional, and nothing is written or refused."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from r3agent.errors import ConfigError, R3Error, RecordError
from r3agent.records.credit import groups
from r3agent.records.trajectory import Trajectory
from r3agent.report.bodies import Credit, body
from r3agent.report.browser import Browser
from r3agent.report.comparisons import comparisons, evaluations, headline
from r3agent.report.decisions import decisions
from r3agent.report.following import GrowingStore, RewrittenError
from r3agent.report.rounds import Statistics
from r3agent.report.versions import Stamp, rows_files, stamp_of, steps, timeline, trained_rows, version_list
from r3agent.run.config import CONFIG_FILE, Config, load_config
from r3agent.store.models import resolve_model
from r3agent.store.registry import Registry
from r3agent.store.shards import OTHER_STORES, STORES, shards
from r3agent.train.advantages import sibling_advantages, siblings_decide
from r3agent.train.tokenizer import TokenTexts, token_texts

LIMIT = 20_000
"""Number of trajectories that a page lists by default; its figures count all of them."""


SLACK = 1.25
"""Part of the limit that a growing run may list, before all its tasks are sampled anew."""


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
    return RunReader(run, limit=limit).read()


class RunReader:
    """Reader of a run's content, which after the first time reads only what is new.

    Args:
        limit: as of `gather`.
        keep: keep what is needed to read again.

    Raises:
        ConfigError: there is no such directory.
    """

    def __init__(self, run: Path, *, limit: int = LIMIT, keep: bool = False) -> None:
        if not run.is_dir():
            raise ConfigError(f"{run}: there is no such directory; name a run, or a store of trajectories")
        self._run, self._limit, self._keep = run, limit, keep
        self._revision = 0
        self._forget()

    def read(self) -> Content:
        """Read the run; after an error, all of it is read the next time.

        Raises:
            SchemaVersionError: another version of r3agent wrote its records.
        """
        self._revision += 1
        notes, registry = list[str](), Registry(self._run)
        found, cards, logs = comparisons(self._run, notes), version_list(registry, notes), steps(registry)
        notes += self._read_stores(registry)
        statistics, config = self._statistics, self._config
        facts = {
            "run": self._run.resolve().name,
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "task": config.task.source or _listed(statistics.sources),
            "verifier": config.task.verifier or _listed(statistics.verifiers),
            "model": config.policy.model,
            "headline": headline(found, registry, statistics.episodes),
            "versions": cards,
            "evaluations": evaluations(found),
            "comparisons": [{k: v for k, v in one.items() if k not in ("draw", "examples")} for one in found],
            "decisions": decisions(found, registry, self._browser.ids, notes),
            "rounds": statistics.rounds(),
            "spending": statistics.spending(),
            "currency": config.policy.prices.currency if config.policy.prices else None,
            "failures": statistics.failures(),
            "steps": logs,
            "timeline": timeline(cards, found, registry, statistics.last_at),
            "episodes": statistics.episodes,
            "listed": len(self._browser),
            "notes": list(dict.fromkeys([*self._notes, *notes])),
        }
        return Content(facts, self._browser)

    def _read_stores(self, registry: Registry) -> list[str]:
        """Read what is new in the stores, or all if something else changed; return notes on what cannot be read."""
        try:
            if self._is_stale or self._config_stamp != self._stamp():
                raise RewrittenError
            return self._read_fresh(registry)
        except RewrittenError:
            self._forget()
            return self._read_fresh(registry)
        except BaseException:
            self._is_stale = True
            raise

    def _forget(self) -> None:
        self._is_stale = False
        self._notes: list[str] = []
        self._config_stamp = self._stamp()
        self._config = _config(self._run, self._notes)
        self._token_texts = _token_texts(self._config, self._notes)
        self._stores: dict[str, GrowingStore] = {}
        self._share: float | None = None
        self._browser = Browser()
        self._statistics = Statistics(self._config.policy.prices, keep=self._keep)
        self._rows: dict[str, list[str]] = {}
        self._rows_files: dict[Path, Stamp] = {}

    def _stamp(self) -> Stamp | None:
        file = self._run / CONFIG_FILE
        return stamp_of(file) if file.is_file() else None

    def _read_fresh(self, registry: Registry) -> list[str]:
        notes: list[str] = []
        self._browser.revision = self._revision
        for name, tasks in self._changed(registry).items():
            try:
                self._put(name, tasks)
            except RecordError as error:
                notes.append(f"{self._run / name} is not read to its end: {error}")
                self._is_stale = True
        return notes

    def _changed(self, registry: Registry) -> dict[str, set[str]]:
        """Return the tasks of each store that are to be read, in order of the stores."""
        paths, changed = dict(stores_of(self._run)), dict[str, set[str]]()
        if self._stores.keys() - paths.keys():
            raise RewrittenError
        trained = self._newly_trained(registry)
        for name, path in paths.items():
            if (store := self._stores.get(name)) is not None:
                changed[name] = store.grow() | store.tasks_of(trained)
            else:
                store = self._stores[name] = GrowingStore(path)
                changed[name] = {*store.tasks}
        n_stored = sum(store.n_records for store in self._stores.values())
        share = min(1.0, self._limit / n_stored) if n_stored else 1.0
        if self._share is None or n_stored * self._share > SLACK * self._limit:
            if share != (self._share or 1.0):
                self._browser = Browser(self._revision)
                changed = {name: {*store.tasks} for name, store in self._stores.items()}
            self._share = share
        return changed

    def _newly_trained(self, registry: Registry) -> set[str]:
        """Read the rows of new versions; return their trajectories."""
        found, files = set[str](), rows_files(registry)
        if any(files.get(path) != stamp for path, stamp in self._rows_files.items()):
            raise RewrittenError
        for path in files.keys() - self._rows_files.keys():
            for trajectory, span in trained_rows(path):
                versions = self._rows.setdefault(span, [])
                versions[:] = sorted({*versions, path.parent.name})
                found.add(trajectory)
        self._rows_files = files
        return found

    def _put(self, name: str, tasks: set[str]) -> None:
        """Read tasks of a store into the statistics and the list."""
        for batch in self._stores[name].batches(tasks):
            credit = _credit([t for trajectories in batch.values() for t in trajectories], self._config)
            for task, trajectories in batch.items():
                self._statistics.put(name, task, trajectories)
                if crc32(task.encode(errors="replace")) < (self._share or 1.0) * 2**32:
                    for trajectory in trajectories:
                        shown = body(trajectory, texts=self._token_texts, credit=credit, rows=self._rows)
                        self._browser.put(name, trajectory, shown)


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


def _credit(batch: list[Trajectory], config: Config) -> dict[tuple[str, str], Credit]:
    """Compute the reward of each span that training would credit, and its advantage if its siblings alone decide it."""
    labels: Any = config.train.credit
    by_siblings = siblings_decide(config.train)
    found: dict[tuple[str, str], Credit] = {}
    for label, source in labels.items():
        for group in groups(batch, label, source):
            n = len(group.rewards_G)
            advantages_G = sibling_advantages(group.rewards_G, label, config.train) if by_siblings else [None] * n
            members = zip(group.trajectories_G, group.spans_G, group.rewards_G, advantages_G, strict=True)
            for trajectory, span, earned, advantage in members:
                found[trajectory.trajectory_id, span.span_id] = Credit(earned, advantage, n)
    return found


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(filter(None, names)))
