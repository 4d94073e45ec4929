"""Results of tool calls, as the policy reads them: one text for each call, whatever happened."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from langchain_core.messages import BaseMessage
from langchain_core.tools import ToolException
from langgraph.errors import GraphBubbleUp

from r3agent._util.messages import did_you_mean, shorten
from r3agent._util.within import OverrunError, is_failure, within
from r3agent.episodes.agents.tools import MisfitError, Tool
from r3agent.records.json_values import any_text, json_value, well_formed
from r3agent.records.reply import called
from r3agent.records.trajectory import Message
from r3agent.telemetry.genai import tool_call, tool_result

FAULT = "Error: "
"""Beginning of the text that tells the policy why there is no result."""


@dataclass(kw_only=True)
class Toolbox:
    """The tools of one try, with its world."""

    tools: Mapping[str, Tool]
    world: Any
    timeout_s: float | None
    max_chars: int
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Lock of the world: few are safe for threads, and the order of the calls is that of their effects."""

    async def result(self, call: Message) -> str:
        """Run a call, and return its result, or the fault for which there is none."""
        arguments = (call.get("function") or {}).get("arguments")
        with tool_call(called(call), call.get("id"), arguments) as span:
            text = await self._result(call)
            tool_result(span, text, failed=text.startswith(FAULT))
        return text

    async def _result(self, call: Message) -> str:
        name, function = called(call), call.get("function") or {}
        tool = self.tools.get(name)
        if tool is None:
            return f"{FAULT}there is no tool {name!r}; {did_you_mean(name, self.tools)}"
        try:
            arguments = json.loads(function.get("arguments") or "{}")
        except (ValueError, RecursionError) as error:
            return f"{FAULT}{name} was not run: its arguments are not JSON: {error}"
        if not isinstance(arguments, dict):
            return f"{FAULT}{name} was not run: its arguments are no JSON object, but {shorten(arguments)}"
        if tool.takes_world and not tool.is_async:
            async with self._turn:
                text = await self._run(tool, cast(dict[str, Any], arguments), call)
        else:
            text = await self._run(tool, cast(dict[str, Any], arguments), call)
        if len(text) <= self.max_chars:
            return text
        return f"{text[: self.max_chars]}\n[cut: these are the first {self.max_chars:,} of {len(text):,} characters]"

    async def _run(self, tool: Tool, arguments: dict[str, Any], call: Message) -> str:
        run = partial(tool.run, arguments, str(call.get("id")), self.world)
        try:
            return result_text(await within(self.timeout_s, run, name=f"tool {tool.name!r}"))
        except GraphBubbleUp:
            raise
        except MisfitError as error:
            return f"{FAULT}{tool.name} was not run: its arguments do not fit: {error}"
        except ToolException as error:
            return f"{FAULT}{any_text(error)}"
        except OverrunError:
            return f"{FAULT}{tool.name} gave no result within {self.timeout_s:g} seconds"
        except BaseException as error:
            if not is_failure(error):
                raise
            return f"{FAULT}{tool.name} failed: {type(error).__name__}: {well_formed(any_text(error))}"


def result_text(result: Any) -> str:
    """Return a result as text: JSON of what is none, and the texts of content parts."""
    if isinstance(result, BaseMessage):
        result = result.content
    if isinstance(result, str):
        return well_formed(result)
    if isinstance(result, list) and result and all(_is_part(part) for part in cast(list[Any], result)):
        return "\n".join(_part_text(part) for part in cast(list[Any], result))
    return json.dumps(json_value(result, finite=True), ensure_ascii=False)


def _is_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in ("text", "image", "image_url", "file", "audio", "resource")


def _part_text(part: dict[str, Any]) -> str:
    return well_formed(str(part["text"])) if isinstance(part.get("text"), str) else f"[{part['type']}, not shown]"
