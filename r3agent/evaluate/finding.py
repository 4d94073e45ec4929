"""Finding of an evaluation or a comparison, in one plain sentence."""

from __future__ import annotations

from r3agent._util.checked import checked
from r3agent._util.messages import count
from r3agent.evaluate.comparison import Comparison
from r3agent.evaluate.metrics import Evaluation
from r3agent.evaluate.power import POWER, discordance_of, smallest_lift
from r3agent.evaluate.statistics import CONFIDENCE, Difference, Rate


@checked
def finding(result: Evaluation | Comparison) -> str:
    """Say what a table shows: whether the candidate is better, or whether reflecting pays, and how sure that is."""
    return _of_comparison(result) if isinstance(result, Comparison) else _of_evaluation(result)


def _of_comparison(comparison: Comparison) -> str:
    old, new, change = comparison.baseline.policy, comparison.candidate.policy, comparison.after_reflection
    if change is None:
        return f"{new} and {old} cannot be compared after a reflection: no task has both without an error."
    if change.p_value < 1 - CONFIDENCE:
        verdict = f"{new} is {'better' if change.points > 0 else 'worse'} than {old} after a reflection"
    else:
        verdict = f"{new} is not shown to be better or worse than {old} after a reflection"
    kept = [check.condition for check in comparison.forgetting if not check.within]
    forgot = f"; it forgot: {', '.join(kept)}" if kept else ""
    return f"{verdict}: {_change(change, comparison.baseline.after_reflection)}{forgot}."


def _of_evaluation(evaluation: Evaluation) -> str:
    rate, lift = evaluation.after_reflection, evaluation.lift_over_blind
    if rate is None:
        return f"{evaluation.policy} has no episode with a retry after a reflection and without an error."
    solved = f"{evaluation.policy} solves {100 * rate.rate:.1f} % of {count(rate.n_tasks, 'task')} after a reflection"
    if lift is None:
        return f"{solved}; without blind retries, what reflecting adds is not known."
    if lift.p_value < 1 - CONFIDENCE:
        verdict = f"reflecting is {'better' if lift.points > 0 else 'worse'} than a blind retry"
    else:
        verdict = "reflecting is not shown to be better or worse than a blind retry"
    return f"{solved}; {verdict}: {_change(lift, evaluation.blind_retry)}."


def _change(change: Difference, before: Rate | None) -> str:
    """Write a change from a rate, and the gain that its tasks would have shown if there is room for it."""
    text = (
        f"{change.points:+.1f} points [{change.low:+.1f}, {change.high:+.1f}] on {count(change.n_tasks, 'task')} "
        f"(p = {change.p_value:.2g})"
    )
    if change.p_value < 1 - CONFIDENCE:
        return text
    seen = smallest_lift(change.n_tasks, discordance_of(change))
    if seen is None or (before is not None and seen > 100 * (1 - before.rate)):
        return f"{text}, which are too few to show any gain that is possible"
    return f"{text}, which would show a gain of {seen:.1f} points with a probability of {POWER:.0%}"
