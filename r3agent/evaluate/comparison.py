"""Comparison of two policy versions on the same tasks, and its file."""

from __future__ import annotations

import operator
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from r3agent._util.files import write_atomically
from r3agent._util.messages import count
from r3agent.errors import ConfigError
from r3agent.evaluate.behaviour import LengthChange, leak_means, length_change, reflection_lengths
from r3agent.evaluate.cells import CELLS, Cell, Means, apart, cell_means, change, paired_differences
from r3agent.evaluate.forgetting import Forgetting
from r3agent.evaluate.metrics import NEWER, Evaluation, evaluate
from r3agent.evaluate.sentinel import Example, Second, disagreement_means, examples
from r3agent.evaluate.settings import check_same_settings
from r3agent.evaluate.statistics import Difference
from r3agent.records.cost import Prices
from r3agent.records.trajectory import Record, Trajectory, VersionedRecord, each_trajectory
from r3agent.store.reading import read_record


class Draw(Record):
    """Tasks of a sequential comparison, in the order in which they decide."""

    planned: int = Field(ge=1)
    """Largest number of tasks, which was fixed before the first one."""
    gains: tuple[float, ...]
    """Gain after reflection of each task that both versions have a complete episode of, between -1 and 1."""


class Comparison(Record):
    """Candidate minus baseline, task by task."""

    baseline: Evaluation
    candidate: Evaluation
    first_try: Difference | None
    after_reflection: Difference | None
    blind_retry: Difference | None
    lift_over_blind: Difference | None
    """Change in the gain of reflecting over a blind retry: a difference of differences."""
    blind_equal_tokens: Difference | None = None
    lift_at_equal_tokens: Difference | None = None
    """Change in the gain of reflecting over the control at equal tokens, each version's own."""
    generic_reflection: Difference | None = None
    lift_over_generic: Difference | None = None
    """Change in the gain of reflecting over a fixed text in place of a reflection."""
    donor_reflection: Difference | None = None
    lift_over_donor: Difference | None = None
    """Change in the gain of reflecting over a reflection on another task."""
    reflection_length: LengthChange | None = None
    leaks: Difference | None = None
    """Change in the share of reflections that contain the answer of their own retry, on tasks that both versions
    reflect on."""
    forgetting: tuple[Forgetting, ...] = ()
    """First tries on tasks of other sources."""
    only_in_baseline: tuple[str, ...]
    """Tasks without a complete episode of the candidate; no difference includes them."""
    only_in_candidate: tuple[str, ...]
    disagreement: Difference | None = Field(default=None, exclude_if=lambda change: change is None)
    """Change in the share of answers that the task's verifier passes and a second one refuses."""
    examples: dict[str, tuple[Example, ...]] = Field(default={}, exclude_if=operator.not_)
    """Episodes of the candidate that show a sign of reward hacking, by sign or name of another source."""
    draw: Draw | None = Field(default=None, exclude_if=lambda draw: draw is None)
    """Order of the tasks, for a gate that may decide before the last one; `None` for one that uses all at once."""


NEWER_CHANGES = {
    "generic_reflection",
    "lift_over_generic",
    "donor_reflection",
    "lift_over_donor",
    "reflection_length",
    "leaks",
    "forgetting",
    "disagreement",
    "examples",
    "draw",
}
"""Fields of a comparison that older releases refuse."""


def compare(
    baseline: Iterable[Trajectory],
    candidate: Iterable[Trajectory],
    *,
    mixed: bool = False,
    prices: Prices | None = None,
    order: Sequence[str] | None = None,
    second: Second | None = None,
) -> Comparison:
    """Compare two policy versions by their episodes on the same tasks.

    Args:
        mixed: accept episodes of different settings, e.g. to compare prompts instead of policies.
        prices: prices of tokens, for the cost per success.
        order: ids of all tasks that a sequential test may use, in the order of their draw; the episodes may be those of
            the first ones only.
        second: verdicts of a second verifier on the same answers, e.g. of an exact one beside a judge.

    Raises:
        ConfigError: they have no task in common, a task differs between them, or as `evaluate`.
    """
    baseline, candidate = list(each_trajectory(baseline)), list(each_trajectory(candidate))
    _check_same_tasks(baseline, candidate)
    if not mixed:
        check_same_settings([*baseline, *candidate])
    before, after = cell_means(baseline), cell_means(candidate)
    (old, _), (new, _) = apart(baseline), apart(candidate)
    gains = paired_differences(after["after_reflection"], before["after_reflection"])
    drawn = tuple(gains[task] for task in order or () if task in gains)
    tried_before, tried_after = before["first_try"].keys(), after["first_try"].keys()
    second, length = second or {}, length_change(reflection_lengths(new), reflection_lengths(old))
    cells: Any = {cell: change(after[cell], before[cell]) for cell in CELLS}
    return Comparison(
        baseline=evaluate(baseline, mixed=mixed, prices=prices),
        candidate=evaluate(candidate, mixed=mixed, prices=prices),
        **cells,
        lift_over_blind=change(_lifts(after, "blind_retry"), _lifts(before, "blind_retry"), bound=2.0),
        lift_at_equal_tokens=change(
            _lifts(after, "blind_equal_tokens"), _lifts(before, "blind_equal_tokens"), bound=2.0
        ),
        lift_over_generic=change(_lifts(after, "generic_reflection"), _lifts(before, "generic_reflection"), bound=2.0),
        lift_over_donor=change(_lifts(after, "donor_reflection"), _lifts(before, "donor_reflection"), bound=2.0),
        reflection_length=length,
        leaks=change(leak_means(new), leak_means(old)),
        only_in_baseline=tuple(sorted(tried_before - tried_after)),
        only_in_candidate=tuple(sorted(tried_after - tried_before)),
        disagreement=change(disagreement_means(new, second), disagreement_means(old, second)),
        examples={**examples(new, longer=length and length.tokens > 0, second=second)},
        draw=Draw(planned=len(order), gains=drawn) if order else None,
    )


