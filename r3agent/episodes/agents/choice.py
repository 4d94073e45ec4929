"""Adapter of what an application brings as its agent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from r3agent._util.messages import shorten
from r3agent.episodes.agents.base import Agent
from r3agent.errors import ConfigError


def choose_agent(agent: object | None, tools: Sequence[Any]) -> Agent:
    """Return the agent itself, or the adapter that it needs; without one, the loop of completions and tool calls.

    Raises:
        ConfigError: it is no agent, or there are tools beside one, which has its own.
    """
    if isinstance(agent, Agent) and not isinstance(agent, type):
        return agent
    raise ConfigError(f"agent = {shorten(agent)}: no agent")
