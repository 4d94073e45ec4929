"""One sampled completion, and the verdict of a verifier on it."""

from __future__ import annotations

import json
import operator
import re
from math import isfinite
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BeforeValidator, Field, model_validator

from r3agent.records.json_values import json_value, plain
from r3agent.records.record import StoredRecord
from r3agent.records.reply import normal_calls
from r3agent.records.task import Message
from r3agent.records.thinking import ReasoningField, split_thinking

Capability: TypeAlias = Literal["trainable-exact", "trainable-retokenised", "eval-only"]
"""Use of a generation in training: its recorded tokens can be trained on, its re-tokenised text can, or neither."""

Refused: TypeAlias = Literal["context_overflow", "content_refused", "no_reflection"]
"""Reason why there is no generation: the endpoint refused the conversation, which was longer than the context or not to
its content filter's liking; or a retry had no reflection to follow, because this ended within its thinking."""

Unfinished: TypeAlias = Literal["length", "content_filter"] | Refused
"""Reason why a generation is no whole answer: it was cut off at the token limit or by a content filter, or there is
none."""

LENGTH = frozenset(
    {"length", "max_tokens", "max_output_tokens", "max_new_tokens", "model_length", "model_context_window_exceeded"}
)
"""Finish reasons of servers for a completion that reached the token limit."""

FILTERED = re.compile(
    r"(?i)content_?(?:filter|block)|safety|recitation|prohibited|blocklist|spii|sensitive|guardrail|refusal"
)
"""Beginnings of finish reasons for a completion that a content filter ended: OpenAI, Gemini, Zhipu, Bedrock, Claude."""

IMPOSSIBLE = -9999.0
"""Logprob that vLLM and OpenAI give instead of minus infinity."""

NO_NUMBER = "a logprob is not a number, or that of an impossible token (minus infinity, null or -9999)"
HALF = "the text has half of a character (a lone surrogate), recorded as U+FFFD"

FATAL = {"trainable-exact": NO_NUMBER, "trainable-retokenised": HALF}
"""Flaw that takes a capability away: exact tokens need their logprobs, and the text that is tokenised must be whole."""


class Verdict(StoredRecord):
    """A verifier's judgement of one answer."""

    passed: Annotated[bool, BeforeValidator(plain)]
    score: Annotated[float, BeforeValidator(plain)] = Field(ge=0, le=1)
    """Quality of the answer, used by the sources `score` and `retry_score` of `train.credit`; others use `passed`."""
    feedback: str | None = None
    """Reason, for people; the policy sees it only if a prompt contains it."""
    noisy: bool = False
    """True if the verifier can be wrong, e.g. a language model; `feedback` then has the votes."""
    by: str | None = None
    """Author of a verdict that was added later with `r3agent label`; `None` for the verifier's own."""
    overruled: bool | None = None
    """The verifier's own `passed`, if a label contradicts it."""
    readable: bool = True
    """False if the reply has no answer in a form that the verifier reads, so that the prompt may be at fault."""

    @classmethod
    def failed(cls, feedback: str, *, readable: bool = True) -> Verdict:
        """Make a failed verdict with score 0."""
        return cls(passed=False, score=0.0, feedback=feedback, readable=readable)


