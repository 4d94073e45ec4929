"""All checks in order, each only where the ones before it leave a question; then what the endpoint is good for."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from r3agent.doctor.generation import FEATURES, MODES, PLAIN, N, failed, generation_checks
from r3agent.doctor.records import Check, Diagnosis
from r3agent.doctor.routes import ROUTES, route_checks
from r3agent.doctor.wire import WORST_FIRST, Completion, Reply, Wire, candidates
from r3agent.errors import AccessError, EndpointError, PolicyError, ProtocolError
from r3agent.http.errors import WRONG_KEY
from r3agent.records.trajectory import Capability

TIMEOUT_S = 60.0
NAMES = ("reachable", "models", "version", "chat", *FEATURES, *MODES, *ROUTES)
"""Every check, in the order they are shown."""

NOT_RUNNING = "start the server, or correct host and port; an outside address may need a proxy"
NO_API = "give the address of an OpenAI-compatible API, which usually ends in /v1"
KEY = "pass the key the server was started with: `r3agent doctor` takes it from $OPENAI_API_KEY or --api-key-env NAME"
BLOCKED = {"reachable": "nothing answers", "models": "no list of models", "chat": "no chat completion"}
"""Check to why the others are skipped where it fails."""


async def diagnose(
    base_url: str, *, model: str | None = None, api_key: str | None = None, timeout_s: float = TIMEOUT_S
) -> Diagnosis:
    """Ask an endpoint what it can do: about 20 requests, 11 of them for at most 16 tokens; nothing is changed.

    Args:
        base_url: with or without /v1.
        model: the served name; default the first that the endpoint lists.
        api_key: sent with every request, never recorded.
        timeout_s: for one completion; other routes get at most 10 s each, the whole 4 `timeout_s` + 70 s.

    Raises:
        ConfigError: the URL is none, or the key cannot be sent. An endpoint that cannot be used is a result.
    """
    wires = [Wire(url, api_key=api_key, timeout_s=timeout_s) for url in candidates(base_url)]
    try:
        return await _diagnose(wires, model)
    finally:
        for wire in wires:
            await wire.aclose()


async def _diagnose(wires: Sequence[Wire], model: str | None) -> Diagnosis:
    asked: list[tuple[Wire, Reply]] = []
    for wire in wires:
        asked.append((wire, await wire.call("/models")))
        if _served(asked[-1][1]) or asked[-1][1].status in (None, *WRONG_KEY):
            break  # another path would not change it
    last, listing = asked[-1]
    names = _served(listing)
    model = model or next(iter(names), None)
    wire = last if names else asked[0][0]
    checks = [_reachable(last, listing)]
    if listing.status is not None:
        checks.append(_models(asked, names))
    completions: list[Completion] = []
    if model and listing.status not in (None, *WRONG_KEY):
        wire, chat = await _chat([wire] if names else [wire for wire, _ in asked], model)
        checks.append(_chats(chat, model, names))
        if isinstance(chat, Completion):
            more, completions = await generation_checks(wire, model)
            checks += more
            completions = completions or [chat]  # without tokens and logprobs, if it takes them only one by one
    if names or completions:
        checks += [await _version(wire, listing), *await route_checks(wire)]
    tier, blocker = _tier(completions), _blocker(checks)
    made = {check.name: check for check in checks}
    why = "" if blocker is None else BLOCKED[blocker.name]
    checks = [made.get(name) or Check(name=name, status="skipped", detail=why) for name in NAMES]
    return Diagnosis(
        base_url=wire.base_url,
        tried=tuple(wire.base_url for wire, _ in asked),
        model=model,
        tier=tier,
        checks=tuple(checks),
        next_steps=_next_steps(tier, checks, blocker),
    )


async def _chat(wires: Sequence[Wire], model: str) -> tuple[Wire, Completion | PolicyError]:
    """Where no address lists its models, the first that chats is the one."""
    tries: list[tuple[Wire, Completion | PolicyError]] = []
    for wire in wires:
        tries.append((wire, await wire.chat(model)))
        if isinstance(tries[-1][1], Completion | EndpointError):
            return tries[-1]
    return tries[0]


def _served(reply: Reply) -> list[str]:
    """The names in a list of models; none where it is not such a list."""
    return [str(card["id"]) for card in _cards(reply)]


def _cards(reply: Reply) -> list[dict[str, Any]]:
    cards = reply.body.get("data") if isinstance(reply.body, dict) and reply.status == HTTPStatus.OK else None
    return [card for card in cards if isinstance(card, dict) and "id" in card] if isinstance(cards, list) else []


def _reachable(wire: Wire, reply: Reply) -> Check:
    if reply.status is None:
        detail = f"GET {wire.base_url}/models: {reply.message}"
        return Check(name="reachable", status="no", detail=detail, remedy=NOT_RUNNING)
    return Check(name="reachable", status="yes", detail=f"answers at {wire.root}")


def _models(asked: Sequence[tuple[Wire, Reply]], names: Sequence[str]) -> Check:
    if names:
        return Check(name="models", status="yes", detail=", ".join(names))
    detail = "; ".join(f"GET {wire.base_url}/models: {reply}" for wire, reply in asked)
    remedy = KEY if asked[-1][1].status in WRONG_KEY else NO_API
    return Check(name="models", status="no", detail=detail, remedy=remedy)


async def _version(wire: Wire, listing: Reply) -> Check:
    reply = await wire.call("/version", of_server=True)
    if not (isinstance(reply.body, dict) and "version" in reply.body):
        return Check(name="version", status="unknown", detail=f"GET /version: {reply}")
    owner = next((card.get("owned_by") for card in _cards(listing)), None) or "server"
    return Check(name="version", status="yes", detail=f"{owner} {reply.body['version']}")


def _chats(chat: Completion | PolicyError, model: str, names: Sequence[str]) -> Check:
    if isinstance(chat, Completion):
        counted = chat.generations[0].completion_tokens
        return Check(name="chat", status="yes", detail=f"completion_tokens {counted}, {chat.latency_s:.2f} s")
    if names and model not in names:
        return failed("chat", chat, f"ask for a model that it lists: {', '.join(names)}")
    return failed("chat", chat, NO_API if isinstance(chat, AccessError | ProtocolError) else None)


def _tier(completions: Sequence[Completion]) -> Capability | None:
    told = [completion for completion in completions if not completion.is_empty] or completions
    worst = (completion.worst for completion in told)
    found = min(worst, key=lambda generation: WORST_FIRST.index(generation.capability), default=None)
    return None if found is None else found.capability


def _blocker(checks: Sequence[Check]) -> Check | None:
    """The check without which the others make no sense, where it failed."""
    needed = ("reachable", "chat") if any(check.name == "chat" for check in checks) else ("reachable", "models")
    return next((check for check in checks if check.name in needed and check.status != "yes"), None)


def _next_steps(tier: Capability | None, checks: Sequence[Check], blocker: Check | None) -> tuple[str, ...]:
    if blocker is not None:
        return tuple(filter(None, [blocker.remedy]))
    names = () if tier == "trainable-exact" else ("token ids", "logprobs", PLAIN, N)
    return tuple(dict.fromkeys(check.remedy for check in checks if check.name in names and check.remedy))
