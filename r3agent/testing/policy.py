"""Policy without a model that answers from a script."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, cast, get_args

from r3agent._util.messages import did_you_mean, shorten
from r3agent._util.shared import Shared
from r3agent.errors import ConfigError
from r3agent.policy import Sampling
from r3agent.policy.stream import OnDelta
from r3agent.records.prompts import PROMPTS
from r3agent.records.trajectory import Generation, Message
from r3agent.testing.tokens import LOGPROB, encode, encode_prompt, pieces

CallKind: TypeAlias = Literal["attempt", "reflect", "retry", "blind_retry"]

ScriptedReply: TypeAlias = str | Generation | Exception
"""Script of one completion; an exception is raised."""

Script: TypeAlias = (
    ScriptedReply | Sequence[ScriptedReply] | Callable[[Sequence[Message]], ScriptedReply | Awaitable[ScriptedReply]]
)
"""One reply every time, replies in order, or a function (sync or async) of the conversation."""

_REPLIES = (str, Generation, Exception)
_KINDS: tuple[CallKind, ...] = get_args(CallKind)
_KIND_OF_REQUEST: dict[object, CallKind] = {}
for _prompts in PROMPTS.values():
    _KIND_OF_REQUEST[_prompts.reflect_prompt] = "reflect"
    _KIND_OF_REQUEST[_prompts.retry_prompt] = "retry"
    _KIND_OF_REQUEST[_prompts.blind_retry_prompt] = "blind_retry"


class Call(NamedTuple):
    """Arguments of one call of `sample`."""

    asked: CallKind
    messages: list[Message]
    n: int
    tools: list[dict[str, Any]]
    sampling: Sampling | None


class ScriptedPolicy(Shared):
    """Policy that answers from a script and records its calls in `calls`.

    Args:
        script: one for all calls, or one for each of `attempt`, `reflect`, `retry` and `blind_retry`, recognised by
            the default prompts.
        exact: add token ids and logprobs to replies given as text, as a server that returns both.
        model: model name in the replies.
    """

    def __init__(
        self, script: Script | Mapping[CallKind, Script], *, exact: bool = True, model: str = "scripted"
    ) -> None:
        """Make a policy.

        Raises:
            ConfigError: a script is for another kind of call, or is no reply, replies or function.
        """
        self.calls: list[Call] = []
        self.closed = False
        self.exact = exact
        self.model = model
        if isinstance(script, Mapping):
            for asked in script.keys() - set(_KINDS):
                raise ConfigError(f"script of {asked!r}: no kind of call; {did_you_mean(asked, _KINDS)}")
            self._reply = {asked: _as_function(part) for asked, part in script.items()}
        else:
            self._reply = dict.fromkeys(_KINDS, _as_function(script))

    async def sample(
        self,
        messages: Sequence[Message],
        *,
        n: int = 1,
        tools: Sequence[dict[str, Any]] = (),
        sampling: Sampling | None = None,
        on_delta: OnDelta | None = None,
    ) -> list[Generation]:
        """Return the next `n` replies, and pass them word by word to `on_delta`.

        Raises:
            ConfigError: the script has no reply.
        """
        content = messages[-1].get("content")
        asked = _KIND_OF_REQUEST.get(content, "attempt") if isinstance(content, str) else "attempt"
        self.calls.append(Call(asked, list(messages), n, list(tools), sampling))
        if asked not in self._reply:
            raise ConfigError(
                f"the script says nothing to {asked!r}, only to {sorted(self._reply)}; add a reply to {asked!r}"
            )
        drawn = [await self._generation(asked, messages) for _ in range(n)]
        if on_delta is not None:
            for choice, generation in enumerate(drawn):
                for piece in pieces(generation.text):
                    on_delta(choice, piece)
        return drawn

    async def aclose(self) -> None:
        self.closed = True

    async def _generation(self, asked: CallKind, messages: Sequence[Message]) -> Generation:
        reply = self._reply[asked](messages)
        if inspect.isawaitable(reply):
            reply = await reply
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, Generation):
            return reply
        prompt_ids, ids = encode_prompt(messages), encode(reply)
        recorded = {"prompt_token_ids": prompt_ids, "token_ids": ids, "logprobs": [LOGPROB] * len(ids)}
        return Generation.model_validate(
            {
                "text": reply,
                "model": self.model,
                "finish_reason": "stop",
                "prompt_tokens": len(prompt_ids),
                "completion_tokens": len(ids),
                "capability": "trainable-exact" if self.exact else "trainable-retokenised",
                "capability_note": None if self.exact else "the script gives no token ids",
                **(recorded if self.exact else {}),
            }
        )


def _as_function(script: Script) -> Callable[[Sequence[Message]], ScriptedReply | Awaitable[ScriptedReply]]:
    if callable(script):
        return script
    if isinstance(script, _REPLIES):
        return lambda messages: script
    given = cast(Any, script)
    if (
        wrong := [reply for reply in given if not isinstance(reply, _REPLIES)]
        if isinstance(given, Sequence)
        else [given]
    ):
        raise ConfigError(f"script has {shorten(wrong[0])}; a reply is a text, a Generation or an exception")
    replies = iter(script)
    end = f"the script ends after {len(script)} replies; add more, or pass one text or a function, which never end"
    return lambda messages: next(replies, ConfigError(end))