class Generation(StoredRecord):
    """One sampled completion, exactly as the endpoint returned it."""

    text: str
    reasoning: str | None = None
    """The thinking, if the server returned it in a separate field; its tokens are among `token_ids`."""
    reasoning_field: ReasoningField = "reasoning"
    """Name of the server's field for the thinking."""
    tool_calls: Annotated[tuple[dict[str, Any], ...], BeforeValidator(normal_calls)] = ()
    """Tool calls in the format of OpenAI's API, as `reply.normal_calls` returns them."""
    extra: dict[str, Any] = Field(default={}, exclude_if=operator.not_)  # releases without it refuse the field
    """Further fields of the assistant message that servers want back, such as `reasoning_details`; `content` if it has
    parts that are not text."""
    prompt_token_ids: tuple[int, ...] | None = None
    token_ids: tuple[int, ...] | None = None
    """T sampled tokens, including the end-of-turn token if the server counts it."""
    logprobs: tuple[float, ...] | None = None
    """T natural-log probabilities under the policy at temperature 1, over the whole vocabulary."""
    model: str
    """Model name in the endpoint's response."""
    policy_version: str | None = None
    """Policy version of that model name, if known."""
    sampling: dict[str, Any] = {}
    """Sampling settings of the request; those that it left out, or that are `None`, are the server's defaults."""
    finish_reason: str | None = None
    """Reason in the endpoint's response, or the one of `Refused`."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = Field(default=None, exclude_if=lambda count: count is None)  # as `extra`
    """Those of the prompt that the endpoint read from its cache, if it reports them."""
    completion_tokens: int | None = None
    sibling_tokens: int | None = Field(default=None, exclude_if=lambda count: count is None)  # as `extra`
    """Sampled tokens of all siblings of an `n > 1` request, where the endpoint counts only their sum."""
    latency_s: float | None = None
    """Latency of the request; the siblings of one `n > 1` request share it."""
    capability: Capability = "eval-only"
    capability_note: str | None = None
    """Reason why the capability is less than `trainable-exact`, or a doubt about one that is."""

    @model_validator(mode="before")
    @classmethod
    def _mended(cls, data: Any) -> Any:
        return mended(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _aligned(self) -> Generation:
        ids, logprobs = self.token_ids, self.logprobs
        if ids is not None and logprobs is not None and len(ids) != len(logprobs):
            raise ValueError(f"{len(ids)} token ids but {len(logprobs)} logprobs: they must align one to one")
        if self.capability == "trainable-exact" and (not ids or logprobs is None or not self.prompt_token_ids):
            raise ValueError("trainable-exact needs prompt_token_ids, token_ids and logprobs")
        return self

    @property
    def unfinished(self) -> Unfinished | None:
        """Return why this is no whole answer; `None` if it is one."""
        reason = (self.finish_reason or "").lower()
        if reason in LENGTH:
            return "length"
        if FILTERED.match(reason):
            return "content_filter"
        if reason in ("context_overflow", "content_refused", "no_reflection"):
            return reason
        # vLLM reports tool_calls for a completion that was cut off after a tool call.
        limit = self.sampling.get("max_tokens")
        is_full = reason == "tool_calls" and limit is not None and len(self.token_ids or ()) >= limit
        return "length" if is_full else None

    @property
    def refused(self) -> bool:
        """Return True if there is no generation: the endpoint refused the conversation, or nobody asked it."""
        return self.unfinished in get_args(Refused)

    @property
    def unanswered(self) -> bool:
        """Return True if this ended before any answer: refused, or cut off within its thinking."""
        return bool(self.unfinished) and not self.tool_calls and not split_thinking(self.text).answer.strip()

    @property
    def message(self) -> Message:
        """Assistant message that follows the prompt, with the text, the thinking and the tool calls."""
        message: Message = {"role": "assistant", "content": self.text}
        if self.reasoning is not None:
            message[self.reasoning_field] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = list(self.tool_calls)
        return message

    @property
    def turn(self) -> Message:
        """Form of `message` to send back: with `extra`, and with calls that servers refuse as text.

        Those are calls without a name, or whose arguments are not a JSON object.
        """
        broken = [call for call in self.tool_calls if not _is_readable(call)]
        message = {key: value for key, value in self.message.items() if key != "tool_calls"}
        if broken:
            texts = [self.text, *(json.dumps(call.get("function", call)) for call in broken)]
            message["content"] = "\n".join(text for text in texts if text)
        if "content" in self.extra:
            message.pop(self.reasoning_field, None)  # it is one of the parts
        message |= {key: value for key, value in self.extra.items() if key != "content" or not broken}
        readable = [call for call in self.tool_calls if call not in broken]
        return {**message, "tool_calls": readable} if readable else message


def mended(given: dict[str, Any]) -> dict[str, Any]:
    """Drop logprobs that are not numbers, and lower the capability of an answer that is not as it was sampled.

    A generation without such a flaw is returned itself.
    """
    flaws: list[str] = []
    fields = given
    if not _all_finite(given.get("logprobs")):
        flaws.append(NO_NUMBER)
        fields = {**given, "logprobs": None}
    json_value([given.get(name) for name in ("text", "reasoning", "tool_calls")], losses=(halves := []))
    if halves:
        flaws.append(HALF)
    if not flaws:
        return given
    if FATAL.get(given.get("capability", "")) in flaws:
        fields = {**fields, "capability": "eval-only"}
    return {**fields, "capability_note": "; ".join(filter(None, [given.get("capability_note"), *flaws]))}


def _all_finite(logprobs: Any) -> bool:
    try:
        return not logprobs or (all(map(isfinite, logprobs)) and min(logprobs) > IMPOSSIBLE)
    except TypeError:  # null among them
        return False


def _is_readable(call: Message) -> bool:
    if "custom" in call:
        return True
    try:
        arguments = json.loads(call["function"]["arguments"], parse_constant=_refuse)
        return bool(call["function"]["name"]) and isinstance(arguments, dict)
    except (KeyError, TypeError, ValueError, RecursionError):
        return False


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
