"""`r3agent inspect`: a summary of a run's trajectories, or one trajectory as a conversation."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from r3agent._util.messages import count
from r3agent.cli.command import DEFAULT_RUN, Output, Overrides, next_step, verb
from r3agent.cli.inspect_view import render, summary_lines, verdict_lines
from r3agent.data.statistics import PassRates
from r3agent.errors import ConfigError
from r3agent.records.summary import Tally
from r3agent.records.trajectory import Trajectory
from r3agent.run.config import CONFIG_FILE, load_config
from r3agent.run.inspect import inspect_trajectory
from r3agent.run.split_guard import SplitGuard
from r3agent.store.batches import StoredTrajectories
from r3agent.store.index import entries, lookup
from r3agent.store.models import resolve_model
from r3agent.store.reading import Unreadable, report_left_out
from r3agent.store.registry import Registry
from r3agent.store.shards import store_at
from r3agent.store.verdicts import read_layers, verdict_sources, verifiers_of
from r3agent.train.rows import left_out

logger = logging.getLogger(__name__)

MAX_IDS = 10
"""Number of ids that the summary lists as examples."""


@verb()
def inspect(
    *words: Annotated[
        str, Parameter(name="RUN [TRAJECTORY]", help=f"Run directory (default {DEFAULT_RUN}); id, or a prefix of it.")
    ],
    overrides: Overrides,
    run: Annotated[
        Path | None, Parameter(help="Run directory, as for other verbs; the only positional is then TRAJECTORY.")
    ] = None,
) -> Output:
    rest = list(words)
    run = run or Path(rest.pop(0) if rest else DEFAULT_RUN)
    directory = store_at(run)
    if len(rest) > 1:
        raise ConfigError(f"{' '.join(rest)}: one trajectory at a time; r3agent inspect RUN TRAJECTORY")
    if not directory.is_dir() or next(entries(directory, report=False), None) is None:
        raise ConfigError(f"{directory}: no trajectories; collect some first, or name another run")
    if not rest:
        return _overview(run)
    file = run / CONFIG_FILE
    config = load_config(file if file.exists() else None, overrides)
    guard = SplitGuard(run, config)

    def with_splits(batch: list[Trajectory]) -> list[Trajectory]:
        try:
            return guard.with_splits(batch)
        except ConfigError as error:  # a record can be read where its task source cannot
            logger.warning("tasks of the gate and test splits are not marked: %s", error)
            return batch

    found, stored = lookup(directory, rest[0]), StoredTrajectories(directory, with_splits)
    own = stored.of_task(found.task.id)
    inspection = inspect_trajectory(
        next(t for t in own if t.trajectory_id == found.trajectory_id),
        stored if "batch" in (config.train.scale_rewards, config.train.baseline) else own,
        config=config.train,
        model=resolve_model(config.policy.base_model),
        policies_dir=Registry(run).policies_dir,
    )
    return Output(inspection.model_dump(mode="json"), render(inspection))


def _overview(run: Path) -> Output:
    unreadable, tally, rates, n_changed = list[Unreadable](), Tally(), PassRates(), 0
    failed, unlabelled, overruled = list[str](), list[str](), list[str]()
    verdicts, verifiers = Counter[str](), verifiers_of(read_layers(run))
    for batch in StoredTrajectories(run, unreadable=unreadable).batches():
        whole = [t for t in batch if t.error is None]
        failed += [t.trajectory_id for t in whole if t.attempt and t.try_of(t.attempt).passed is False]
        unlabelled += [t.trajectory_id for t in whole if t.answer is not None and t.passed is None]
        overruled += [
            f"{t.trajectory_id}, span {span.span_id}: {'passed' if v.passed else 'failed'} by {v.by}"
            for t in batch
            for span in t.spans
            if (v := span.verdict) is not None and v.overruled is not None
        ]
        n_changed += [*left_out(batch).values()].count("task_changed")
        for trajectory in batch:
            tally.add(trajectory)
            rates.add(trajectory)
            verdicts.update(verdict_sources(trajectory, verifiers))
        rates.end_batch()
    found = rates.rates()
    summary, live = tally.summary(), Registry(run).live
    lines = [
        f"{count(tally.episodes, 'trajectory')} in {store_at(run)}, {count(summary.tokens_sampled, 'token')} sampled",
        *summary_lines(summary, found),
        *verdict_lines(verdicts),
        *([f"live policy: {live}"] if live else []),
        *([f"{n_changed} of tasks that have changed since: not trained on"] if n_changed else []),
        *([report_left_out(unreadable)] if unreadable else []),
    ]
    if failed:
        lines.append(f"failed first tries, e.g. ({next_step('inspect', run, 'ID')}):")
        lines += [f"  {trajectory_id}" for trajectory_id in failed[:MAX_IDS]]
    if unlabelled:
        lines.append(f"without a verdict, e.g. ({next_step('label', run, 'ID', '--passed')}, or --failed):")
        lines += [f"  {trajectory_id}" for trajectory_id in unlabelled[:MAX_IDS]]
    if overruled:
        lines.append(f"verdicts of the verifier overruled by labels: {len(overruled)}, e.g.:")
        lines += [f"  {text}" for text in overruled[:MAX_IDS]]
    ids = {"failed": failed, "unlabelled_ids": unlabelled, "overruled": overruled}
    data = {
        **summary.model_dump(),
        "pass_rates": {kind: rate.model_dump() for kind, rate in found.items()},
        "verdicts": dict(sorted(verdicts.items())),
        "live": live,
        **ids,
        "task_changed": n_changed,
        "unreadable": [*map(str, unreadable)],
    }
    return Output(data, "\n".join(lines))
