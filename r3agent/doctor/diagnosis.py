"""Run all checks in order, skip those that depend on a failed one, and grade the endpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from r3agent._util.checked import Positive, Word, checked
from r3agent.doctor.conversations import NAME as CONVERSATIONS
from r3agent.doctor.conversations import conversation_check
from r3agent.doctor.generation import FEATURES, MODES, PLAIN, N, failed, generation_checks
from r3agent.doctor.probe import WORST_FIRST, Completion, EndpointProbe, RouteReply, candidates
from r3agent.doctor.records import Check, Diagnosis
from r3agent.doctor.routes import ROUTES, route_checks
from r3agent.doctor.sampler import NAMES as SAMPLER
from r3agent.doctor.sampler import sampler_checks
from r3agent.errors import AccessError, EndpointError, PolicyError, ProtocolError
from r3agent.http.errors import WRONG_KEY
from r3agent.records.trajectory import Capability

TIMEOUT_S = 60.0
NAMES = ("reachable", "models", "version", "chat", *FEATURES, CONVERSATIONS, *MODES, *SAMPLER, *ROUTES)
"""Names of all checks, in the order of the report."""

NOT_RUNNING = "start the server, or correct host and port; an outside address may need a proxy"
NO_API = "give the address of an OpenAI-compatible API, which usually ends in /v1"
KEY = "pass the key the server was started with: `r3agent doctor` takes it from $OPENAI_API_KEY or --api-key-env NAME"
BLOCKED = {"reachable": "nothing answers", "models": "no list of models", "chat": "no chat completion"}
"""Reason for skipping the other checks, by the check that failed."""


@checked
async def diagnose(
    base_url: str,
    *,
    model: Word | None = None,
    api_key: str | None = None,
    headers: Mapping[str, str] | None = None,
    proxy: str | None = None,
    verify: bool | str = True,
    timeout_s: Positive = TIMEOUT_S,
) -> Diagnosis:
    """Check what an endpoint supports, with about 30 cheap requests; nothing is changed.

    The longest are two for 32 completions of at most 16 tokens.

    Args:
        base_url: base URL with or without /v1.
        model: served name; default: the first model that the endpoint lists.
        api_key: key for every request, never recorded.
        headers: further headers of every request, e.g. of a gateway; never recorded.
        proxy, verify: as in `OpenAIPolicy`.
        timeout_s: timeout of one completion; other routes take at most 10 s each, all checks 4 `timeout_s` + 70 s.

    Raises:
        ConfigError: the URL is invalid, or the key cannot be sent. An unusable endpoint is a result, not an error.
    """
    settings: Any = {"api_key": api_key, "headers": headers, "proxy": proxy, "verify": verify, "timeout_s": timeout_s}
    probes = [EndpointProbe(url, **settings) for url in candidates(base_url)]
    try:
        return await _diagnose(probes, model)
    finally:
        for probe in probes:
            await probe.aclose()


async def _diagnose(probes: Sequence[EndpointProbe], model: str | None) -> Diagnosis:
    listings: list[tuple[EndpointProbe, RouteReply]] = []
    for probe in probes:
        listings.append((probe, await probe.call("/models")))
        if _served(listings[-1][1]) or listings[-1][1].status in (None, *WRONG_KEY):
            break  # another path would give the same result
    last, listing = listings[-1]
    names = _served(listing)
    model = model or next(iter(names), None)
    probe = last if names else listings[0][0]
    checks = [_reachable(last, listing)]
    if listing.status is not None:
        checks.append(_models(listings, names))
    completions: list[Completion] = []
    if model and listing.status not in (None, *WRONG_KEY):
        probe, chat = await _chat([probe] if names else [probe for probe, _ in listings], model)
        checks.append(_chats(chat, model, names))
        if isinstance(chat, Completion):
            more, completions = await generation_checks(probe, model)
            checks += [*more, await conversation_check(probe, model), *await _sampler(probe, model, more)]
            completions = completions or [chat]  # no tokens and logprobs, if it accepts the fields only separately
    if names or completions:
        checks += [await _version(probe, listing), *await route_checks(probe)]
    tier, blocker = _tier(completions, checks), _blocker(checks)
    by_name = {check.name: check for check in checks}
    why = "" if blocker is None else BLOCKED[blocker.name]
    checks = [by_name.get(name) or Check(name=name, status="skipped", detail=why) for name in NAMES]
    return Diagnosis(
        base_url=probe.base_url,
        tried=tuple(probe.base_url for probe, _ in listings),
        model=model,
        tier=tier,
        checks=tuple(checks),
        next_steps=_next_steps(tier, checks, blocker),
    )


async def _chat(probes: Sequence[EndpointProbe], model: str) -> tuple[EndpointProbe, Completion | PolicyError]:
    """Request a completion at each URL until one answers; used when no URL lists its models."""
    tries: list[tuple[EndpointProbe, Completion | PolicyError]] = []
    for probe in probes:
        tries.append((probe, await probe.chat(model)))
        if isinstance(tries[-1][1], Completion | EndpointError):
            return tries[-1]
    return tries[0]


def _served(reply: RouteReply) -> list[str]:
    """Return the names in a list of models; empty if the response is not such a list."""
    return [str(card["id"]) for card in _cards(reply)]


def _cards(reply: RouteReply) -> list[dict[str, Any]]:
    cards = reply.body.get("data") if isinstance(reply.body, dict) and reply.status == HTTPStatus.OK else None
    return [card for card in cards if isinstance(card, dict) and "id" in card] if isinstance(cards, list) else []


def _reachable(probe: EndpointProbe, reply: RouteReply) -> Check:
    if reply.status is None:
        detail = f"GET {probe.base_url}/models: {reply.message}"
        return Check(name="reachable", status="no", detail=detail, remedy=NOT_RUNNING)
    return Check(name="reachable", status="yes", detail=f"answers at {probe.root}")


def _models(listings: Sequence[tuple[EndpointProbe, RouteReply]], names: Sequence[str]) -> Check:
    if names:
        return Check(name="models", status="yes", detail=", ".join(names))
    detail = "; ".join(f"GET {probe.base_url}/models: {reply}" for probe, reply in listings)
    remedy = KEY if listings[-1][1].status in WRONG_KEY else NO_API
    return Check(name="models", status="no", detail=detail, remedy=remedy)


async def _version(probe: EndpointProbe, listing: RouteReply) -> Check:
    reply = await probe.call("/version", of_server=True)
    if not (isinstance(reply.body, dict) and "version" in reply.body):
        return Check(name="version", status="unknown", detail=f"GET /version: {reply}")
    owner = next((card.get("owned_by") for card in _cards(listing)), None) or "server"
    return Check(name="version", status="yes", detail=f"{owner} {reply.body['version']}")


def _chats(chat: Completion | PolicyError, model: str, names: Sequence[str]) -> Check:
    if isinstance(chat, Completion):
        n_tokens = chat.generations[0].completion_tokens
        return Check(name="chat", status="yes", detail=f"completion_tokens {n_tokens}, {chat.latency_s:.2f} s")
    if names and model not in names:
        return failed("chat", chat, f"ask for a model that it lists: {', '.join(names)}")
    return failed("chat", chat, NO_API if isinstance(chat, AccessError | ProtocolError) else None)


async def _sampler(probe: EndpointProbe, model: str, checks: Sequence[Check]) -> list[Check]:
    if any(check.name == "logprobs" and check.status == "yes" for check in checks):
        return await sampler_checks(probe, model)
    return [Check(name=name, status="skipped", detail="no logprobs") for name in SAMPLER]


def _tier(completions: Sequence[Completion], checks: Sequence[Check]) -> Capability | None:
    if any(check.name == SAMPLER[0] and check.status == "no" for check in checks):
        return "eval-only"
    informative = [completion for completion in completions if not completion.is_empty] or completions
    worst = (completion.worst for completion in informative)
    worst_generation = min(worst, key=lambda generation: WORST_FIRST.index(generation.capability), default=None)
    return None if worst_generation is None else worst_generation.capability


def _blocker(checks: Sequence[Check]) -> Check | None:
    """Find the failed check that all others depend on."""
    needed = ("reachable", "chat") if any(check.name == "chat" for check in checks) else ("reachable", "models")
    return next((check for check in checks if check.name in needed and check.status != "yes"), None)


def _next_steps(tier: Capability | None, checks: Sequence[Check], blocker: Check | None) -> tuple[str, ...]:
    if blocker is not None:
        return tuple(filter(None, [blocker.remedy]))
    names = () if tier == "trainable-exact" else ("token ids", "logprobs", PLAIN, N, SAMPLER[0])
    return tuple(dict.fromkeys(check.remedy for check in checks if check.name in names and check.remedy))
