"""Training rows: the tokens of one span or of one try, or the reason for dropping it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from typing import Literal, NamedTuple, TypeAlias

from r3agent.records import versions
from r3agent.records.credit import CreditLabel
from r3agent.records.media import media_in
from r3agent.records.sampling import reshaping
from r3agent.records.trajectory import Span, Trajectory
from r3agent.train.chains import Chain, Step, chain_steps
from r3agent.train.config import TrainConfig

RowLabel: TypeAlias = CreditLabel | Literal["distill", "imitate"]
"""Credit label of a row's span; `distill` is a retry with the prompt of the first try, `imitate` a try that passed."""

WITHOUT_SIBLINGS = {"distill", "imitate"}
"""Labels of rows that are not compared with siblings. Their loss is that of log-likelihood: they have no importance
ratio and no KL."""

Retokenise: TypeAlias = Callable[[Trajectory, Span], tuple[list[int], list[int]]]
"""Function that returns the prompt's and the span's token ids under the policy's tokenizer and chat template."""


class Row(NamedTuple):
    """Tokens to train on: a prompt of P tokens, and a completion of T, whose sampled tokens have a loss.

    It is a span, or steps of a try that continue one another; a try of several steps may have several rows.
    """

    group_id: str
    trajectory_id: str
    span_id: str
    """Span, or first step of the try."""
    label: RowLabel
    policy_version: str | None
    prompt_ids_P: list[int]
    completion_ids_T: list[int]
    logprobs_T: list[float] | None
    """Logprobs recorded from the sampling policy, 0 where nothing was sampled; `None` if the tokens were not recorded,
    and in rows of `distill`, whose tokens were sampled from another prompt."""
    temperature: float | None
    """Sampling temperature: 1, or `None` if the application left it to the server, if the row has logprobs."""
    truncated: bool
    """True if a span ended at the token limit. The paper does not mention such spans; they are kept and counted."""
    reward: float
    advantage: float
    doubtful: bool = False
    """True if its request left sampling settings to the server, which may not sample as its logprobs say."""
    sampled_T: list[bool] | None = None
    """Mask of the completion, `False` for what came between the steps of a try, such as results of tools; `None` if all
    of it was sampled."""
    step_ids: list[str] | None = None
    """Spans of the steps that are in this row; `None` for `span_id` alone."""
    apart: str | None = None
    """Reason why its steps do not continue another row of their try, a key of `chains.APART`."""

    def sampled(self, values_T: Sequence[float]) -> Sequence[float]:
        """Keep the values at sampled tokens."""
        return values_T if self.sampled_T is None else [*compress(values_T, self.sampled_T)]

    @property
    def largest_id(self) -> int:
        """Largest token id of the row."""
        return max([*self.prompt_ids_P, *self.completion_ids_T])


class Dropped(NamedTuple):
    """Credited span, or try by its first span, without a row."""

    trajectory_id: str
    span_id: str
    label: RowLabel
    reason: str
    """Key of `remedies.REMEDIES`."""


class Credited(NamedTuple):
    """Rows made from trajectories, and the dropped spans."""

    rows: list[Row]
    """Rows with siblings adjacent."""
    dropped: list[Dropped]
    """All reflections and tries of credited labels that are not in a row."""
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
    ) -> list[Row] | Dropped:
        """Make the rows of a reflection, or of the try that begins with `span`: one for each chain of its steps.

        Calls that are not the policy's, and calls that the endpoint refused, have no row; the try is dropped if the
        others cannot all be trained on.

        Args:
            prompt_of: span whose prompt replaces its own.
        """
        spans = (span,) if span.label == "reflect" else trajectory.try_of(span).steps
        own = [s for s in spans if s.purpose is None]
        steps: list[Step] = []
        for step in [s for s in own if not s.refused] or own:
            tokens = self._tokens(trajectory, step, prompt_of)
            if isinstance(tokens, str):
                return Dropped(trajectory.trajectory_id, span.span_id, label, tokens)
            steps.append(tokens)
        if not steps:
            return Dropped(trajectory.trajectory_id, span.span_id, label, "not_the_policy")

        def row(chain: Chain) -> Row:
            asked = [step.span for step in chain.steps]
            temperature = asked[0].sampling.get("temperature")
            return Row(
                group_id=group_id,
                trajectory_id=trajectory.trajectory_id,
                span_id=span.span_id,
                label=label,
                policy_version=asked[0].policy_version,
                prompt_ids_P=chain.ids[: chain.prompt_tokens],
                completion_ids_T=chain.ids[chain.prompt_tokens :],
                logprobs_T=chain.logprobs_T,
                temperature=temperature if isinstance(temperature, int | float) else None,
                truncated=any(s.unfinished == "length" for s in asked),
                reward=reward,
                advantage=advantage,
                doubtful=any(s.capability == "trainable-exact" and s.capability_note for s in asked),
                sampled_T=None if all(chain.sampled_T) else chain.sampled_T,
                step_ids=None if len(spans) == 1 else [s.span_id for s in asked],
                apart=chain.apart,
            )

        return [row(chain) for chain in chain_steps(steps)]

    def _tokens(self, trajectory: Trajectory, span: Span, prompt_of: Span | None) -> Step | str:
        """Return the tokens to train on, or the reason for dropping the span."""
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
        return Step(span, prompt, completion, logprobs)
