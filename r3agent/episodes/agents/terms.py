"""Terms of an agent's model calls: where the policy is served, and the settings that its requests leave out."""

from __future__ import annotations

from r3agent.episodes.spending import Spending
from r3agent.policy import Policy, Routed, Sampling
from r3agent.policy.live import LIVE
from r3agent.recording.terms import CallTerms
from r3agent.records.sampling import NEUTRAL
from r3agent.records.versions import base_name


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
        sampling={**NEUTRAL, **fields},
        seeds=seed,
        max_steps=max_steps,
        spent=spending.spent,
    )
