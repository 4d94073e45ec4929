"""Report of a training's rows, and progress lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from statistics import fmean
from typing import Any, TypeAlias

from r3agent._util.messages import count
from r3agent.records import versions
from r3agent.records.credit import CreditLabel, credit_label, reward
from r3agent.records.trajectory import Record, Trajectory
from r3agent.train.chains import APART
from r3agent.train.config import TrainConfig
from r3agent.train.remedies import count_dropped, remedies
from r3agent.train.row import WITHOUT_SIBLINGS, Credited, Row

MAX_APART = 3
"""Number of tries that the report names for each reason of `APART`."""


class RowReport(Record):
    """Report of how many reflections and tries became rows, and why the rest were dropped."""

    trajectories: int
    errored: int
    """Trajectories that ended with an error, neither successes nor failures."""
    last_error: str | None
    failures: int
    """Failed first attempts."""
    unlabelled: int = 0
    """First attempts without a verdict yet."""
    spans: dict[str, int]
    """Recorded reflections and tries by credited label."""
    rows: int
    """Rows to train on: steps that continue one another are one row; with `distill`, also retries with the first try's
    prompt."""
    tries: int = 0
    """Reflections and tries that the rows are of."""
    steps: int = 0
    """Calls of the policy in these."""
    merged_steps: int = 0
    """Steps that continue an earlier one in its row."""
    apart: dict[str, int] = {}
    """Rows that begin with a later step of their try, by the reason why it continues no other: a key of
    `chains.APART`."""
    apart_in: dict[str, tuple[str, ...]] = {}
    """Tries with such rows, by reason, as TRAJECTORY/SPAN of the first step; a few of them."""
    labels: dict[str, int]
    """Rows by label."""
    groups: int
    """Groups of siblings to train on."""
    alone: int = 0
    """Groups of one, which are trained on with `train.baseline = "batch"`."""
    zero_variance_groups: int
    """Groups left out because all their trainable siblings have the same reward."""
    dropped: dict[str, int]
    """Dropped spans by reason, a key of `remedies.REMEDIES`."""
    not_distilled: dict[str, int] = {}
    """Tries that are not distilled or imitated, by reason."""
    remedies: dict[str, str]
    """Main reason and its remedy for each credited label without any row."""
    leaked: int
    """Credited reflections that contain the answer of their own retry; `train.leak` sets their treatment."""
    retokenised: int
    """Rows without recorded tokens; their behaviour logprobs are the starting weights'."""
    doubtful: int = 0
    """Rows whose requests left sampling settings to the server, which may not sample as its logprobs say."""
    truncated: int
    """Rows with a step that ended at the token limit."""
    repeated: int = 0
    """Rows that the starting version or one of its ancestors was trained on already; `train.max_staleness = 0` leaves
    out those of earlier rounds."""
    ages: dict[str, int]
    """Rows by the number of generations from the sampling to the starting policy, or `None`."""
    settings: dict[str, int] = {}
    """Rows by the settings of their collection (prompts, sampling, task and verifier): a digest, or `None`."""
    temperatures: dict[str, int]
    """Rows by sampling temperature; one other than 1 occurs only in rows without recorded tokens."""
    reward_means: dict[str, float]
    """Mean reward by label, over all reflections and tries with one, dropped ones included, before leaks are
    penalised."""
    prompt_tokens: int
    completion_tokens: int
    """Sampled tokens, which have a loss."""
    between_tokens: int = 0
    """Tokens between the steps of rows, such as results of tools; they have none."""

    def why_empty(self) -> str:
        """Explain why there are no rows, with counts, the main reason and its remedy."""
        if not self.trajectories:
            return "there are no episodes; collect some first"
        why = [self._why_empty()] if not self.errored or self.errored < self.trajectories else []
        if self.errored:
            errored = f"{self.errored} of {count(self.trajectories, 'episode')} errored"
            why.append(f"{errored} ({self.last_error}); mend that and collect again")
        return "; ".join(why)

    def _why_empty(self) -> str:
        if not self.failures and "attempt" not in self.spans and self.dropped.keys() <= {"errored", "after_success"}:
            waiting = (
                f"{self.unlabelled} have no verdict yet: attach it with r3agent label; " if self.unlabelled else ""
            )
            return (
                f"0 of {self.trajectories - self.errored} first attempts failed: there is nothing to reflect on; "
                f"{waiting}collect more tasks, or harder ones"
            )
        counted = ", ".join(f"{n} {label}" for label, n in self.spans.items())
        means = ", ".join(f"{mean:.3f} {label}" for label, mean in self.reward_means.items()) or "none"
        reasons = ", ".join(f"{reason} {n}" for reason, n in self.dropped.items()) or "none"
        return (
            f"0 of {counted or 0} spans can be trained on ({self.failures} failures; mean reward {means}; "
            f"dropped: {reasons}); " + "; ".join(f"{label}: {why}" for label, why in self.remedies.items())
        )


