"""Metrics of one policy version on a set of tasks: first try, after a reflection, after a blind retry, errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from statistics import fmean

from pydantic import Field

from r3agent.errors import ConfigError
from r3agent.evaluate.behaviour import Behaviour, behaviour
from r3agent.evaluate.cells import CELLS, apart, by_task, cell_means, change, error_of, first_try, outcome
from r3agent.evaluate.equal_tokens import EqualTokens, equal_tokens
from r3agent.evaluate.settings import check_same_settings
from r3agent.evaluate.statistics import Difference, Rate, rate
from r3agent.records.cost import Prices
from r3agent.records.trajectory import Record, Trajectory, each_trajectory

NEWER = {
    "generic_reflection",
    "lift_over_generic",
    "donor_reflection",
    "lift_over_donor",
    "control_errors",
    "behaviour",
    "with_errored",
}
"""Fields that older releases refuse."""


class WithErrored(Record):
    """Success after a reflection, with the errored episodes of which the first try has a verdict.

    An episode that goes on after a failed first try has more calls and verdicts that can fail, so that leaving those
    with an error out favours those that passed at once.
    """

    failed: int
    """Errored episodes whose first try failed."""
    least: float
    """Success rate if none of them had passed after a reflection; those whose first try passed count as passed."""
    most: float
    """Success rate if all of them had."""


class Evaluation(Record):
    """Metrics of one policy version on a set of tasks. A cell is `None` if no episode has it."""

    policy: str
    """Policy version that sampled the episodes."""
    n_tasks: int
    n_episodes: int
    first_try: Rate | None
    after_reflection: Rate | None
    """Success rate of the first try, or else of the retry after a reflection."""
    blind_retry: Rate | None
    """Control: success rate of the first try, or else of the retry without a reflection."""
    lift_over_blind: Difference | None
    """Difference after_reflection - blind_retry on the same tasks: the gain of reflecting over one blind retry, which
    samples fewer tokens."""
    blind_equal_tokens: Rate | None = None
    """Control at equal tokens: success rate of the first try, or else of at least one of `equal_tokens.retries` blind
    retries. `None` if fewer are recorded, or without token counts."""
    lift_at_equal_tokens: Difference | None = None
    """Difference after_reflection - blind_equal_tokens on the same tasks."""
    equal_tokens: EqualTokens | None = None
    """Tokens of reflecting and of a blind retry; `None` if the endpoint did not count them."""
    generic_reflection: Rate | None = None
    """Control: success rate of the first try, or else of the retry after one fixed text in place of a reflection."""
    lift_over_generic: Difference | None = None
    """Difference after_reflection - generic_reflection on the same tasks: the gain of a reflection's own content."""
    donor_reflection: Rate | None = None
    """Control: success rate of the first try, or else of the retry after a reflection on another task."""
    lift_over_donor: Difference | None = None
    """Difference after_reflection - donor_reflection on the same tasks: the gain of what a reflection says of its
    task."""
    control_errors: dict[str, int] = {}
    """Control branches with an error, by kind; their episodes are not in the cell of that control."""
    behaviour: Behaviour | None = None
    """Flips, length and leaks of reflections, and tokens and cost per success; `None` if all episodes errored."""
    errors: Rate
    """Share of episodes that errored; no cell includes them."""
    errors_by_kind: dict[str, int]
    with_errored: WithErrored | None = Field(default=None, exclude_if=lambda found: found is None)
    """Bounds of after_reflection with errored episodes; `None` if no first try of them failed."""
    unfinished: dict[str, int] = {}
    """Tries without a whole answer, by reason, e.g. `length` for the token limit; they are failures in the cells."""
    unfinished_reflections: dict[str, int] = {}
    """Reflections that were cut off or refused, by reason."""
    asked: tuple[int, int] | None = Field(default=None, exclude_if=lambda counts: counts is None)
    """Number of tries that asked the policy, and of all; `None` if all did. The others asked other models, or none."""
    noisy_verdicts: int = 0
    """Number of verdicts that may be wrong, such as an LLM judge's; the intervals above do not account for it."""


