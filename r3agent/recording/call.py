"""One recorded chat completion of an instrumented client: an exchange whose answers are objects of the SDK."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

import openai
from openai.types.chat import ChatCompletionChunk

from r3agent.errors import EndpointError, PolicyError, UnreachableError
from r3agent.http.body import ErrorBody, read_body, read_text
from r3agent.http.errors import policy_error, read_error
from r3agent.http.urls import redact_url
from r3agent.recording.answers import is_whole, json_of, json_of_chunk
from r3agent.recording.blocks import Block
from r3agent.recording.exchange import Exchange, Memory


class RecordedCall(Exchange):
    """One request of a client and its record."""

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
        key = getattr(client, "api_key", None)
        super().__init__(
            block.episode,
            block.scope,
            body,
            extra=extra,
            base_url=str(getattr(client, "base_url", "")),
            key=key if isinstance(key, str) else "",
            version=version,
            tokens=tokens,
            memory=memory,
        )
        if self.is_stream:
            self._episode.at_end(self.finish, self._scope)

    # ---- the request ----

    def url(self, path: str) -> str:
        """Return the URL to send to, or the path if that is the client's own."""
        return path if self.headers is None else f"{self.base_url.rstrip('/')}{path}"

    def options(self, options: Mapping[str, Any]) -> Any:
        """Return the options of the request with the policy's headers, and without the application's own key."""
        if self.headers is None:
            return options
        return {**options, "headers": {"api-key": openai.Omit(), **(options.get("headers") or {}), **self.headers}}

    def forgives(self, error: Exception) -> bool:
        """Take out added fields that an exception may refuse; return False if it is the application's own."""
        try:
            status, read = _read(error)
        except Exception as unreadable:
            self._memory.report_error("an error of the endpoint is not read", unreadable)
            status, read = None, ErrorBody("")
        return self.repeats(status, read)

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
        """Note the exception of a request, which the application sees."""
        self.fail(self._failure(error))

    def _failure(self, error: Exception) -> PolicyError | None:
        """Map an exception of the SDK onto `r3agent.errors`; `None` if it is not the endpoint's."""
        where = f"{redact_url(self.base_url)}, model {self.body.get('model')!r}: "
        try:
            if isinstance(error, openai.APIStatusError):
                return policy_error(read_error(cast(Any, error.response)), where=where)
        except Exception as unreadable:
            self._memory.report_error("an error of the endpoint is not read", unreadable)
        if not isinstance(error, openai.APIError):
            return None
        refused = isinstance(error.__cause__, Exception) and type(error.__cause__).__name__ == "ConnectError"
        kind = UnreachableError if refused else EndpointError
        return kind(f"{where}{error}")

    # ---- the answer ----

    def take(self, answer: Any) -> Any:
        """Record a response, unless it is a stream, which is recorded while it is read."""
        if not self.is_stream:
            self.take_whole(lambda: json_of(answer))
            self.finish()
            with suppress(Exception):  # an object of another class
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
