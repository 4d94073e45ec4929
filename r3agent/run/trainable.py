"""Checks of a training that need neither torch nor TRL, which take seconds to load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from r3agent._util.imports import require_extra
from r3agent._util.launcher import launched_rank
from r3agent.errors import TrainingError
from r3agent.run.directory import RunDirectory
from r3agent.store.registry import PolicyCard
from r3agent.train.lineage import lineage_of
from r3agent.train.rows import why_untrainable


def check_rows(
    run: RunDirectory, parent: PolicyCard, on_progress: Callable[[str, Mapping[str, Any]], None] | None = None
) -> None:
    """Check that a run has a row to train `parent` on, and report that the packages for training are loaded next.

    Raises:
        ConfigError: the extra is missing.
        TrainingError: no row can be trained on.
    """
    require_extra("trl", "train")
    trajectories = run.stored(unreadable=[])  # the training that follows reports the lines that are no records
    lineage = lineage_of(run.registry.policies_dir, parent.version)
    if why := why_untrainable(trajectories, config=run.config.train, version=parent.version, lineage=lineage):
        raise TrainingError(why)
    if on_progress and not launched_rank():
        on_progress("loading", {"loading": "torch and trl"})
