"""The record: a trajectory is a tree of spans. What they earn, and which are siblings, is in `credit.py`.

    task -- attempt ✗ --+-- reflect --+-- retry ✓
                        |             +-- retry ✗
                        +-- retry ✗                  no reflection above it: the blind control

Everything here is frozen, versioned and JSON-safe. Nothing here calls a model or touches a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from statistics import fmean
from typing import Any, Literal, TypeAlias
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from r3agent._util.messages import explain
from r3agent.errors import ConfigError, SchemaVersionError
from r3agent.records.thinking import ReasoningField

Message: TypeAlias = dict[str, Any]
"""One chat message in the shape of OpenAI's API: `{"role": ..., "content": ...}`."""

Label: TypeAlias = Literal["attempt", "reflect", "retry"]

Capability: TypeAlias = Literal["trainable-exact", "trainable-retokenised", "eval-only"]
"""Use of a generation in training: its recorded tokens are trained on, its re-tokenised text is, or neither."""


class Record(BaseModel):
    """Base of all records: frozen, and unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class VersionedRecord(Record):
    """Base of the records that files hold: `schema_version`, which each declares, has the version that is read here.

    Raises:
        SchemaVersionError: the data to validate is of another version.
    """

    @model_validator(mode="before")
    @classmethod
    def _check_schema_version(cls, data: Any) -> Any:
        known = cls.model_fields["schema_version"].default
        if isinstance(data, dict) and (found := data.get("schema_version", known)) != known:
            raise SchemaVersionError(
                f"schema_version = {found!r}: this r3agent reads version {known}; "
                "open the run with the version of r3agent that wrote it, or use a new directory"
            )
        return data


TASK_EXAMPLE = '{"task": {"messages": [{"role": "user", "content": "..."}]}}'
"""The least that a task is, to show where one was given wrong."""


class Task(Record):
    """One problem: what the policy is shown and what the verifier needs."""

    id: str = Field(default_factory=str)  # for type checkers; `_default_id` gives one before this is asked
    """Stable across runs; resume keys and splits are made from it. Default: a hash of the messages."""
    messages: tuple[Message, ...] = Field(min_length=1)
    """The conversation so far, ending with the user's request."""
    tools: tuple[dict[str, Any], ...] = ()
    """Tool definitions in the shape of OpenAI's API."""
    info: dict[str, Any] = {}
    """Data for the verifier; never shown to the policy."""
    gold: Message | None = None
    """An assistant message that passes, where one is known; `audit` tries the verifier on it. Never shown either."""

    @model_validator(mode="before")
    @classmethod
    def _default_id(cls, data: Any) -> Any:
        if isinstance(data, dict) and "id" not in data and "messages" in data:
            shown = json.dumps(data["messages"], sort_keys=True, default=str)
            return {"id": sha256(shown.encode()).hexdigest()[:16], **data}
        return data

    @classmethod
    def of(cls, given: object) -> Task:
        """The task that a caller gave, as a record or as its JSON.

        Raises:
            ConfigError: it cannot be read as one.
        """
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise ConfigError(f"{explain(error, cls, root='task')}; give one as in {TASK_EXAMPLE}") from None


class Verdict(Record):
    """A verifier's judgement of one answer."""

    passed: bool
    score: float = Field(ge=0, le=1)
    """How good it is; the sources `score` and `retry_score` of `train.credit` pay it, all else looks at `passed`."""
    feedback: str | None = None
    """Why, for people; the policy does not see it unless a prompt puts it there."""
    noisy: bool = False
    """True if its giver may err, e.g. a language model; then `feedback` has the votes."""
    by: str | None = None
    """Name of whoever attached it afterwards, with `r3agent label`; `None`: the verifier gave it."""
    overruled: bool | None = None
    """The verifier's own `passed`, where a label says otherwise."""

    @classmethod
    def failed(cls, feedback: str) -> Verdict:
        """Not passed, with no part of it right."""
        return cls(passed=False, score=0.0, feedback=feedback)


class Generation(Record):
    """One sampled completion, exactly as the endpoint gave it."""

    text: str
    reasoning: str | None = None
    """The thinking, where the server handed it over beside the text; its tokens are among `token_ids`."""
    reasoning_field: ReasoningField = "reasoning"
    """The server's name for it."""
    tool_calls: tuple[dict[str, Any], ...] = ()
    prompt_token_ids: tuple[int, ...] | None = None
    token_ids: tuple[int, ...] | None = None
    """T sampled tokens, the end-of-turn token included where the server counts it."""
    logprobs: tuple[float, ...] | None = None
    """T natural-log probabilities under the policy and the sampling temperature the server scored with."""
    model: str
    """The name the endpoint answered with."""
    policy_version: str | None = None
    """The registry's version behind that name, where it is known."""
    sampling: dict[str, Any] = {}
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    latency_s: float | None = None
    """Latency of the request; the siblings of one `n > 1` request share it."""
    capability: Capability = "eval-only"
    capability_note: str | None = None
    """Why the capability is less than `trainable-exact`."""

    @model_validator(mode="after")
    def _aligned(self) -> Generation:
        ids, logprobs = self.token_ids, self.logprobs
        if ids is not None and logprobs is not None and len(ids) != len(logprobs):
            raise ValueError(f"{len(ids)} token ids but {len(logprobs)} logprobs: they must align one to one")
        if self.capability == "trainable-exact" and (not ids or logprobs is None or not self.prompt_token_ids):
            raise ValueError("trainable-exact needs prompt_token_ids, token_ids and logprobs")
        return self

    @property
    def message(self) -> Message:
        """The generation as the assistant message that follows its prompt."""
        message: Message = {"role": "assistant", "content": self.text}
        if self.reasoning is not None:
            message[self.reasoning_field] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = list(self.tool_calls)
        return message

    @property
    def turn(self) -> Message:
        """`message` as it is sent back: servers refuse calls whose arguments are no JSON object, so these are text."""
        broken = [call for call in self.tool_calls if not _is_readable(call)]
        if not broken:
            return self.message
        texts = [self.text, *(json.dumps(call.get("function", call)) for call in broken)]
        message = {**self.message, "content": "\n".join(text for text in texts if text)}
        calls = [call for call in self.tool_calls if call not in broken]
        return {**message, "tool_calls": calls} if calls else {k: v for k, v in message.items() if k != "tool_calls"}


