"""`tests/deploy/endpoint.py`, a server whose weights change, with a chat route: what a whole run needs of a server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from r3agent.testing import Fault
from tests.deploy.endpoint import Endpoint, error, save_model, serving

Reply = Callable[[dict[str, Any]], str]
"""The text of a completion, by the body of its request."""


@dataclass
class ChattingEndpoint(Endpoint):
    """Answers chats by a script; a model that is not loaded is answered with 404."""

    reply: Reply = lambda body: ""
    chats: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of the chat requests."""
    keys: set[str | None] = field(default_factory=set)
    """`Authorization` of every request of any route."""

    def respond(self, path: str, authorization: str | None, body: dict[str, Any] | None) -> Fault:
        self.keys.add(authorization)
        return super().respond(path, authorization, body)

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        return self.chat(body) if path == "/v1/chat/completions" else super().answer(path, body)

    def chat(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.chats.append(body)
        if body["model"] not in (self.name, *self.adapters):
            return 404, error(f"The model `{body['model']}` does not exist.")
        choices = [
            {"index": i, "message": {"role": "assistant", "content": self.reply(body)}, "finish_reason": "stop"}
            for i in range(body.get("n", 1))
        ]
        return 200, {"object": "chat.completion", "model": body["model"], "choices": choices, "usage": {}}


@pytest.fixture
def endpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ChattingEndpoint]:
    """Server of a base model that answers chats by the function `reply` of the test's file."""
    weights = save_model(tmp_path / "base", seed=0)
    with serving(ChattingEndpoint(weights=weights, reply=request.module.reply)) as endpoint:
        yield endpoint


def subject(endpoint: ChattingEndpoint, folder: Path, n_tasks: int) -> dict[str, Any]:
    """Settings of a run of an endpoint's model, on tasks that are written into a folder."""
    tasks = folder / "tasks.jsonl"
    lines = ({"id": str(i), "prompt": f"{i}: what is 2 * 3?", "answer": "6"} for i in range(n_tasks))
    tasks.write_text("\n".join(map(json.dumps, lines)))
    policy = {"policy.base_url": endpoint.url, "policy.model": "tiny", "policy.base_model": str(endpoint.weights)}
    return {**policy, "task.source": str(tasks), "task.verifier": "exact"}
