"""Report of rows that are made in batches."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from statistics import fmean
from typing import Any

from r3agent.train.config import TrainConfig
from r3agent.train.remedies import DropCounts, count_dropped, remedies
from r3agent.train.report import MAX_APART, Rewards, RowReport, labels_of
from r3agent.train.row import Dropped


class Merging:
    """Report of all batches, made from that of each."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._reports = list[RowReport]()
        self._earned = {label: array("d") for label in config.credit}
        self._dropped: DropCounts = {}

    def add(self, report: RowReport, rewards: Rewards, dropped: Iterable[Dropped]) -> None:
        """Add a batch."""
        self._reports.append(report)
        for label, earned in rewards.items():
            self._earned[label].extend(x for x in earned if x is not None)
        for label, counts in count_dropped(dropped).items():
            self._dropped.setdefault(label, Counter()).update(counts)

    def merged(self) -> RowReport:
        """Make the report."""
        if len(self._reports) == 1:
            return self._reports[0]
        merged: dict[str, Any] = {}
        for name in RowReport.model_fields:
            values: list[Any] = [getattr(report, name) for report in self._reports]
            if name == "apart_in":
                every = {reason: [v.get(reason, ()) for v in values] for value in values for reason in value}
                merged[name] = {reason: tuple(chain(*ids))[:MAX_APART] for reason, ids in every.items()}
            elif name == "last_error":
                merged[name] = next((value for value in reversed(values) if value is not None), None)
            elif name == "spans":  # with zeros, which a sum of counters drops
                merged[name] = {str(label): sum(value[label] for value in values) for label in self._earned}
            elif name not in ("reward_means", "remedies"):
                is_count = RowReport.model_fields[name].annotation is int
                merged[name] = sum(values) if is_count else dict(sum(map(Counter, values), Counter()))
        return RowReport(
            **merged,
            reward_means={str(label): fmean(earned) for label, earned in self._earned.items() if earned},
            remedies=remedies(labels_of(self._config), merged["labels"], self._dropped),
        )
