"""Spans of telemetry of the LangChain tools that an agent runs, by LangChain's callbacks."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager, Callbacks
from langchain_core.messages import ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphBubbleUp

from r3agent.episodes.agents.results import result_text
from r3agent.records.json_values import json_value
from r3agent.telemetry.genai import tool_result
from r3agent.telemetry.tools import ToolSpans
from r3agent.telemetry.tracing import TraceSpan, here


@contextmanager
def with_tool_spans(config: RunnableConfig, tools: ToolSpans) -> Generator[RunnableConfig]:
    """Add the callbacks to the configuration of a run, if there is a tracer."""
    if (around := here()) is None:
        yield config
        return
    callbacks = _ToolCallbacks(tools, around)
    try:
        yield {**config, "callbacks": _added(config.get("callbacks"), callbacks)}
    finally:
        callbacks.end()


def _added(given: Callbacks, callbacks: BaseCallbackHandler) -> Callbacks:
    if not isinstance(given, BaseCallbackManager):
        return [*(given or ()), callbacks]
    manager = given.copy()
    manager.add_handler(callbacks, inherit=True)
    return manager


class _ToolCallbacks(BaseCallbackHandler):
    """Handler of one try.

    Args:
        around: context of telemetry of the try, for tools in threads that do not inherit it.
    """

    run_inline = True  # in the context of the tool, and at its times

    def __init__(self, tools: ToolSpans, around: Any) -> None:
        self._tools, self._around = tools, around
        self._open: dict[UUID, TraceSpan] = {}

    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        inputs: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        name = str((serialized or {}).get("name") or more.get("name") or "")
        arguments = input_str if inputs is None else json_value(inputs)
        self._open[run_id] = self._tools.begin(name, more.get("tool_call_id"), arguments, parent=self._around)

    def on_tool_end(self, output: Any, *, run_id: UUID, **more: Any) -> None:
        if (span := self._open.pop(run_id, None)) is not None:
            tool_result(span, result_text(output), failed=isinstance(output, ToolMessage) and output.status == "error")
            span.end()

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **more: Any) -> None:
        if (span := self._open.pop(run_id, None)) is not None:
            if not isinstance(error, GraphBubbleUp):  # an interrupt
                span.fail(error)
            span.end()

    def end(self) -> None:
        """End the spans of the tools that the end of the try has cancelled, or left running."""
        for span in [*self._open.values()]:
            span.fail("unfinished")
            span.end()
        self._open.clear()
