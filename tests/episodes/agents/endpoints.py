"""Shared by the tests of agents with a client: an endpoint whose model asks for one tool call, and then answers."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from langchain_openai import ChatOpenAI

from r3agent import OpenAIPolicy, Task, Trajectory, instrument
from r3agent.policy import Sampling
from r3agent.testing import ScriptedEndpoint

TASK: Any = {"task": {"id": "t", "messages": [{"role": "user", "content": "What is in box k?"}]}}
HINT = "look again"


def model(body: Mapping[str, Any], choice: int) -> Any:
    """Reflect if there are no tools; else look into the box, and repeat what is in it after a reflection."""
    last = body["messages"][-1]
    if last["role"] == "tool":
        return str(last["content"]) if any(m["content"] == HINT for m in body["messages"]) else "nothing"
    return looking("k") if body.get("tools") else HINT


def looking(key: str) -> dict[str, Any]:
    function = {"name": "look", "arguments": json.dumps({"key": key})}
    return {"content": "", "tool_calls": [{"id": "c1", "type": "function", "function": function}]}


def found(task: Task, answer: str) -> bool:
    return answer == "a ball"


def trajectory(output: Mapping[str, Any]) -> Trajectory:
    return Trajectory.model_validate(output["trajectory"])


def steps(output: Mapping[str, Any]) -> list[list[str]]:
    """Texts of the steps of each try."""
    return [[step.text or step.tool_calls[0]["function"]["name"] for step in t.steps] for t in trajectory(output).tries]


def chat(endpoint: ScriptedEndpoint) -> ChatOpenAI:
    return instrument(ChatOpenAI(model="policy", base_url=endpoint.url, api_key="sk-other"))  # pyright: ignore


@asynccontextmanager
async def policy_at(endpoint: ScriptedEndpoint, **settings: Any) -> AsyncGenerator[OpenAIPolicy]:
    sampling = Sampling(seed=7, max_tokens=99)
    async with OpenAIPolicy(endpoint.url, "scripted", api_key="sk-policy1", sampling=sampling, **settings) as policy:
        try:
            yield policy
        finally:
            policy.close()
