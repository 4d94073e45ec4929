"""The tool loop: completions and tool calls in turn, until an answer calls no tool.

    graph = build_graph(policy=policy, verifier=check, tools=[search, refund], environment=shop)

The policy sees the task's own definitions of tools, then those of `tools` that the task does not define. A call runs
the code of its name. A call of a tool that the task defines and that has no code ends the try: the calls of that answer
are judged, and none of them is run. Faults of calls and of tools are told to the policy. The calls of one answer run at
once, except that sync tools that take the world run one after another, in the order of the calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from r3agent._util.messages import shorten
from r3agent.episodes.agents.base import AgentCall, AgentEnd
from r3agent.episodes.agents.mcp import McpServer
from r3agent.episodes.agents.results import Toolbox
from r3agent.episodes.agents.tools import Tool, by_name, make_tool
from r3agent.episodes.checkpointed import gather_interruptible, keep, keep_spans
from r3agent.episodes.config import EpisodeConfig
from r3agent.episodes.requests import SpanRequest
from r3agent.episodes.sampler import Sampler
from r3agent.episodes.state import Json
from r3agent.errors import ConfigError
from r3agent.records.reply import called
from r3agent.records.trajectory import Message, Span, Task


@dataclass(frozen=True, kw_only=True)
class ToolLoop:
    """Agent of those who have none."""

    tools: Mapping[str, Tool]
    servers: Sequence[McpServer]
    has_world: bool
    config: EpisodeConfig
    sampler: Sampler

    @classmethod
    def of(cls, tools: Sequence[Any], *, has_world: bool, config: EpisodeConfig, sampler: Sampler) -> Self:
        """Make the loop of the tools that an application passes.

        Raises:
            ConfigError: one is no tool, two have one name, or one takes a world that does not exist.
        """
        if isinstance(tools, str) or not isinstance(tools, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"tools = {shorten(tools)}: pass a list of tools")
        servers = [given for given in tools if isinstance(given, McpServer)]
        made = by_name([make_tool(given, has_world=has_world) for given in tools if given not in servers])
        return cls(tools=made, servers=servers, has_world=has_world, config=config, sampler=sampler)

    def __repr__(self) -> str:
        return f"ToolLoop({shorten(', '.join([*self.tools, *map(repr, self.servers)]))})"

    async def equip(self, task: Task) -> Task:
        """Return the task with the definitions of the tools that it does not define itself."""
        own = {called(definition) for definition in task.tools}
        listed = [tool for server in self.servers for tool in await server.tools()]
        tools = by_name([*self.tools.values(), *listed])
        more = [tool.definition for name, tool in tools.items() if name not in own]
        return task.model_copy(update={"tools": (*task.tools, *more)}) if more else task

    async def run(self, call: AgentCall) -> AgentEnd:
        """Make one try.

        Raises:
            StepLimitError: the last answer that it may have calls tools, or the budget of the episode is spent.
            AgentError: an MCP server does not start.
            PolicyError: the endpoint failed; a `ConversationError` if it refused the conversation.
        """
        async with AsyncExitStack() as stack:
            sessions = [await stack.enter_async_context(server.session()) for server in self.servers]
            tools = by_name([*self.tools.values(), *(tool for session in sessions for tool in session)])
            return await self._play(call, tools)

    async def _play(self, call: AgentCall, tools: Mapping[str, Tool]) -> AgentEnd:
        box = Toolbox(
            tools=tools,
            world=call.environment,
            timeout_s=self.config.tool_timeout_s,
            max_chars=self.config.max_result_chars,
        )
        codeless = {called(definition) for definition in call.task.tools} - tools.keys()
        request, sampling = call.request, call.request.sampling
        terms = call.scope.terms
        assert terms is not None  # of each try
        while True:
            step = terms.count()
            request = request._replace(sampling=sampling and sampling.at("step", step))
            draw = partial(self.sampler.draw, call.policy, request, request.slots(1), call.task.tools)
            [span] = await keep_spans(draw)
            call.episode.append(span, call.scope)
            names = {called(c) for c in span.tool_calls}
            if not names or not tools or span.unfinished or names & codeless:
                return AgentEnd(None)
            request = _next(request, span, await self._results(box, span))

    async def _results(self, box: Toolbox, span: Span) -> tuple[Message, ...]:
        """Run the calls of an answer.

        Without a world and a server they are not run again when the step is resumed; these are new, and they change
        them again.
        """

        async def result(call: Message) -> str:
            async def tool() -> Json:
                return {"result": await box.result(call)}

            return (await (tool() if self.has_world or self.servers else keep(tool)))["result"]

        return _messages(span, await gather_interruptible(partial(result, call) for call in span.tool_calls))


def _messages(span: Span, texts: Sequence[str]) -> tuple[Message, ...]:
    """Return the messages with the results of an answer's calls, in the order of the calls.

    Calls that cannot be sent back as calls have theirs in a message of the user.
    """
    sent: Sequence[Message] = span.turn.get("tool_calls", ())
    ids, found = {call["id"] for call in sent}, list(zip(span.tool_calls, texts, strict=True))
    results = [{"role": "tool", "tool_call_id": c["id"], "content": text} for c, text in found if c["id"] in ids]
    faults = [text for c, text in found if c["id"] not in ids]
    return (*results, *([{"role": "user", "content": "\n".join(faults)}] if faults else []))


def _next(request: SpanRequest, span: Span, results: tuple[Message, ...]) -> SpanRequest:
    """Return the request after an answer.

    A span of an earlier run of the step has that run's results in its request, and tools may give others.
    """
    before = request.messages[: len(request.messages) - len(request.appended)]
    conversation = [*([] if span.standalone else before), *span.request]
    return request._replace(parent=span, messages=[*conversation, span.turn, *results], appended=results)