def _is_readable(call: Message) -> bool:
    try:
        return isinstance(json.loads(call["function"]["arguments"]), dict)
    except (KeyError, TypeError, ValueError, RecursionError):
        return False


def new_id() -> str:
    """A fresh id for a span or a trajectory."""
    return uuid4().hex[:16]


class Span(Generation):
    """A generation with its place in the tree."""

    span_id: str = Field(default_factory=new_id)
    parent_id: str | None = None
    label: Label
    request: tuple[Message, ...] = ()
    """Messages that asked for this span, appended to the parent's conversation."""
    standalone: bool = False
    """`request` is all that was sent: it does not go on with the parent's conversation."""
    verdict: Verdict | None = None
    """Verdict on an attempt or a retry, once verified."""

    @property
    def passed(self) -> bool | None:
        return None if self.verdict is None else self.verdict.passed


class EpisodeError(Record):
    """Why an episode ended early: data, never a score of 0."""

    kind: str
    """The class of the exception, e.g. `VerifierError`."""
    message: str


class Trajectory(VersionedRecord):
    """One episode: a task and the tree of spans it grew."""

    schema_version: Literal[1] = 1
    trajectory_id: str = Field(default_factory=new_id)
    task: Task
    sample: int = 0
    """Number of this episode among several of the same task."""
    spans: tuple[Span, ...] = ()
    """Parents before children."""
    error: EpisodeError | None = None
    verifier: str = ""
    created_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    metadata: dict[str, Any] = {}

    @model_validator(mode="after")
    def _is_tree(self) -> Trajectory:
        seen: set[str] = set()
        for span in self.spans:
            if span.span_id in seen:
                raise ValueError(f"span {span.span_id} appears twice")
            if span.parent_id is not None and span.parent_id not in seen:
                raise ValueError(f"span {span.span_id} comes before its parent {span.parent_id}, or has none")
            seen.add(span.span_id)
        return self

    def changed(self, **fields: Any) -> Trajectory:
        """A copy with other fields; `model_copy` would carry over the walks that were cached for the old spans."""
        return Trajectory(**{**dict(self), **fields})

    # ---- tree walks ----

    @cached_property
    def _by_id(self) -> dict[str, Span]:
        return {span.span_id: span for span in self.spans}

    @cached_property
    def _children(self) -> dict[str | None, list[Span]]:
        children: dict[str | None, list[Span]] = {}
        for span in self.spans:
            children.setdefault(span.parent_id, []).append(span)
        return children

    def parent(self, span: Span) -> Span | None:
        return None if span.parent_id is None else self._by_id[span.parent_id]

    def children(self, span: Span, label: Label | None = None) -> list[Span]:
        return [c for c in self._children.get(span.span_id, []) if label in (None, c.label)]

    def path(self, span: Span) -> list[Span]:
        """Spans from the root to `span`, both included."""
        path = [span]
        while (above := self.parent(path[-1])) is not None:
            path.append(above)
        return path[::-1]

    def prompt(self, span: Span) -> list[Message]:
        """The conversation that `span` answered."""
        messages = list(self.task.messages)
        for step in self.path(span):
            messages = [*([] if step.standalone else messages), *step.request]
            if step is not span:
                messages.append(step.turn)
        return messages

    @property
    def attempt(self) -> Span | None:
        return next((s for s in self.spans if s.label == "attempt"), None)

    def is_blind(self, span: Span) -> bool:
        """A retry that no reflection led to."""
        above = self.parent(span)
        return span.label == "retry" and above is not None and above.label != "reflect"

    @property
    def answer(self) -> Span | None:
        """The span to hand to a user: the first that passed, else the last that tried."""
        tries = [s for s in self.spans if s.label != "reflect"]
        return next((s for s in tries if s.passed), tries[-1] if tries else None)

    @property
    def passed(self) -> bool | None:
        answer = self.answer
        return None if answer is None else answer.passed

    @property
    def policy_versions(self) -> tuple[str | None, ...]:
        """The versions that answered, in order of first answer; more than one: the episode lived through a deploy."""
        return tuple(dict.fromkeys(span.policy_version for span in self.spans))


def mean_success(spans: Iterable[Span]) -> float | None:
    """Share of passed spans among those with a verdict; `None` when there is none."""
    verdicts = [s.verdict.passed for s in spans if s.verdict is not None]
    return fmean(verdicts) if verdicts else None
