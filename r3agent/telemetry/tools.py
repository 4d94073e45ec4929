"""Spans of the tools of agents that run outside of this package.

An agent's framework may report a tool while it runs: such a span has its times and its failure. Of all other tools only
the result is seen, in the request that sends it back to the model: its span has no duration.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from r3agent.records.reply import arguments_of, called, text_of
from r3agent.records.span import Span
from r3agent.records.task import Message
from r3agent.telemetry.genai import tool_call, tool_result
from r3agent.telemetry.tracing import TraceSpan, guarded, now_ns

if TYPE_CHECKING:
    from opentelemetry.context import Context


class ToolSpans:
    """Spans of the tool calls of one episode, of which none has two; safe for threads."""

    def __init__(self) -> None:
        self._made: Counter[object] = Counter()
        """Number of spans by id of the call, because servers repeat ids."""
        self._nameless: Counter[str] = Counter()
        """Number of spans without such an id whose result has not been seen yet, by name of the tool."""
        self._lock = Lock()

    def skip(self, tree: Sequence[Span]) -> None:
        """Count the calls of earlier tries, and of earlier steps, that were answered before the episode goes on."""
        answered = {span.parent_id for span in tree}
        for call in (call for span in tree if span.span_id in answered for call in span.tool_calls):
            self._made.update((str(call.get("id")), ("", called(call))))

    def begin(self, name: str, call_id: object, arguments: object, *, parent: Context | None) -> TraceSpan:
        """Begin the span of a tool that runs now.

        Args:
            call_id: id of the model's call; `None` if the tool is not told.
        """
        with self._lock:
            if call_id is None:
                self._nameless[name] += 1
            else:
                self._made[call_id] += 1
        return tool_call(name, call_id, arguments, parent=parent)

    def see(
        self, messages: Sequence[Message], answers: Sequence[Span], *, trajectory_id: str, parent: Context | None
    ) -> None:
        """Make the spans of the results that a request sends back, if they have none.

        Args:
            answers: spans of the episode so far; results of calls that are in none of them are of other episodes.
        """
        if (seen_ns := now_ns()) is None:
            return

        def make() -> None:
            found = results(messages)
            calls = [call for span in answers for call in span.tool_calls] if found else []
            ids, names = Counter(str(call.get("id")) for call in calls), Counter(map(called, calls))
            for call, result in found:
                if self._takes(call, result.get("tool_call_id"), ids, names):
                    given: Any = {"seen_ns": seen_ns, "trajectory_id": trajectory_id, "parent": parent}
                    span = tool_call(called(call), result.get("tool_call_id"), arguments_of(call), **given)
                    tool_result(span, text_of(result.get("content")), failed=False)
                    span.end(seen_ns)

        guarded(make, None)

    def _takes(self, call: Message, call_id: object, ids: Counter[str], names: Counter[str]) -> bool:
        """Count a span of a result; return False if it has one, or its call is not the episode's.

        Args:
            ids, names: numbers of the episode's calls, by id and by name, which counts if an application has own ids.
        """
        name = called(call)
        key, n_calls = (call_id, ids[str(call_id)]) if str(call_id) in ids else (("", name), names[name])
        with self._lock:
            if self._made[key] >= n_calls:
                return False
            self._made[key] += 1
            has_one = self._nameless[name] > 0
            self._nameless[name] -= has_one
        return not has_one


def results(messages: Sequence[Message]) -> list[tuple[Message, Message]]:
    """Return the tool calls of the last answer in a conversation that have a result, and those results."""
    last = max((i for i, message in enumerate(messages) if message.get("role") == "assistant"), default=len(messages))
    waiting = [*(messages[last].get("tool_calls") or ())] if last < len(messages) else []
    found: list[tuple[Message, Message]] = []
    for message in messages[last + 1 :]:
        if message.get("role") == "tool" and waiting:
            own = (call for call in waiting if call.get("id") == message.get("tool_call_id"))
            call = next(own, waiting[0])
            waiting.remove(call)
            found.append((call, message))
    return found