def evaluate(trajectories: Iterable[Trajectory], *, mixed: bool = False, prices: Prices | None = None) -> Evaluation:
    """Evaluate one policy version.

    Args:
        trajectories: episodes, and control branches of them, if any.
        mixed: accept episodes of different settings, e.g. prompts or temperatures.
        prices: prices of tokens, for the cost per success.

    Raises:
        ConfigError: there are no episodes, some lack a kind of retry that others have, their settings differ, or none
            of their tries asked the policy.
    """
    trajectories = list(each_trajectory(trajectories))
    if not trajectories:
        raise ConfigError("there are no episodes to evaluate; collect some first")
    if not mixed:
        check_same_settings(trajectories)
    means = cell_means(trajectories)
    trajectories, controls = apart(trajectories)
    if not trajectories:
        raise ConfigError(f"{len(controls)} control branches and no episode that they branched off; pass these too")
    asked = _asked(trajectories)
    errors, spans = [error_of(t) for t in trajectories], [s for t in trajectories for s in t.spans]
    error_means = by_task((t.task.id, float(e is not None)) for t, e in zip(trajectories, errors, strict=True))
    rates = {cell: rate(list(means[cell].values()), errors.count(None)) for cell in CELLS if means[cell]}
    return Evaluation(
        policy=", ".join(sorted({s.policy_version or s.model for s in spans if s.purpose is None})),
        n_tasks=len(error_means),
        n_episodes=len(trajectories),
        first_try=rates.get("first_try"),
        after_reflection=rates.get("after_reflection"),
        blind_retry=rates.get("blind_retry"),
        lift_over_blind=change(means["after_reflection"], means["blind_retry"]),
        blind_equal_tokens=rates.get("blind_equal_tokens"),
        lift_at_equal_tokens=change(means["after_reflection"], means["blind_equal_tokens"]),
        equal_tokens=equal_tokens(t for t in trajectories if error_of(t) is None),
        generic_reflection=rates.get("generic_reflection"),
        lift_over_generic=change(means["after_reflection"], means["generic_reflection"]),
        donor_reflection=rates.get("donor_reflection"),
        lift_over_donor=change(means["after_reflection"], means["donor_reflection"]),
        control_errors=dict(Counter(e for t in controls.values() if (e := error_of(t)) is not None)),
        behaviour=behaviour(trajectories, prices),
        errors=rate(list(error_means.values()), len(trajectories)),
        errors_by_kind=dict(Counter(e for e in errors if e is not None)),
        with_errored=_with_errored(trajectories, errors) if means["after_reflection"] else None,
        asked=asked,
        unfinished=dict(Counter(a.unfinished for t in trajectories for a in t.tries if a.unfinished)),
        unfinished_reflections=dict(Counter(s.unfinished for s in spans if s.label == "reflect" and s.unfinished)),
        noisy_verdicts=sum(s.verdict is not None and s.verdict.noisy for s in spans),
    )


def _with_errored(trajectories: list[Trajectory], errors: list[str | None]) -> WithErrored | None:
    known = [(t, e) for t, e in zip(trajectories, errors, strict=True) if e is None or first_try(t) is not None]
    failed = {t.trajectory_id for t, e in known if e is not None and not first_try(t)}
    if not failed:
        return None

    def rate_if(passed: float) -> float:
        outcomes = (
            (t.task.id, passed if t.trajectory_id in failed else first_try(t) if e else outcome(t, "after_reflection"))
            for t, e in known
        )
        return fmean(by_task((task, value) for task, value in outcomes if value is not None).values())

    return WithErrored(failed=len(failed), least=rate_if(0.0), most=rate_if(1.0))


def _asked(trajectories: Iterable[Trajectory]) -> tuple[int, int] | None:
    """Count the tries that asked the policy, and all; `None` if all did.

    Raises:
        ConfigError: none did, although some ended without an error.
    """
    tries = [a_try for t in trajectories for a_try in t.tries]
    asked = sum(a_try.asked_policy for a_try in tries)
    if not asked and any(a_try.error is None for a_try in tries):
        others = Counter(f"{s.purpose} ({s.model})" for a_try in tries for s in a_try.steps)
        found = ", ".join(f"{n} x {purpose}" for purpose, n in others.most_common(3))
        raise ConfigError(
            f"0 of {len(tries)} tries asked the policy; at least 1 must. Their calls are {found}. Let the agent ask "
            "for the model `policy`, or for the policy's name, with the client that it gets or an instrumented one; "
            "and give it another name, because episodes of this one are not run again"
        )
    return (asked, len(tries)) if asked < len(tries) else None
