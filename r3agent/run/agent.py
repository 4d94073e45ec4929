"""Agent of a run: the code that makes its tries, as named in r3.toml."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from r3agent._util.imports import load_attribute
from r3agent.episodes.config import AgentLimits
from r3agent.errors import ConfigError, R3Error


class AgentConfig(AgentLimits):
    agent: str = ""
    """Agent that makes the tries, as `module:name`: a LangChain or LangGraph runnable of messages, a function
    `(messages, client)`, a `Program`, or a class or function without parameters that makes one. Empty, and without
    `command` and `tools`: a try is one completion."""
    command: tuple[str, ...] = ()
    """Program that makes the tries, in place of `agent`: a command that asks the model at `OPENAI_BASE_URL`, reads its
    task on stdin and prints its answer, e.g. `["node", "agent.js"]`."""
    memory_mb: int | None = Field(default=None, ge=1)
    """Limit of the memory of `command` and all its processes."""
    tools: tuple[str, ...] = ()
    """Tools, each as `module:name`: a function, a LangChain tool, or a list of tools. Without an agent, a try is a loop
    of completions and calls of them."""
    environment: str = ""
    """Factory of the world of each try, as `module:name`: a callable `(task)` that returns an async context manager."""

    @field_validator("tools", "command", mode="before")
    @classmethod
    def _is_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(f"{value!r}: a text; write a list of texts")
        return value

    @field_validator("try_timeout_s", "tool_timeout_s", mode="before", check_fields=False)
    @classmethod
    def _none(cls, value: Any) -> Any:
        """Read "none", because TOML has no null."""
        return None if value == "none" else value

    @field_validator("agent", "environment", "tools")
    @classmethod
    def _is_name(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for name in (value,) if isinstance(value, str) else value:
            module, colon, attribute = name.partition(":")
            if name and not (module and colon and attribute):
                raise ValueError(f"{name!r}: no module:name of your own, such as my_agent:agent")
        return value

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [name for name in ("agent", "command", "tools") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are set: each makes the tries; keep one of them")
        if self.memory_mb is not None and not self.command:
            raise ValueError(
                f"memory_mb = {self.memory_mb} limits the command, and there is none; a Program of yours has its own"
            )
        return self

    @property
    def name(self) -> str:
        """Return the name of what makes the tries, as episodes record it; empty if a try is one completion."""
        maker = self.agent or shlex.join(self.command) or ", ".join(self.tools)
        return " in ".join(filter(None, [maker, self.environment]))

    def limits(self) -> dict[str, Any]:
        """Return the limits of its tries; none if a try is one completion."""
        return {name: getattr(self, name) for name in AgentLimits.model_fields} if self.name else {}

    def load(self) -> Agent:
        """Import the agent, the tools and the environment.

        Raises:
            ConfigError: one does not exist, or cannot be imported or made.
        """
        agent = _made(self.agent) if self.agent else None
        if self.command:
            from r3agent.episodes.agents.program import Program

            agent = Program(self.command, memory_mb=self.memory_mb)
        tools = [tool for name in self.tools for tool in _each(_attribute("tools", name))]
        return Agent(agent, tools, _attribute("environment", self.environment) if self.environment else None)


class Agent(NamedTuple):
    """Maker of the tries, with its tools and its world, as arguments of `build_graph` and `collect`."""

    agent: object | None = None
    tools: list[Any] = []
    environment: Any = None


def _attribute(setting: str, name: str) -> Any:
    try:
        return load_attribute(name)
    except ConfigError as error:
        raise ConfigError(f"agent.{setting}: {error}") from error.__cause__


def _made(name: str) -> object:
    """Return an agent, or the one that a class or a function without parameters makes."""
    found = _attribute("agent", name)
    if not isinstance(found, type) and not (inspect.isroutine(found) and not inspect.signature(found).parameters):
        return found
    try:
        return found()
    except R3Error:
        raise
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(f"agent.agent: {name!r}, without arguments: {type(error).__name__}: {error}") from error


def _each(found: Any) -> Iterable[Any]:
    return found if isinstance(found, list | tuple) else [found]
