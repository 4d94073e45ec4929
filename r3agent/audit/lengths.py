"""Check of prompt lengths, counted by the model's tokenizer or its endpoint, or else estimated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from r3agent._util.aio import gather_all
from r3agent.audit.records import Check, some
from r3agent.doctor.probe import EndpointProbe
from r3agent.records.trajectory import Message, Task

CHARS_PER_TOKEN = 4
TIMEOUT_S = 10.0
CONCURRENCY = 8
RETRY_EXTRA = 2
"""Completions that a retry's prompt includes: the failed try and the reflection."""

PromptTokens = Callable[[Sequence[Message], Sequence[dict[str, Any]]], int]
"""Function that counts the tokens of messages and tools in the model's chat template, or raises `ValueError`."""


class EndpointAddress(NamedTuple):
    """Address of a model's endpoint."""

    base_url: str
    model: str
    access: Mapping[str, Any] = {}
    """Key, headers, proxy and verification of the certificate, as arguments of a probe."""


class Lengths(NamedTuple):
    """Limits of the model, and its tokenizer; by default prompt lengths are estimated and have no limit."""

    max_tokens: int
    """Maximum tokens of one completion."""
    limit: int | None = None
    """Maximum tokens of prompt and completion together; default the endpoint's own."""
    tokenizer: PromptTokens | None = None
    endpoint: EndpointAddress | None = None


class PromptSizes(NamedTuple):
    """Number of tokens of each task's prompt, or the reason for refusing it."""

    tokens: list[int | str]
    method: str


class Limit(NamedTuple):
    """Limit on the tokens of prompt and completion together."""

    tokens: int
    source: str
    strict: bool = False
    """True if the server is known to refuse a request that could exceed the limit; r3agent's own server ends the
    completion at the limit instead."""


async def length_check(tasks: Sequence[Task], lengths: Lengths) -> Check:
    """Check that every prompt leaves room for a completion, and for a complete retry."""
    limit = None if lengths.limit is None else Limit(lengths.limit, "the setting")
    counted = _by_tokenizer(tasks, lengths.tokenizer) if lengths.tokenizer else None
    if lengths.endpoint is not None:
        url, _, access = lengths.endpoint
        probe = EndpointProbe(url, timeout_s=TIMEOUT_S, **access)
        try:
            limit = _limit(await _card(probe, lengths.endpoint.model), limit)
            if counted is None:
                counted = await _by_endpoint(tasks, probe, lengths.endpoint.model)
        finally:
            await probe.aclose()
    return _check(tasks, counted or _estimated(tasks), limit, lengths.max_tokens)


