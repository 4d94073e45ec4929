"""A run directory and the stages that work in it: collect, train, deploy, evaluate.

    RUN/r3.toml                     the settings
    RUN/trajectories/*.jsonl        what was collected for training
    RUN/policies/v0001/             what was trained, with its card
    RUN/live.json                   which version is live
    RUN/eval/v0001/*.jsonl          episodes of the frozen tasks, one folder a version
    RUN/eval/v0000-v0001.json       two versions compared

Every stage leaves the directory whole when it is stopped at any moment, and does only what is missing when it is
called again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from r3agent.collect import CollectSummary, collect
from r3agent.config import Config, load_config, to_toml
from r3agent.deploy import DeployReport, deploy, load_version, rollback
from r3agent.errors import ConfigError
from r3agent.evaluate import Comparison, compare
from r3agent.policy import OpenAIPolicy
from r3agent.registry import PolicyCard, Registry
from r3agent.serve.bundled import resolve_model
from r3agent.store import load
from r3agent.tasks import find_tasks
from r3agent.trajectory import Task
from r3agent.verifiers import find_verifier

CONFIG_FILE = "r3.toml"
IDENTITY = {"task": "source", "policy": "base_model"}
"""Section and key of what a run is about; records of two tasks or two base models do not share a directory."""

Progress = Callable[[int, int], None]


class Run:
    """An open run directory.

    Args:
        directory: made if missing.
        overrides: dotted keys that count more than the directory's `r3.toml`.

    Raises:
        ConfigError: a setting does not work, the directory cannot be written or is of another task or base model.
    """

    def __init__(self, directory: str | Path, overrides: Mapping[str, Any] | None = None) -> None:
        self.directory = Path(directory)
        path = self.directory / CONFIG_FILE
        if path.exists():
            self.config = load_config(path, overrides or {})
            self._refuse_another_identity(load_config(path, {}))
        else:
            self.config = load_config(None, overrides or {})
            self._write_config(path)
        self.registry = Registry(self.directory)
        self.verifier = find_verifier(self.config.task.verifier)

    # ---- the stages ----

    def collect(self, progress: Progress | None = None) -> CollectSummary:
        """Episodes of this round's tasks with the live policy, into `trajectories/`."""
        card = self.live_card()
        settings = self.config.collect
        round_ = len(self.registry.versions())
        tasks = self._tasks(settings.n, split="train", seed=self.config.task.seed * 1000 + round_)
        limits = settings.model_dump(exclude={"n"})
        return self._collect(card, tasks, self.directory / "trajectories", progress, **limits)

    def train(self, on_progress: Callable[[str, Mapping[str, Any]], None] | None = None) -> PolicyCard:
        """A new policy version from the trajectories that the live one sampled."""
        from r3agent.train import PolicyStart, train

        parent = self.live_card()
        version = self.registry.next_version()
        return train(
            load(self.directory / "trajectories"),
            start=PolicyStart.of(parent, self.registry.version_dir(parent.version)),
            version=version,
            out_dir=self.registry.version_dir(version),
            config=self.config.train,
            **({"progress": on_progress} if on_progress else {}),
        )

    def deploy(self, version: str | None = None) -> DeployReport:
        """Bring a version, by default the newest, onto the server and make it live."""
        self.live_card()
        return deploy(version or self.registry.versions()[-1], keep=self.config.deploy.keep, **self._server())

    def rollback(self, to: str | None = None) -> DeployReport:
        """Return to an earlier version."""
        return rollback(to=to, keep=self.config.deploy.keep, **self._server())

    def evaluate(self, before: str, after: str, progress: Progress | None = None) -> Comparison:
        """Two versions on the same frozen tasks: first try, after reflection, and the blind-retry control."""
        settings = self.config.eval
        tasks = self._tasks(settings.n, split=settings.split, seed=settings.seed)
        asked = {task.id for task in tasks}
        episodes = {}
        for version in (before, after):
            folder = self.directory / "eval" / version
            load_version(version, **self._server())
            self._collect(
                self.registry.card(version),
                tasks,
                folder,
                progress,
                samples=settings.samples,
                max_attempts=2,
                reflections=1,
                retries=1,
                blind_retries=1,
                concurrency=self.config.collect.concurrency,
            )
            episodes[version] = [t for t in load(folder) if t.task.id in asked]
        if "full" in {self.registry.card(version).kind for version in (before, after)}:
            self.serve_live()  # full weights took the place of the live ones
        comparison = compare(episodes[before], episodes[after])
        write_atomically(self._comparison_path(before, after), comparison.model_dump_json(indent=2))
        return comparison

    def comparison(self, before: str, after: str) -> Comparison | None:
        """What `evaluate` found, if it was called."""
        path = self._comparison_path(before, after)
        return Comparison.model_validate_json(path.read_bytes()) if path.exists() else None

    def serve_live(self) -> None:
        """Make sure the server has the live version, e.g. after it was restarted."""
        load_version(self.live_card().version, **self._server())

    # ---- what the stages need ----

    def live_card(self) -> PolicyCard:
        """The live version; in a new run the base becomes v0000 and live."""
        base = self.config.policy
        self.registry.add_base(base.model, str(resolve_model(base.base_model)))
        if self.registry.live is None:
            self.registry.set_live("v0000")
        return self.registry.card(self.registry.live or "v0000")

    @property
    def api_key(self) -> str | None:
        return os.environ.get(self.config.policy.api_key_env)

    def _comparison_path(self, before: str, after: str) -> Path:
        return self.directory / "eval" / f"{before}-{after}.json"

    def _tasks(self, n: int | None, *, split: str, seed: int) -> list[Task]:
        task = self.config.task
        return find_tasks(task.source, n, seed=seed, split=split, **task.params)

    def _collect(
        self, card: PolicyCard, tasks: list[Task], out: Path, progress: Progress | None, **limits: Any
    ) -> CollectSummary:
        async def run() -> CollectSummary:
            policy = OpenAIPolicy(
                self.config.policy.base_url,
                card.served_name,
                api_key=self.api_key,
                sampling=self.config.sampling,
                version=card.version,
                timeout_s=self.config.policy.timeout_s,
                concurrency=2 * limits["concurrency"],
            )
            try:
                return await collect(
                    tasks,
                    policy=policy,
                    verifier=self.verifier,
                    out=out,
                    policy_name=f"{card.name}@{card.version}",
                    verifier_name=self.config.task.verifier,
                    sampling=self.config.sampling,
                    on_episode=progress,
                    **self.config.prompts.model_dump(),
                    **limits,
                )
            finally:
                await policy.aclose()

        return asyncio.run(run())

    def _server(self) -> dict[str, Any]:
        return {
            "registry": self.registry,
            "base_url": self.config.policy.base_url,
            "api_key": self.api_key,
            "tolerance": self.config.deploy.tolerance,
        }

    def _write_config(self, path: Path) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_atomically(path, to_toml(self.config))
        except OSError as error:
            raise ConfigError(
                f"run directory {self.directory}: {error.strerror}; choose another with --run or free it"
            ) from error

    def _refuse_another_identity(self, on_file: Config) -> None:
        for section, key in IDENTITY.items():
            known, asked = (getattr(getattr(c, section), key) for c in (on_file, self.config))
            if known != asked:
                raise ConfigError(
                    f"{section}.{key} = {asked!r}, but {self.directory} is a run of {known!r}; "
                    "choose another directory with --run"
                )


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step, so that a reader or a crash never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)