Rewards: TypeAlias = dict[CreditLabel, list[float | None]]
"""Rewards of the reflections and tries of each credited label; `None` for one without."""


def rewards_of(trajectories: Iterable[Trajectory], config: TrainConfig) -> Rewards:
    """Compute the rewards of all reflections and tries."""
    rewards: Rewards = {label: [] for label in config.credit}
    for trajectory in trajectories:
        for span in trajectory.spans:
            label = credit_label(trajectory, span)
            if label in config.credit and not trajectory.is_step(span):
                earned = None if trajectory.error else reward(trajectory, span, config.credit[label])
                rewards[label].append(earned)
    return rewards


def labels_of(config: TrainConfig) -> list[str]:
    """Return the labels that rows can have."""
    further = {"distill": config.distill, "imitate": config.imitate}
    return [*config.credit, *(label for label, weight in further.items() if weight)]


def reward_means(rewards: Rewards) -> dict[str, float]:
    earned = {str(label): [x for x in values if x is not None] for label, values in rewards.items()}
    return {label: fmean(values) for label, values in earned.items() if values}


def report_rows(
    trajectories: Sequence[Trajectory],
    credited: Credited,
    config: TrainConfig,
    version: str,
    lineage: Sequence[str] | None = None,
) -> RowReport:
    rows, dropped, leaked, zero_variance_groups = credited
    rewards = rewards_of(trajectories, config)
    errors = [f"{t.error.kind}: {t.error.message}" for t in trajectories if t.error]
    settings = {t.trajectory_id: str(t.metadata.get("settings")) for t in trajectories}
    first_tries = [t.try_of(t.attempt).passed for t in trajectories if t.error is None and t.attempt and not t.recorded]
    tries = {_try_of(row) for row in rows}
    compared = {(row.group_id, *_try_of(row)) for row in rows if row.label not in WITHOUT_SIBLINGS}
    sizes = Counter(group_id for group_id, *_ in compared)
    steps = sum(len(row.step_ids or [row.span_id]) for row in rows)
    apart: dict[str, list[str]] = {}
    for row in rows:
        if row.apart is not None:
            apart.setdefault(row.apart, []).append(f"{row.trajectory_id}/{row.span_id}")
    sampled = sum(len(row.sampled(row.completion_ids_T)) for row in rows)
    return RowReport(
        trajectories=len(trajectories),
        errored=len(errors),
        last_error=errors[-1] if errors else None,
        failures=first_tries.count(False),
        unlabelled=first_tries.count(None),
        spans={str(label): len(rewards[label]) for label in config.credit},
        rows=len(rows),
        tries=len(tries),
        steps=steps,
        merged_steps=steps - len(rows),
        apart={reason: len(ids) for reason, ids in apart.items()},
        apart_in={reason: tuple(dict.fromkeys(ids))[:MAX_APART] for reason, ids in apart.items()},
        labels=dict(Counter(row.label for row in rows)),
        groups=len(sizes),
        alone=list(sizes.values()).count(1),
        zero_variance_groups=zero_variance_groups,
        dropped=dict(Counter(drop.reason for drop in dropped if drop.label not in WITHOUT_SIBLINGS)),
        not_distilled=dict(Counter(drop.reason for drop in dropped if drop.label in WITHOUT_SIBLINGS)),
        leaked=len(leaked),
        retokenised=sum(row.logprobs_T is None and row.label != "distill" for row in rows),
        doubtful=sum(row.doubtful for row in rows),
        truncated=sum(row.truncated for row in rows),
        ages=Counter(str(versions.version_age(row.policy_version, version, lineage)) for row in rows),
        settings=Counter(settings[row.trajectory_id] for row in rows),
        temperatures=Counter(str(row.temperature) for row in rows),
        reward_means=reward_means(rewards),
        prompt_tokens=sum(len(row.prompt_ids_P) for row in rows),
        completion_tokens=sampled,
        between_tokens=sum(len(row.completion_ids_T) for row in rows) - sampled,
        remedies=remedies(labels_of(config), {row.label for row in rows}, count_dropped(dropped)),
    )


