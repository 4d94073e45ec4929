"""Episodes of a round: of fresh tasks, and of failures that were recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

from r3agent._util.aio import run_in_thread_loop
from r3agent._util.lock import file_lock
from r3agent.episodes.branches import BranchReport
from r3agent.episodes.failures import Failures, NextGroup, choose, judged_again
from r3agent.episodes.quota import CollectLimits
from r3agent.errors import ConfigError
from r3agent.records.summary import CollectSummary, Tally
from r3agent.records.trajectory import Task, Trajectory
from r3agent.records.versions import BASE
from r3agent.run.cluster import collect_on_cluster
from r3agent.run.collector import Collector, Progress
from r3agent.run.revisit import settled, thin_out
from r3agent.store.batches import StoredTrajectories
from r3agent.store.registry import PolicyCard
from r3agent.store.remote import RemoteShards
from r3agent.store.shards import COLLECT_LOCK, read, store_at
from r3agent.verifiers import close

ROUND_SAMPLES = 10_000
"""Distance of the sample indices of two rounds, so that a round draws new episodes of a task, also with the same
policy, and finds its own when it resumes."""


class Rounds(Collector):
    """A run directory whose rounds draw episodes to train on."""

    def collect(
        self,
        progress: Progress | None = None,
        *,
        version: str | None = None,
        on_tally: Callable[[Tally], None] | None = None,
    ) -> CollectSummary:
        """Collect episodes of this round's tasks into `trajectories/`.

        Args:
            version: version that samples, which need not be live; default: the live one.
            on_tally: called with the counts so far after each episode.
        """
        self.check_subject()
        card = self._sampling(version)
        tasks, round_ = self.tasks_of_round(), self._round
        summary = self._collect_round(card, tasks, progress, on_tally)
        self.metrics.log("collect", summary.model_dump(exclude={"notes"}), round_)
        return summary

    def failures(self, version: str | None = None) -> Failures:
        """Find the recorded failures that section [branch] allows to branch off, and ask the verifier about them.

        Args:
            version: version that would sample, which need not be live; default: the live one.

        Raises:
            ConfigError: there is no such store, or a setting is invalid.
        """
        self.check_subject()
        settings, collecting = self.config.branch, self.config.collect
        version = version or self.registry.live or BASE  # nothing is written yet: the verifier may be a wrong one
        store = store_at(settings.source or self.directory)
        if settings.source and not store.is_dir():
            raise ConfigError(f"branch.source = {settings.source!r}: there is no such store; name one with --from")
        failures = choose(
            StoredTrajectories(store) if store.is_dir() else [],
            failed=settings.failed,
            since=settings.since,
            seed=self._seed_of_round(),
            held_out=self._split_guard.held_out,
            group=NextGroup(
                max_attempts=collecting.max_attempts,
                reflections=collecting.reflections,
                version=version,
                is_agent=bool(self.config.agent.name),
            ),
        )
        return run_in_thread_loop(self._judged_again(failures))

    def branch(
        self,
        progress: Progress | None = None,
        *,
        version: str | None = None,
        failures: Failures | None = None,
        on_tally: Callable[[Tally], None] | None = None,
    ) -> BranchReport:
        """Continue recorded failures with groups of reflections, into `trajectories/`.

        Args:
            version: version that samples, which need not be live; default: the live one.
            failures: what `failures` found for this version; default: look for them.
            on_tally: called with the counts so far after each episode.

        Raises:
            ConfigError: there is no recorded failure to branch off; the message says why.
        """
        found = failures or self.failures(version)
        found.check()
        card = self._sampling(version)
        round_, summary = self._round, self._collect_round(card, found.begins, progress, on_tally)
        self.metrics.log("branch", summary.model_dump(exclude={"notes"}), round_)
        return BranchReport.of(found, summary)

    async def _judged_again(self, failures: Failures) -> Failures:
        task = self.config.task
        judging: Any = {"cut_off": task.cut_off, "timeout_s": task.verify_timeout_s}
        try:
            return await judged_again(failures, self.verifier, n=self.config.branch.n, **judging)
        finally:
            await close(self.verifier)

    def _sampling(self, version: str | None) -> PolicyCard:
        """Return the card of the version that samples, after a check of the place for its episodes."""
        if self.config.collect.shards:
            RemoteShards(self.config.collect.shards).check()
        return self.ensure_live() if version is None else self.registry.card(version)

    @property
    def _round(self) -> int:
        """Number of the version that the next collection is for."""
        return max(1, len(self.registry.versions()))  # a new run has none before it collects

    def tasks_of_round(self) -> list[Task]:
        """Draw the tasks of the next collection."""
        n, revisit = self.config.collect.n, self.config.collect.revisit
        round_, seed = self._round, self._seed_of_round()
        if revisit == 1 or round_ == 1:
            return self.draw_tasks(n, split="train", seed=seed)
        earlier = (t for t in read(self.directory / "trajectories") if t.sample < (round_ - 1) * ROUND_SAMPLES)
        done = settled(earlier)  # this round's own episodes change nothing, so a resumed one has the same tasks
        tasks = self.draw_tasks(n, split="train", seed=seed, spare=ceil(n / revisit) - n)
        return thin_out(tasks, done, revisit=revisit, seed=seed)[:n]

    def limits_of_round(self) -> dict[str, Any]:
        """Return the limits of the episodes of the next collection, and their samples."""
        not_of_ids = {"n", "revisit", "concurrency", "fsync", "engine", "address", "shards"}
        not_of_ids |= {*CollectLimits.model_fields}
        first_sample = (self._round - 1) * ROUND_SAMPLES
        return self.config.collect.model_dump(exclude=not_of_ids) | {"first_sample": first_sample}

    def _seed_of_round(self) -> int:
        return self.config.task.seed * 1000 + self._round

    def _collect_round(
        self,
        card: PolicyCard,
        tasks: Sequence[Task | Trajectory],
        progress: Progress | None,
        on_tally: Callable[[Tally], None] | None,
    ) -> CollectSummary:
        settings, limits = self.config.collect, self.limits_of_round()
        spending = CollectLimits(**settings.model_dump(include={*CollectLimits.model_fields}))
        identity = self.collect_identity(card.version, limits)
        with file_lock(self.directory / COLLECT_LOCK, "collecting"), self._put_back():
            url = None if card.version == self.registry.live else self._load_to_evaluate(card.version)
            if url is None and len(self.registry.versions()) > 1:  # the server may have restarted
                self.serve_live()
            if settings.engine == "ray":
                given: Any = {"progress": progress, "on_tally": on_tally or self.on_tally}
                return collect_on_cluster(self, card.version, url, tasks, limits, spending, **given)
            out = self.directory / "trajectories"
            given = {"limits": spending, "on_tally": on_tally}
            return self._collect(card, url, tasks, "train", out, progress, identity, **given)
