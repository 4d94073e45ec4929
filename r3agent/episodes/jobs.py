"""Episodes to run, each with the id by which a stored one is found."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from os import PathLike
from typing import Any, NamedTuple, cast

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
from r3agent.records.branching import recorded_try
from r3agent.records.task import each_task
from r3agent.records.trajectory import Task, Trajectory


class Job(NamedTuple):
    """One episode to run."""

    task: Task
    sample: int
    begin: Trajectory | None = None
    """Recorded failure that the episode branches off, as `branch_of` returns it; `None` to begin with a first try."""


def episode_jobs(
    tasks: Iterable[Task | Mapping[str, Any] | Trajectory],
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
    for task, begin in each_beginning(tasks):
        place = f"{task.id!r}"
        if begin is not None:
            place += f" of trajectory {begin.parent_id}, after span {recorded_try(begin).last.span_id}"
        if place in seen:
            raise ConfigError(f"task id {place} appears twice; ids must be unique")
        seen.add(place)
        for sample in range(first_sample, first_sample + samples):
            depends = [task.digest, sample, identity, *([] if begin is None else [_recorded_try(begin)])]
            key = json.dumps(depends, sort_keys=True, default=dict)
            jobs[sha256(key.encode()).hexdigest()[:16]] = Job(task, sample, begin)
    if not jobs:
        raise ConfigError(
            "there is nothing to collect, in 0 tasks; check --n and the task source, and pass a list, because a "
            "generator gives its tasks only once"
        )
    return jobs


def each_beginning(
    tasks: Iterable[Task | Mapping[str, Any] | Trajectory],
) -> Iterator[tuple[Task, Trajectory | None]]:
    """Yield the tasks that a caller passed, each with the recorded failure that its episodes branch off, if any.

    Raises:
        ConfigError: one is no task, or a trajectory is not the beginning of a branch.
    """
    recorded: list[Trajectory | None] = []

    def each() -> Iterator[Task | Mapping[str, Any]]:
        for item in tasks:
            recorded.append(item if isinstance(item, Trajectory) else None)
            yield item.task if isinstance(item, Trajectory) else item

    given = cast(Any, tasks)
    is_several = isinstance(given, Iterable) and not isinstance(given, str | PathLike | Mapping | Task)
    for task in each_task(each() if is_several else given):
        if (begin := recorded[-1]) is not None and not begin.recorded:
            raise ConfigError(
                f"trajectory {begin.trajectory_id}: an episode, not the beginning of a branch; pass it to "
                "r3agent.branch, which chooses its failed try"
            )
        yield task, begin


def _recorded_try(begin: Trajectory) -> list[Any]:
    """Return what a branch depends on besides its task: the parent, the try, and its verdict, which is in prompts."""
    return [begin.parent_id, [[span.span_id, span.text, span.passed] for span in begin.spans], _feedback(begin)]


def _feedback(begin: Trajectory) -> str | None:
    verdict = recorded_try(begin).verdict
    return None if verdict is None else verdict.feedback
