"""Terms of an agent's model calls: where the policy is served, and the settings that its requests leave out.

Weights that are reloaded under the name of a version, while a try is under way, make the version of its calls unknown.
"""

from __future__ import annotations

from collections.abc import Sequence

from r3agent.episodes.spending import Spending
from r3agent.errors import R3Error
from r3agent.policy import Policy, Routed, Sampling
from r3agent.policy.live import LIVE
from r3agent.policy.parse import UNKNOWN_VERSION
from r3agent.recording.terms import CallTerms
from r3agent.records.sampling import NEUTRAL
from r3agent.records.trajectory import Span
from r3agent.records.versions import base_name, served_version


async def call_terms(policy: Policy, sampling: Sampling | None, max_steps: int, spending: Spending) -> CallTerms:
    """Return the terms of the calls of one try.

    A request that leaves a setting out gets the policy's, because training needs samples of the distribution that the
    logprobs describe. If the policy's model is not behind an endpoint, calls go out as the agent makes them.
    """
    if not isinstance(policy, Routed):
        return CallTerms(max_steps=max_steps, spent=spending.spent)
    route = await policy.route()
    name = base_name(route.model)
    fields = {} if sampling is None else {k: v for k, v in sampling.body().items() if k != "seed"}

    def seed(step: int) -> int | None:
        return None if sampling is None else sampling.at("step", step).seed

    return CallTerms(
        names=frozenset({name, f"{name}@{LIVE}", route.model, "policy"}),
        model=route.model,
        base_url=route.base_url,
        headers=route.headers,
        access=route.access,
        version=route.version,
        holds=lambda: route.version is not None and route.is_unchanged(),
        sampling={**NEUTRAL, **fields},
        seeds=seed,
        max_steps=max_steps,
        spent=spending.spent,
    )


async def without_swapped(steps: Sequence[Span], policy: Policy, terms: CallTerms) -> list[Span]:
    """Return the steps of a try, of no known version if other weights have replaced those that it began with.

    A step whose model has a version in its name keeps it.
    """
    if terms.version is None or not isinstance(policy, Routed) or await _is_still_there(policy, terms):
        return [*steps]
    return [
        step if step.policy_version != terms.version or served_version(step.model) else _unknown(step) for step in steps
    ]


async def _is_still_there(policy: Routed, terms: CallTerms) -> bool:
    """Return False if the server has other weights than it had, or if nobody can tell.

    The run tells of each call whether a deploy or an evaluation has replaced them; only the server tells that it has
    restarted. A name or a server that requests no longer go to keeps what it has.
    """
    try:
        route = await policy.route()
    except R3Error:
        return False
    is_elsewhere = (route.base_url, route.model) != (terms.base_url, terms.model)
    return is_elsewhere or route.version == terms.version


def _unknown(step: Span) -> Span:
    note = "; ".join(filter(None, [step.capability_note, UNKNOWN_VERSION]))
    lowered = {"policy_version": None, "capability": "eval-only", "capability_note": note, "logprobs": None}
    return step.model_copy(update=lowered)
