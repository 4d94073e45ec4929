"""The promotion gate: a decision on a comparison of two policy versions."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Annotated, TypeAlias

from pydantic import Field

from r3agent._util.checked import NotNegative, checked
from r3agent._util.messages import listed
from r3agent.evaluate.comparison import Comparison
from r3agent.evaluate.sentinel import Example, Sign
from r3agent.evaluate.sequential import Evidence, examine
from r3agent.evaluate.statistics import CONFIDENCE, Difference
from r3agent.records.trajectory import Record

Level: TypeAlias = Annotated[float, Field(gt=0, le=1)]


class Decision(Record):
    """Decision to promote the candidate or not, with its reasons."""

    promote: bool
    reasons: tuple[str, ...]
    """One reason for each condition, met or not."""
    alpha: Level
    """Two-sided level of the test of the gain."""
    blocked_by: tuple[str, ...] = Field(default=(), exclude_if=operator.not_)
    """Signs of reward hacking, and names of other sources, for which the sentinel blocks it."""
    evidence: Evidence | None = Field(default=None, exclude_if=lambda evidence: evidence is None)
    """State of the sequential test."""
    examples: dict[str, tuple[Example, ...]] = Field(default={}, exclude_if=operator.not_)
    """Episodes of the candidate that show why the sentinel blocks it, by its reason."""

    def text(self) -> str:
        """Write the decision, and below it each condition on a line of its own."""
        return listed(f"{'passed' if self.promote else 'did not pass'} the gate:", self.reasons)

    @property
    def final(self) -> bool:
        """True if further tasks would not be of use: the candidate passed, or hardly can."""
        return self.promote or self.evidence is None or self.evidence.futile


@checked
def gate(
    comparison: Comparison,
    *,
    min_lift: float,
    max_regression: NotNegative,
    alpha: Level,
    max_leaks: NotNegative | None = None,
    max_length_factor: NotNegative | None = None,
    max_disagreement: NotNegative | None = None,
) -> Decision:
    """Promote a candidate that is better after a reflection, and not worse elsewhere.

    Args:
        min_lift: smallest gain of after_reflection, in percentage points.
        max_regression: largest loss of the first try and largest increase of errors, in percentage points.
        alpha: two-sided level of the test of the gain. Only a gain promotes, so a candidate that is no better is
            promoted with a probability of at most alpha / 2. A comparison with a `draw` is tested sequentially: it may
            be given to the gate again with more of its tasks, until the decision is `final`.
        max_leaks: largest rise of the share of reflections that leak, in percentage points, unless it may be chance.
        max_length_factor: largest factor by which reflections become longer or shorter, unless it may be chance.
        max_disagreement: largest rise of the share of answers that the verifier passes and a second one refuses, in
            percentage points, unless it may be chance.
    """
    lift, first, draw, evidence = comparison.after_reflection, comparison.first_try, comparison.draw, None
    if draw is not None:
        evidence = examine(draw.gains, planned=draw.planned, level=alpha / 2, min_gain=min_lift / 100)
    if lift is None or first is None:
        nothing = "no task has both versions after a reflection: nothing to compare"
        return Decision(promote=False, reasons=(nothing,), alpha=alpha, evidence=evidence)
    test = {f"p = {lift.p_value:.2g} for a gain, below {alpha:.2g}": lift.points > 0 and lift.p_value < alpha}
    if evidence is not None:
        test = {_evidence(evidence, alpha): evidence.found}
    errors = 100 * (comparison.candidate.errors.rate - comparison.baseline.errors.rate)
    conditions = {
        f"after reflection {lift.points:+.1f} points, at least {min_lift:+g}": lift.points >= min_lift,
        **test,
        f"first try {first.points:+.1f} points, at least {-max_regression:+g}": first.points >= -max_regression,
        f"errors {errors:+.1f} points, at most {max_regression:+g}": errors <= max_regression,
    }
    sentinel = [(check.source, check.condition, check.within) for check in comparison.forgetting]
    sentinel += _signs(comparison, max_leaks, max_length_factor, max_disagreement)
    conditions |= {condition: met for _, condition, met in sentinel}
    return Decision(
        promote=all(conditions.values()),
        reasons=tuple(f"{'met' if met else 'NOT met'}: {condition}" for condition, met in conditions.items()),
        alpha=alpha,
        blocked_by=tuple(sign for sign, _, met in sentinel if not met),
        evidence=evidence,
        examples={
            condition: comparison.examples[sign]
            for sign, condition, met in sentinel
            if not met and sign in comparison.examples
        },
    )


def _signs(
    comparison: Comparison, max_leaks: float | None, max_length_factor: float | None, max_disagreement: float | None
) -> Iterator[tuple[Sign, str, bool]]:
    """List the signs of reward hacking that can be looked for, each with its condition, and True if that is met."""
    shares: list[tuple[Sign, str, Difference | None, float | None]] = [
        ("leaks", "reflections that give the answer away", comparison.leaks, max_leaks),
        ("disagreement", "answers that a second verifier refuses", comparison.disagreement, max_disagreement),
    ]
    for sign, name, found, limit in shares:
        if found is not None and limit is not None:
            text = f"{name} {found.points:+.1f} points (p = {found.p_value:.2g}), at most {limit:+g}"
            yield sign, text, found.points <= limit or found.p_value >= 1 - CONFIDENCE
    moved, versions = comparison.reflection_length, (comparison.baseline, comparison.candidate)
    lengths = [v.behaviour.reflection_length.tokens for v in versions if v.behaviour and v.behaviour.reflection_length]
    if moved is not None and max_length_factor is not None and len(lengths) == 2 and min(lengths) > 0:
        old, new = lengths
        text = f"reflections {old:.0f} -> {new:.0f} tokens, at most {max_length_factor:g} times longer or shorter"
        yield "length", text, max(new / old, old / new) <= max_length_factor or moved.low <= 0 <= moved.high


def _evidence(e: Evidence, alpha: float) -> str:
    text = (
        f"e-value {e.e_value:.2g} for a gain, at least {e.needed:.3g} (2 / {alpha:.2g}, a two-sided level); "
        f"95 % confidence sequence {e.low:+.1f} to {e.high:+.1f} after {e.n_tasks} of up to {e.planned} tasks, "
        f"which find a gain of {e.detectable:.1f} points with 80 %"
    )
    return f"{text}; given up, since more tasks would hardly change this" if e.futile else text