def _lifts(means: dict[Cell, Means], control: Cell) -> Means:
    return paired_differences(means["after_reflection"], means[control])


def _check_same_tasks(baseline: list[Trajectory], candidate: list[Trajectory]) -> None:
    tasks = {t.task.id: t.task for t in baseline}
    common = [t.task for t in candidate if t.task.id in tasks]
    if not common:
        raise ConfigError(
            f"0 tasks in common: the baseline has {count(len(baseline), 'episode')}, the candidate {len(candidate)}; "
            "evaluate both versions on the same tasks"
        )
    if changed := [task.id for task in common if task != tasks[task.id]]:
        raise ConfigError(f"task {changed[0]} is not the same in both: its messages, tools or info differ")


# ---- files of a run ----

WHOLE = "whole."
"""Beginning of the name of a file with the whole of a comparison."""


class StoredComparison(VersionedRecord):
    """File in `eval/`: a comparison and the settings that produced it."""

    schema_version: Literal[1] = 1
    settings: str
    """Digest of all that decides which episodes are compared."""
    drawn: dict[str, int] = {}
    """Settings that decided on the number of its tasks and episodes."""
    tasks: tuple[str, ...] = Field(default=(), exclude_if=lambda tasks: not tasks)
    """Ids of the tasks of a gate that drew fresh ones, in the order of the draw."""
    comparison: Comparison


def write_comparison(
    path: Path, settings: str, comparison: Comparison, *, drawn: dict[str, int], tasks: Sequence[str] = ()
) -> None:
    """Write a comparison whole into a file beside `path`, and into `path` without fields that older releases refuse."""
    stored = StoredComparison(settings=settings, drawn=drawn, tasks=(*tasks,), comparison=comparison)
    newer: Any = {**dict.fromkeys(NEWER_CHANGES, True), "baseline": NEWER, "candidate": NEWER}
    write_atomically(whole_file(path), stored.model_dump_json(indent=2))
    write_atomically(path, stored.model_dump_json(indent=2, exclude={"tasks": True, "comparison": newer}))


def read_comparison(path: Path, settings: str) -> Comparison | None:
    """Read the stored comparison; `None` if there is none, or if its settings differ.

    Raises:
        RecordError, SchemaVersionError: the file is damaged, or another version of r3agent wrote it.
    """
    stored = read_stored(path) if path.exists() else None
    return stored.comparison if stored is not None and stored.settings == settings else None


def read_stored(path: Path) -> StoredComparison:
    """Read a stored comparison, whole unless an older release wrote it.

    Raises:
        RecordError, SchemaVersionError: as `read_comparison`.
    """
    stored = read_record(StoredComparison, path)
    whole = read_record(StoredComparison, whole_file(path)) if whole_file(path).exists() else stored
    return whole if whole.settings == stored.settings else stored


def whole_file(path: Path) -> Path:
    """Return the path of the file with the whole of a comparison, beside the one that older releases read."""
    return path.with_name(f"{WHOLE}{path.name}")


def forget_examples(run: Path, ids: Container[str]) -> None:
    """Take the texts of episodes out of the stored comparisons of a run; their numbers stay.

    Raises:
        RecordError, SchemaVersionError: as `read_comparison`.
    """
    for path in sorted([*run.glob(f"eval/{WHOLE}*.json"), *run.glob(f"gate/v*/{WHOLE}*.json")]):
        stored = read_record(StoredComparison, path)
        left = {
            sign: tuple(e for e in shown if e.trajectory_id not in ids)
            for sign, shown in stored.comparison.examples.items()
        }
        if left != stored.comparison.examples:
            examples = {sign: shown for sign, shown in left.items() if shown}
            comparison = stored.comparison.model_copy(update={"examples": examples})
            changed = stored.model_copy(update={"comparison": comparison})
            write_atomically(path, changed.model_dump_json(indent=2))
