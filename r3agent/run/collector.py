"""Collection of episodes with one version of a run, which need not be live."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from r3agent._util.aio import run_in_thread_loop
from r3agent._util.cycles import rare_garbage_collection
from r3agent.deploy import load_version
from r3agent.episodes.collect import MOST, Part, collect
from r3agent.episodes.quota import CollectLimits
from r3agent.policy import OpenAIPolicy, Sampling
from r3agent.policy.live import has_weights_in_place
from r3agent.policy.pool import PROBE_S, PoolPolicy
from r3agent.records.summary import CollectSummary, Tally
from r3agent.records.trajectory import SPLIT, Task, Trajectory
from r3agent.run.directory import RunDirectory
from r3agent.store.registry import PolicyCard
from r3agent.telemetry.export import flush
from r3agent.verifiers import close

Progress = Callable[[int, int], None]


class Collector(RunDirectory):
    """A run directory whose versions are loaded and sampled."""

    on_tally: Callable[[Tally], None] | None = None
    """Callback with the counts of each collection so far, also of those of an evaluation."""

    def serve_live(self) -> None:
        """Make sure that the server has the live version, e.g. after a restart."""
        load_version(self.ensure_live().version, **self.server_settings())

    @property
    def swaps_live(self) -> bool:
        """True if whole weights, merged adapters included, replace the live ones while another version samples."""
        return has_weights_in_place(self.registry) and not self.config.deploy.eval_base_url

    @contextmanager
    def _put_back(self) -> Generator[None]:
        """Put the live weights back at the end, however it ends, if those of other versions replaced them.

        They may have done so in a process that was killed.
        """
        try:
            yield
        finally:
            if self.registry.swapped_path.exists():
                self.serve_live()

    def _load_to_evaluate(self, version: str) -> str:
        """Load a version without making it live; return the base URL of its server."""
        report = load_version(version, to_evaluate=True, **self.server_settings())
        self._names[version, report.base_url] = report.served_name
        return report.base_url

    @cached_property
    def _names(self) -> dict[tuple[str, str], str]:
        """Names of loaded versions on their servers, by version and base URL."""
        return {}

    def _identity(self, version: str, sampling: Sampling, **limits: Any) -> dict[str, Any]:
        """Return the arguments of `collect` that the ids of its episodes depend on, besides the tasks."""
        return {
            "policy_name": f"{self.card(version).name}@{version}",
            "verifier_name": self.verifier_name,
            "verifier_params": self.config.task.verifier_params,
            "sampling": sampling,
            "cut_off": self.config.task.cut_off,
            "verify_timeout_s": self.config.task.verify_timeout_s,
            "agent_name": self.config.agent.name,
            "tools": self.agent.tools,
            **self.config.agent.limits(),
            **self.config.prompts.model_dump(),
            **limits,
        }

    def collect_part(
        self,
        version: str,
        base_url: str | None,
        tasks: Sequence[Task | Trajectory],
        limits: Mapping[str, Any],
        part: Part,
        spending: CollectLimits,
        progress: Progress | None = None,
    ) -> tuple[CollectSummary, Tally]:
        """Collect a part of the episodes of some tasks.

        Args:
            base_url: server of the version, if it is not the live one.
            limits: as in `collect_identity`.
            progress: called with (done, total) after each episode; what it raises ends the part.
        """
        out, identity = self.directory / "trajectories", self.collect_identity(version, limits)
        tallies: list[Tally] = []
        given: Any = {"limits": spending, "part": part, "on_tally": tallies.append}
        card = self.registry.card(version)
        summary = self._collect(card, base_url, tasks, "train", out, progress, identity, **given)
        flush()
        return summary, tallies[-1]

    def collect_identity(self, version: str, limits: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of `collect` that the ids of its episodes depend on.

        Args:
            limits: limits of the episodes, and their samples.
        """
        return self._identity(version, self.config.sampling, **limits)

    def _collect(
        self,
        card: PolicyCard,
        base_url: str | None,
        tasks: Sequence[Task | Trajectory],
        split: str,
        out: Path,
        progress: Progress | None,
        identity: dict[str, Any],
        settings: str = "",
        **given: Any,
    ) -> CollectSummary:
        concurrency = self.config.collect.concurrency
        metadata = {**self.provenance(), SPLIT: split, "settings": settings or self.episode_digest()}

        given = {**given, "on_tally": given.get("on_tally") or self.on_tally}

        async def run() -> CollectSummary:
            more = self.config.policy.base_urls if base_url is None else ()
            outage_s = self.config.policy.outage_s
            first = base_url or self.registry.live_base_url or self.config.policy.base_url
            policies = [
                OpenAIPolicy(
                    url,
                    self._names.get((card.version, url)) or self.registry.served_name(card),
                    registry=self.registry,
                    **self.config.policy.policy_access(),
                    version=card.version,
                    timeout_s=self.config.policy.timeout_s,
                    outage_s=min(outage_s, PROBE_S) if more else outage_s,
                    concurrency=2 * (concurrency or MOST),
                    adaptive=concurrency is None,
                    prices=self.config.policy.prices,
                )
                for url in dict.fromkeys([first, *more])
            ]
            policy = PoolPolicy(policies, outage_s=outage_s) if more else policies[0]
            try:
                return await collect(
                    tasks,
                    policy=policy,
                    verifier=self.verifier,
                    out=out,
                    concurrency=concurrency,
                    fsync=self.config.collect.fsync,
                    metadata=metadata,
                    on_episode=progress,
                    agent=self.agent.agent,
                    environment=self.agent.environment,
                    **identity,
                    **given,
                )
            finally:
                await policy.aclose()
                await close(self.verifier)

        with rare_garbage_collection():
            return run_in_thread_loop(run())
