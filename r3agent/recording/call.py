"""One recorded chat completion: the fields that are added to its request, and the record of its answer.

The application sees what it would see without the recording. If a request with added fields fails in a way that may be
their fault, it is sent again without them, as the application wrote it; what recording itself cannot do is logged.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import openai
from openai.types.chat import ChatCompletionChunk

from r3agent.http.body import find_error, read_body, read_text
from r3agent.http.errors import text_refusal
from r3agent.http.refusal import refused_fields
from r3agent.policy.parse import generations
from r3agent.policy.stream import Assembly
from r3agent.recording.answers import is_blank, is_whole, json_of
from r3agent.recording.blocks import Block
from r3agent.recording.episode import Episode
from r3agent.records import versions
from r3agent.records.json_values import json_value

logger = logging.getLogger(__name__)

SAMPLING_FIELDS = {
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "max_tokens", "max_completion_tokens"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias"),
    *("response_format", "tool_choice", "reasoning_effort"),
}
"""Request fields that are recorded with the spans; others may contain private data."""

CUT = "the stream was left, or broke off, before the completion ended"

INNOCENT = (401, 402, 407, 429)
"""Statuses that no field causes, unless the error names one."""

TRANSIENT = (408, 409, 502, 503, 504, 529)
"""Statuses of a busy server, which an endpoint that has taken the fields before does not have because of them."""

UNREMEMBERED = (*TRANSIENT, None)
"""Statuses after which the next request has the fields again, although one without them succeeded."""


class Subject(NamedTuple):
    """A model at an endpoint."""

    base_url: str
    model: str


class Memory:
    """Knowledge of endpoints, and what was logged; a client and its copies share it."""

    def __init__(self) -> None:
        self.refused: dict[Subject, set[str]] = {}
        """Added fields that are left out of further requests."""
        self.taken: set[Subject] = set()
        """Endpoints that have answered a request with added fields."""
        self._reported: set[str] = set()

    def report(self, kind: str, message: str, *values: object) -> None:
        """Log a warning, once for each kind."""
        if kind not in self._reported:
            self._reported.add(kind)
            logger.warning(message, *values)


class RecordedCall:
    """One request and its record."""

    def __init__(
        self,
        block: Block,
        body: Mapping[str, Any],
        extra: Mapping[str, Any],
        *,
        client: Any,
        version: str | None,
        tokens: bool,
        memory: Memory,
    ) -> None:
        self.is_stream = bool(body.get("stream"))
        added: dict[str, Any] = {"logprobs": True, "return_token_ids": True} if tokens else {}
        if tokens and self.is_stream:
            added["stream_options"] = {"include_usage": True}
        self._memory = memory
        self._subject = Subject(str(getattr(client, "base_url", "")), str(body.get("model")))
        refused = memory.refused.get(self._subject, set[str]())
        self._added = [field for field in added if field not in {*body, *extra, *refused}]
        self.body = {**body, **{field: added[field] for field in self._added}}
        self._episode: Episode = block.episode
        self._scope, self._version = block.scope, version
        self._left_out: set[str] = set()
        self._is_remembered = True
        self._start = time.perf_counter()
        self._assembly: Assembly | None = Assembly()
        self._has_begun = False
        """True if a stream has said something."""
        self._request = {**body, **extra}
        # Copy the messages as sent: the application may modify its list afterwards.
        sent = json_value([body.get("messages"), self._request.get("tools") or []])
        self._messages, self._tools = sent
        key = getattr(client, "api_key", None)
        self._episode.begin(self._messages, self._tools, key if isinstance(key, str) else "")
        if self.is_stream:
            self._episode.at_end(self.finish)

    # ---- the request ----

    def repeats(self, error: Exception | Any) -> bool:
        """Take out added fields that an error may refuse; return False if it is the application's own.

        Args:
            error: an exception, or the error in the body of a successful response.
        """
        if not self._added:
            return False
        try:
            status, named = self._refusal(error)
        except Exception as unreadable:
            self._report("an error of the endpoint is not read", unreadable)
            status, named = None, set[str]()
        if not named and (
            status in INNOCENT or (status in UNREMEMBERED and self._subject in self._memory.taken) or status == 0
        ):
            return False
        out = named or {*self._added}
        self._is_remembered &= bool(named) or not (status in UNREMEMBERED or self._subject in self._memory.taken)
        self._added = [field for field in self._added if field not in out]
        self.body = {field: value for field, value in self.body.items() if field not in out}
        self._left_out |= out
        return True

    def _refusal(self, error: Exception | Any) -> tuple[int | None, set[str]]:
        """Return the status of an error, 0 for one of the conversation's text, and the added fields that it names."""
        if isinstance(error, openai.APIStatusError):
            read, status = read_text(error.response.text), error.status_code
            text = read.message or str(error)
        elif isinstance(error, openai.APIError) and error.body:
            read = read_body({"error": error.body})
            status, text = read.status, read.message
        elif isinstance(error, Exception):
            return None, {field for field in self._added if field in str(error)}
        else:
            read = read_body(error)
            status, text = read.status, read.message
        if text_refusal(status, text) is not None:
            return 0, set()
        # A key without access to logprobs, or a quota for them, is 401, 402 or 429.
        return status, refused_fields(400 if status in INNOCENT else status, text, self._added, param=read.param)

    def refuses(self, answer: Any) -> bool:
        """Return True if a successful response is no answer, and may refuse the added fields; they are then out."""
        if not self._added or self.is_stream or is_whole(answer):
            return False
        try:
            found = json_of(answer)
            error = find_error(found)
        except Exception:  # no JSON
            found = error = None
        if error is None and isinstance(found, Mapping) and found.get("choices"):
            return False
        return self.ends_empty() if error is None else self.repeats(error)

    def refuses_at(self, chunk: Any) -> bool:
        """Return True if an event is an error, in a stream that has said nothing, that may refuse the added fields."""
        if self._has_begun:
            return False
        with suppress(Exception):  # a chunk of another class
            error = find_error(chunk.to_dict(mode="python", warnings=False))
            return error is not None and self.repeats(error)
        return False

    def fail(self) -> None:
        """Note that the request failed, which the application sees."""
        self._episode.lose(self._scope)

    # ---- the answer ----

    def take(self, answer: Any) -> Any:
        """Record a response, unless it is a stream, which is recorded while it is read."""
        if not self.is_stream:
            self._record(lambda: json_of(answer))
            self._settle()
            with suppress(Exception):  # an object of another class
                self._hide(answer)
        return answer

    def add(self, chunk: ChatCompletionChunk) -> bool:
        """Add one chunk to the record; return False for the usage chunk that only the record requested."""
        if not self._has_begun and not is_blank(chunk):
            self._has_begun = True
            self._settle()
        try:
            if self._episode.closed:
                self._episode.warn("a stream was read after its trace had ended: the record has what was read before")
            if self._assembly is not None:
                for _ in self._assembly.add(chunk.to_dict(mode="python", warnings=False)):
                    pass
        except Exception as error:
            self._assembly = None
            self._lose("a stream is not recorded", error)
        with suppress(Exception):  # a chunk of another class
            self._hide(chunk)
        return not ("stream_options" in self._added and not chunk.choices and chunk.usage is not None)

    def ends_empty(self) -> bool:
        """Return True if a response without anything may be a refusal of the added fields; they are then out."""
        is_known = self._has_begun or self._subject in self._memory.taken
        return not is_known and self.repeats({"error": {"message": "no answer", "code": 400}})

    def breaks(self, error: Exception) -> bool:
        """Return True if a stream that has said nothing may refuse the added fields; they are then out."""
        return not self._has_begun and self.repeats(error)

    def finish(self) -> None:
        """Record a stream that has ended, or will not be read to its end."""
        assembly, self._assembly = self._assembly, None
        if assembly is None:
            return
        if assembly.body["choices"]:
            self._record(lambda: assembly.body)
        else:
            self._episode.warn("a stream is not recorded: nothing of it was read inside of its trace")
            self._episode.lose(self._scope)

    def _settle(self) -> None:
        """Remember what the endpoint takes once it has answered."""
        if self._added:
            self._memory.taken.add(self._subject)
        if self._left_out and self._is_remembered:
            self._memory.refused.setdefault(self._subject, set()).update(self._left_out)
            fields = " and ".join(sorted(self._left_out))
            message = "%s, model %r refuses %s: requests are sent without, and their record has less"
            self._memory.report(f"{self._subject} {fields}", message, *self._subject, fields)

    def _hide(self, answer: Any) -> None:
        """Remove what the application did not ask for from an answer that is already recorded."""
        for choice in answer.choices or ():
            if "logprobs" in self._added and choice.logprobs is not None:
                choice.logprobs = None
            if "return_token_ids" in self._added:
                (choice.model_extra or {}).pop("token_ids", None)
        if "return_token_ids" in self._added:
            (answer.model_extra or {}).pop("prompt_token_ids", None)

    def _record(self, answer_of: Callable[[], Any]) -> None:
        try:
            answer = answer_of()
            answered = answer.get("model") or self.body["model"]
            common = {
                "model": answered,
                "policy_version": versions.served_version(answered) or self._version or versions.BASE,
                "sampling": {key: self._request[key] for key in sorted(SAMPLING_FIELDS & self._request.keys())},
                "latency_s": round(time.perf_counter() - self._start, 4),
            }
            choices = answer["choices"]
            request = {**self._request, "messages": self._messages}
            sampled = generations(answer, common, len(choices), request)
            if any(choice.get("finish_reason") is None for choice in choices):
                cut = {"capability": "eval-only", "capability_note": CUT, "logprobs": None}
                sampled = [generation.model_copy(update=cut) for generation in sampled]
            if self._episode.closed:
                self._episode.warn("an answer is not recorded: it came after the trace had ended")
            else:
                self._episode.add(sampled, self._scope, self._messages, self._tools)
        except Exception as error:  # the application has its answer whatever happens here
            self._lose("a chat completion is not recorded", error)

    def _lose(self, what: str, error: Exception) -> None:
        self._report(what, error)
        self._episode.lose(self._scope)

    def _report(self, what: str, error: Exception) -> None:
        report(self._memory, what, error)


def report(memory: Memory, what: str, error: Exception) -> None:
    """Log an error of the recording, once for each kind."""
    name = type(error).__name__
    memory.report(f"{what} {name}", "%s: %s: %s", what, name, " ".join(str(error).split())[:400])
