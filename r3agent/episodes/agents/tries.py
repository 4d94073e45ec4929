"""One try of an agent: its world, its record, its verdict and its errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import openai
from langgraph.config import get_config
from langgraph.errors import GraphBubbleUp, GraphRecursionError

from r3agent._util.messages import shorten
from r3agent.episodes.agents.base import Agent, AgentCall, AgentEnd, Environment
from r3agent.episodes.agents.messages import agent_messages
from r3agent.episodes.agents.terms import call_terms
from r3agent.episodes.config import EpisodeConfig
from r3agent.episodes.requests import SpanRequest
from r3agent.errors import (
    AccessError,
    AgentError,
    ConfigError,
    ConversationError,
    EndpointError,
    R3Error,
    StepLimitError,
)
from r3agent.http.errors import text_refusal
from r3agent.policy import Policy
from r3agent.recording.blocks import SpanScope
from r3agent.recording.episode import Episode
from r3agent.records.trajectory import EpisodeError, Span, Task, Trajectory, Try, Verdict
from r3agent.verifiers import Verifier, judge
from r3agent.verifiers.interface import takes_environment


class Outcome(NamedTuple):
    """End of an agent's run: what it returned, or why the try failed, or the error that ended it."""

    end: AgentEnd = AgentEnd(None)
    failure: str | None = None
    error: EpisodeError | None = None


@dataclass(frozen=True, kw_only=True)
class TryRunner:
    """Runner of an agent's tries; `build_graph` documents the collaborators."""

    agent: Agent
    environment: Environment | None
    verifier: Verifier

    @property
    def judges(self) -> bool:
        """True if the verdict is made within the world of the try, because the verifier takes it."""
        return takes_environment(self.verifier)

    async def run(self, tree: Trajectory, request: SpanRequest, *, policy: Policy, config: EpisodeConfig) -> list[Span]:
        """Run one try and return its steps; the last has the verdict, if it is known, or the error.

        Raises:
            PolicyError: the endpoint failed.
            VerifierError: the verifier failed.
            AgentError: the agent failed, unless `config.agent_errors` says that this is recorded.
        """
        episode, terms = Episode.seeded(tree), await call_terms(policy, request.sampling, config.max_steps)
        async with self._world(tree.task) as world:
            with episode, episode.one_try(request.label, parent=request.parent, terms=terms) as scope:
                call = AgentCall(
                    task=tree.task,
                    messages=agent_messages(tree, request),
                    request=request,
                    policy=policy,
                    sampling=request.sampling,
                    environment=world,
                    max_steps=config.max_steps,
                    config=get_config(),
                    episode=episode,
                    scope=scope,
                )
                outcome = await self._outcome(call, config)
            steps = [*episode.spans_of(scope)] or [_no_step(scope, policy)]
            end, fields = outcome.end, dict[str, Any]()
            if end.answer is not None and (end.answer != steps[-1].text or steps[-1].purpose):
                fields["answer"] = end.answer
            if outcome.failure is not None:
                fields["verdict"] = Verdict.failed(outcome.failure)
            steps[-1] = last = Span.model_validate({**dict(steps[-1]), **fields, "error": outcome.error})
            if outcome.failure is None and outcome.error is None:
                verdict = await self._verdict(tree.task, steps, world if self.environment else end.state, config)
                steps[-1] = last.model_copy(update={"verdict": verdict})
        return steps

    async def _outcome(self, call: AgentCall, config: EpisodeConfig) -> Outcome:
        limit, timeout = config.try_timeout_s, asyncio.timeout(config.try_timeout_s)
        try:
            async with timeout:
                return Outcome(await self.agent.run(call))
        except GraphBubbleUp:
            raise
        except Exception as error:
            if isinstance(error, TimeoutError) and timeout.expired():
                return Outcome(failure=f"no answer within try_timeout_s = {limit:g}")
            return _outcome_of(error, call, records=config.agent_errors == "record")

    async def _verdict(self, task: Task, steps: list[Span], left: Any, config: EpisodeConfig) -> Verdict | None:
        if self.judges:
            a_try = Try(tuple(steps), is_blind=False)
            return (await judge(self.verifier, task, [a_try], cut_off=config.cut_off, environment=left))[0]
        last = steps[-1]
        said_nothing = not (last.text if last.answer is None else last.answer).strip() and not last.tool_calls
        return Verdict.failed("the agent gave no answer") if said_nothing and not last.unfinished else None

    @asynccontextmanager
    async def _world(self, task: Task) -> AsyncGenerator[Any]:
        """Enter the world of one try; its own errors are errors of the agent."""
        if self.environment is None:
            yield None
            return
        try:
            world: Any = self.environment(task.model_copy(deep=True))
        except Exception as error:
            raise AgentError(f"environment failed on task {task.id!r}: {_text(error)}") from error
        if not hasattr(world, "__aenter__"):
            raise ConfigError(
                f"environment returned {shorten(world)}: no async context manager; decorate the factory with "
                "contextlib.asynccontextmanager"
            )
        async with world as entered:
            yield entered


def _outcome_of(error: Exception, call: AgentCall, *, records: bool) -> Outcome:
    """Return the outcome of a run that raised, or raise what is no outcome of a try."""
    for cause in _causes(error):
        if isinstance(cause, StepLimitError | GraphRecursionError):
            return Outcome(failure=f"no answer after max_steps = {call.max_steps} model calls")
        refused = isinstance(cause, ConversationError) or (
            isinstance(cause, openai.APIStatusError) and text_refusal(cause.status_code, str(cause)) is not None
        )
        if refused and (call.scope.span_ids or call.scope.label == "retry"):
            return Outcome(failure=f"the conversation was refused: {_text(cause)}")
        if isinstance(cause, R3Error):
            raise cause
        if isinstance(cause, openai.AuthenticationError | openai.PermissionDeniedError | openai.NotFoundError):
            raise AccessError(f"the agent's call was refused: {_text(cause)}", status=cause.status_code) from error
        if isinstance(cause, openai.APIConnectionError | openai.InternalServerError | openai.RateLimitError):
            raise EndpointError(f"the agent's call failed: {_text(cause)}") from error
    failed = AgentError(f"the agent failed on task {call.task.id!r}: {_text(error)}")
    if not records:
        raise failed from error
    return Outcome(error=EpisodeError(kind=type(failed).__name__, message=str(failed)))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that led to it; those of a group count."""
    seen, waiting = set[int](), [error]
    while waiting:
        found = waiting.pop(0)
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        inner = found.exceptions if isinstance(found, BaseExceptionGroup) else ()
        waiting += [cause for cause in (*inner, found.__cause__, found.__context__) if cause is not None]


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {shorten(str(error))}"


def _no_step(scope: SpanScope, policy: Policy) -> Span:
    """Make the span of a try without a recorded model call."""
    return Span(
        parent_id=scope.parent_id,
        label=scope.label,
        text="",
        model=str(getattr(policy, "model", "")),
        completion_tokens=0,
        capability_note="the agent made no model call that is recorded",
    )
