"""What the verifier says of answers whose verdict is known: gold ones, empty ones and those of other tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Literal, NamedTuple, TypeAlias

from r3agent.audit.config import AuditConfig
from r3agent.audit.records import Check, some
from r3agent.audit.workers import Probe, Said
from r3agent.records.trajectory import Message, Task

Kind: TypeAlias = Literal["gold", "empty", "shuffled"]

EMPTY: Message = {"role": "assistant", "content": ""}


class Trial(NamedTuple):
    """An answer whose verdict is known."""

    kind: Kind
    probe: Probe


class Outcome(NamedTuple):
    """What was said of it, each time that it was asked."""

    trial: Trial
    said: tuple[Said, ...]

    @property
    def passed(self) -> bool | None:
        """`None` where the verdicts differ, or there are none."""
        verdicts = {s.passed for s in self.said if s.passed is not None}
        return verdicts.pop() if len(verdicts) == 1 else None

    @property
    def flakes(self) -> bool:
        return len({(s.passed, s.score) for s in self.said if s.passed is not None}) > 1


def trials(tasks: Sequence[Task]) -> list[Trial]:
    """For each task its own gold answer, no answer, and the next gold answer that differs from its own."""
    return [trial for place, task in enumerate(tasks) for trial in _trials(task, [*tasks[place:], *tasks[:place]])]


def _trials(task: Task, others: Sequence[Task]) -> Iterator[Trial]:
    gold = None if task.gold is None else _said(task.gold)
    if task.gold is not None:
        yield Trial("gold", Probe(task, task.gold))
    if gold != _said(EMPTY):
        yield Trial("empty", Probe(task, EMPTY))
    other = next((o.gold for o in others if o.gold is not None and _said(o.gold) != gold), None)
    if gold is not None and other is not None:
        yield Trial("shuffled", Probe(task, other))


def _said(message: Message) -> tuple[str, str]:
    """What makes two answers the same."""
    return str(message.get("content") or "").strip(), repr(message.get("tool_calls") or [])


def verdict_checks(outcomes: Sequence[Outcome], tasks: Sequence[Task], settings: AuditConfig) -> list[Check]:
    """Every check that needs the verifier."""
    n, lacking = len(tasks), sum(task.gold is None for task in tasks)
    return [
        _known(outcomes, "gold", settings.max_gold_failing, n, lacking),
        _known(outcomes, "empty", settings.max_empty_passing, n, 0),
        _known(outcomes, "shuffled", settings.max_shuffled_passing, n, lacking),
        _repeats(outcomes, settings),
        _errors(outcomes),
        _times(outcomes, settings),
    ]


WORDS: dict[Kind, tuple[str, str, str]] = {
    "gold": ("gold passes", "gold answers fail", "correct the tasks or the verifier, or raise audit.max_gold_failing"),
    "empty": ("empty fails", "empty answers pass", "the verifier must ask for an answer; or audit.max_empty_passing"),
    "shuffled": (
        "shuffled fails",
        "gold answers of other tasks pass",
        "the verifier must tell answers apart; or raise audit.max_shuffled_passing",
    ),
}


def _known(outcomes: Sequence[Outcome], kind: Kind, limit: float, n_tasks: int, lacking: int) -> Check:
    name, wrong_is, remedy = WORDS[kind]
    told = [o for o in outcomes if o.trial.kind == kind and o.passed is not None]
    wrong = [o for o in told if o.passed != (kind == "gold")]
    counts = {"tried": len(told), "wrong": len(wrong), "without gold": lacking}
    without = f"; {lacking} of {n_tasks} tasks have no gold answer" if lacking else ""
    if not told:
        return Check(name=name, status="skipped", detail=f"nothing was judged{without}", counts=counts)
    rate = len(wrong) / len(told)
    return Check(
        name=name,
        status="failed" if rate > limit else "warning" if wrong else "ok",
        detail=f"{len(wrong)} of {len(told)} {wrong_is}{without}",
        counts=counts,
        rate=rate,
        examples=some([_example(o) for o in wrong]),
        remedy=remedy if rate > limit else "",
    )


def _repeats(outcomes: Sequence[Outcome], settings: AuditConfig) -> Check:
    repeated = [o for o in outcomes if sum(s.passed is not None for s in o.said) > 1]
    flaky = [o for o in repeated if o.flakes]
    counts = {"tried": len(repeated), "wrong": len(flaky)}
    if not repeated:
        return Check(name="verdicts agree", status="skipped", detail="nothing was judged twice", counts=counts)
    rate = len(flaky) / len(repeated)
    said = [f"{_example(o)}: {[s.score for s in o.said if s.passed is not None]}" for o in flaky]
    return Check(
        name="verdicts agree",
        status="failed" if rate > settings.max_flaky else "warning" if flaky else "ok",
        detail=f"{len(flaky)} of {len(repeated)} answers got different verdicts in {settings.repeats} tries",
        counts=counts,
        rate=rate,
        examples=some(said),
        remedy="take chance, time and order out of the verifier, or raise audit.max_flaky" if flaky else "",
    )


def _errors(outcomes: Sequence[Outcome]) -> Check:
    said = [(o, s) for o in outcomes for s in o.said if not s.hung]
    raised = [(o, s) for o, s in said if s.error]
    return Check(
        name="verifier errors",
        status="failed" if raised else "ok",
        detail=f"{len(raised)} of {len(said)} verdicts were errors",
        counts={"tried": len(said), "wrong": len(raised)},
        rate=len(raised) / len(said) if said else None,
        examples=some(list(dict.fromkeys(f"{_example(o)}: {s.error}" for o, s in raised))),
        remedy="an episode whose verifier raises is not trained on: let it say False instead" if raised else "",
    )


def _times(outcomes: Sequence[Outcome], settings: AuditConfig) -> Check:
    hung = [o for o in outcomes if any(s.hung for s in o.said)]
    took = sorted((s.seconds, _example(o)) for o in outcomes for s in o.said if not s.hung)
    seconds = [s for s, _ in took]
    p99 = seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))] if seconds else 0.0
    slow = [f"{example}: {s:.1f} s" for s, example in reversed(took) if s > settings.slow_s]
    limit = f"limit {settings.slow_s:g} s"
    bad = bool(hung) or p99 > settings.slow_s
    detail = f"median {median(seconds):.2g} s, 99 % within {p99:.2g} s, {limit}" if seconds else "no verdict came"
    return Check(
        name="verdict time",
        status="failed" if bad else "ok",
        detail=f"{detail}; {len(hung)} answers hang for {settings.timeout_s:g} s" if hung else detail,
        counts={"tried": len(took) + len(hung), "slow": len(slow), "hung": len(hung)},
        rate=(len(slow) + len(hung)) / (len(took) + len(hung)) if bad else 0.0 if took else None,
        examples=some([f"{_example(o)}: hangs" for o in hung] + slow) if bad else (),
        remedy="bound what the verifier does, or raise audit.slow_s and audit.timeout_s" if bad else "",
    )


def _example(outcome: Outcome) -> str:
    kind, (task, message) = outcome.trial
    said = str(message.get("content") or message.get("tool_calls") or "")
    return f"task {task.id!r}, {kind} answer {said[:80]!r}"
