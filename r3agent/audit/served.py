"""Try of tasks on a served model before anyone collects: answers read, first tries that pass, groups that vary.

Nothing is stored. Of each failed first try one fault is named, the first in `REMEDIES` that applies; the prevailing one
says what to mend.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal, NamedTuple, TypeAlias

from r3agent._util.aio import gather_all
from r3agent.audit.config import AuditConfig
from r3agent.audit.records import Check, some
from r3agent.episodes.assembly import assemble
from r3agent.episodes.endurance import endpoint_error
from r3agent.episodes.run_episode import Ended, run_episode
from r3agent.evaluate.statistics import rate, wilson
from r3agent.policy import Policy, Sampling
from r3agent.records.trajectory import Task, Trajectory, Try
from r3agent.verifiers import Verifier
from r3agent.verifiers.interface import CutOff

Fault: TypeAlias = Literal["error", "empty", "cut off", "unreadable", "wrong"]

REMEDIES: dict[Fault, str] = {
    "error": "mend the endpoint (r3agent doctor), the verifier or the task",
    "empty": "check the chat template of the served model, and sampling.stop",
    "cut off": "raise sampling.max_tokens, or ask for shorter answers",
    "unreadable": "show the form of the answer in the prompt (of function calls: another task.params.calls), or serve "
    "a model that was trained to follow instructions",
    "wrong": "take easier tasks or a stronger model",
}
"""Remedy of each fault of a first try."""


class ServedModel(NamedTuple):
    """Model to try the tasks on."""

    policy: Policy
    sampling: Sampling
    cut_off: CutOff = "fail"
    concurrency: int = 16
    agent: Mapping[str, Any] = {}
    """Arguments `agent`, `tools` and `environment` of `build_graph`, with the limits of tries; empty: each try is one
    completion."""


class Failure(NamedTuple):
    """Failed first try."""

    fault: Fault
    example: str


async def served_checks(
    tasks: Sequence[Task],
    model: ServedModel,
    verifier: Verifier,
    settings: AuditConfig,
    progress: Callable[[int, int], None] | None = None,
) -> list[Check]:
    """Sample a group of first tries of each task, and check them.

    Raises:
        R3Error: the endpoint does not answer the first request.
    """
    groups = await _groups(tasks[: settings.probe_n], model, verifier, settings.probe_samples, progress)
    tries = [ended.episode for group in groups for ended in group]
    failures = [failure for episode in tries if (failure := failure_of(episode))]
    judged = [[t.attempt.verdict.passed for t, _ in group if t.attempt and t.attempt.verdict] for group in groups]
    judged = [passes for passes in judged if passes]
    return [_errors(failures, len(tries)), _read(failures, len(tries), settings), *_passes(judged, failures, settings)]


async def _groups(
    tasks: Sequence[Task],
    model: ServedModel,
    verifier: Verifier,
    samples: int,
    progress: Callable[[int, int], None] | None,
) -> list[list[Ended]]:
    settings: Any = {"sampling": model.sampling, "cut_off": model.cut_off, "agent_errors": "record", **model.agent}
    nodes = assemble(policy=model.policy, verifier=verifier, max_attempts=1, **settings)
    slots = asyncio.Semaphore(model.concurrency)
    done = 0

    async def one(task: Task, sample: int) -> Ended:
        nonlocal done
        async with slots:
            ended = await run_episode(nodes, task, sample)
        done += 1
        if progress:
            progress(done, samples * len(tasks))
        return ended

    first = await one(tasks[0], 0)
    if first.cause is not None and endpoint_error(first.cause):
        raise first.cause
    rest = [(task, sample) for task in tasks for sample in range(samples)][1:]
    ended = [first, *await gather_all(one(task, sample) for task, sample in rest)]
    return [ended[i : i + samples] for i in range(0, len(ended), samples)]


def failure_of(episode: Trajectory) -> Failure | None:
    """Return the fault of a first try, or `None` if it passed or its verdict is pending."""
    attempt = episode.tries[0] if episode.tries else None
    if episode.error is not None or attempt is None:
        why = f"{episode.error.kind}: {episode.error.message}" if episode.error else "no answer"
        return Failure("error", f"task {episode.task.id!r}: {why}")
    verdict = attempt.verdict
    if verdict is None or verdict.passed:
        return None
    answer = str(attempt.message.get("content") or "")
    return Failure(fault_of(attempt), f"task {episode.task.id!r}: {verdict.feedback or 'failed'}: {answer[:100]!r}")


def fault_of(attempt: Try) -> Fault:
    """Return the fault of a failed first try."""
    if not str(attempt.message.get("content") or "").strip() and not attempt.message.get("tool_calls"):
        return "cut off" if attempt.unfinished else "empty"
    if attempt.unfinished:
        return "cut off"
    return "wrong" if attempt.verdict is None or attempt.verdict.readable else "unreadable"


def _errors(failures: Sequence[Failure], n: int) -> Check:
    errors = [failure.example for failure in failures if failure.fault == "error"]
    return Check(
        name="served: no errors",
        status="failed" if len(errors) == n else "warning" if errors else "ok",
        detail=f"{len(errors)} of {n} first tries ended with an error",
        counts={"tried": n, "wrong": len(errors)},
        rate=len(errors) / n,
        examples=some(errors),
        remedy=REMEDIES["error"] if errors else "",
    )


def _read(failures: Sequence[Failure], n: int, settings: AuditConfig) -> Check:
    n -= sum(failure.fault == "error" for failure in failures)
    if not n:
        return Check(name="served: answers read", status="skipped", detail="no answer came")
    unread = [failure for failure in failures if failure.fault in ("empty", "cut off", "unreadable")]
    is_over = len(unread) / n > settings.max_unreadable
    return Check(
        name="served: answers read",
        status="failed" if is_over else "ok",
        detail=f"{n - len(unread)} of {n} first tries have an answer that the verifier reads{_prevailing(unread)}",
        counts={"tried": n, "wrong": len(unread), **Counter(failure.fault for failure in unread)},
        rate=len(unread) / n,
        examples=some([failure.example for failure in unread]) if is_over else (),
        remedy=f"{REMEDIES[_most(unread)]}; or raise audit.max_unreadable" if is_over else "",
    )


def _passes(judged: Sequence[Sequence[bool]], failures: Sequence[Failure], settings: AuditConfig) -> list[Check]:
    if not judged:
        return [Check(name="served: first try", status="skipped", detail="nothing was judged")]
    n, passed = sum(map(len, judged)), sum(map(sum, judged))
    found = rate([fmean(group) for group in judged], n)
    varied = sum(len(set(group)) > 1 for group in judged)
    low, high = wilson(varied, len(judged))
    is_under = varied / len(judged) < settings.min_varied
    remedy = REMEDIES[_most(failures)] if passed < n / 2 else "take harder tasks: these are solved"
    return [
        Check(
            name="served: first try",
            status="warning" if passed in (0, n) else "ok",
            detail=f"{passed} of {n} pass, {_interval(found.rate, found.low, found.high)}, {len(judged)} tasks"
            f"{_prevailing(failures)}",
            counts={"tried": n, "wrong": n - passed, "tasks": len(judged)},
            rate=1 - passed / n,
            examples=some([failure.example for failure in failures]) if not passed else (),
        ),
        Check(
            name="served: groups vary",
            status="failed" if is_under else "ok",
            detail=f"{varied} of {len(judged)} groups of {settings.probe_samples} tries have passes and failures, "
            f"{_interval(varied / len(judged), low, high)}",
            counts={"tried": len(judged), "wrong": len(judged) - varied},
            rate=1 - varied / len(judged),
            remedy=f"{remedy}; or lower audit.min_varied" if is_under else "",
        ),
    ]


def _prevailing(failures: Sequence[Failure]) -> str:
    if not failures:
        return ""
    fault = _most(failures)
    return f"; prevailing fault: {fault}, {sum(f.fault == fault for f in failures)} of {len(failures)}"


def _most(failures: Sequence[Failure]) -> Fault:
    counts: Counter[Fault] = Counter(failure.fault for failure in failures)
    return counts.most_common(1)[0][0]


def _interval(share: float, low: float, high: float) -> str:
    return f"{100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