def _check(tasks: Sequence[Task], counted: PromptSizes, limit: Limit | None, max_tokens: int) -> Check:
    sizes = [(n, task.id) for task, n in zip(tasks, counted.tokens, strict=True) if isinstance(n, int)]
    known = sorted(n for n, _ in sizes)
    refused = [f"task {t.id!r}: {why}" for t, why in zip(tasks, counted.tokens, strict=True) if isinstance(why, str)]
    spread = f"median {median(known):g}, longest {known[-1]}" if known else "none could be counted"
    parts = [f"{spread} tokens ({counted.method})"]
    long: list[tuple[int, str]] = []
    short_of_room: list[tuple[int, str]] = []
    tight = 0
    strict = False
    if limit is None:
        parts.append("no limit is known: name --model-limit")
    else:
        strict = limit.strict or max_tokens > limit.tokens  # which every server refuses
        long = [size for size in sizes if size[0] >= limit.tokens]
        short_of_room = [size for size in sizes if limit.tokens - max_tokens < size[0] < limit.tokens]
        tight = sum(n + (1 + RETRY_EXTRA) * max_tokens > limit.tokens for n in known) - len(long) - len(short_of_room)
        parts.append(f"{limit.source} allows {limit.tokens}, of which a completion takes up to {max_tokens}")
        parts.append(f"{len(long)} too long")
    if short_of_room:
        server = "the endpoint refuses" if strict else "vLLM refuses"
        parts.append(f"{len(short_of_room)} leave less room than that, and {server} such requests (HTTP 400)")
    if tight > 0:
        parts.append(f"{tight} leave no room for the longest retry")
    wrong = [*long, *(short_of_room if strict else [])]
    bad = wrong or refused
    remedies = ["drop them, shorten the template or serve more context"] if long or refused else []
    if (short_of_room or tight > 0) and limit is not None:
        room = limit.tokens - max(n for n in known if n < limit.tokens)
        needs = [(room, "for a first try")] if short_of_room else []
        needs += [(room // (1 + RETRY_EXTRA), "for the longest retry too")] if room > RETRY_EXTRA else []
        if needs:
            remedies.insert(0, f"lower sampling.max_tokens to at most {', '.join(f'{n} {why}' for n, why in needs)}")
    return Check(
        name="prompt length",
        status="failed" if bad else "warning" if short_of_room or tight > 0 else "ok",
        detail="; ".join(parts),
        counts={
            "tried": len(tasks),
            "wrong": len(wrong),
            "refused": len(refused),
            "no_room": len(short_of_room),
            "tight": max(tight, 0),
        },
        rate=(len(wrong) + len(refused)) / len(tasks) if tasks else None,
        examples=some([*refused, *(f"task {id_!r}: {n} tokens" for n, id_ in sorted(wrong, reverse=True))]),
        remedy="; ".join(remedies),
    )


def _by_tokenizer(tasks: Sequence[Task], tokenizer: PromptTokens) -> PromptSizes:
    sizes: list[int | str] = []
    for task in tasks:
        try:
            sizes.append(tokenizer(task.messages, task.tools))
        except ValueError as error:
            sizes.append(str(error))
    return PromptSizes(sizes, "by the model's tokenizer")


def _estimated(tasks: Sequence[Task]) -> PromptSizes:
    texts = [[m.get("content") for m in task.messages] + ([task.tools] if task.tools else []) for task in tasks]
    chars = [sum(len(p if isinstance(p, str) else json.dumps(p, default=str)) for p in parts) for parts in texts]
    return PromptSizes([-(-n // CHARS_PER_TOKEN) for n in chars], f"estimated: {CHARS_PER_TOKEN} characters a token")


async def _card(probe: EndpointProbe, model: str) -> dict[str, Any]:
    """Return the model's card in the endpoint's list of models."""
    reply = await probe.call("/models")
    cards = reply.body.get("data") if isinstance(reply.body, dict) else None
    for card in cards if isinstance(cards, list) else ():
        if isinstance(card, dict) and card.get("id") == model:
            return card
    return {}


def _limit(card: dict[str, Any], setting: Limit | None) -> Limit | None:
    strict = card.get("owned_by") == "vllm"
    if setting is not None:
        return setting._replace(strict=strict)
    tokens = card.get("max_model_len")
    return Limit(tokens, "the endpoint", strict) if isinstance(tokens, int) else None


async def _by_endpoint(tasks: Sequence[Task], probe: EndpointProbe, model: str) -> PromptSizes | None:
    """Count with the endpoint's /tokenize; `None` if it has no such route."""
    slots = asyncio.Semaphore(CONCURRENCY)

    async def count(task: Task) -> int | str | None:
        body: dict[str, Any] = {"model": model, "messages": list(task.messages), "add_generation_prompt": True}
        body |= {"tools": list(task.tools)} if task.tools else {}
        async with slots:
            reply = await probe.call("/tokenize", body, of_server=True)
        if isinstance(reply.body, dict) and isinstance(reply.body.get("count"), int):
            return reply.body["count"]
        return str(reply) if reply.status == 400 else None

    if not tasks or await count(tasks[0]) is None:
        return None
    found = await gather_all(count(task) for task in tasks)
    return PromptSizes(["/tokenize gave no answer" if n is None else n for n in found], "by the endpoint's /tokenize")