def _try_of(row: Row) -> tuple[str, ...]:
    return row.trajectory_id, row.span_id, row.label


STEP = {
    "loss": "loss",
    "reward": "reward",
    "ratio": "ratio",
    "kl": "KL",
    "entropy": "entropy",
    "clip_ratio/region_mean": "clipped",
    "cispo_clip_ratio": "clipped",
}
"""Names in a step's progress line, by key of TRL's log."""


def progress_line(stage: str, values: Mapping[str, Any]) -> str:
    """Render a stage's values as one progress line."""
    return {"rows": rows_line, "mismatch": mismatch_line, "step": step_line}.get(stage, _other)(values)


DOUBT = "the server decided on sampling settings: r3agent doctor tests whether it samples as its logprobs say"


def rows_line(report: Mapping[str, Any]) -> str:
    """Render a `RowReport`."""
    dropped: Mapping[str, int] = report["dropped"]
    alike = report["zero_variance_groups"]
    settings: Mapping[str, int] = report.get("settings", {})
    not_distilled: Mapping[str, int] = report.get("not_distilled", {})
    parts = [
        f"{count(report['rows'], 'row')} in {count(report['groups'], 'group')}",
        *([f"{report['alone']} without siblings"] if report.get("alone") else []),
        *_several_steps(report),
        f"in {alike / max(1, alike + report['groups']):.0%} of all groups the siblings earned the same",
        "dropped: " + (_counted(dropped) or "none"),
        *(["not distilled or imitated: " + _counted(not_distilled)] if not_distilled else []),
        *([f"collected with {len(settings)} different settings: {_counted(settings)}"] if len(settings) > 1 else []),
        "age in generations: " + ", ".join(f"{count(n, 'row')} {age}" for age, n in report["ages"].items()),
        *([f"in {count(report['doubtful'], 'row')} {DOUBT}"] if report.get("doubtful") else []),
        *([f"{count(report['repeated'], 'row')} trained on before"] if report.get("repeated") else []),
    ]
    return "; ".join(parts)


def _several_steps(report: Mapping[str, Any]) -> Iterator[str]:
    """Describe how tries of several steps became rows."""
    if report.get("steps", 0) > report.get("tries", 0):
        merged = f"{report['merged_steps']} continue a row"
        yield f"from {count(report['tries'], 'try')} of {count(report['steps'], 'step')}, of which {merged}"
    for reason, n in report.get("apart", {}).items():
        such = ", ".join(report["apart_in"][reason])
        yield f"{count(n, 'row')} of later steps, {reason}: {APART[reason]} (such as {such})"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items())


def mismatch_line(mismatch: Mapping[str, Any]) -> str:
    """Render a `Mismatch`."""
    if mismatch["gap"] is None:
        return "no row has recorded logprobs to compare: where a loss needs some, the starting weights' own are used"
    labels = {"all rows": mismatch["gap"], **(mismatch["labels"] if len(mismatch["labels"]) > 1 else {})}
    gaps = (f"{label} mean {gap['mean']:.2g}, p99 {gap['p99']:.2g}" for label, gap in labels.items())
    parts = [
        f"|recorded - recomputed| logprob: {'; '.join(gaps)}",
        f"effective sample size {mismatch['ess']:.0%} of the tokens",
        *([f"{count(mismatch['scored'], 'row')} scored"] if mismatch.get("scored") else []),
    ]
    if surprise := mismatch.get("surprise"):
        ratio = f"{surprise['ratio']:.2f} ± {surprise['error']:.2f}"
        parts.append(f"surprise {ratio} times the entropy in {count(surprise['rows'], 'doubtful row')}")
    return "; ".join(parts)


def step_line(step: Mapping[str, Any]) -> str:
    """Render the values of a `step`, and its place."""
    left = timedelta(seconds=round(step["seconds_left"]))
    return f"step {step['step']}/{step['steps']}, {left} left: {step_values(step)}"


def step_values(step: Mapping[str, Any]) -> str:
    """Render the values of a `step`."""
    parts = (f"{name} {step[key]:.3g}" for key, name in STEP.items() if step.get(key) is not None)
    return f"{', '.join(parts)}, {step['tokens_per_s']:.0f} tokens/s"


def _other(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
