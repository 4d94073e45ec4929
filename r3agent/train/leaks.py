"""Rewards of reflections that contain the answer of their own retry, as `train.leak` treats them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from r3agent.records.credit import Group, reward
from r3agent.records.leak import leaks
from r3agent.records.trajectory import Span, Trajectory
from r3agent.train.config import TrainConfig


def reward_of_leak(trajectory: Trajectory, reflection: Span, earned: float, config: TrainConfig) -> float | None:
    """Return the reward that training uses in place of `earned`; `None` drops the reflection."""
    if config.leak == "penalise":
        return reward(trajectory, reflection, config.credit.get("reflect"), leaked=True) or 0.0
    return None if config.leak == "drop" else earned


def apply_leak_setting(groups: Iterable[Group], config: TrainConfig) -> Iterator[Group]:
    """Yield groups with the rewards that training uses, without dropped reflections and without empty groups."""
    for group in groups:
        if group.label != "reflect" or config.leak == "keep":  # saves the search for leaks
            yield group
            continue
        siblings = zip(group.trajectories_G, group.spans_G, group.rewards_G, strict=True)
        found = [(t, s, reward_of_leak(t, s, earned, config) if leaks(t, s) else earned) for t, s, earned in siblings]
        if kept := [sibling for sibling in found if sibling[2] is not None]:
            trajectories_G, spans_G, rewards_G = zip(*kept, strict=True)
            own = {"trajectories_G": trajectories_G, "spans_G": spans_G, "rewards_G": rewards_G}
            yield group.model_copy(update=own)
