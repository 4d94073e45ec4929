"""Adapter of what an application brings as its agent."""

from __future__ import annotations

from langchain_core.runnables import Runnable
from langgraph.graph import StateGraph

from r3agent._util.messages import shorten
from r3agent.episodes.agents.base import Agent
from r3agent.errors import ConfigError
from r3agent.policy import Policy

REMEDY = (
    "pass a LangChain or LangGraph runnable of messages, a function (messages, client), or what implements "
    "r3agent.episodes.agents.base.Agent"
)


def choose_agent(agent: object, policy: Policy) -> Agent:
    """Return the agent itself, or the adapter that it needs.

    Raises:
        ConfigError: it is no agent, or it needs an endpoint that the policy does not have.
    """
    if isinstance(agent, type):
        raise ConfigError(f"agent = {agent.__name__}: a class; pass an instance, such as {agent.__name__}(…)")
    if isinstance(agent, str):
        raise ConfigError(f"agent = {agent!r}: a text; {REMEDY}")
    if isinstance(agent, StateGraph):
        raise ConfigError("agent = StateGraph: it is not compiled; pass agent.compile()")
    if isinstance(agent, Runnable):
        from r3agent.episodes.agents.runnable import RunnableAgent

        return RunnableAgent(agent)
    if isinstance(agent, Agent):
        return agent
    if callable(agent):
        from r3agent.episodes.agents.function import FunctionAgent, check_route

        made = FunctionAgent(agent)
        check_route(policy, repr(made))
        return made
    raise ConfigError(f"agent = {shorten(agent)}: no agent; {REMEDY}")
