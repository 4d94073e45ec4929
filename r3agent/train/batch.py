"""Trajectories to rows: which reflections are trained on, and with what advantage.

Only reflection tokens are completions; everything before them is prompt. Advantages are relative to the siblings of
the same failed span, never to another failure's: that would bias the baseline (arXiv 2402.03300).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from statistics import fmean, stdev
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from r3agent import versions
from r3agent.errors import TrainingError
from r3agent.train.config import TrainConfig
from r3agent.train.row_report import RowReport
from r3agent.trajectory import Span, Trajectory

if TYPE_CHECKING:
    from datasets import Dataset

STD_EPSILON = 1e-4
"""Added to the standard deviation that divides advantages, as in TRL."""

Retokenise: TypeAlias = Callable[[Trajectory, Span], tuple[list[int], list[int]]]
"""The prompt's and the reflection's token ids under the policy's own tokenizer and chat template."""


class Row(NamedTuple):
    """One reflection to train on: P prompt tokens without loss, T completion tokens with loss."""

    group_id: str
    trajectory_id: str
    span_id: str
    policy_version: str | None
    prompt_ids_P: list[int]
    completion_ids_T: list[int]
    logprobs_T: list[float] | None
    """Recorded by the policy that sampled them; `None` where the tokens were not recorded either."""
    temperature: float | None
    """They were sampled at; recorded logprobs are at temperature 1 all the same."""
    truncated: bool
    """Stopped by the token limit. The paper says nothing of such reflections; they are kept and counted."""
    reward: float
    advantage: float


def build_rows(
    trajectories: Iterable[Trajectory],
    *,
    config: TrainConfig,
    version: str,
    retokenise: Retokenise | None = None,
) -> tuple[list[Row], RowReport]:
    """Rows to train the policy `version` on, siblings side by side, and the account of what was dropped.

    Args:
        retokenise: what gives tokens to spans that were recorded without; `None` drops those.

    Raises:
        TrainingError: no row is left.
    """
    seen: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    rewards: list[float] = []
    groups: list[list[Row]] = []
    for trajectory in trajectories:
        reflections = sum(span.label == "reflect" for span in trajectory.spans)
        seen["trajectories"] += 1
        seen["failures"] += trajectory.attempt is not None and trajectory.attempt.passed is False
        seen["reflections"] += reflections
        if trajectory.error is not None:
            dropped["errored"] += reflections
            continue
        dropped["no_reward"] += reflections
        for group in trajectory.groups(config.reward):
            dropped["no_reward"] -= len(group.rewards_G)
            rewards += group.rewards_G
            rows_G: list[Row] = []
            for span, reward in zip(group.reflections_G, group.rewards_G, strict=True):
                row = _row(trajectory, span, reward, config, version, retokenise)
                if isinstance(row, Row):
                    rows_G.append(row)
                else:
                    dropped[row] += 1
            if len({row.reward for row in rows_G}) > 1:
                groups.append(rows_G)
            else:
                dropped["zero_variance"] += len(rows_G)

    rows = _with_advantages(groups, config)
    report = RowReport(
        trajectories=seen["trajectories"],
        failures=seen["failures"],
        reflections=seen["reflections"],
        rows=len(rows),
        groups=len(groups),
        dropped={reason: n for reason, n in dropped.items() if n},
        retokenised=sum(row.logprobs_T is None for row in rows),
        truncated=sum(row.truncated for row in rows),
        ages=Counter(str(versions.apart(row.policy_version, version)) for row in rows),
        temperatures=Counter(str(row.temperature) for row in rows),
        reward_mean=fmean(rewards) if rewards else None,
        prompt_tokens=sum(len(row.prompt_ids_P) for row in rows),
        completion_tokens=sum(len(row.completion_ids_T) for row in rows),
    )
    if not rows:
        raise TrainingError(report.why_empty())
    return rows, report


def to_dataset(rows: Iterable[Row]) -> Dataset:
    """The rows as the `datasets.Dataset` that the trainer reads, one column per field; needs the `train` extra."""
    from datasets import Dataset

    return Dataset.from_list([row._asdict() for row in rows])


def _row(
    trajectory: Trajectory,
    span: Span,
    reward: float,
    config: TrainConfig,
    version: str,
    retokenise: Retokenise | None,
) -> Row | str:
    """The row of one reflection, or the reason it has none."""
    age = versions.apart(span.policy_version, version)
    if age is not None and age > config.max_staleness:
        return "stale"
    if span.capability == "eval-only":
        return "eval_only"
    logprobs = None
    if span.capability == "trainable-exact":
        prompt, completion = list(span.prompt_token_ids or ()), list(span.token_ids or ())
        logprobs = list(span.logprobs or ())
    elif retokenise is None:
        return "retokenise_refused"
    elif span.tool_calls:
        return "tool_calls"
    else:
        prompt, completion = retokenise(trajectory, span)
    if not completion:
        return "empty"
    if len(prompt) + len(completion) > config.max_row_tokens:
        return "too_long"
    return Row(
        group_id=f"{trajectory.trajectory_id}/{span.parent_id}",
        trajectory_id=trajectory.trajectory_id,
        span_id=span.span_id,
        policy_version=span.policy_version,
        prompt_ids_P=prompt,
        completion_ids_T=completion,
        logprobs_T=logprobs,
        temperature=span.sampling.get("temperature"),
        truncated=span.finish_reason == "length",
        reward=reward,
        advantage=0.0,
    )


def _with_advantages(groups: list[list[Row]], config: TrainConfig) -> list[Row]:
    """Reward minus the mean of the siblings, scaled as the config says (sample standard deviation, as in TRL)."""
    every = [row.reward for rows_G in groups for row in rows_G]
    rows: list[Row] = []
    for rows_G in groups:
        rewards_G = [row.reward for row in rows_G]
        mean, scale = fmean(rewards_G), 1.0
        if config.scale_rewards != "none":
            scale = stdev(rewards_G if config.scale_rewards == "group" else every) + STD_EPSILON
        rows += [row._replace(advantage=(row.reward - mean) / scale) for row in rows_G]
    return rows
