"""Training row: the tokens of one span, or the reason for dropping it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

from r3agent.records import versions
from r3agent.records.credit import CreditLabel
from r3agent.records.media import media_in
from r3agent.records.sampling import reshaping
from r3agent.records.trajectory import Span, Trajectory
from r3agent.train.config import TrainConfig

RowLabel: TypeAlias = CreditLabel | Literal["distill"]
"""Credit label of a row's span; `distill` is a retry with the prompt of the first try."""

Retokenise: TypeAlias = Callable[[Trajectory, Span], tuple[list[int], list[int]]]
"""Function that returns the prompt's and the span's token ids under the policy's tokenizer and chat template."""


class Row(NamedTuple):
    """Span to train on: P prompt tokens without loss, T completion tokens with loss."""

    group_id: str
    trajectory_id: str
    span_id: str
    label: RowLabel
    policy_version: str | None
    prompt_ids_P: list[int]
    completion_ids_T: list[int]
    logprobs_T: list[float] | None
    """Logprobs recorded from the sampling policy; `None` if the tokens were not recorded, and in rows of `distill`,
    whose tokens were sampled from another prompt."""
    temperature: float | None
    """Sampling temperature: 1, or `None` if the application left it to the server, if the row has logprobs."""
    truncated: bool
    """True if the span ended at the token limit. The paper does not mention such spans; they are kept and counted."""
    reward: float
    advantage: float
    doubtful: bool = False
    """True if its request left sampling settings to the server, which may not sample as its logprobs say."""


class Dropped(NamedTuple):
    """Credited span without a row."""

    trajectory_id: str
    span_id: str
    label: RowLabel
    reason: str
    """Key of `report.REMEDIES`."""


class Credited(NamedTuple):
    """Rows made from trajectories, and the dropped spans."""

    rows: list[Row]
    """Rows with siblings adjacent."""
    dropped: list[Dropped]
    """All spans of credited labels that are not in a row."""
    leaked: set[tuple[str, str]]
    """Trajectory and span ids of all credited reflections that contain their retry's answer, dropped ones included."""
    zero_variance_groups: int


class RowMaker(NamedTuple):
    """Maker of rows for training the policy `version`."""

    config: TrainConfig
    version: str
    lineage: Sequence[str] | None
    """The version and its ancestors, newest first."""
    retokenise: Retokenise | None

    def __call__(
        self,
        trajectory: Trajectory,
        span: Span,
        *,
        label: RowLabel,
        group_id: str,
        reward: float,
        advantage: float = 0.0,
        prompt_of: Span | None = None,
    ) -> Row | Dropped:
        """Make the row of one span.

        Args:
            prompt_of: span whose prompt replaces its own.
        """
        tokens = self._tokens(trajectory, span, prompt_of)
        if isinstance(tokens, str):
            return Dropped(trajectory.trajectory_id, span.span_id, label, tokens)
        prompt, completion, logprobs = tokens
        return Row(
            group_id=group_id,
            trajectory_id=trajectory.trajectory_id,
            span_id=span.span_id,
            label=label,
            policy_version=span.policy_version,
            prompt_ids_P=prompt,
            completion_ids_T=completion,
            logprobs_T=logprobs,
            temperature=span.sampling.get("temperature"),
            truncated=span.unfinished == "length",
            reward=reward,
            advantage=advantage,
            doubtful=span.capability == "trainable-exact" and bool(span.capability_note),
        )

    def _tokens(
        self, trajectory: Trajectory, span: Span, prompt_of: Span | None
    ) -> tuple[list[int], list[int], list[float] | None] | str:
        """Return prompt ids, completion ids and recorded logprobs, or the reason for dropping the span."""
        age = versions.version_age(span.policy_version, self.version, self.lineage)
        if age is not None and age > self.config.max_staleness:
            return "stale"
        prompt_span = prompt_of or span
        if span.refused:
            return "refused"
        if span.capability != "trainable-retokenised" and reshaping(span.sampling):
            return "reshaped"
        if media_in(trajectory.prompt(prompt_span)):
            return "media"
        capabilities = {span.capability, prompt_span.capability}
        if "eval-only" in capabilities:
            return "eval_only"
        logprobs = None
        if capabilities == {"trainable-exact"}:
            prompt, completion = list(prompt_span.prompt_token_ids or ()), list(span.token_ids or ())
            logprobs = list(span.logprobs or ()) if prompt_of is None else None
        elif self.retokenise is None:
            return "retokenise_refused"
        elif span.tool_calls:
            return "tool_calls"
        else:
            prompt, completion = self.retokenise(trajectory, span)
            if prompt_of is not None:
                prompt, _ = self.retokenise(trajectory, prompt_of)
        if not completion:
            return "empty"
        if len(prompt) + len(completion) > self.config.max_row_tokens:
            return "too_long"
        return prompt, completion, logprobs
