"""Check that episodes were collected in the same way, so that a comparison is one of policies and of nothing else."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

import orjson

from r3agent.errors import ConfigError
from r3agent.records.trajectory import Trajectory

RECORDED = {
    "source": "task.source",
    "params": "task.params",
    "verifier": "the verifier",
    "verifier_params": "task.verifier_params",
    "agent": "the agent",
    "prompts": "the prompts, by hash,",
    "settings": "the hash of prompts, sampling, task and verifier",
}
"""Metadata of a collected trajectory that must not differ, with its name for people."""


def check_same_settings(trajectories: Iterable[Trajectory]) -> None:
    """Check that nothing recorded of the settings differs between episodes; missing records are not compared.

    Raises:
        ConfigError: task params, verifiers, prompts or sampling settings differ, or two tasks of one id; the message
            names the difference.
    """
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for trajectory in trajectories:
        for name, value in dict.fromkeys(_settings(trajectory)):
            found[name][value] += 1
    for name, values in found.items():
        if len(values) > 1:
            (one, n), (other, m), *_ = values.most_common()
            raise ConfigError(
                f"{name} is {one} in {n} episodes and {other} in {m}: a comparison would mix them; evaluate episodes "
                "of the same settings, or pass mixed=True"
            )


def sampled_alike(one: Trajectory, other: Trajectory) -> bool:
    """Return True if all sampling settings that were sent are the same; a field that the server refused is `null`."""
    found = {*_sampling(one), *_sampling(other)}
    return len(found) == len({name for name, _ in found})


def _settings(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    for key, name in RECORDED.items():
        if key in trajectory.metadata:
            yield name, _text(trajectory.metadata[key])
        elif key == "agent":  # recorded only where there is one
            yield name, _text("")
    if trajectory.verifier:
        yield "the verifier", _text(trajectory.verifier)
    yield f"the hash of task {trajectory.task.id!r}", trajectory.task.digest
    yield from _sampling(trajectory)


def _sampling(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    for span in trajectory.spans:
        # An agent's calls have settings of their own: of them, only those that the server refused are compared.
        is_own = span.label != "reflect" and "agent" in trajectory.metadata
        for field, value in span.sampling.items() if span.purpose is None else ():
            if field != "seed":
                yield f"{field} of {span.label}", _text(value is not None if is_own else value)


def _text(value: object) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS, default=str).decode()
