"""Stages of a run in its directory: collect, train, deploy, evaluate.

    RUN/r3.toml                       the settings
    RUN/trajectories/*.jsonl          episodes collected for training
    RUN/policies/v0001/               a trained version with its card
    RUN/live.json                     the live version
    RUN/eval/v0001/*.jsonl            episodes of the frozen tasks, one folder per version
    RUN/eval/v0000-v0001.test.*.json  comparison of two versions on the test split, one for each set of settings
    RUN/gate/v0002/                   the same for the gate of v0002, which shares no episode with other comparisons

A stage can be stopped at any moment: the directory stays consistent, and the next call does only what is missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r3agent.deploy import DeployReport, deploy, load_version, rollback
from r3agent.episodes.collect import CollectSummary, collect
from r3agent.episodes.config import EpisodeLimits
from r3agent.errors import RecordError
from r3agent.evaluate import Comparison, Evaluation, compare, evaluate
from r3agent.evaluate.comparison import read_comparison, write_comparison
from r3agent.http.errors import NO_KEY
from r3agent.policy import OpenAIPolicy, Sampling
from r3agent.policy.live import has_weights_in_place
from r3agent.records.trajectory import SPLIT, Task, Trajectory
from r3agent.records.versions import version_number
from r3agent.run.directory import RunDirectory, digest
from r3agent.store.registry import PolicyCard
from r3agent.store.trajectories import load
from r3agent.verifiers import close

Progress = Callable[[int, int], None]

ROUND_SAMPLES = 10_000
"""Distance of the sample indices of two rounds, so that a round draws new episodes of a task, also with the same
policy, and finds its own when it resumes."""


@dataclass(frozen=True)
class Draw:
    """Tasks of one evaluation, and the place of its episodes."""

    split: str
    tasks: list[Task]
    sampling: Sampling
    folder: Path
    """Folder of the comparison and, by version, of the episodes."""


class Run(RunDirectory):
    """The stages of a run, in its directory."""

    def collect(self, progress: Progress | None = None, *, version: str | None = None) -> CollectSummary:
        """Collect episodes of this round's tasks into `trajectories/`.

        Args:
            version: version that samples, which need not be live; default: the live one.
        """
        card = self.ensure_live() if version is None else self.registry.card(version)
        settings = self.config.collect
        round_ = len(self.registry.versions())
        tasks = self.draw_tasks(settings.n, split="train", seed=self.config.task.seed * 1000 + round_)
        limits = {**settings.model_dump(exclude={"n"}), "first_sample": (round_ - 1) * ROUND_SAMPLES}
        with self._put_back([card.version]):
            url = None if card.version == self.registry.live else self._load_to_evaluate(card.version)
            if url is None and len(self.registry.versions()) > 1:  # the server may have restarted
                self.serve_live()
            return self._collect(card, url, tasks, "train", self.directory / "trajectories", progress, **limits)

    def train(
        self,
        on_progress: Callable[[str, Mapping[str, Any]], None] | None = None,
        *,
        resume: bool = False,
        force: bool = False,
        start: str | None = None,
    ) -> PolicyCard:
        """Train a new policy version, or resume an interrupted training.

        Args:
            start: version to start from; default: the live one.
        """
        trajectories, parent = self.trajectories(), self.ensure_live()
        parent = self.registry.card(start) if start is not None else parent
        from r3agent.train import PolicyStart, train  # imports torch, so only after the checks above

        version = self.registry.next_version()
        return train(
            trajectories,
            start=PolicyStart.of(parent, self.registry.version_dir(parent.version)),
            version=version,
            out_dir=self.registry.version_dir(version),
            config=self.config.train,
            resume=resume,
            force=force,
            progress=on_progress,
        )

    def deploy(self, version: str | None = None, *, passed: bool = False) -> DeployReport:
        """Load a version, by default the newest, into the server and make it live; `passed` says the gate agrees."""
        self.ensure_live()
        return deploy(version or self.registry.versions()[-1], passed=passed, **self.server_settings())

    def rollback(self, to: str | None = None) -> DeployReport:
        """Return to an earlier version."""
        return rollback(to=to, **self.server_settings())

    def evaluate(
        self, before: str, after: str, progress: Progress | None = None, *, for_gate: bool = False
    ) -> Comparison:
        """Compare two versions on the same frozen tasks: first try, after reflection, and the blind-retry control.

        Where the gate uses `eval.split`, its comparison of the two versions is the final one.

        Args:
            for_gate: compare on tasks of `gate.split` that are drawn for `after`, with episodes of both versions that
                no other comparison uses; default: on the tasks of `eval.split`.
        """
        is_decided = not for_gate and self.config.gate.split == self.config.eval.split
        if is_decided and (decided := self.comparison(before, after, for_gate=True)):
            return decided
        draw = self._draw(after, for_gate)
        comparison = compare(*self._evaluations([before, after], draw, progress))
        write_comparison(*self._comparison_file(before, after, draw), comparison)
        return comparison

    def measure(self, version: str, progress: Progress | None = None) -> Evaluation:
        """Measure one version on the frozen tasks of `eval.split`, without a comparison."""
        (episodes,) = self._evaluations([version], self._draw(version), progress)
        return evaluate(episodes)

    def comparison(self, before: str, after: str, *, for_gate: bool = False) -> Comparison | None:
        """Return the stored result of `evaluate`, if it was made with the current settings and tasks."""
        if not any(self._folder(after, for_gate).glob(f"{before}-{after}.*.json")):
            return None
        return read_comparison(*self._comparison_file(before, after, self._draw(after, for_gate)))

    def serve_live(self) -> None:
        """Make sure that the server has the live version, e.g. after a restart."""
        load_version(self.ensure_live().version, **self.server_settings())

    @property
    def swaps_live(self) -> bool:
        """True if full weights replace the live ones on the live server while another version samples."""
        return has_weights_in_place(self.registry) and not self.config.deploy.eval_base_url

    @contextmanager
    def _put_back(self, versions: Sequence[str]) -> Generator[None]:
        """Put the live weights back at the end, however it ends, if those of other versions replaced them."""
        try:
            yield
        finally:
            if self.swaps_live and any(version != self.registry.live for version in versions):
                self.serve_live()

    def _folder(self, after: str, for_gate: bool) -> Path:
        return self.directory / "gate" / after if for_gate else self.directory / "eval"

    def _draw(self, after: str, for_gate: bool = False) -> Draw:
        split, seed, sampling = self.config.eval.split, self.config.eval.seed, self.config.sampling
        if for_gate:
            split, seed = self.config.gate.split, seed * 1000 + version_number(after)
            sampling = sampling.at("gate", after)
        tasks = self.draw_tasks(self.config.eval.n, split=split, seed=seed)
        return Draw(split, tasks, sampling, self._folder(after, for_gate))

    def _comparison_file(self, before: str, after: str, draw: Draw) -> tuple[Path, str]:
        """Return the path of a comparison, and the digest of all that decides which episodes it compares."""
        settings = {**self.config.eval.model_dump(), "split": draw.split}
        made_with = digest([settings, self._evaluation_digest(), [task.digest for task in draw.tasks]])
        return draw.folder / f"{before}-{after}.{draw.split}.{made_with[:8]}.json", made_with

    def _evaluations(self, versions: list[str], draw: Draw, progress: Progress | None) -> list[list[Trajectory]]:
        """Load the episodes of each version on the tasks; collect those that are missing."""
        self.ensure_live()
        missing = [version for version in versions if not self._is_evaluated(version, draw)]
        with self._put_back(missing):
            for version in missing:
                self._evaluate(version, draw, progress)
                self._refuse_strays(version, draw)
        return [self._evaluated(version, draw) for version in versions]

    def _evaluate(self, version: str, draw: Draw, progress: Progress | None) -> None:
        self._collect(
            self.registry.card(version),
            self._load_to_evaluate(version),
            draw.tasks,
            draw.split,
            draw.folder / version,
            progress,
            samples=self.config.eval.samples,
            version=version,
            sampling=draw.sampling,
            settings=self._evaluation_digest(),
            **EpisodeLimits(blind_retries=self.config.eval.blind_retries).model_dump(),
            concurrency=self.config.collect.concurrency,
            rerun_errors=False,
        )

    def _load_to_evaluate(self, version: str) -> str:
        """Load a version without making it live; return the base URL of its server."""
        return load_version(version, to_evaluate=True, **self.server_settings()).base_url

    def _evaluated(self, version: str, draw: Draw) -> list[Trajectory]:
        """Load the stored episodes of the tasks as they are, under the current settings, by this version alone."""
        digests, current = {task.digest for task in draw.tasks}, self._evaluation_digest()
        return [
            t
            for t in load(draw.folder / version, version=version)
            if t.metadata.get("settings") == current
            and t.sample < self.config.eval.samples
            and t.task.digest in digests
        ]

    def _refuse_strays(self, version: str, draw: Draw) -> None:
        """Refuse an evaluation for which other weights answered, e.g. because the server was restarted meanwhile."""
        wanted = len(draw.tasks) * self.config.eval.samples
        if strays := wanted - len(self._evaluated(version, draw)):
            raise RecordError(
                f"{strays} of {wanted} episodes were not answered by {version} alone: its weights were replaced, or "
                "the server was restarted, meanwhile; evaluate again, which collects these episodes anew"
            )

    def _is_evaluated(self, version: str, draw: Draw) -> bool:
        """Return True if no episode is missing, so that no server is needed; one with an error is not run again."""
        if not (draw.folder / version).is_dir():
            return False
        evaluated = self._evaluated(version, draw)
        is_whole = len({(t.task.id, t.sample) for t in evaluated}) == len(draw.tasks) * self.config.eval.samples
        return is_whole and any(t.error is None for t in evaluated)

    def _evaluation_digest(self) -> str:
        """Hash the settings that an episode of an evaluation depends on, besides its task and its policy."""
        extra, digest_ = self.config.eval.blind_retries - 1, self.episode_digest()
        return digest([digest_, extra]) if extra else digest_

    def _collect(
        self,
        card: PolicyCard,
        base_url: str | None,
        tasks: list[Task],
        split: str,
        out: Path,
        progress: Progress | None,
        sampling: Sampling | None = None,
        settings: str = "",
        **limits: Any,
    ) -> CollectSummary:
        sampling = sampling or self.config.sampling
        metadata = {**self.provenance(), SPLIT: split, "settings": settings or self.episode_digest()}

        async def run() -> CollectSummary:
            policy = OpenAIPolicy(
                base_url or self.registry.live_base_url or self.config.policy.base_url,
                card.served_name,
                registry=self.registry,
                api_key=self.api_key or NO_KEY,
                sampling=sampling,
                version=card.version,
                timeout_s=self.config.policy.timeout_s,
                outage_s=self.config.policy.outage_s,
                concurrency=2 * limits["concurrency"],
            )
            try:
                return await collect(
                    tasks,
                    policy=policy,
                    verifier=self.verifier,
                    out=out,
                    policy_name=f"{card.name}@{card.version}",
                    verifier_name=self.verifier_name,
                    verifier_params=self.config.task.verifier_params,
                    sampling=sampling,
                    cut_off=self.config.task.cut_off,
                    metadata=metadata,
                    on_episode=progress,
                    **self.config.prompts.model_dump(),
                    **limits,
                )
            finally:
                await policy.aclose()
                await close(self.verifier)

        return asyncio.run(run())
