"""Check that an endpoint samples from the distribution that its logprobs describe.

A sampler with `top_k = 1` draws the same text 32 times and still reports that it had probability 0.5. The test is a
bet: for each token, an alternative sampler's probability is divided by the reported one, and the product over all
tokens is averaged over the alternatives. If the reported probabilities are right, the average exceeds 20,000 in at
most one of 20,000 tests, whatever the model and however long the completions are (Ville's inequality). A diagnosis has
two such tests.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from r3agent._util.aio import gather_all
from r3agent.doctor.probe import Completion, EndpointProbe
from r3agent.doctor.records import Check
from r3agent.errors import PolicyError
from r3agent.records.sampling import NEUTRAL

NAMES = ("sampling", "sampling by default", "logprobs at temperature 1")

MESSAGES = [{"role": "user", "content": "Write a short story about anything you like. Begin at once."}]
"""Prompt with many likely continuations, because certain tokens say nothing about the sampler."""
N, TOP = 32, 20
"""Number of completions, and of most likely tokens to report with each token: the most that OpenAI and vLLM allow."""
HOT = 2.0
ENOUGH = math.log(20_000)
"""Logarithm of the factor that convicts a sampler."""
OTHERS = 100
"""Number of the other tokens, as if all of them were equally likely; only the power of the test depends on it."""
DOUBT = 0.01
"""Share of the reported probabilities in each alternative, so that one token cannot refute it."""

REMEDY = (
    "the sampler is not the policy that the logprobs describe, so nothing sampled here can be trained on: start vLLM "
    "with --generation-config vllm, or remove the sampling defaults of the server or the gateway"
)
BY_DEFAULT = (
    "requests without sampling settings, as applications send them, get the server's: start vLLM with "
    "--generation-config vllm, or set temperature, top_p, top_k, min_p and the penalties in every request"
)
PROCESSED = "sample at temperature 1, or start vLLM with --logprobs-mode raw_logprobs, its default"

Probabilities: TypeAlias = list[float]
"""Probabilities of the most likely tokens, in descending order, and of all others together."""


def _sharpen(power: float) -> Callable[[Probabilities], Probabilities]:
    return lambda probs: [*(prob**power for prob in probs[:-1]), OTHERS * (probs[-1] / OTHERS) ** power]


def _first(k: int) -> Callable[[Probabilities], Probabilities]:
    return lambda probs: [prob if i < min(k, len(probs) - 1) else 0.0 for i, prob in enumerate(probs)]


def _nucleus(top_p: float) -> Callable[[Probabilities], Probabilities]:
    return lambda probs: [prob if sum(probs[:i]) < top_p else 0.0 for i, prob in enumerate(probs)]


ALTERNATIVES: Mapping[str, Callable[[Probabilities], Probabilities]] = {
    "temperature 0.3": _sharpen(1 / 0.3),
    "temperature 0.7": _sharpen(1 / 0.7),
    "temperature 1.5": _sharpen(1 / 1.5),
    "top_p 0.8": _nucleus(0.8),
    "top_p 0.95": _nucleus(0.95),
    "top_k 1": _first(1),
    "top_k 5": _first(5),
    "top_k 20": _first(TOP),
}
"""Weights of the tokens under samplers that reshape the distribution."""
REPEATS = "fewer different tokens"
"""Alternative that needs no likely tokens: a token that followed the same text before is likely to do so again."""


async def sampler_checks(probe: EndpointProbe, model: str) -> list[Check]:
    """Run the checks of the sampler: as r3agent asks, with the server's defaults, and the scale of the logprobs."""
    unset = dict.fromkeys(("temperature", "top_p"))
    asked, default, hot = await gather_all(
        [
            _draw(probe, model, {**NEUTRAL, "n": N, "top_logprobs": TOP}),
            _draw(probe, model, {**unset, "n": N, "top_logprobs": TOP}),
            _draw(probe, model, {"temperature": HOT, "top_logprobs": TOP, "max_tokens": 1}),
        ]
    )
    return [_check(NAMES[0], asked, REMEDY), _check(NAMES[1], default, BY_DEFAULT), _scale(asked, hot)]


async def _draw(probe: EndpointProbe, model: str, fields: dict[str, Any]) -> Completion | PolicyError:
    """Request completions, without the optional fields that the endpoint refuses."""
    return await probe.chat(model, messages=MESSAGES, logprobs=True, may_drop={*NEUTRAL, "n", "top_logprobs"}, **fields)


def _check(name: str, result: Completion | PolicyError, remedy: str) -> Check:
    if isinstance(result, PolicyError):
        return Check(name=name, status="unknown", detail=str(result))
    completions = _tokens(result)
    evidence, uncertainty = weigh(completions)
    drawn = f"{len(completions)} completions, {sum(map(len, completions))} tokens"
    best = max(evidence, key=lambda alternative: evidence[alternative])
    mean = _log_sum(evidence.values()) - math.log(len(evidence))
    if mean >= ENOUGH:
        detail = f"{drawn}: not drawn as their logprobs say, but as with {best} (p < 1e{-mean / math.log(10):.0f})"
        return Check(name=name, status="no", detail=detail, remedy=remedy)
    if uncertainty < ENOUGH:
        return Check(name=name, status="unknown", detail=f"{drawn}: too few, or too certain, to tell")
    return Check(name=name, status="yes", detail=f"{drawn}: drawn as their logprobs say")


