"""One recorded chat completion of an instrumented client: an exchange whose answers are objects of the SDK."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

import openai
import orjson
from openai.types.chat import ChatCompletionChunk

from r3agent.errors import EndpointError, PolicyError, ProtocolError, UnreachableError
from r3agent.http.body import ErrorBody, read_body, read_text
from r3agent.http.errors import policy_error, read_error
from r3agent.http.urls import ApiURL, redact_url
from r3agent.policy.live import Target
from r3agent.recording.answers import is_whole, json_of, json_of_chunk
from r3agent.recording.blocks import Block
from r3agent.recording.exchange import Exchange
from r3agent.recording.live import LiveName
from r3agent.recording.memory import Memory
from r3agent.records import versions
from r3agent.records.json_values import parse_json


class RecordedCall(Exchange):
    """One request of a client and its record."""

    _unparsed: Any = None
    """Answer before the application's own parser, which may refuse it."""

    def __init__(
        self,
        block: Block,
        body: Mapping[str, Any],
        extra: Mapping[str, Any],
        *,
        client: Any,
        version: str | None,
        tokens: bool,
        purpose: str | None,
        live: LiveName | None,
        target: Target | None,
        memory: Memory,
    ) -> None:
        key = getattr(client, "api_key", None)
        self._live, self._target = live, target
        self._own_url = str(getattr(client, "base_url", ""))
        super().__init__(
            block.episode,
            block.scope,
            body if target is None else {**body, "model": target.model},
            extra=extra,
            base_url=(target and target.base_url) or self._own_url,
            key=key if isinstance(key, str) else "",
            version=version,
            tokens=tokens,
            purpose=purpose,
            memory=memory,
        )
        if self.is_stream:
            self._episode.at_end(self.finish, self._scope)

    # ---- the request ----

    def url(self, path: str) -> str:
        """Return the URL to send to, or the path if that is the client's own."""
        return path if self.base_url == self._own_url else str(ApiURL(self.base_url).route(path))

    def options(self, options: Mapping[str, Any]) -> Any:
        """Return the options of the request with the policy's headers, and without the application's own key."""
        options = {**options, "extra_json": self._extra} if options.get("extra_json") else options
        if callable(parser := options.get("post_parser")):  # of `chat.completions.parse`

            def parse(answer: Any) -> Any:
                self._unparsed = answer
                return parser(answer)

            options = {**options, "post_parser": parse}
        if self.headers is None:
            return options
        own_keys = {"authorization": openai.Omit(), "api-key": openai.Omit()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        return {**options, "headers": {**(options.get("headers") or {}), **own_keys, **headers}}

    def forgives(self, error: Exception) -> bool:
        """Change what an exception may be about; return False if it is the application's own.

        Added fields are taken out that it may refuse, and a version that was unloaded is replaced by the live one.
        """
        if self._unparsed is not None:
            return False
        try:
            status, read = _read(error)
        except Exception as unreadable:
            self._memory.report_error("an error of the endpoint is not read", unreadable)
            status, read = None, ErrorBody("")
        return self._follows(status) or self.repeats(status, read)

    def _follows(self, status: int | None) -> bool:
        """Go on with the live version if a deploy has unloaded this one, or replaced its server."""
        if self._live is None or self._target is None or status not in (None, 404) or self.has_begun:
            return False
        if (now := self._live.now()) == self._target:
            return False
        self._episode.pins[self._live] = self._target = now
        self.base_url = now.base_url or self._own_url
        self._written = {**self._written, "model": now.model}
        return True

    def refuses(self, answer: Any) -> bool:
        """Return True if a successful response is no answer, and may refuse the added fields; they are then out."""
        if not self.added or self.is_stream or is_whole(answer):
            return False
        try:
            return self.repeats_after(json_of(answer))
        except Exception:  # no JSON
            return self.ends_empty()

    def refuses_at(self, chunk: Any) -> bool:
        """Return True if an event is an error, in a stream that has said nothing, that may refuse the added fields."""
        with suppress(Exception):  # a chunk of another class
            return self.repeats_at(json_of_chunk(chunk))
        return False

    def breaks(self, error: Exception) -> bool:
        """Return True if a stream that has said nothing may refuse the added fields; they are then out."""
        if not self.has_begun and self.forgives(error):
            return True
        self.note(self._failure(error))
        return False

    def fail_with(self, error: Exception) -> None:
        """Note the exception of a request, which the application sees; an answer that is not parsed is recorded."""
        if self._unparsed is not None:
            self.take(self._unparsed)
        else:
            self.fail(self._failure(error))

    def _failure(self, error: Exception) -> PolicyError | None:
        """Map an exception of the SDK onto `r3agent.errors`; `None` if it is not the endpoint's."""
        where = f"{redact_url(self.base_url)}, model {self.body.get('model')!r}: "
        try:
            if isinstance(error, openai.APIStatusError):
                return policy_error(read_error(cast(Any, error.response)), where=where)
        except Exception as unreadable:
            self._memory.report_error("an error of the endpoint is not read", unreadable)
        if isinstance(error, json.JSONDecodeError | openai.APIResponseValidationError):
            return ProtocolError(f"{where}the response is no JSON: {error}")
        if not isinstance(error, openai.APIError):
            return None
        refused = isinstance(error.__cause__, Exception) and type(error.__cause__).__name__ == "ConnectError"
        kind = UnreachableError if refused else EndpointError
        return kind(f"{where}{error}")

    # ---- the answer ----

    def _policy_version(self, answered: str) -> str | None:
        """Return the version that answered; `None` if its weights may have been replaced meanwhile."""
        if self._target is None or self._live is None:
            return super()._policy_version(answered)
        named = versions.served_version(answered)
        return named or (self._target.version if self._live.keeps(self._target) else None)

    def end_stream(self) -> None:
        """Record a stream that its sender has ended, and note an answer without an end as the endpoint's fault."""
        if self._assembly is not None and not self.is_answered:
            self.note(EndpointError(f"{redact_url(self.base_url)}: the stream ended before the completion"))
        self.finish()

    def take(self, answer: Any) -> Any:
        """Record a response, unless it is a stream, which is recorded while it is read."""
        if not self.is_stream:
            self.take_whole(lambda: json_of(answer))
            self.finish()
            with suppress(Exception):  # an object of another class
                if isinstance(getattr(answer, "content", None), bytes):
                    self._hide_raw(answer)
                else:
                    self._hide(answer)
        return answer

    def add(self, chunk: ChatCompletionChunk) -> bool:
        """Add one chunk to the record; return False for the usage chunk that only the record requested."""
        if self._episode.closed:
            self._episode.warn("a stream was read after its trace had ended: the record has what was read before")
        try:
            found: Any = json_of_chunk(chunk)
        except Exception as error:  # a chunk of another class
            found = error
        self.take_chunk(found)
        with suppress(Exception):  # a chunk of another class
            self._hide(chunk)
        return not ("stream_options" in self.added and not chunk.choices and chunk.usage is not None)

    def _hide_raw(self, answer: Any) -> None:
        """Give a raw response, which is not parsed yet, another content."""
        if not self.added:
            return
        raw = answer.http_response
        headers = [(k, v) for k, v in raw.headers.multi_items() if k not in ("content-encoding", "content-length")]
        content = orjson.dumps(self.fit(parse_json(raw.content)))
        answer.http_response = type(raw)(
            raw.status_code, headers=headers, content=content, request=raw.request, extensions=raw.extensions
        )
        answer.http_response.elapsed = raw.elapsed

    def _hide(self, answer: Any) -> None:
        """Remove what the application did not ask for from an object that is already recorded."""
        for choice in answer.choices or ():
            if "logprobs" in self.added and choice.logprobs is not None:
                choice.logprobs = None
            if "return_token_ids" in self.added:
                (choice.model_extra or {}).pop("token_ids", None)
        if "return_token_ids" in self.added:
            (answer.model_extra or {}).pop("prompt_token_ids", None)


def _read(error: Exception) -> tuple[int | None, ErrorBody]:
    """Read the status, if there is one, and the error of a request that failed."""
    if isinstance(error, openai.APIStatusError):
        read = read_text(error.response.text)
        return error.status_code, read if read.message else read._replace(message=str(error))
    if isinstance(error, openai.APIError) and error.body:
        read = read_body({"error": error.body})
        return read.status, read
    return None, ErrorBody(str(error))
