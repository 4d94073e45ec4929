"""Tools of the tool loop: functions, LangChain tools, and objects with a definition of their own, in one form.

A parameter named `environment`, or annotated as `InjectedToolArg`, gets the world of the try; the policy does not see
it. The code of a sync tool runs in a thread of its own, which nothing waits for if it hangs.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

from langchain_core.tools import BaseTool, InjectedToolArg, InjectedToolCallId
from langchain_core.tools.base import create_schema_from_function, get_all_basemodel_annotations
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, ValidationError

from r3agent._util.aio import in_own_thread
from r3agent._util.messages import did_you_mean, explain, shorten
from r3agent.errors import ConfigError

WORLD = "environment"
"""Name of the parameter that gets the world of the try."""

NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
"""Names of functions that OpenAI's API takes."""


class MisfitError(ValueError):
    """The arguments of a call do not fit the tool."""


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A tool with its code."""

    definition: dict[str, Any]
    """Definition in the format of OpenAI's API."""
    code: Callable[[dict[str, Any], str, Any], Any]
    """Function of the arguments, the id of the call and the world."""
    is_async: bool
    takes_world: bool

    @property
    def name(self) -> str:
        return self.definition["function"]["name"]

    async def run(self, arguments: dict[str, Any], call_id: str, world: Any) -> Any:
        """Run the code.

        Raises:
            MisfitError: the arguments do not fit.
            Exception: any other error is the tool's.
        """
        if self.is_async:
            return await self.code(arguments, call_id, world)
        result = await in_own_thread(lambda: self.code(arguments, call_id, world))
        return await result if inspect.isawaitable(result) else result


def make_tool(given: object, *, has_world: bool) -> Tool:
    """Make a tool of what an application passes as one.

    Raises:
        ConfigError: it is no tool, its signature has no definition, or it takes a world that does not exist.
    """
    if isinstance(given, BaseTool):
        tool = _of_langchain(given)
    elif hasattr(given, "definition") and not isinstance(given, type):
        tool = _of_definition(given)
    elif isinstance(given, type) or not callable(given):
        remedy = "; a class: pass an instance" if isinstance(given, type) else ""
        raise ConfigError(
            f"tools has {shorten(given)}, which is no tool{remedy}; give a function, a LangChain tool, or an object "
            "with a definition that can be called"
        )
    else:
        tool = _of_function(given)
    if not NAME.fullmatch(tool.name):
        raise ConfigError(f"tool {tool.name!r}: a name has 1 to 64 letters, digits, _ and -; rename it")
    if tool.takes_world and not has_world:
        raise ConfigError(f"tool {tool.name!r} takes an environment, and there is none; pass environment=")
    return tool


def identity_of(given: object) -> dict[str, Any]:
    """Return what the policy sees of a tool, as JSON."""
    own: object = getattr(given, "identity", None)  # of an MCP server
    return cast(dict[str, Any], own) if isinstance(own, dict) else make_tool(given, has_world=True).definition


def by_name(tools: Sequence[Tool]) -> dict[str, Tool]:
    """Map the names of tools to the tools.

    Raises:
        ConfigError: two have one name.
    """
    found: dict[str, Tool] = {}
    for tool in tools:
        if tool.name in found:
            raise ConfigError(f"two tools have the name {tool.name!r}; rename one of them")
        found[tool.name] = tool
    return found


