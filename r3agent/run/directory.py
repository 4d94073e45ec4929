"""Run directory: its settings, its identity, and the objects that all stages use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import tomlkit

from r3agent._util.aio import run_sync
from r3agent._util.files import write_atomically
from r3agent.episodes.graph import build_graph
from r3agent.errors import ConfigError
from r3agent.http.errors import NO_KEY
from r3agent.policy import OpenAIPolicy, Sampling
from r3agent.records.trajectory import SOURCE, Task, Trajectory
from r3agent.records.versions import BASE
from r3agent.run.agent import Agent
from r3agent.run.config import CONFIG_FILE, Config, load_config, to_toml
from r3agent.run.split_guard import SplitGuard
from r3agent.store.batches import StoredTrajectories
from r3agent.store.reading import Unreadable
from r3agent.store.registry import PolicyCard, Registry
from r3agent.store.trajectories import load
from r3agent.tasks import NO_SOURCE, RECORDED, default_verifier, find_tasks, in_run, read_tasks
from r3agent.telemetry.export import export_spans
from r3agent.telemetry.metrics import Metrics
from r3agent.verifiers import KINDS, Verifier, find_verifier

logger = logging.getLogger(__name__)

IDENTITY: dict[str, Callable[[Config], str]] = {
    "task.source": lambda config: config.task.source,
    "task.verifier": lambda config: (
        config.task.verifier or (default_verifier(config.task.source) if config.task.source else "")
    ),
    "policy.base_model": lambda config: config.policy.base_model,
}
"""Settings that identify a run; records of two task sources, verifiers or base models never share a directory. A run
whose file names no task gets the one that is named first, and one whose verifier leaves verdicts open gets the first
that judges."""

WAITING = ("later", "person")
"""Verifiers that leave verdicts to people, so that their episodes go with those of any other."""


class RunDirectory:
    """An open run directory.

    Args:
        directory: created by the first stage.
        overrides: dotted keys that override the directory's `r3.toml`.

    Raises:
        ConfigError: a setting is invalid, or the directory cannot be written or belongs to another task or base model.
    """

    def __init__(self, directory: str | Path, overrides: Mapping[str, Any] | None = None) -> None:
        if not str(directory).strip():
            raise ConfigError(f"--run {str(directory)!r}: it has no name; name a directory")
        self.directory = Path(directory)
        if self.directory.exists() and not self.directory.is_dir():
            raise ConfigError(f"cannot write to {self.directory}: it is a file; choose another directory with --run")
        self.config_file = self.directory / CONFIG_FILE
        file = self.config_file if self.config_file.exists() else None
        config = load_config(file, overrides or {})
        self.verifier_name = IDENTITY["task.verifier"](config)
        prompts = config.prompts.filled(KINDS.get(self.verifier_name, "general"))
        self.config = config.model_copy(update={"prompts": prompts})
        if file:
            self._refuse_another_identity(load_config(file, {}))
        self._verifier = (
            find_verifier(self.verifier_name, **self.config.task.verifier_params) if self.verifier_name else None
        )
        self.registry = Registry(self.directory)
        self._split_guard = SplitGuard(self.directory, self.config)
        self._warned: set[str] = set()
        export_spans(config.telemetry, self.directory.name)
        if config.task.source not in ("", RECORDED) and not file:
            read_tasks(config.task.source, 1, **config.task.params)  # fails on a mistyped source before it is stored

    def ensure_live(self) -> PolicyCard:
        """Return the card of the live version; in a new run, write r3.toml, add the base as v0000 and make it live.

        Raises:
            EndpointError, AccessError: a new run's server does not answer as `policy.model`; nothing is written.
        """
        base = self.config.policy
        if not self.registry.versions():
            self._check_server()
        if not self.config_file.exists():
            self.write_config()
        elif self.config.task.source and self._awaits_task():
            self._write_task()
        self.registry.add_base(base.model, base.base_model)
        if self.registry.live is None:
            self.registry.set_live(BASE)
        return self.registry.card(self.registry.live or BASE)

    def card(self, version: str | None = None) -> PolicyCard:
        """Return the card of a version, by default of the live one; nothing is written, and no server contacted.

        In a new run the base is live, and has the card that `ensure_live` will write.

        Raises:
            ConfigError: there is no such version.
        """
        version = version or self.registry.live or BASE
        if version == BASE and BASE not in self.registry.versions():
            return self.registry.base(self.config.policy.model, self.config.policy.base_model)
        return self.registry.card(version)

    @property
    def verifier(self) -> Verifier:
        """Verifier of the task.

        Raises:
            ConfigError: the run has no task.
        """
        if not self.config.task.source:
            raise ConfigError(NO_SOURCE)
        assert self._verifier is not None  # every task has one
        return self._verifier

    @cached_property
    def agent(self) -> Agent:
        """Agent that makes the tries, with its tools and environment.

        Raises:
            ConfigError: one cannot be used, or the verifier judges in an environment, and there is none.
        """
        agent, policy = self.config.agent.load(), self.config.policy
        asked = OpenAIPolicy(policy.base_url, policy.model, api_key=NO_KEY)
        build_graph(policy=asked, verifier=self.verifier, **agent._asdict(), **self.config.agent.limits())
        return agent

    @cached_property
    def metrics(self) -> Metrics:
        """Reporter of the run's metrics.

        Raises:
            ConfigError: the service cannot be used.
        """
        service, setting = self.config.telemetry.report_to, "telemetry.report_to"
        if service == "none":
            service, setting = self.config.train.report_to, "train.report_to"
        settings = self.config.model_dump(mode="json", include={"collect", "sampling", "train", "eval", "gate"})
        return Metrics(service, self.directory, self.directory.name, settings, setting)

    def check_subject(self) -> None:
        """Check the task, its verifier and the agent before a server is contacted.

        Raises:
            ConfigError: no task is named, or the agent or the service of the metrics cannot be used.
        """
        _ = self.verifier, self.agent, self.metrics

    def trajectories(self) -> list[Trajectory]:
        """Load the trajectories collected for training, each with the split of its task in the metadata.

        Raises:
            ConfigError: some were collected for another task or judged by another verifier.
        """
        return self._for_training(load(self._store))

    def stored(self, *, unreadable: list[Unreadable] | None = None) -> StoredTrajectories:
        """Return the trajectories as `trajectories` does, but in batches, each of which is checked when it is read.

        Args:
            unreadable: receives lines that are no record, instead of the log.
        """
        return StoredTrajectories(self._store, self._for_training, unreadable=unreadable)

    @property
    def _store(self) -> Path:
        return self.directory / "trajectories"

    def _for_training(self, trajectories: list[Trajectory]) -> list[Trajectory]:
        for key, expected in self.provenance().items():
            known = (expected, *(WAITING if key == "verifier" else ()))
            if others := {str(t.metadata[key]) for t in trajectories if t.metadata.get(key, expected) not in known}:
                raise ConfigError(
                    f"{key} = {expected!r}, but {self._store} has episodes of {', '.join(sorted(others))}; put it back "
                    f"in {CONFIG_FILE}, or collect into another directory with --run"
                )
        return self._split_guard.with_splits(trajectories)

    def episode_digest(self) -> str:
        """Hash the settings that an episode depends on, besides its task and its policy."""
        config = self.config
        settings = [config.sampling.model_dump(), config.prompts.model_dump(), config.task.cut_off, self.provenance()]
        if config.agent.name:
            settings.append(config.agent.model_dump())
        return digest(settings)

    def provenance(self) -> dict[str, Any]:
        """Return the provenance that is recorded in every trajectory."""
        task = self.config.task
        settings = {"verifier_params": task.verifier_params} if task.verifier_params else {}
        return {SOURCE: task.source, "params": task.params, "verifier": self.verifier_name, **settings}

    def draw_tasks(self, n: int | None, *, split: str, seed: int, spare: int = 0) -> list[Task]:
        """Draw `n` tasks of a split and check that no other split has used them.

        Args:
            spare: number of tasks to draw besides, if the split has them.

        Raises:
            ConfigError: the source has none, a task is in another split too, or recorded training used up all of them.
        """
        task = self.config.task
        wanted = None if n is None else n + spare
        source = in_run(task.source, self.directory)
        tasks = find_tasks(source, wanted, seed=seed, split=split, **task.params)
        if n is not None and len(tasks) < n:
            self._warn_once(f"{len(tasks)} of {n} tasks: split {split} of {task.source} has no more")
        admitted = self._split_guard.admit(tasks, split)
        if left_out := len(tasks) - len(admitted):
            self._warn_once(f"{left_out} of {len(tasks)} tasks of split {split} left out: recorded, and trained on")
        if not admitted:
            raise ConfigError(f"every task of split {split} was trained on, as recorded: take another split or source")
        return admitted

    def server_settings(self) -> dict[str, Any]:
        """Return the arguments of `deploy` besides the version."""
        deploy, more = self.config.deploy, self.config.policy.base_urls
        return {
            "registry": self.registry,
            "base_url": self.config.policy.base_url,
            **self.config.policy.access(),
            "config": deploy.model_copy(update={"replicas": (*dict.fromkeys([*deploy.replicas, *more]),)}),
        }

    def write_config(self) -> None:
        write_atomically(self.config_file, to_toml(self.config))

    def _awaits_task(self) -> bool:
        """Return True if the run's file names no task, or no verifier that judges, and the settings do."""
        stored = load_config(self.config_file, {})
        waits = not stored.task.source or IDENTITY["task.verifier"](stored) in WAITING
        return waits and stored.task != self.config.task

    def _write_task(self) -> None:
        """Write the task into the run's file; the rest of it stays."""
        document = tomlkit.parse(self.config_file.read_text())
        table: Any = document.setdefault("task", tomlkit.table())
        on_file = load_config(self.config_file, {}).task
        for name, value in self.config.task.model_dump(mode="json").items():
            if value != getattr(on_file, name):
                table[name] = "none" if value is None else value
        write_atomically(self.config_file, tomlkit.dumps(document))

    def _warn_once(self, message: str) -> None:
        """Warn, unless an earlier draw did: each comparison draws its tasks several times."""
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(message)

    def _check_server(self) -> None:
        """Request one token, so that a mistyped URL or model is not stored."""
        policy = self.config.policy

        async def sample() -> None:
            async with OpenAIPolicy(policy.base_url, policy.model, **policy.policy_access()) as asked:
                await asked.sample([{"role": "user", "content": "Hello"}], sampling=Sampling(max_tokens=1))

        run_sync(sample())

    def _refuse_another_identity(self, on_file: Config) -> None:
        for key, of in IDENTITY.items():
            stored, given = of(on_file), of(self.config)
            if stored not in ("", given) and not (key == "task.verifier" and stored in WAITING):
                raise ConfigError(
                    f"{key} = {given!r}, but {self.directory} is a run of {stored!r}; "
                    "choose another directory with --run"
                )


def digest(settings: Any) -> str:
    """Hash settings to 16 hexadecimal digits."""
    return sha256(orjson.dumps(settings, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
