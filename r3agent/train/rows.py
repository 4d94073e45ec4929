"""Conversion of trajectories to rows: the choice of spans to train on.

Only the sampled tokens of a credited reflection or try have a loss; what came before and between them has none. A try
that cannot be trained on as a whole is left out as a whole.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from r3agent._util.checked import checked
from r3agent.errors import TrainingError
from r3agent.records.credit import Group, credit_label, follows_success, groups, payers, reward
from r3agent.records.leak import leaks
from r3agent.records.trajectory import HELD_OUT, SOURCE, SPLIT, Trajectory
from r3agent.store.batches import batches_of, kept
from r3agent.train.advantages import Every, among_siblings, among_tasks, scale_advantages, scales_of
from r3agent.train.baseline import Baselines
from r3agent.train.config import TrainConfig
from r3agent.train.distillation import rows_without_siblings
from r3agent.train.leaks import reward_of_leak
from r3agent.train.merging import Merging
from r3agent.train.report import RowReport, report_rows, rewards_of
from r3agent.train.row import Credited, Dropped, Retokenise, Row, RowMaker

if TYPE_CHECKING:
    from datasets import Dataset

    from r3agent.train.row_file import RowFile


@checked
def build_rows(
    trajectories: Iterable[Trajectory],
    *,
    config: TrainConfig,
    version: str,
    lineage: Sequence[str] | None = None,
    retokenise: Retokenise | None = None,
) -> tuple[list[Row], RowReport]:
    """Make the rows for training the policy `version`, with siblings adjacent, and a report of dropped spans.

    Args:
        lineage: `version` and its ancestors, newest first, for `max_staleness`; `None` takes all older numbers for
            ancestors. `r3agent.train.lineage.lineage_of` reads it from a run's `policies`.
        retokenise: tokenises spans without recorded tokens; `None` drops them.

    Raises:
        TrainingError: no row is left.
    """
    rows, every = list[Row](), Every()
    report = add_rows(rows.extend, every, trajectories, RowMaker(config, version, lineage, retokenise))
    return scale_advantages(rows, every, config), report


def file_rows(
    trajectories: Iterable[Trajectory],
    *,
    config: TrainConfig,
    version: str,
    lineage: Sequence[str] | None = None,
    retokenise: Retokenise | None = None,
) -> tuple[RowFile, RowReport]:
    """Make the rows as `build_rows` does, in a temporary file; needs the `train` extra.

    Raises:
        TrainingError: as `build_rows`.
        ConfigError: the file cannot be written.
    """
    from r3agent.train.row_file import RowFile

    rows, every = RowFile(), Every()
    report = add_rows(rows.extend, every, trajectories, RowMaker(config, version, lineage, retokenise))
    if scales := scales_of(every, config):
        rows.rescale(scales)
    return rows, report


def add_rows(
    add: Callable[[list[Row]], None], every: Every, trajectories: Iterable[Trajectory], make_row: RowMaker
) -> RowReport:
    """Make the rows, batch by batch, with advantages that are not scaled.

    Args:
        add: receives the rows of each batch.
        every: receives the rewards of all siblings.

    Raises:
        TrainingError: no row is left.
    """
    merging, config = Merging(make_row.config), make_row.config
    for batch, credited in _credited(trajectories, make_row, every):
        add(credited.rows)
        report = report_rows(batch, credited, config, make_row.version, make_row.lineage)
        merging.add(report, rewards_of(batch, config), credited.dropped)
    if not (report := merging.merged()).rows:
        raise TrainingError(report.why_empty())
    return report


def why_untrainable(
    trajectories: Iterable[Trajectory], *, config: TrainConfig, version: str, lineage: Sequence[str] | None = None
) -> str | None:
    """Return the message of the error that `build_rows` would raise, or `None`, without tokenising."""
    make_row, merging = RowMaker(config, version, lineage, stand_in(config)), Merging(config)
    for batch, credited in _credited(trajectories, make_row, {}):
        if credited.rows:
            return None
        merging.add(report_rows(batch, credited, config, version), rewards_of(batch, config), credited.dropped)
    return merging.merged().why_empty()


def stand_in(config: TrainConfig) -> Retokenise | None:
    """Return a placeholder for tokenising: credit depends on which spans have a row, not on its token ids."""
    return (lambda trajectory, span: ([0], [0])) if config.retokenise == "allow" else None


@checked
def credit_spans(
    trajectories: Iterable[Trajectory],
    *,
    config: TrainConfig,
    version: str,
    lineage: Sequence[str] | None = None,
    retokenise: Retokenise | None = None,
    of: str | None = None,
) -> Credited:
    """Credit spans as `build_rows` does, but return all dropped spans, and do not raise if there is no row.

    Args:
        of: id of a trajectory; of a store, only what belongs to its batch is returned, and the rest is not kept.
    """
    every, found = Every(), Credited([], [], set(), 0)
    make_row = RowMaker(config, version, lineage, retokenise)
    for batch, credited in _credited(trajectories, make_row, every):
        if of is None or any(t.trajectory_id == of for t in batch):
            rows, dropped = [*found.rows, *credited.rows], [*found.dropped, *credited.dropped]
            alike = found.zero_variance_groups + credited.zero_variance_groups
            found = Credited(rows, dropped, found.leaked | credited.leaked, alike)
    return found._replace(rows=scale_advantages(found.rows, every, config))


def _credited(
    trajectories: Iterable[Trajectory], make_row: RowMaker, every: Every
) -> Iterator[tuple[list[Trajectory], Credited]]:
    """Credit the spans of each batch; baselines without siblings need the rewards of all batches before."""
    baselines = None
    if make_row.config.baseline == "batch":
        trajectories, baselines = kept(trajectories), Baselines(make_row.config)
        for batch in batches_of(trajectories):
            reasons = left_out(batch)
            baselines.add([t for t in batch if t.trajectory_id not in reasons])
    for batch in batches_of(trajectories):
        yield batch, _credit(batch, make_row, every, baselines)


def _credit(trajectories: list[Trajectory], make_row: RowMaker, every: Every, baselines: Baselines | None) -> Credited:
    """Credit the spans of all trajectories of some tasks.

    Args:
        every: as of `Every`, for `scale_advantages`, which the advantages still need.
        baselines: of all tasks; `None` compares siblings.
    """
    config = make_row.config
    reasons = left_out(trajectories)
    whole = [t for t in trajectories if t.trajectory_id not in reasons]
    dropped = list(_without_reward(trajectories, config, reasons))
    leaked: set[tuple[str, str]] = set()
    of_span = None if baselines is None else baselines.of(whole)
    rows, zero_variance_groups = list[Row](), 0
    for label, source in config.credit.items():
        for group in groups(whole, label, source):
            made = list(_rows_of(group, make_row, leaked))
            dropped += [drop for drop in made if isinstance(drop, Dropped)]
            tries_G = [rows for rows in made if isinstance(rows, list)]
            if of_span is None:
                compared, left = among_siblings(tries_G, config)
            else:
                compared, left = among_tasks(tries_G, of_span, config)
            if compared or len(tries_G) > 1:
                every.setdefault(label, array("d")).extend(rows[0].reward for rows in tries_G)
            rows += compared
            dropped += left
            zero_variance_groups += len(tries_G) > 1 and not compared
    made = list(rows_without_siblings(whole, make_row))
    dropped += [drop for drop in made if isinstance(drop, Dropped)]
    rows += [row for rows in made if isinstance(rows, list) for row in rows]
    return Credited(rows, dropped, leaked, zero_variance_groups)


def to_dataset(rows: Iterable[Row]) -> Dataset:
    """Make the trainer's `datasets.Dataset`, with one column per field; needs the `train` extra."""
    from datasets import Dataset

    return Dataset.from_list([row._asdict() for row in rows])