def _of_function(function: Callable[..., Any]) -> Tool:
    name = getattr(function, "__name__", "")
    try:
        parameters = inspect.signature(function).parameters
        worlds = _worlds(name, {p.name: p.annotation for p in parameters.values()} | _hints(function)) & {*parameters}
        unnamed = [p for p in parameters.values() if p.kind not in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if unnamed:
            raise ConfigError(f"its parameter {unnamed[0]} has no name of its own")
        if not inspect.getdoc(function):
            raise ConfigError("it has no docstring, which tells the policy what it does")
        schema: Any = create_schema_from_function(
            name, function, filter_args=[*worlds, "run_manager"], parse_docstring=True
        )
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigError("it yields; return the result")
        needed = {p.name for p in parameters.values() if p.default is p.empty} - worlds
        if unseen := sorted(needed - schema.model_fields.keys()):
            raise ConfigError(f"the policy cannot be told of its parameter {unseen[0]!r}; rename it")
        definition = convert_to_openai_tool(schema)
    except Exception as error:
        raise ConfigError(
            f"tool {name or shorten(function)!r} has no definition: {error}; write a function with a name, annotated "
            "parameters and a docstring, or give the object a definition"
        ) from error
    definition["function"] |= {"name": name}

    def code(arguments: dict[str, Any], call_id: str, world: Any) -> Any:
        return function(**_fitted(arguments, schema), **dict.fromkeys(worlds, world))

    return Tool(
        definition=definition,
        code=code,
        is_async=inspect.iscoroutinefunction(function),
        takes_world=bool(worlds),
    )


def _of_langchain(tool: BaseTool) -> Tool:
    try:
        definition = convert_to_openai_tool(tool)
        properties: dict[str, Any] = definition["function"]["parameters"].get("properties", {})
        required: list[str] = definition["function"]["parameters"].get("required", [])
        # The schema of an MCP tool is JSON, and its server checks the arguments.
        schema: Any = tool.args_schema if isinstance(tool.args_schema, type) else tool.get_input_schema()
        is_json = isinstance(tool.args_schema, dict)
        worlds = set[str]() if is_json else _worlds(tool.name, get_all_basemodel_annotations(schema))
    except Exception as error:
        raise ConfigError(
            f"tool {tool.name!r} has no definition: {error}; if it takes the world of the try, annotate that as "
            "Annotated[..., InjectedToolArg]"
        ) from error
    if WORLD in properties and not is_json:
        del properties[WORLD]
        worlds.add(WORLD)
        definition["function"]["parameters"]["required"] = [name for name in required if name != WORLD]

    def called(arguments: dict[str, Any], call_id: str, world: Any) -> dict[str, Any]:
        if not is_json:
            _refuse_unknown(arguments, properties)
        given = {**arguments, **dict.fromkeys(worlds, world)}
        return {"type": "tool_call", "id": call_id, "name": tool.name, "args": given}

    def code(arguments: dict[str, Any], call_id: str, world: Any) -> Any:
        with _misfits_of(schema):
            return tool.invoke(called(arguments, call_id, world))

    async def acode(arguments: dict[str, Any], call_id: str, world: Any) -> Any:
        with _misfits_of(schema):
            return await tool.ainvoke(called(arguments, call_id, world))

    # Without a coroutine, LangChain would take a thread of the event loop's executor, which a hanging tool keeps.
    has_coroutine = getattr(tool, "coroutine", getattr(type(tool), "_arun", None) is not getattr(BaseTool, "_arun"))  # noqa: B009
    return Tool(
        definition=definition,
        code=acode if has_coroutine else code,
        is_async=bool(has_coroutine),
        takes_world=bool(worlds),
    )


def _of_definition(given: Any) -> Tool:
    definition: Any = given.definition
    function: Any = definition.get("function") if isinstance(definition, Mapping) else None
    if not callable(given) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ConfigError(
            f"tools has {shorten(given)}: an object with a definition can be called, and its definition is "
            '{"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'
        )
    schema: Mapping[str, Any] = function.get("parameters") or {}
    takes_world = WORLD in inspect.signature(given).parameters

    def code(arguments: dict[str, Any], call_id: str, world: Any) -> Any:
        if missing := [name for name in schema.get("required", ()) if name not in arguments]:
            raise MisfitError(f"it lacks {', '.join(missing)}")
        _refuse_unknown(arguments, schema.get("properties", {}))
        return given(**arguments, **({WORLD: world} if takes_world else {}))

    is_async = inspect.iscoroutinefunction(given) or inspect.iscoroutinefunction(given.__call__)
    return Tool(definition=dict(definition), code=code, is_async=is_async, takes_world=takes_world)


def _fitted(arguments: dict[str, Any], schema: type[BaseModel]) -> dict[str, Any]:
    """Return the arguments as the function wants them, without those that have defaults."""
    _refuse_unknown(arguments, schema.model_fields)
    with _misfits_of(schema):
        model = schema.model_validate(arguments)
    return {name: getattr(model, name) for name in arguments}


def _refuse_unknown(arguments: Mapping[str, Any], known: Iterable[str]) -> None:
    if unknown := next((name for name in arguments if name not in known), None):
        raise MisfitError(f"unknown argument {unknown!r}; {did_you_mean(unknown, known)}")


@contextmanager
def _misfits_of(schema: type[BaseModel]) -> Generator[None]:
    """Tell errors of the arguments from those that the tool's own code has with other models."""
    try:
        yield
    except ValidationError as error:
        if error.title != schema.__name__:
            raise
        raise MisfitError(explain(error, schema)) from None


def _hints(function: Any) -> dict[str, Any]:
    with suppress(Exception):  # a name that only type checkers see
        return typing.get_type_hints(function, include_extras=True)
    return {}


def _worlds(tool: str, hints: Mapping[str, Any]) -> set[str]:
    """Return the parameters that get the world.

    Raises:
        ConfigError: a parameter gets something else of LangGraph, such as the state of its agent.
    """
    found = {WORLD} & hints.keys()
    for name, hint in hints.items():
        for mark in getattr(hint, "__metadata__", ()):
            kind = mark if isinstance(mark, type) else type(mark)
            if issubclass(kind, InjectedToolArg) and kind is not InjectedToolCallId:
                if kind is not InjectedToolArg:
                    raise ConfigError(f"{name} is {kind.__name__}, which only agents of LangGraph fill in; pass agent=")
                found.add(name)
    return found
