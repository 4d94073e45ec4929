"""Ancestors of a version: the rows that they were trained on, and the base policy that they descend from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson

from r3agent._util.files import write_atomically
from r3agent.records.versions import BASE
from r3agent.store.reading import read_record
from r3agent.store.registry import CARD_FILE, PolicyCard
from r3agent.train.config import PolicyStart
from r3agent.train.row import Row

ROWS_FILE = "rows.jsonl"
"""File in a version's directory with the trajectory, the span (of a try, the first) and the label of all that it was
trained on."""

STEPS_FILE = "steps.jsonl"
"""File in the version's directory with the log of each optimizer step."""


def write_rows(directory: Path, rows: Iterable[Row]) -> None:
    lines = [orjson.dumps(identity).decode() for identity in dict.fromkeys(map(_identity, rows))]
    write_atomically(directory / ROWS_FILE, "\n".join([*lines, ""]))


def count_repeated(rows: Iterable[Row], policies_dir: Path, version: str) -> int:
    """Count the rows that `version` or one of its ancestors in `policies_dir` was trained on already."""
    before: set[tuple[str, ...]] = set()
    for card in ancestry(policies_dir, version):
        path = policies_dir / card.version / ROWS_FILE
        if path.exists():
            before.update(tuple(orjson.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())
    return sum(_identity(row) in before for row in rows)


def base_model(start: PolicyStart, policies_dir: Path) -> str | None:
    """Return the directory or hub id of the base policy's weights, or `None` if it is unknown."""
    for card in ancestry(policies_dir, start.version):
        if card.version == BASE:
            return card.base_path
    return start.model if start.adapter is not None or start.version == BASE else None


def lineage_of(policies_dir: Path, version: str) -> list[str] | None:
    """Return `version` and its ancestors, newest first, or `None` if `policies_dir` does not have its card."""
    parents = [card.parent for card in ancestry(policies_dir, version)]
    return [version, *filter(None, parents)] if parents else None


def ancestry(policies_dir: Path, version: str | None) -> Iterator[PolicyCard]:
    """Read the cards of `version` and its ancestors, as far as they are in `policies_dir`."""
    while version is not None and (path := policies_dir / version / CARD_FILE).exists():
        card = read_record(PolicyCard, path)
        yield card
        version = card.parent


def _identity(row: Row) -> tuple[str, ...]:
    return (row.trajectory_id, row.span_id, row.label)