def left_out(trajectories: Sequence[Trajectory]) -> dict[str, str]:
    """Return why trajectories are left out as a whole, by id."""
    newest: dict[tuple[str, str], Trajectory] = {}
    for trajectory in sorted(trajectories, key=lambda t: t.created_at):
        newest[_collected(trajectory)] = trajectory
    reasons: dict[str, str] = {}
    for trajectory in trajectories:
        if trajectory.error is not None:
            reasons[trajectory.trajectory_id] = "errored"
        elif trajectory.metadata.get(SPLIT) in HELD_OUT:
            reasons[trajectory.trajectory_id] = "held_out"
        elif trajectory.control is not None:
            reasons[trajectory.trajectory_id] = "control"
        elif SOURCE in trajectory.metadata and newest[_collected(trajectory)].task.digest != trajectory.task.digest:
            reasons[trajectory.trajectory_id] = "task_changed"
    return reasons


def _collected(trajectory: Trajectory) -> tuple[str, str]:
    """Return the source and the id of the task of a collected trajectory, which identify it over corrections."""
    return str(trajectory.metadata.get(SOURCE)), trajectory.task.id


def _without_reward(
    trajectories: Iterable[Trajectory], config: TrainConfig, reasons: Mapping[str, str]
) -> Iterator[Dropped]:
    """Find the reflections and tries of credited labels that are in no group."""
    for trajectory in trajectories:
        for span in trajectory.spans:
            label = credit_label(trajectory, span)
            if label not in config.credit or trajectory.is_step(span) or span.span_id in trajectory.recorded:
                continue
            if reason := reasons.get(trajectory.trajectory_id):
                yield Dropped(trajectory.trajectory_id, span.span_id, label, reason)
            elif follows_success(trajectory, span):
                yield Dropped(trajectory.trajectory_id, span.span_id, label, "after_success")
            elif reward(trajectory, span, config.credit[label]) is None:
                paying = payers(trajectory, span, config.credit[label])
                reason = "unlabelled" if any(a_try.verdict is None for a_try in paying) else "no_reward"
                reason = "errored" if any(a_try.error for a_try in paying) else reason
                yield Dropped(trajectory.trajectory_id, span.span_id, label, reason)


def _rows_of(group: Group, make_row: RowMaker, leaked: set[tuple[str, str]]) -> Iterator[list[Row] | Dropped]:
    """Make each sibling's rows, without advantages; treat leaks as configured, and add them to `leaked`."""
    config = make_row.config
    for trajectory, span, earned in zip(group.trajectories_G, group.spans_G, group.rewards_G, strict=True):
        if group.label == "reflect" and leaks(trajectory, span):
            leaked.add((trajectory.trajectory_id, span.span_id))
            earned = reward_of_leak(trajectory, span, earned, config)
        if earned is None:
            yield Dropped(trajectory.trajectory_id, span.span_id, group.label, "leaked")
            continue
        yield make_row(trajectory, span, label=group.label, group_id=group.group_id, reward=earned)
