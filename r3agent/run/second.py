"""Verdicts of a second verifier on stored answers, e.g. of an exact one beside a judge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from r3agent._util.aio import gather_all
from r3agent.errors import ConfigError
from r3agent.records.trajectory import Trajectory
from r3agent.run.config import Config
from r3agent.run.directory import WAITING
from r3agent.verifiers import close, find_verifier, judge, warm_up
from r3agent.verifiers.interface import takes_environment

CONCURRENCY = 64


async def second_verdicts(
    episodes: Iterable[Trajectory], config: Config, known: Mapping[tuple[str, str], bool]
) -> dict[tuple[str, str], bool]:
    """Judge the answers that have a verdict with `gate.verifier`; those that it leaves open are missing.

    Args:
        known: verdicts of answers that are not judged again, which may cost and come out differently.

    Returns:
        verdicts by the ids of the trajectory and of the last span of the try.

    Raises:
        ConfigError: there is no such verifier, or it cannot judge stored answers.
        VerifierError: it failed on an answer.
    """
    name, task = config.gate.verifier, config.task
    try:
        found = find_verifier(name, **config.gate.verifier_params)
    except ConfigError as error:
        raise ConfigError(f"gate.verifier with gate.verifier_params: {error}") from error
    if name in WAITING or takes_environment(found, required=True):
        raise ConfigError(f"gate.verifier = {name!r} cannot judge stored answers; name one that needs only the answer")
    judged = [(t, a_try) for t in episodes for a_try in t.tries if a_try.verdict is not None]
    waiting = iter([(t, a_try) for t, a_try in judged if (t.trajectory_id, a_try.last.span_id) not in known])
    verdicts = {**known}

    async def work() -> None:
        for trajectory, a_try in waiting:
            (verdict,) = await judge(
                found, trajectory.task, [a_try], cut_off=task.cut_off, timeout_s=task.verify_timeout_s
            )
            if verdict is not None:
                verdicts[trajectory.trajectory_id, a_try.last.span_id] = verdict.passed

    try:
        warm_up(found)
        await gather_all(work() for _ in range(CONCURRENCY))
    finally:
        await close(found)
    return verdicts
