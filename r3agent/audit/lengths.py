"""How long the prompts are for the model: by its tokenizer, by its endpoint, or estimated, and said so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

from r3agent._async import together
from r3agent.audit.records import Check, some
from r3agent.doctor.wire import Wire
from r3agent.trajectory import Message, Task

CHARS_PER_TOKEN = 4
TIMEOUT_S = 10.0
CONCURRENCY = 8

PromptTokens = Callable[[Sequence[Message], Sequence[dict[str, Any]]], int]
"""Tokens of messages and tools, as the model's chat template puts them. Raises `ValueError` where it does not."""


class Endpoint(NamedTuple):
    """Where to ask."""

    base_url: str
    model: str
    api_key: str | None


class Lengths(NamedTuple):
    """What is known of the model; with nothing, prompts are estimated and held against no limit."""

    max_tokens: int
    """Of one completion."""
    limit: int | None = None
    """Tokens of prompt and completion; default: what the endpoint says."""
    tokenizer: PromptTokens | None = None
    endpoint: Endpoint | None = None


class Counted(NamedTuple):
    """Tokens of each task, or why its prompt is not taken."""

    of: list[int | str]
    how: str


async def length_check(tasks: Sequence[Task], lengths: Lengths) -> Check:
    """Whether every prompt leaves room for a completion, and for a whole retry."""
    limit, how_limited = lengths.limit, "the setting"
    counted = _by_tokenizer(tasks, lengths.tokenizer) if lengths.tokenizer else None
    if lengths.endpoint is not None and (counted is None or limit is None):
        wire = Wire(lengths.endpoint.base_url, api_key=lengths.endpoint.api_key, timeout_s=TIMEOUT_S)
        try:
            if limit is None:
                limit, how_limited = await _limit(wire, lengths.endpoint.model), "the endpoint"
            if counted is None:
                counted = await _by_endpoint(tasks, wire, lengths.endpoint.model)
        finally:
            await wire.aclose()
    counted = counted or _estimated(tasks)
    return _check(tasks, counted, limit, how_limited, lengths.max_tokens)


def _check(tasks: Sequence[Task], counted: Counted, limit: int | None, how_limited: str, max_tokens: int) -> Check:
    pairs = list(zip(tasks, counted.of, strict=True))
    known = sorted(n for n in counted.of if isinstance(n, int))
    refused = [f"task {task.id!r}: {why}" for task, why in pairs if isinstance(why, str)]
    long: list[tuple[int, str]] = []
    tight = 0
    if limit is not None:
        long = [(n, f"task {t.id!r}: {n} tokens") for t, n in pairs if isinstance(n, int) and n + max_tokens > limit]
        # A retry reads the failed try and the reflection before it answers.
        tight = sum(n + 3 * max_tokens > limit for n in known) - len(long)
    held = "no limit is known: name --model-limit" if limit is None else f"{how_limited} allows {limit}"
    spread = f"median {median(known):g}, longest {known[-1]}" if known else "none could be counted"
    room = f", of which a completion takes up to {max_tokens}" if limit is not None else ""
    retries = f"; {tight} leave no room for the longest retry" if tight > 0 else ""
    bad = long or refused
    return Check(
        name="prompt length",
        status="failed" if bad else "warning" if tight > 0 else "ok",
        detail=f"{spread} tokens ({counted.how}); {held}{room}; {len(long)} too long{retries}",
        counts={"tried": len(tasks), "wrong": len(long), "refused": len(refused), "tight": max(tight, 0)},
        rate=len(bad) / len(tasks) if tasks else None,
        examples=some([*refused, *(text for _, text in sorted(long, reverse=True))]),
        remedy="drop them, shorten the template, lower sampling.max_tokens or serve more context" if bad else "",
    )


def _by_tokenizer(tasks: Sequence[Task], tokenizer: PromptTokens) -> Counted:
    of: list[int | str] = []
    for task in tasks:
        try:
            of.append(tokenizer(task.messages, task.tools))
        except ValueError as error:
            of.append(str(error))
    return Counted(of, "by the model's tokenizer")


def _estimated(tasks: Sequence[Task]) -> Counted:
    texts = [[m.get("content") for m in task.messages] + ([task.tools] if task.tools else []) for task in tasks]
    chars = [sum(len(p if isinstance(p, str) else json.dumps(p, default=str)) for p in parts) for parts in texts]
    return Counted([-(-n // CHARS_PER_TOKEN) for n in chars], f"estimated: {CHARS_PER_TOKEN} characters a token")


async def _limit(wire: Wire, model: str) -> int | None:
    reply = await wire.call("GET", f"{wire.base_url}/models")
    cards = reply.body.get("data") if isinstance(reply.body, dict) else None
    for card in cards if isinstance(cards, list) else ():
        if isinstance(card, dict) and card.get("id") == model and isinstance(card.get("max_model_len"), int):
            return card["max_model_len"]
    return None


async def _by_endpoint(tasks: Sequence[Task], wire: Wire, model: str) -> Counted | None:
    """`None` where it has no /tokenize, or is not there."""
    slots = asyncio.Semaphore(CONCURRENCY)

    async def count(task: Task) -> int | str | None:
        body: dict[str, Any] = {"model": model, "messages": list(task.messages), "add_generation_prompt": True}
        body |= {"tools": list(task.tools)} if task.tools else {}
        async with slots:
            reply = await wire.call("POST", f"{wire.root}/tokenize", body)
        if isinstance(reply.body, dict) and isinstance(reply.body.get("count"), int):
            return reply.body["count"]
        return str(reply) if reply.status == 400 else None

    if not tasks or await count(tasks[0]) is None:
        return None
    found = await together(count(task) for task in tasks)
    return Counted(["/tokenize gave no answer" if n is None else n for n in found], "by the endpoint's /tokenize")
