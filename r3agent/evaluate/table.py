"""Plain-text tables of evaluations and comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from r3agent._util.checked import checked
from r3agent._util.console import columns
from r3agent.evaluate.comparison import Comparison
from r3agent.evaluate.metrics import Evaluation
from r3agent.evaluate.statistics import Difference, Rate

ROWS = ("first_try", "after_reflection", "blind_retry", "lift_over_blind")
AT_EQUAL_TOKENS = ("blind_equal_tokens", "lift_at_equal_tokens")
"""Further rows, if enough blind retries were collected."""


@checked
def table(result: Evaluation | Comparison) -> str:
    """Render one line per cell, in percent and percentage points, with 95 % intervals."""
    return _of_comparison(result) if isinstance(result, Comparison) else _of_evaluation(result)


def _of_evaluation(evaluation: Evaluation) -> str:
    rows = [["", evaluation.policy]]
    rows += [[row.replace("_", " "), _cell(getattr(evaluation, row))] for row in _rows(evaluation)]
    rows += [["errors", _cell(evaluation.errors)]]
    return "\n".join([*columns(rows), _counts(evaluation), *_cost(evaluation)])


def _of_comparison(comparison: Comparison) -> str:
    old, new = comparison.baseline, comparison.candidate
    rows = [["", old.policy, new.policy, "change, points", "p"]]
    for row in dict.fromkeys([*_rows(old), *_rows(new)]):
        change: Difference | None = getattr(comparison, row)
        p_value = "–" if change is None else f"{change.p_value:.2g}"
        rows += [[row.replace("_", " "), _cell(getattr(old, row)), _cell(getattr(new, row)), _cell(change), p_value]]
    rows += [["errors", _cell(old.errors), _cell(new.errors), "", ""]]
    lines = [*columns(rows), f"{old.policy}: {_counts(old)}", f"{new.policy}: {_counts(new)}"]
    lines += [f"{version.policy}: {line}" for version in (old, new) for line in _cost(version)]
    for policy, only in ((old.policy, comparison.only_in_baseline), (new.policy, comparison.only_in_candidate)):
        if only:
            named = ", ".join(only[:3]) + (", ..." if len(only) > 3 else "")
            lines.append(f"{len(only)} tasks only in {policy}, left out of the change: {named}")
    return "\n".join(lines)


def _rows(evaluation: Evaluation) -> tuple[str, ...]:
    return ROWS if evaluation.blind_equal_tokens is None else (*ROWS, *AT_EQUAL_TOKENS)


def _cost(evaluation: Evaluation) -> list[str]:
    cost = evaluation.equal_tokens
    if cost is None:
        return []
    remedy = "" if cost.enough else f"; eval.blind_retries = {ceil(cost.retries)} compares them at equal tokens"
    return [
        f"reflecting and the retry after it sample {cost.reflecting:.1f} tokens, a blind retry {cost.blind_retry:.1f}, "
        f"so they cost as much as {cost.retries:.1f} blind retries{remedy}"
    ]


def _cell(value: Rate | Difference | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, Rate):
        return f"{100 * value.rate:.1f} % [{100 * value.low:.1f}, {100 * value.high:.1f}]"
    return f"{value.points:+.1f} [{value.low:+.1f}, {value.high:+.1f}]"


def _counts(evaluation: Evaluation) -> str:
    asked = "" if evaluation.asked is None else "; {} of {} tries asked the policy".format(*evaluation.asked)
    noisy = f"; {evaluation.noisy_verdicts} noisy verdicts" if evaluation.noisy_verdicts else ""
    unfinished = _by_kind("tries without a whole answer", evaluation.unfinished)
    unfinished += _by_kind("reflections without a whole answer", evaluation.unfinished_reflections)
    errors = _by_kind("errors", evaluation.errors_by_kind)
    return f"{evaluation.n_episodes} episodes of {evaluation.n_tasks} tasks{asked}{noisy}{unfinished}{errors}"


def _by_kind(name: str, counts: Mapping[str, int]) -> str:
    return f"; {name}: {', '.join(f'{n} {kind}' for kind, n in counts.items())}" if counts else ""
