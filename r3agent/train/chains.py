"""Chains: the steps of a try that continue one another token for token, which become one row.

A step continues a chain if its prompt begins with all token ids of the chain: what follows them, such as the result of
a tool and the markers of turns, came between the two. It joins the longest chain that it continues, and begins another
one if there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from r3agent.records.trajectory import Span

APART = {
    "answer_rewritten": "the chat template renders the answer before them differently from its sampled tokens, e.g. "
    "without its thinking or its end-of-turn token",
    "history_rewritten": "the chat template renders earlier turns differently than before, e.g. without their thinking",
    "fresh": "their calls begin conversations of their own",
    "forked": "their calls continue a step that another call continues too",
    "other_version": "another version of the policy sampled them",
    "retokenised": "their tokens, or those before them, were not recorded",
}
"""Explanations of why steps do not continue a chain of their try, by reason."""


class Step(NamedTuple):
    """Tokens of one call of the policy."""

    span: Span
    prompt_ids_P: list[int]
    token_ids_T: list[int]
    logprobs_T: list[float] | None
    """`None` if the tokens were not recorded, or were sampled from another prompt."""


class Chain:
    """Steps that continue one another: the prompt of the first, then sampled tokens and what came between them.

    Args:
        apart: reason why the first step does not continue another chain, a key of `APART`.
    """

    def __init__(self, first: Step, apart: str | None = None) -> None:
        self.steps: list[Step] = []
        self.ids = list(first.prompt_ids_P)
        self.prompt_tokens = len(self.ids)
        self.sampled_T: list[bool] = []
        self.logprobs_T: list[float] | None = None if first.logprobs_T is None else []
        self.apart = apart
        self.append(first)

    def continued_by(self, step: Step) -> bool:
        """Return True if a step can be appended."""
        recorded = self.logprobs_T is not None and step.logprobs_T is not None
        same_version = self.steps[-1].span.policy_version == step.span.policy_version
        end = len(self.ids)
        alike = step.prompt_ids_P[end - 1 : end] == self.ids[-1:]  # spares most long comparisons
        return recorded and same_version and alike and step.prompt_ids_P[:end] == self.ids

    def append(self, step: Step) -> None:
        between = step.prompt_ids_P[len(self.ids) :]
        self.steps.append(step)
        self.ids += [*between, *step.token_ids_T]
        self.sampled_T += [False] * len(between) + [True] * len(step.token_ids_T)
        if self.logprobs_T is not None:
            self.logprobs_T += [0.0] * len(between) + (step.logprobs_T or [])

    def difference(self, step: Step) -> str:
        """Return why a step that was asked after the last one does not continue the chain."""
        last = self.steps[-1]
        if self.logprobs_T is None or step.logprobs_T is None:
            return "retokenised"
        if last.span.policy_version != step.span.policy_version:
            return "other_version"
        before = len(self.ids) - len(last.token_ids_T)
        is_kept = step.prompt_ids_P[:before] == self.ids[:before]
        return "answer_rewritten" if is_kept else "history_rewritten"


def chain_steps(steps: Iterable[Step]) -> list[Chain]:
    """Chain the steps of one try, in their order."""
    chains: list[Chain] = []
    for step in steps:
        continued = [chain for chain in chains if chain.continued_by(step)]
        if continued:
            max(continued, key=lambda chain: len(chain.ids)).append(step)
        else:
            chains.append(Chain(step, _why_apart(chains, step)))
    return chains


def _why_apart(chains: Sequence[Chain], step: Step) -> str | None:
    if not chains:
        return None
    above = step.span.parent_id
    if before := next((chain for chain in chains if chain.steps[-1].span.span_id == above), None):
        return "fresh" if step.span.standalone else before.difference(step)
    is_fork = any(earlier.span.span_id == above for chain in chains for earlier in chain.steps)
    return "forked" if is_fork and not step.span.standalone else "fresh"
