"""Agent that is a LangChain or LangGraph runnable of messages.

    model = instrument(ChatOpenAI(model="policy", base_url=URL, api_key=KEY))
    agent = create_agent(model, tools=[search])
    graph = build_graph(policy=policy, verifier=check, agent=agent).compile(checkpointer=saver)

A compiled graph runs as a subgraph of the attempt and retry nodes: it has their checkpointer, store, context,
callbacks, tags, metadata and streams. Each try has a namespace of its own, so that tries share no state; a checkpointer
that the agent was compiled with is not used, and a subgraph inside the agent with `checkpointer=True` keeps its state
over the tries of a thread. After an interrupt the try goes on where it was. Under `invoke`, an agent with a
checkpointer is invoked too: its tools and nodes need sync functions.

Its input is `{"messages": [...]}`, with the further keys in the task's `info["state"]`. A runnable whose input is a
list, such as a chat model, gets the messages alone. Its answer is the text of the last message that it added, or the
JSON of `structured_response`. What it left behind, for a verifier that takes it, is its output.

The world of the try is `config["configurable"]["environment"]`: a tool reads it from `runtime.config`, with a parameter
`runtime: ToolRuntime`, or from a parameter `config: RunnableConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

import orjson
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.pregel import Pregel
from pydantic_core import to_jsonable_python

from r3agent._util.aio import in_own_thread, is_run_sync
from r3agent._util.messages import shorten
from r3agent.episodes.agents.base import AgentCall, AgentEnd
from r3agent.episodes.agents.tool_callbacks import with_tool_spans
from r3agent.episodes.config import EpisodeContext
from r3agent.errors import ConfigError
from r3agent.policy.langchain import as_langchain
from r3agent.records.trajectory import Task

CHECKPOINTER = "__pregel_checkpointer"
"""Key of a node's config with the checkpointer that LangGraph lends to subgraphs."""

RUNTIME = "__pregel_runtime"
"""Key of a node's config with LangGraph's `Runtime`."""

ENVIRONMENT = "environment"
"""Key of the config with the world of the try."""

STATE = "state"
"""Key of a task's `info` with further keys of the input."""


class RunnableAgent:
    """Adapter of a runnable of messages.

    Raises:
        ConfigError: its input has no messages.
    """

    def __init__(self, runnable: Runnable[Any, Any]) -> None:
        if isinstance(runnable, Pregel) and runnable.checkpointer is True:
            runnable = runnable.copy({"checkpointer": None})  # one history for all tries of a thread
        self.runnable = runnable
        self._is_graph = isinstance(runnable, Pregel)
        schema = _input_schema(runnable)
        names = schema.get("properties", {})
        self._takes_list = "messages" not in names and any(
            part.get("type") == "array" for part in (schema, *schema.get("anyOf", ()))
        )
        if self._is_graph and names and "messages" not in names:
            raise ConfigError(
                f"agent = {shorten(runnable)}: its input has {', '.join(sorted(names))} and no messages; give its "
                "state the key messages, or put a runnable before it that makes its input of messages"
            )

    def __repr__(self) -> str:
        return f"RunnableAgent({type(self.runnable).__name__})"

    async def goes_on(self, config: RunnableConfig) -> bool:
        """Return True if an earlier run of the same try has left a checkpoint, from which it goes on."""
        if not self.resumes(config):
            return False
        graph = cast(Any, self.runnable)
        if is_run_sync():
            return bool((await in_own_thread(partial(graph.get_state, config))).values)
        return bool((await graph.aget_state(config)).values)

    def resumes(self, config: RunnableConfig) -> bool:
        """Return True if a run that is interrupted is not begun anew."""
        lent = config.get("configurable", {}).get(CHECKPOINTER)
        return lent is not None and isinstance(self.runnable, Pregel) and self.runnable.checkpointer is not False

    async def run(self, call: AgentCall) -> AgentEnd:
        given = _numbered(as_langchain(call.messages))
        configurable = {**call.config.get("configurable", {})}
        if type(getattr(configurable.get(RUNTIME), "context", None)) is EpisodeContext:
            configurable[RUNTIME] = configurable[RUNTIME].override(context=None)  # the episode's limits are not its own
        if call.environment is not None:
            configurable[ENVIRONMENT] = call.environment
        config: RunnableConfig = {**call.config, "configurable": configurable}
        sent: Any = given if self._takes_list else {**_state(call.task), "messages": given}
        with with_tool_spans(config, call.episode.tools) as config:
            if is_run_sync() and self.resumes(config):
                # The checkpointer of a graph that is invoked may have no async methods.
                output = await in_own_thread(partial(self.runnable.invoke, sent, config))
            else:
                output = await self.runnable.ainvoke(sent, config)
        return AgentEnd(_answer(output, {message.id for message in given}), output)


def _input_schema(runnable: Runnable[Any, Any]) -> dict[str, Any]:
    """Return the JSON Schema of the input; empty if it has types without one."""
    with suppress(Exception):
        return runnable.get_input_jsonschema()
    return {}


def _state(task: Task) -> Mapping[str, Any]:
    """Return the further keys of the input.

    Raises:
        ConfigError: they are no mapping.
    """
    state = task.info.get(STATE, {})
    if not isinstance(state, Mapping):
        raise ConfigError(f"task {task.id!r}: info[{STATE!r}] = {shorten(state)}: the agent's input needs a mapping")
    return cast(Mapping[str, Any], state)


def _numbered(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Give messages ids that are the same in each run, by which what the agent adds is told apart."""
    return [message.model_copy(update={"id": f"given-{i}"}) for i, message in enumerate(messages)]


def _answer(output: Any, given: set[str | None]) -> str | None:
    """Return the answer in an output; `None` if the last message has only tool calls.

    Raises:
        TypeError: the output has no messages.
    """
    if isinstance(output, Mapping) and output.get("structured_response") is not None:
        structured = to_jsonable_python(output["structured_response"], fallback=str)
        return structured if isinstance(structured, str) else orjson.dumps(structured).decode()
    if isinstance(output, str):
        return output
    messages: Any = output.get("messages") if isinstance(output, Mapping) else output
    messages = [messages] if isinstance(messages, BaseMessage) else messages
    if not (isinstance(messages, list | tuple) and all(isinstance(one, BaseMessage) for one in messages)):
        raise TypeError(f"it returned {shorten(output)}: no messages; return {{'messages': [...]}}, a message or text")
    added = [m for m in messages if m.id not in given and isinstance(m, AIMessage | ToolMessage)]
    for message in reversed(added):
        text = str(message.text)
        if isinstance(message, AIMessage):
            calls = message.tool_calls or message.invalid_tool_calls
            return text or (None if calls else "")
        if text:
            return text
    return ""
