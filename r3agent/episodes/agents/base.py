"""The interface of an agent: what is given to it for one try, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from langchain_core.runnables import RunnableConfig

from r3agent.episodes.requests import SpanRequest
from r3agent.policy import Policy, Sampling
from r3agent.recording.blocks import SpanScope
from r3agent.recording.episode import Episode
from r3agent.records.trajectory import Message, Task

Environment: TypeAlias = Callable[[Task], AbstractAsyncContextManager[Any]]
"""Factory of the world of one try; it is entered before the try and closed after it, whatever happens."""


@dataclass(frozen=True, kw_only=True)
class AgentCall:
    """One try that an agent is asked for."""

    task: Task
    messages: Sequence[Message]
    """The task's messages; for a retry, then those of the failed tries with their reflections and retry prompts."""
    request: SpanRequest
    """Request by which the loop of completions and tool calls continues the tree."""
    policy: Policy
    """Policy, pinned to the version that the episode began with."""
    sampling: Sampling | None
    """Settings of the try's model calls; `None` if the policy has its own and does not show them."""
    environment: Any
    """World of the try; `None` without a factory."""
    max_steps: int
    """Maximum number of model calls."""
    config: RunnableConfig
    """Configuration of the running node, for a subgraph."""
    episode: Episode
    """Record of the tree so far, in memory; the try's steps are added to it."""
    scope: SpanScope
    """Scope of the try's steps in that record."""


class AgentEnd(NamedTuple):
    """Result of a try."""

    answer: str | None
    """Answer; `None` if it is the text of the last step."""
    state: Any = None
    """State that the try left behind, for a verifier that takes it."""


@runtime_checkable
class Agent(Protocol):
    """Maker of tries.

    It makes its model calls within `call.scope`, and raises what fails: `StepLimitError` and a conversation that became
    too long fail the try, a `PolicyError` says that the endpoint failed, and anything else is an error of the agent.
    """

    async def run(self, call: AgentCall) -> AgentEnd: ...


@runtime_checkable
class Equipped(Protocol):
    """Agent whose tools are known, and belong to the task that the policy sees."""

    async def equip(self, task: Task) -> Task:
        """Return the task with the definitions of the tools."""
        ...


@runtime_checkable
class Resumable(Protocol):
    """Agent whose try goes on where it was after an interrupt, in a thread with a checkpointer."""

    def resumes(self, config: RunnableConfig) -> bool:
        """Return True if a run that is interrupted under this config is not begun anew."""
        ...

    async def goes_on(self, config: RunnableConfig) -> bool:
        """Return True if an earlier run of the same try has left a checkpoint."""
        ...
