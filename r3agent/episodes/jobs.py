"""Episodes to run, each with the id by which a stored one is found."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from typing_extensions import Unpack

from r3agent.episodes.config import (
    AGENT_SETTINGS,
    COLLECT_REFLECTIONS,
    WITHOUT_EFFECT,
    AgentLimits,
    EpisodeConfig,
    EpisodeOptions,
)
from r3agent.errors import ConfigError
from r3agent.records.task import each_task
from r3agent.records.trajectory import Task


class Job(NamedTuple):
    """One episode to run."""

    task: Task
    sample: int


def episode_jobs(
    tasks: Iterable[Task | Mapping[str, Any]],
    *,
    policy_name: str,
    verifier_name: str = "",
    verifier_params: Mapping[str, Any] | None = None,
    agent_name: str = "",
    tools: Sequence[Any] = (),
    samples: int = 1,
    first_sample: int = 0,
    **options: Unpack[EpisodeOptions],
) -> dict[str, Job]:
    """Return the episodes of a collection by id: a hash of all that they depend on, by which stored ones are found.

    Args:
        agent_name: name of what makes the tries, whose settings and `tools` count only with one; default: each try is
            one completion.
        options: as in `collect`, whose arguments of these names are the same; `sampling` includes the policy's own.

    Raises:
        ConfigError: the tasks or the options are invalid, or there is nothing to collect.
    """
    config = EpisodeConfig.of({"reflections": COLLECT_REFLECTIONS, **options})
    left_out = {*AGENT_SETTINGS, *WITHOUT_EFFECT}
    identity = {
        "policy": policy_name,
        "verifier": [verifier_name, verifier_params or {}],
        "sampling": None,
        **{name: value for name, value in config if value is not None and name not in left_out},
    }
    if agent_name:
        from r3agent.episodes.agents.tools import identity_of

        limits = {name: getattr(config, name) for name in AgentLimits.model_fields}
        identity |= {"agent": [agent_name, [identity_of(tool) for tool in tools]], **limits}
    jobs: dict[str, Job] = {}
    seen: set[str] = set()
    for task in each_task(tasks):
        if task.id in seen:
            raise ConfigError(f"task id {task.id!r} appears twice; ids must be unique")
        seen.add(task.id)
        for sample in range(first_sample, first_sample + samples):
            key = json.dumps([task.digest, sample, identity], sort_keys=True, default=dict)
            jobs[sha256(key.encode()).hexdigest()[:16]] = Job(task, sample)
    if not jobs:
        raise ConfigError(
            "there is nothing to collect, in 0 tasks; check --n and the task source, and pass a list, because a "
            "generator gives its tasks only once"
        )
    return jobs
