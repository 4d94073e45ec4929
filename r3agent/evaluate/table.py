"""Plain-text tables of evaluations and comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from r3agent._util.checked import checked
from r3agent._util.console import columns
from r3agent._util.messages import count
from r3agent.evaluate.behaviour import PAID, Behaviour, Length, LengthChange, PerSuccess
from r3agent.evaluate.comparison import Comparison
from r3agent.evaluate.metrics import Evaluation
from r3agent.evaluate.statistics import Difference, Rate

ROWS = ("first_try", "after_reflection", "blind_retry", "lift_over_blind")
FURTHER = {
    "blind_equal_tokens": "lift_at_equal_tokens",
    "generic_reflection": "lift_over_generic",
    "donor_reflection": "lift_over_donor",
}
"""Rows of further controls, if they were collected."""


@checked
def table(result: Evaluation | Comparison) -> str:
    """Render one line per cell, in percent and percentage points, with 95 % intervals."""
    return _of_comparison(result) if isinstance(result, Comparison) else _of_evaluation(result)


def _of_evaluation(evaluation: Evaluation) -> str:
    rows = [["", evaluation.policy]]
    rows += [[row.replace("_", " "), _cell(getattr(evaluation, row))] for row in _rows(evaluation)]
    rows += [["errors", _cell(evaluation.errors)]]
    rows += [[name, *cells] for name, cells in _behaviour(evaluation)]
    return "\n".join([*columns(rows), _counts(evaluation), *_errored(evaluation), *_cost(evaluation)])


def _of_comparison(comparison: Comparison) -> str:
    old, new = comparison.baseline, comparison.candidate
    rows = [["", old.policy, new.policy, "change, points", "p"]]
    for row in dict.fromkeys([*_rows(old), *_rows(new)]):
        change: Difference | None = getattr(comparison, row)
        rows += [[row.replace("_", " "), _cell(getattr(old, row)), _cell(getattr(new, row)), *_change(change)]]
    for check in comparison.forgetting:
        rows += [[f"first try, {check.source}", _cell(check.before), _cell(check.after), *_change(check.change)]]
    rows += [["errors", _cell(old.errors), _cell(new.errors), "", ""]]
    for name, cells in _behaviour(old, new):
        change = comparison.leaks if name == "leaks" else None
        moved = _cell(comparison.reflection_length) if name == "reflection length" else ""
        rows += [[name, *cells, *(_change(change) if change else (moved, ""))]]
    lines = [*columns(rows), *_flips(comparison), f"{old.policy}: {_counts(old)}", f"{new.policy}: {_counts(new)}"]
    lines += [f"{version.policy}: {line}" for version in (old, new) for line in (*_errored(version), *_cost(version))]
    for check in comparison.forgetting:
        lines.append(f"{'within' if check.within else 'NOT within'} its budget: {check.condition}")
    for policy, only in ((old.policy, comparison.only_in_baseline), (new.policy, comparison.only_in_candidate)):
        if only:
            named = ", ".join(only[:3]) + (", ..." if len(only) > 3 else "")
            lines.append(f"{count(len(only), 'task')} only in {policy}, left out of the change: {named}")
    return "\n".join(lines)


def _rows(evaluation: Evaluation) -> tuple[str, ...]:
    further = [row for pair in FURTHER.items() if getattr(evaluation, pair[0]) is not None for row in pair]
    return (*ROWS, *further)


def _behaviour(*evaluations: Evaluation) -> list[tuple[str, list[str]]]:
    """Return the rows that a version has, with a cell for each version."""
    found = [e.behaviour or Behaviour() for e in evaluations]
    rows: dict[str, list[Rate | Length | PerSuccess | None]] = {
        "wrong to right": [b.wrong_to_right for b in found],
        "right to wrong": [b.right_to_wrong for b in found],
        "leaks": [b.leaks for b in found],
        "reflection length": [b.reflection_length for b in found],
        **{f"per success, {cell.replace('_', ' ')}": [b.per_success.get(cell) for b in found] for cell in PAID},
    }
    return [(name, [*map(_cell, values)]) for name, values in rows.items() if any(values)]


def _flips(comparison: Comparison) -> list[str]:
    """Return how many tasks became right, and wrong, in each cell of tries."""
    rows = [row for row in (*ROWS, *FURTHER) if not row.startswith("lift")]
    found: dict[str, Difference] = {row: change for row in rows if (change := getattr(comparison, row)) is not None}
    texts = [f"{row.replace('_', ' ')} {change.n_up} up, {change.n_down} down" for row, change in found.items()]
    return [f"tasks that changed: {'; '.join(texts)}"] if texts else []


def _errored(evaluation: Evaluation) -> list[str]:
    """Say how far the errored episodes, which are in no cell, may have moved the rate after a reflection."""
    if (found := evaluation.with_errored) is None:
        return []
    episodes = count(found.failed, "errored episode")
    return [
        f"{episodes} had failed the first try: with the errored ones, after reflection is "
        f"{100 * found.least:.1f} % to {100 * found.most:.1f} %"
    ]


def _cost(evaluation: Evaluation) -> list[str]:
    cost = evaluation.equal_tokens
    if cost is None:
        return []
    remedy = "" if cost.enough else f"; eval.blind_retries = {ceil(cost.retries)} compares them at equal tokens"
    return [
        f"reflecting and the retry after it sample {cost.reflecting:.1f} tokens, a blind retry {cost.blind_retry:.1f}, "
        f"so they cost as much as {cost.retries:.1f} blind retries{remedy}"
    ]


def _change(change: Difference | None) -> tuple[str, str]:
    return _cell(change), "–" if change is None else f"{change.p_value:.2g}"


def _cell(value: Rate | Difference | Length | LengthChange | PerSuccess | None) -> str:
    match value:
        case None:
            return "–"
        case Rate():
            return f"{100 * value.rate:.1f} % [{100 * value.low:.1f}, {100 * value.high:.1f}]"
        case Difference():
            return f"{value.points:+.1f} [{value.low:+.1f}, {value.high:+.1f}]"
        case Length():
            return f"{value.tokens:.1f} tokens"
        case LengthChange():
            return f"{value.tokens:+.1f} [{value.low:+.1f}, {value.high:+.1f}] tokens"
        case PerSuccess():
            cost = "" if value.cost is None else f", {value.cost:.3g} {value.currency}".rstrip()
            return f"{value.tokens:.1f} tokens{cost}"


def _counts(evaluation: Evaluation) -> str:
    asked = ""
    if evaluation.asked is not None:
        asked = f"; {evaluation.asked[0]} of {count(evaluation.asked[1], 'try')} asked the policy"
    noisy = f"; {count(evaluation.noisy_verdicts, 'noisy verdict')}" if evaluation.noisy_verdicts else ""
    unfinished = _by_kind("tries without a whole answer", evaluation.unfinished)
    unfinished += _by_kind("reflections without a whole answer", evaluation.unfinished_reflections)
    errors = _by_kind("errors", evaluation.errors_by_kind) + _by_kind("errors of controls", evaluation.control_errors)
    counted = f"{count(evaluation.n_episodes, 'episode')} of {count(evaluation.n_tasks, 'task')}"
    return f"{counted}{asked}{noisy}{unfinished}{errors}"


def _by_kind(name: str, counts: Mapping[str, int]) -> str:
    return f"; {name}: {', '.join(f'{n} {kind}' for kind, n in counts.items())}" if counts else ""
