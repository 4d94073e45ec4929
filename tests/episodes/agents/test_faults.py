"""Faults of the endpoint in the middle of an agent's try: it goes on, or the record says why it did not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from r3agent import collect, load
from r3agent.errors import AccessError
from r3agent.testing import FATAL, FAULTS, ScriptedEndpoint
from tests.episodes.agents.endpoints import TASK, found, looking, policy_at

EXACT = "trainable-exact"
UNFINISHED = {"length", "content_filter"}
UNFIT = {"miscounted", "content_filter"}
"""Faults whose answer is no sample to train on."""
UNREAD = {"html_page", "no_choices", "truncated"}
"""Faults that a function meets when its client reads the response."""
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def answer(body: Any, choice: int) -> Any:
    return "a ball" if body["messages"][-1]["role"] == "tool" else looking("k")


def look(key: str) -> str:
    """Look into a box."""
    return "a ball"


async def looks(messages: list[Any], client: AsyncOpenAI) -> str:
    asked = await client.chat.completions.create(model="policy", messages=messages, tools=[TOOL])  # pyright: ignore
    said = asked.choices[0].message.model_dump(exclude_none=True)
    result = {"role": "tool", "tool_call_id": "c1", "content": look("k")}
    more: Any = {"model": "policy", "messages": [*messages, said, result], "tools": [TOOL]}
    return (await client.chat.completions.create(**more)).choices[0].message.content or ""


@pytest.mark.parametrize("given", [{"tools": [look]}, {"agent": looks}], ids=["loop", "function"])
@pytest.mark.parametrize("name", sorted(FAULTS))
async def test_fault_within_a_try(name: str, given: dict[str, Any], tmp_path: Path) -> None:
    fault, is_function = FAULTS[name], "agent" in given
    tasks = [{**TASK["task"], "id": id_} for id_ in ("healthy", "faulty")]
    with ScriptedEndpoint(answer, faults=[None, None, None, *[fault] * (9 if name in FATAL else 1)]) as endpoint:
        async with policy_at(endpoint, timeout_s=2.0 if fault.kind in ("hang", "trickle") else 60) as policy:
            limits: Any = {"concurrency": 1, "max_attempts": 1}
            collecting = collect(tasks, policy=policy, verifier=found, out=tmp_path, **limits, **given)
            if name in FATAL:
                with pytest.raises(AccessError):
                    await collecting
                assert [episode.task.id for episode in load(tmp_path)] == ["healthy"]
                return
            summary = await collecting
    episode = next(episode for episode in load(tmp_path) if episode.task.id == "faulty")
    if is_function and name in UNREAD:
        assert summary.errors == {"ProtocolError": 1}
        assert not any(a_try.verdict for a_try in episode.tries)
        return
    [a_try] = episode.tries
    assert (episode.error, [step.text for step in a_try.steps]) == (None, ["", "a ball"])
    assert a_try.passed == (name not in UNFINISHED)
    unfit = {*UNFIT, *({"error_in_success"} if is_function else {})}  # asked again without the fields for training
    assert [step.capability for step in a_try.steps] == [EXACT, "eval-only" if name in unfit else EXACT]