def weigh(completions: Iterable[Sequence[Mapping[str, Any]]]) -> tuple[dict[str, float], float]:
    """Weigh alternative samplers against the reported logprobs, which are entries of OpenAI's `logprobs.content`.

    Returns:
        For each alternative, the logarithm of its probability of the tokens divided by the reported one; and minus the
        logarithm of the probability that the most likely completions have, to which certain tokens add nothing.
    """
    evidence = dict.fromkeys([*ALTERNATIVES, REPEATS], 0.0)
    uncertainty = 0.0
    followers: dict[tuple[str, ...], Counter[str]] = {}
    for tokens in completions:
        text: tuple[str, ...] = ()
        for entry in tokens:
            seen, token = followers.setdefault(text, Counter()), entry["token"]
            reported = max(math.exp(min(0.0, entry["logprob"])), 1e-30)
            if total := seen.total():
                evidence[REPEATS] += math.log(0.5 + 0.5 * seen[token] / total / reported)
            probs, index = _probabilities(entry)
            if len(probs) > 1:
                uncertainty -= math.log(min(probs[0], 1.0))
                for name, reshape in ALTERNATIVES.items():
                    weights = reshape(probs)
                    share = weights[index] / sum(weights)
                    evidence[name] += math.log(DOUBT + (1 - DOUBT) * share / probs[index])
            elif total:
                uncertainty -= math.log(reported)
            seen[token] += 1
            text = (*text, token)
    return evidence, uncertainty


def _probabilities(entry: Mapping[str, Any]) -> tuple[Probabilities, int]:
    """Return the probabilities at one position, and the index of the sampled token among them.

    The least likely of the reported tokens counts as one of the others: vLLM reports the sampled token in its place,
    and the tokens that are told apart must not depend on the one that was sampled.
    """
    top = sorted(entry.get("top_logprobs") or (), key=lambda other: -other["logprob"])[:-1]
    probs = [max(math.exp(other["logprob"]), 1e-12) for other in top]
    index = next((i for i, other in enumerate(top) if _is_same(other, entry)), len(top))
    sampled = math.exp(entry["logprob"]) if index == len(top) else 0.0
    return [*probs, max(1.0 - sum(probs), sampled, 1e-12)], index


def _is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Compare tokens: several may have the same text, such as parts of a character."""
    same_text = (one["token"], one.get("bytes")) == (other["token"], other.get("bytes"))
    return same_text and abs(one["logprob"] - other["logprob"]) < 0.01


def _scale(asked: Completion | PolicyError, hot: Completion | PolicyError) -> Check:
    """Check that logprobs do not depend on the temperature, from those of the first tokens at two temperatures."""
    name = NAMES[2]
    if isinstance(asked, PolicyError) or isinstance(hot, PolicyError):
        return Check(name=name, status="unknown", detail=str(asked if isinstance(asked, PolicyError) else hot))
    first, second = (_spread(_tokens(result)) for result in (asked, hot))
    if first < 0.1:
        return Check(name=name, status="unknown", detail="no logprobs of likely tokens to compare")
    if abs(second / first - 1) < abs(second / first - 1 / HOT):
        return Check(name=name, status="yes", detail="raw: they do not depend on the temperature")
    detail = "processed: they are scaled by the temperature of the request"
    return Check(name=name, status="no", detail=detail, remedy=PROCESSED)


def _spread(completions: Sequence[Sequence[Mapping[str, Any]]]) -> float:
    """Return the difference of the two greatest logprobs at the first position, 0 if they are unknown."""
    top = sorted(other["logprob"] for tokens in completions[:1] for other in tokens[0].get("top_logprobs") or ())
    return top[-1] - top[-2] if len(top) > 1 else 0.0


def _tokens(result: Completion) -> list[list[dict[str, Any]]]:
    """Return the tokens of each completion, with their logprobs; completions without them are left out."""
    found = (choice.get("logprobs") for choice in result.body["choices"])
    contents = (logprobs.get("content") for logprobs in found if isinstance(logprobs, Mapping))
    return [content for content in contents if content and all(map(_is_whole, content))]


def _is_whole(entry: Any) -> bool:
    tokens = [entry, *(entry.get("top_logprobs") or ())] if isinstance(entry, Mapping) else [{}]
    return all("token" in token and isinstance(token.get("logprob"), int | float) for token in tokens)


def _log_sum(values: Iterable[float]) -> float:
    values = list(values)
    most = max(values)
    return most + math.log(sum(math.exp(value - most) for value in values))
