"""HTTP server on 127.0.0.1 with the OpenAI API and scripted faults."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias, cast

from r3agent.errors import ConfigError
from r3agent.records.trajectory import Message
from r3agent.testing.faults import Edit, Fault, Json
from r3agent.testing.http import JsonServer
from r3agent.testing.stream import as_stream
from r3agent.testing.tokens import LOGPROB, encode, encode_prompt, sampled_text

ScriptedAnswer: TypeAlias = str | Message
"""Text of a completion, or an assistant message, e.g. with tool calls or `reasoning`."""

KEPT = 1_000
"""Number of requests that an endpoint keeps at least."""


class Received(NamedTuple):
    """Chat completion request as received."""

    body: Json
    authorization: str | None


class ScriptedEndpoint:
    """Server of `/v1/chat/completions`, streamed or not, and `/v1/models`; use it as a context manager.

    Args:
        answer: answer of every completion, or a function of the request's body and the index of the choice.
        faults: responses to the first requests, in order; `None` is a healthy answer, as are all after the last.
            `FAULTS` has those of real servers, `itertools.cycle` repeats them, `random_faults` draws them.
        edits: functions that corrupt every healthy answer.
        ignores: request fields to ignore, among `n`, `logprobs`, `return_token_ids`, `max_tokens` and
            `max_completion_tokens`. A text that is longer than the limit is cut off; a token is a byte.
        refuses: request fields to refuse with 400, or a function from the body to its refusal or `None`.
        validate: function that returns why a request's body is refused with 400, or `None`, as a strict server's.
        api_key: accepted key; any other is refused with 401, and quoted.
        model: base model; a name that is neither this nor in `adapters` is refused with 404.
        port: port to listen on; default: a free one.
    """

    def __init__(
        self,
        answer: ScriptedAnswer | Callable[[Json, int], ScriptedAnswer] = "",
        *,
        faults: Iterable[Fault | None] = (),
        edits: Sequence[Edit] = (),
        ignores: Sequence[str] = (),
        refuses: Sequence[str] | Callable[[Json], Fault | None] = (),
        validate: Callable[[Json], str | None] = lambda body: None,
        api_key: str | None = None,
        model: str = "scripted",
        port: int = 0,
    ) -> None:
        self.model = model
        self.adapters: list[str] = []
        """More served names."""
        self.weight_version: str | None = None
        """Version in the response of `/weight_info`; with `None` there is no such route."""
        self.received: list[Received] = []
        """Chat completion requests, in order of arrival; of many, the last `KEPT` or more."""
        self._answer = answer
        self._faults = iter(faults)
        self._edits = edits
        self._ignores = ignores
        self._refuses = refuses
        self._validate = validate
        self._api_key = api_key
        self._lock = threading.Lock()
        self._server = JsonServer(self._respond, port)

    @property
    def url(self) -> str:
        """Base URL for `OpenAIPolicy`.

        Raises:
            ConfigError: the server has not been started, so that a client would wait in vain.
        """
        if not self._server.has_started:
            raise ConfigError("ScriptedEndpoint: it does not run; write `with ScriptedEndpoint(...) as endpoint:`")
        return f"{self._server.url}/v1"

    def wait_for_hanging(self, n: int, timeout_s: float = 30.0) -> None:
        """Wait until exactly `n` clients hang on a `HANG`; 0 shows that none is left.

        Raises:
            TimeoutError: there are more or fewer after `timeout_s`.
        """
        self._server.wait_for_hanging(n, timeout_s)

    def __enter__(self) -> ScriptedEndpoint:
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()

    def _respond(self, path: str, authorization: str | None, body: Json | None) -> Fault:
        if self._api_key is not None and authorization != f"Bearer {self._api_key}":
            return _error(401, f"Incorrect API key provided: {authorization}")
        if path == "/v1/models":
            listed = [{"id": name, "object": "model"} for name in (self.model, *self.adapters)]
            return Fault(body=json.dumps({"object": "list", "data": listed}))
        if path == "/weight_info" and self.weight_version is not None:
            return Fault(body=json.dumps({"weight_version": self.weight_version}))
        if path != "/v1/chat/completions" or body is None:
            return _error(404, f"no route {path}")
        if missing := {"model", "messages"} - set(body if isinstance(cast(Any, body), dict) else ()):
            return _error(400, f"the body is no JSON object with {' and '.join(sorted(missing))}")
        with self._lock:
            self.received.append(Received(body, authorization))
            if len(self.received) > 2 * KEPT:
                del self.received[:-KEPT]
            fault = next(self._faults, None)
        if fault is not None and fault.body is not None:
            return fault
        if body["model"] not in (self.model, *self.adapters):
            return _error(404, f"The model `{body['model']}` does not exist.")
        if (refusal := self._refusal(body)) is not None:
            return refusal
        if (why := self._validate(body)) is not None:
            return _error(400, why)
        completion = self._completion(body)
        fault = fault or Fault()
        for edit in (*self._edits, fault.edit):
            edit(completion)
        if not body.get("stream"):
            return replace(fault, body=json.dumps(completion))
        usage = (body.get("stream_options") or {}).get("include_usage", False)
        content_type = fault.content_type or "text/event-stream"
        return replace(fault, body=as_stream(completion, usage=usage), content_type=content_type)

    def _refusal(self, body: Json) -> Fault | None:
        if callable(self._refuses):
            return self._refuses(body)
        refused = next((name for name in self._refuses if name in body), None)
        return None if refused is None else _error(400, f"Unrecognized request argument supplied: {refused}")

    def _completion(self, body: Json) -> Json:
        fields = {name: value for name, value in body.items() if name not in self._ignores}
        choices = [self._choice(body, fields, i) for i in range(fields.get("n", 1))]
        prompt_ids = encode_prompt(body["messages"])
        sampled = sum(len(encode(sampled_text(c["message"]))) - (c["finish_reason"] == "length") for c in choices)
        return {
            "object": "chat.completion",
            "model": body["model"],
            "choices": choices,
            "usage": {"prompt_tokens": len(prompt_ids), "completion_tokens": sampled},
            **({"prompt_token_ids": prompt_ids} if "return_token_ids" in fields else {}),
        }

    def _choice(self, body: Json, fields: Json, i: int) -> Json:
        answer: Any = self._answer(body, i) if callable(self._answer) else self._answer
        message = {"role": "assistant", **(answer if isinstance(answer, dict) else {"content": answer})}
        ids = encode(sampled_text(message))
        limit = fields.get("max_completion_tokens") or fields.get("max_tokens") or len(ids)
        is_cut = len(ids) > limit and message.keys() == {"role", "content"} and isinstance(message["content"], str)
        if is_cut:
            message["content"] = bytes(ids[:limit]).decode(errors="ignore")
            ids = ids[:limit]
        return {
            "index": i,
            "message": message,
            "finish_reason": "length" if is_cut else "tool_calls" if "tool_calls" in message else "stop",
            "logprobs": {"content": [{"logprob": LOGPROB} for _ in ids]} if fields.get("logprobs") else None,
            **({"token_ids": ids} if "return_token_ids" in fields else {}),
        }


def _error(status: int, message: str) -> Fault:
    return Fault(status, json.dumps({"error": {"message": message, "code": status}}))
