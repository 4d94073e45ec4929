"""Tool calls in the text of a reply, in Hermes' form: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, cast
from uuid import uuid4

from r3agent.serve.engine.model import ServedModel
from r3agent.serve.http.protocol import ChatCompletionRequest

BEGIN, END = "<tool_call>", "</tool_call>"


def calls_tools(served: ServedModel, request: ChatCompletionRequest) -> bool:
    """Return True if the replies are read for calls: the request has tools, and the chat template writes this form."""
    return request.offers_tools and BEGIN in str(served.tokenizer.chat_template)


class CallReader:
    """Reader of one reply, whole or piece by piece; both give the same calls and the same text.

    The text around calls stays, without the white space before a call and after the last. What looks like a call and is
    none, because its JSON is broken or it has no end, is text.
    """

    def __init__(self) -> None:
        self.n_calls = 0
        self._held = ""
        """Text that may become a call, or white space before one."""

    def read(self, piece: str, *, last: bool) -> tuple[str, list[dict[str, Any]]]:
        """Return the text and the calls that a further piece completes."""
        self._held += piece
        text, calls = "", list[dict[str, Any]]()
        while (end := self._held.find(END)) >= 0:
            before, call = _split(self._held[:end])
            text += f"{before}{END}" if call is None else before.rstrip()
            calls += [] if call is None else [call]
            self._held = self._held[end + len(END) :]
        self.n_calls += len(calls)
        free = self._n_free(last=last)
        text, self._held = text + self._held[:free], self._held[free:]
        return text, calls

    def _n_free(self, *, last: bool) -> int:
        """Return how much of the held text is surely outside of a call and no white space before one."""
        if last:
            return len(self._held.rstrip() if self.n_calls else self._held)
        start = self._held.find(BEGIN)
        if start < 0:
            start = len(self._held)
            start -= max((n for n in range(1, len(BEGIN)) if self._held.endswith(BEGIN[:n])), default=0)
        return len(self._held[:start].rstrip())


def _split(text: str) -> tuple[str, dict[str, Any] | None]:
    """Split the text before an end into what is outside of the call, and the call if there is one."""
    for begin in re.finditer(BEGIN, text):
        if (call := _call(text[begin.end() :])) is not None:
            return text[: begin.start()], call
    return text, None


def _call(text: str) -> dict[str, Any] | None:
    """Read the JSON of a call; `None` if it is broken."""
    try:
        call: object = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict):
        return None
    fields = cast(dict[str, object], call)
    name, arguments = fields.get("name"), fields.get("arguments")
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"chatcmpl-tool-{uuid4().hex}", "type": "function", "function": function}


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
