"""One chat completion over the wire, as JSON: the fields that are added to its request, and the record of its answer.

Who sent the request gets what he would get without the recording. If a request with added fields fails in a way that
may be their fault, it is sent again without them, as it was written; what recording itself cannot do is logged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from r3agent.errors import PolicyError, ProtocolError
from r3agent.http.body import ErrorBody, find_error, read_body
from r3agent.http.errors import text_refusal
from r3agent.http.refusal import refused_fields
from r3agent.http.urls import redact_url
from r3agent.policy.base import Access
from r3agent.policy.parse import generations
from r3agent.policy.stream import Assembly
from r3agent.recording.blocks import SpanScope
from r3agent.recording.episode import Episode
from r3agent.recording.memory import Memory, Subject
from r3agent.recording.wire import INNOCENT, SAMPLING_FIELDS, UNREMEMBERED, fit, is_blank, is_whole, wanted_fields
from r3agent.records import versions
from r3agent.records.json_values import json_value
from r3agent.records.span import OTHER
from r3agent.telemetry.genai import ModelCall

CUT = "the stream was left, or broke off, before the completion ended"


class Exchange:
    """One request and its record.

    The terms of the scope are applied to it: `base_url` and `headers` are where and how it is to be sent.

    Args:
        body: JSON of the request.
        extra: further fields that the sender adds to the body itself.
        base_url: base URL that the sender would use.
        key: secret of the request, which is never recorded.
        version: policy version of a served name that has none.
        tokens: request logprobs, token ids, and the usage when streaming.
        purpose: what the call is for, if it is not the policy's.
        retried: the sender repeats what fails for a while; then only fields that an error names are taken out.

    Raises:
        StepLimitError: the try may make no further call.
    """

    def __init__(
        self,
        episode: Episode,
        scope: SpanScope | None,
        body: Mapping[str, Any],
        *,
        base_url: str,
        memory: Memory,
        extra: Mapping[str, Any] | None = None,
        key: str = "",
        version: str | None = None,
        tokens: bool = True,
        purpose: str | None = None,
        retried: bool = False,
    ) -> None:
        request = {**body, **(extra or {})}
        self.is_stream = bool(request.get("stream"))
        self._terms = terms = None if scope is None else scope.terms
        self.headers: Mapping[str, str] | None = None
        """Headers for the server of the policy; `None` for the sender's own server."""
        self.access: Access | None = None
        filled: dict[str, Any] = {}
        if terms is not None:
            index = terms.count()
            if terms.means_policy(request.get("model")):
                filled = terms.filled(request, index)
                if terms.model is not None:
                    body = {**body, "model": terms.model}
                    extra = {name: value for name, value in (extra or {}).items() if name != "model"}
                version = terms.version or version
                if terms.base_url is not None:
                    base_url, self.headers, self.access = terms.base_url, terms.headers, terms.access
            else:
                purpose, version = purpose or OTHER, None
        self._purpose = purpose
        self.base_url = base_url
        self._memory = memory
        self._subject = Subject(base_url, versions.base_name(str(body.get("model"))))
        left_out = {*(extra or ()), *memory.refused.get(self._subject, ())}
        is_exact = tokens and purpose is None
        wanted = (wanted_fields(body, is_stream=self.is_stream) if is_exact else {}) | filled
        self._filled, self._is_retried = frozenset(filled), retried
        self._written, self._extra = body, dict(extra or {})
        self.added = {field: value for field, value in wanted.items() if field not in left_out}
        """Fields of `body` that are not as the sender wrote them, and whose effect on the answer it must not see."""
        self._episode, self._scope, self._version = episode, scope, version
        self._left_out: set[str] = set()
        self._is_remembered = True
        self._start = time.perf_counter()
        self._latency_s: float | None = None
        self._read: Callable[[], Any] | None = None
        """Reads the response, if it came whole."""
        self._assembly: Assembly | None = Assembly()
        self.has_begun = False
        """True if a stream has said something."""
        # Copy the messages as sent: the application may modify its list afterwards.
        self._messages, self._tools = json_value([body.get("messages"), request.get("tools") or []])
        episode.begin(self._messages, self._tools, [key, *(terms.secrets if terms else ())], purpose)
        self._call = ModelCall(
            str(body.get("model")),
            lambda: request,
            self._messages or (),
            base_url=base_url,
            label=scope.label if scope else "attempt",
            purpose=purpose,
            trajectory_id=episode.trajectory_id,
            parent=episode.around,
        )

    # ---- the request ----

    @property
    def body(self) -> dict[str, Any]:
        """Request to send."""
        return {**self._written, **self.added}

    def repeats(self, status: int | None, error: ErrorBody) -> bool:
        """Take out added fields that an error may refuse; return False if it is not their fault.

        Args:
            status: HTTP status, or the one that an error in a successful response carries; `None` without a response.
        """
        if not self.added:
            return False
        if status is not None and text_refusal(status, error.message) is not None:
            return False
        # A key without access to logprobs, or a quota for them, is 401, 402 or 429.
        as_refusal = 400 if status in INNOCENT or status is None else status
        named = refused_fields(as_refusal, error.message, self.added, param=error.param)
        has_taken = self._subject in self._memory.taken
        if not named and (status in INNOCENT or (status in UNREMEMBERED and has_taken)):
            return False
        if not named and self._is_retried and (status in UNREMEMBERED or status >= 500):
            return False
        if not (out := named or {*self.added} - self._filled):
            return False
        self._is_remembered &= bool(named) or not (status in UNREMEMBERED or has_taken)
        self.added = {field: value for field, value in self.added.items() if field not in out}
        self._left_out |= out
        return True

    def repeats_after(self, answer: Any) -> bool:
        """Return True if a successful response is no answer, and may refuse the added fields; they are then out."""
        if not self.added or is_whole(answer):
            return False
        if (error := find_error(answer)) is not None:
            return self.repeats(*_with_status(read_body(error)))
        if isinstance(answer, Mapping) and answer.get("choices"):
            return False
        return self.ends_empty()

    def repeats_at(self, chunk: Any) -> bool:
        """Return True if an event is an error, in a stream that has said nothing, that may refuse the added fields."""
        if self.has_begun or (error := find_error(chunk)) is None:
            return False
        return self.repeats(*_with_status(read_body(error)))

    def ends_empty(self) -> bool:
        """Return True if a response without anything may be a refusal of the added fields; they are then out."""
        is_known = self.has_begun or self._subject in self._memory.taken
        return not is_known and not self._is_retried and self.repeats(400, ErrorBody("no answer"))

    def fail(self, why: PolicyError | None = None) -> None:
        """Note that the request failed, which its sender sees."""
        self._assembly = None
        self._call.span.fail(why or "request_failed")
        self._call.span.end()
        self.note(why)
        self._episode.lose(self._scope)

    def note(self, failure: PolicyError | None) -> None:
        """Tell the try why the endpoint of the policy failed, or that it answered."""
        if self._terms is not None and self._purpose is None:
            self._terms.note(failure)

    # ---- the answer ----

    def stop(self) -> None:
        """Take the latency; what is recorded later does not count."""
        self._latency_s = self._latency_s or round(time.perf_counter() - self._start, 4)

    def take_whole(self, read: Callable[[], Any]) -> None:
        """Take a response without streaming, whose JSON `read` returns when `finish` records it."""
        self.stop()
        self._read = read

    def take_chunk(self, chunk: Any) -> None:
        """Add one event of a stream to the record."""
        if not self.has_begun and not is_blank(chunk):
            self.has_begun = True
            self.settle()
        try:
            if self._assembly is not None:
                for _ in self._assembly.add(chunk):
                    pass
        except Exception as error:
            self._assembly = None
            self._lose("a stream is not recorded", error)

    @property
    def is_answered(self) -> bool:
        """Return True if the answer is there, also if more of its stream may come, and is not recorded yet."""
        if self._read is not None or self._assembly is None:
            return self._read is not None
        n = {**self._written, **self._extra}.get("n")
        n = n if isinstance(n, int) and n > 0 else 1
        return not self._assembly.is_broken_off and len(self._assembly.body["choices"]) >= n

    def finish(self) -> None:
        """Record the answer, or the part of it that was read if it will not be read to its end."""
        self.stop()
        self._record_answer()
        self._call.end(self._latency_s)

    def _record_answer(self) -> None:
        read, assembly = self._read, self._assembly
        self._read = self._assembly = None
        if read is not None:
            if self._record(read):
                self.settle()
        elif assembly is not None and assembly.body["choices"]:
            self._record(lambda: assembly.body)
        elif assembly is not None:
            if self.is_stream:
                self._episode.warn("a stream is not recorded: nothing of it was read inside of its trace")
            self._episode.lose(self._scope)

    def fit(self, answer: Any) -> Any:
        """Return an answer or event without what was not asked for, by itself unchanged; `None` if nothing is left."""
        return fit(answer, self.added)

    def settle(self) -> None:
        """Remember what the endpoint takes once it has answered."""
        self.note(None)
        if self.added.keys() - self._filled:
            self._memory.taken.add(self._subject)
        if self._left_out and self._is_remembered:
            self._memory.refused.setdefault(self._subject, set()).update(self._left_out)
            fields = " and ".join(sorted(self._left_out))
            message = "%s, model %r refuses %s: requests are sent without, and their record has less"
            self._memory.report(f"{self._subject} {fields}", message, *self._subject, fields)

    def _record(self, read: Callable[[], Any]) -> bool:
        """Record an answer; return False if it is none."""
        answer: Any = None
        try:
            answer = read()
            sent = {**self.body, **self._extra, "messages": self._messages}
            answered = answer.get("model") or sent["model"]
            common = {
                "model": answered,
                "policy_version": self._policy_version(answered),
                "sampling": {key: sent[key] for key in sorted((SAMPLING_FIELDS | self._filled) & sent.keys())},
                "latency_s": self._latency_s,
            }
            choices = answer["choices"]
            sampled = generations(answer, common, len(choices), sent)
            flaw = CUT if any(choice.get("finish_reason") is None for choice in choices) else None
            if self._purpose is not None:
                flaw = f"{self._purpose}: {answered!r} was not asked as the policy"
            if flaw is not None:
                lowered = {"capability": "eval-only", "capability_note": flaw, "logprobs": None}
                sampled = [generation.model_copy(update=lowered) for generation in sampled]
            if self._episode.closed or (self._scope is not None and self._scope.ended):
                self._episode.warn("an answer is not recorded: it came after its trace or try had ended")
            else:
                self._episode.add(sampled, self._scope, self._messages, self._tools, self._purpose)
            self._call.answered(sampled)
        except Exception as error:  # the sender has the answer whatever happens here
            if not (isinstance(answer, Mapping) and answer.get("choices")):
                self.note(ProtocolError(f"{redact_url(self.base_url)}: the answer is no chat completion: {error!r}"))
            self._lose("a chat completion is not recorded", error)
            return False
        return True

    def _policy_version(self, answered: str) -> str | None:
        """Return the version that answered; a name without one is the base only if it is the policy's."""
        named = versions.served_version(answered)
        if named or (self._terms is not None and not self._terms.holds()):
            return named
        return self._version or (versions.BASE if self._purpose is None else None)

    def _lose(self, what: str, error: Exception) -> None:
        self._memory.report_error(what, error)
        self._episode.lose(self._scope)


def _with_status(error: ErrorBody) -> tuple[int, ErrorBody]:
    return error.status, error
