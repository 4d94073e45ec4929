"""Report of rows that were made in batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

from r3agent.train.config import TrainConfig
from r3agent.train.remedies import remedies
from r3agent.train.report import MAX_APART, Rewards, RowReport, labels_of, reward_means
from r3agent.train.row import Dropped, Row


def merge_reports(
    reports: Sequence[RowReport],
    rewards: Sequence[Rewards],
    rows: Sequence[Row],
    dropped: Sequence[Dropped],
    config: TrainConfig,
) -> RowReport:
    """Make the report of all batches from that of each.

    Args:
        rewards, rows, dropped: those of all batches.
    """
    if len(reports) == 1:
        return reports[0]
    merged: dict[str, Any] = {}
    for name in RowReport.model_fields:
        values: list[Any] = [getattr(report, name) for report in reports]
        if name == "apart_in":
            every = {reason: [v.get(reason, ()) for v in values] for value in values for reason in value}
            merged[name] = {reason: tuple(chain(*ids))[:MAX_APART] for reason, ids in every.items()}
        elif name == "last_error":
            merged[name] = next((value for value in reversed(values) if value is not None), None)
        elif name not in ("reward_means", "remedies"):
            is_count = RowReport.model_fields[name].annotation is int
            merged[name] = sum(values) if is_count else dict(sum(map(Counter, values), Counter()))
    earned: Rewards = {label: [x for batch in rewards for x in batch[label]] for label in config.credit}
    merged["spans"] = {str(label): len(values) for label, values in earned.items()}  # with zeros, which a sum drops
    return RowReport(**merged, reward_means=reward_means(earned), remedies=remedies(labels_of(config), rows, dropped))
