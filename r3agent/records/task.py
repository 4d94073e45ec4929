"""Task of an episode, as the policy and the verifier see it."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any, TypeAlias

from pydantic import Field, ValidationError, model_validator

from r3agent._util.messages import explain
from r3agent.errors import ConfigError
from r3agent.records.record import Record

Message: TypeAlias = dict[str, Any]
"""One chat message in the format of OpenAI's API: `{"role": ..., "content": ...}`."""

TASK_EXAMPLE = '{"task": {"messages": [{"role": "user", "content": "..."}]}}'
"""Minimal input of the graph, for error messages."""


class Task(Record):
    """One problem: the prompt for the policy and the data for the verifier."""

    id: str = Field(default_factory=str)  # for type checkers; `_default_id` sets it before this default applies
    """Id that is stable across runs; resuming and splits depend on it. Default: a hash of the messages."""
    messages: tuple[Message, ...] = Field(min_length=1)
    """The conversation so far, ending with the user's request."""
    tools: tuple[dict[str, Any], ...] = ()
    """Tool definitions in the format of OpenAI's API."""
    info: dict[str, Any] = {}
    """Data for the verifier; the policy never sees it."""
    gold: Message | None = None
    """An assistant message that passes, if one is known; `audit` checks the verifier with it. The policy never sees
    it."""

    @model_validator(mode="before")
    @classmethod
    def _default_id(cls, data: Any) -> Any:
        if isinstance(data, dict) and "id" not in data and "messages" in data:
            shown = json.dumps(data["messages"], sort_keys=True, default=str)
            return {"id": sha256(shown.encode()).hexdigest()[:16], **data}
        return data

    @property
    def digest(self) -> str:
        """Hash of the whole task: messages, tools, the verifier's data and the gold answer."""
        return sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def of(cls, given: object) -> Task:
        """Parse a task that a caller passed, as a record or as its JSON.

        Raises:
            ConfigError: it is not a valid task.
        """
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise ConfigError(f"{explain(error, cls, root='task')}; give one as in {TASK_EXAMPLE}") from None
