"""Checks of the verifier on answers with known verdicts: gold answers, empty ones, and those of other tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Literal, NamedTuple, TypeAlias

from r3agent.audit.config import AuditConfig
from r3agent.audit.probes import Probe, ProbeResult
from r3agent.audit.records import Check, check_of, some
from r3agent.records.trajectory import Message, Task

ProbeKind: TypeAlias = Literal["gold", "empty", "shuffled"]

EMPTY: Message = {"role": "assistant", "content": ""}


class Trial(NamedTuple):
    """Probe with a known right verdict."""

    kind: ProbeKind
    probe: Probe


class TrialResult(NamedTuple):
    """Results of the repeated judgements of one trial."""

    trial: Trial
    results: tuple[ProbeResult, ...]

    @property
    def passed(self) -> bool | None:
        """Return the verdict, or `None` if verdicts differ or there are none."""
        verdicts = {s.passed for s in self.results if s.passed is not None}
        return verdicts.pop() if len(verdicts) == 1 else None

    @property
    def flakes(self) -> bool:
        return len({(s.passed, s.score) for s in self.results if s.passed is not None}) > 1


def trials(tasks: Sequence[Task]) -> list[Trial]:
    """Return each task's gold answer, an empty one, and the next gold answer that differs from its own."""
    return [trial for place, task in enumerate(tasks) for trial in _trials(task, [*tasks[place:], *tasks[:place]])]


def _trials(task: Task, others: Sequence[Task]) -> Iterator[Trial]:
    gold = None if task.gold is None else _answer_key(task.gold)
    if task.gold is not None:
        yield Trial("gold", Probe(task, task.gold))
    if gold != _answer_key(EMPTY):
        yield Trial("empty", Probe(task, EMPTY))
    other = next((o.gold for o in others if o.gold is not None and _answer_key(o.gold) != gold), None)
    if gold is not None and other is not None:
        yield Trial("shuffled", Probe(task, other))


def _answer_key(message: Message) -> tuple[str, str]:
    """Return a key that is equal for equivalent answers."""
    return str(message.get("content") or "").strip(), repr(message.get("tool_calls") or [])


def verdict_checks(
    results: Sequence[TrialResult], tasks: Sequence[Task], settings: AuditConfig, *, is_shipped: bool = False
) -> list[Check]:
    """Run the checks that need the verifier; a shipped one is not the user's to mend."""
    n, lacking = len(tasks), sum(task.gold is None for task in tasks)
    return [
        _known(results, "gold", settings.max_gold_failing, n, lacking),
        _known(results, "empty", settings.max_empty_passing, n, 0),
        _known(results, "shuffled", settings.max_shuffled_passing, n, lacking),
        _repeats(results, settings),
        _errors(results, is_shipped),
        _times(results, settings),
    ]


WORDS: dict[ProbeKind, tuple[str, str, str]] = {
    "gold": ("gold passes", "gold answers fail", "correct the tasks or the verifier, or raise audit.max_gold_failing"),
    "empty": ("empty fails", "empty answers pass", "the verifier must ask for an answer; or audit.max_empty_passing"),
    "shuffled": (
        "shuffled fails",
        "gold answers of other tasks pass",
        "the verifier must tell answers apart; or raise audit.max_shuffled_passing",
    ),
}


def _known(results: Sequence[TrialResult], kind: ProbeKind, limit: float, n_tasks: int, lacking: int) -> Check:
    name, wrong_is, remedy = WORDS[kind]
    judged = [o for o in results if o.trial.kind == kind and o.passed is not None]
    wrong = [o for o in judged if o.passed != (kind == "gold")]
    without = f"; {lacking} of {n_tasks} tasks have no gold answer" if lacking else ""
    if not judged:
        return check_of(
            name, "skipped", f"nothing was judged{without}", wrong=[], n=0, counts={"without gold": lacking}
        )
    is_over = len(wrong) / len(judged) > limit
    return check_of(
        name,
        "failed" if is_over else "warning" if wrong else "ok",
        f"{len(wrong)} of {len(judged)} {wrong_is}{without}",
        wrong=[_example(o) for o in wrong],
        n=len(judged),
        remedy=remedy if is_over else "",
        counts={"without gold": lacking},
    )


def _repeats(results: Sequence[TrialResult], settings: AuditConfig) -> Check:
    repeated = [o for o in results if sum(s.passed is not None for s in o.results) > 1]
    flaky = [o for o in repeated if o.flakes]
    if not repeated:
        return check_of("verdicts agree", "skipped", "nothing was judged twice", wrong=[], n=0)
    is_over = len(flaky) / len(repeated) > settings.max_flaky
    return check_of(
        "verdicts agree",
        "failed" if is_over else "warning" if flaky else "ok",
        f"{len(flaky)} of {len(repeated)} answers got different verdicts in {settings.repeats} tries",
        wrong=[f"{_example(o)}: {[s.score for s in o.results if s.passed is not None]}" for o in flaky],
        n=len(repeated),
        remedy="take chance, time and order out of the verifier, or raise audit.max_flaky" if flaky else "",
    )


def _errors(results: Sequence[TrialResult], is_shipped: bool) -> Check:
    remedy = (
        "give the tasks all that the verifier reads (task.params.answer and task.params.info name columns), and the "
        "verifier its settings (task.verifier_params)"
        if is_shipped
        else "let it say False instead"
    )
    ended = [(o, s) for o in results for s in o.results if not s.hung]
    raised = [(o, s) for o, s in ended if s.error]
    return Check(
        name="verifier errors",
        status="failed" if raised else "ok",
        detail=f"{len(raised)} of {len(ended)} verdicts were errors",
        counts={"tried": len(ended), "wrong": len(raised)},
        rate=len(raised) / len(ended) if ended else None,
        examples=some(list(dict.fromkeys(f"{_example(o)}: {s.error}" for o, s in raised))),
        remedy=f"an episode whose verifier raises is not trained on: {remedy}" if raised else "",
    )


def _times(results: Sequence[TrialResult], settings: AuditConfig) -> Check:
    hung = [o for o in results if any(s.hung for s in o.results)]
    took = sorted((s.seconds, _example(o)) for o in results for s in o.results if not s.hung)
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


def _example(result: TrialResult) -> str:
    kind, (task, message) = result.trial
    answer = str(message.get("content") or message.get("tool_calls") or "")
    return f"task {task.id!r}, {kind} answer {answer[:80]!r}"
