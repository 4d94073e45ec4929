"""One try of an agent: its world, its record, its verdict and its errors."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple

from langchain_core.runnables import RunnableConfig
from langgraph.config import get_config
from langgraph.errors import GraphBubbleUp, GraphRecursionError

from r3agent._util.within import OverrunError, is_failure, within
from r3agent.episodes.agents.base import Agent, AgentCall, AgentEnd, Environment, Resumable
from r3agent.episodes.agents.interrupted import LOST, InterruptedTries, without_repeated
from r3agent.episodes.agents.messages import agent_messages
from r3agent.episodes.agents.terms import call_terms, without_swapped
from r3agent.episodes.agents.worlds import MAX_CHARS, WorldError, described, in_world
from r3agent.episodes.config import EpisodeConfig
from r3agent.episodes.requests import Refusal, SpanRequest
from r3agent.episodes.spending import Spending
from r3agent.errors import (
    AccessError,
    AgentError,
    BudgetError,
    ConversationError,
    EndpointError,
    PolicyError,
    ProtocolError,
    R3Error,
    StepLimitError,
)
from r3agent.policy import Policy
from r3agent.recording.episode import Episode
from r3agent.records.json_values import copy_json
from r3agent.records.trajectory import EpisodeError, Span, Task, Try, Verdict
from r3agent.verifiers import Verifier, judge
from r3agent.verifiers.interface import takes_environment

logger = logging.getLogger(__name__)

GRACE_S = 5.0
"""Time for an agent to end after it was cancelled, and to end its processes and servers."""

ENDPOINT_FAILS = (EndpointError, AccessError, ProtocolError)
"""Errors that say nothing about a try."""


class Outcome(NamedTuple):
    """End of an agent's run: what it returned, or why the try failed, or the error that ended it."""

    end: AgentEnd = AgentEnd(None)
    failure: str | None = None
    error: EpisodeError | None = None
    refusal: Refusal | None = None
    """Refusal of the try's first conversation, which is too long or whose text is filtered."""


@dataclass(frozen=True, kw_only=True)
class TryRunner:
    """Runner of an agent's tries; `build_graph` documents the collaborators.

    A try that interrupts leaves its world, and has a fresh one when it is resumed. If the agent goes on where it was,
    its steps before the interrupt are kept in this process; see `r3agent.episodes.agents.interrupted`.
    """

    agent: Agent
    environment: Environment | None
    verifier: Verifier
    interrupted: InterruptedTries = field(default_factory=InterruptedTries)

    @property
    def judges(self) -> bool:
        """True if the verdict is made within the world of the try, because the verifier takes it."""
        return takes_environment(self.verifier)

    async def run(
        self, request: SpanRequest, spending: Spending, *, policy: Policy, config: EpisodeConfig
    ) -> list[Span]:
        """Run one try and return its steps; the last has the verdict, if it is known, or the error.

        Raises:
            PolicyError: the endpoint failed.
            VerifierError: the verifier failed.
            AgentError: the agent or its environment failed, unless `config.agent_errors` says that this is recorded.
        """
        tree, running, steps = spending.tree, get_config(), list[Span]()
        resumes = isinstance(self.agent, Resumable) and self.agent.resumes(running)
        earlier = self.interrupted.take(running) if resumes else ()

        async def run_in(world: Any) -> None:
            await self._run(request, spending, policy, config, running, world, earlier, steps)

        try:
            if self.environment is None:
                await run_in(None)
            else:
                await in_world(self.environment, tree.task.fresh(), config.try_timeout_s, run_in)
        except WorldError as error:
            if config.agent_errors == "raise":
                raise
            steps = steps or [_no_step(request, policy)]
            if steps[-1].error is None:  # the first error takes precedence
                fields = {"verdict": None, "error": EpisodeError(kind=AgentError.__name__, message=str(error))}
                steps[-1] = steps[-1].model_copy(update=fields)
        except BaseException:
            if resumes:
                self.interrupted.keep(running, steps)
            raise
        return steps

    async def _run(
        self,
        request: SpanRequest,
        spending: Spending,
        policy: Policy,
        config: EpisodeConfig,
        running: RunnableConfig,
        world: Any,
        earlier: tuple[Span, ...],
        steps: list[Span],
    ) -> None:
        """Run one try in its world and put its steps into `steps`; if it raises, without their verdict."""
        tree = spending.tree
        episode = Episode.seeded(tree.changed(spans=(*tree.spans, *earlier)))
        spending.running.append(episode)
        terms = await call_terms(policy, request.sampling, config.max_steps, spending)
        is_lost = not earlier and isinstance(self.agent, Resumable) and await self.agent.goes_on(running)
        terms.n_calls = len(earlier)
        with episode, episode.one_try(request.label, parent=request.parent, terms=terms) as scope:
            scope.span_ids += [step.span_id for step in earlier]
            call = AgentCall(
                task=tree.task.fresh(),
                messages=copy_json(agent_messages(tree, request)),
                request=request,
                policy=policy,
                sampling=request.sampling,
                environment=world,
                max_steps=config.max_steps,
                config=running,
                episode=episode,
                scope=scope,
            )
            try:
                outcome = await self._outcome(call, spending, config)
            finally:
                episode.end(scope)
                steps += without_repeated(tree, episode.trajectory, scope.parent_id, len(earlier))
        steps[:] = await without_swapped(steps, policy, terms)
        if not steps and outcome.refusal is not None:
            steps.append(request.refused(request.slots(1)[0], outcome.refusal))
        elif not steps and outcome.error is None:
            _tell_of_no_step(repr(self.agent))
        taken = [*steps] or [_no_step(request, policy)]
        if is_lost:
            note = "; ".join(filter(None, [taken[0].capability_note, LOST]))
            taken[0] = taken[0].model_copy(update={"capability_note": note})
        end, fields = outcome.end, dict[str, Any]()
        if end.answer is not None and (end.answer != taken[-1].text or taken[-1].purpose):
            fields["answer"] = end.answer
        if outcome.failure is not None:
            fields["verdict"] = Verdict.failed(outcome.failure)
        taken[-1] = last = Span.model_validate({**dict(taken[-1]), **fields, "error": outcome.error})
        if outcome.failure is None and outcome.error is None:
            verdict = await self._verdict(tree.task, taken, world if self.environment else end.state, config)
            taken[-1] = last.model_copy(update={"verdict": verdict})
        steps[:] = taken

    async def _outcome(self, call: AgentCall, spending: Spending, config: EpisodeConfig) -> Outcome:
        limit, left, terms = config.try_timeout_s, spending.seconds_left(), call.scope.terms
        try:
            end = await within(
                min((s for s in (limit, left) if s is not None), default=None),
                partial(self.agent.run, call),
                name=f"{self.agent!r}, in a try of task {call.task.id!r},",
                grace_s=GRACE_S,
                before_cancelling=lambda: call.episode.end(call.scope),
            )
            if config.agent_errors == "record" and terms is not None and isinstance(terms.failure, ENDPOINT_FAILS):
                raise terms.failure  # the agent's answer says nothing about the policy
            return Outcome(end)
        except GraphBubbleUp:
            raise
        except OverrunError:
            if limit is None or (left is not None and left < limit) or spending.spent():
                why = spending.spent() or f"max_seconds = {spending.budget.max_seconds:g} have passed"
                return Outcome(error=_as_error(BudgetError(why)))
            if terms is not None and isinstance(terms.failure, ENDPOINT_FAILS):
                raise terms.failure from None  # it waited for the endpoint
            return Outcome(failure=f"no answer within try_timeout_s = {limit:g}")
        except BaseException as error:
            if not is_failure(error):
                raise
            return _outcome_of(error, call, records=config.agent_errors == "record")

    async def _verdict(self, task: Task, steps: list[Span], left: Any, config: EpisodeConfig) -> Verdict | None:
        if self.judges:
            a_try = Try(tuple(steps), is_blind=False)
            limits: Any = {"cut_off": config.cut_off, "timeout_s": config.verify_timeout_s}
            return (await judge(self.verifier, task, [a_try], environment=left, **limits))[0]
        last = steps[-1]
        said_nothing = not (last.text if last.answer is None else last.answer).strip() and not last.tool_calls
        return Verdict.failed("the agent gave no answer") if said_nothing and not last.unfinished else None


def _outcome_of(error: BaseException, call: AgentCall, *, records: bool) -> Outcome:
    """Return the outcome of a run that raised, or raise what is no outcome of a try."""
    terms = call.scope.terms
    known = [] if terms is None or terms.failure is None else [terms.failure]
    for cause in [*_causes(error), *known]:
        match cause:
            case BudgetError():
                return Outcome(error=_as_error(cause))
            case StepLimitError():
                return Outcome(failure=f"no answer after max_steps = {call.max_steps} model calls")
            case GraphRecursionError():
                limit = call.config.get("recursion_limit")
                return Outcome(failure=f"no answer within recursion_limit = {limit} steps of the agent's graph")
            case ConversationError() if call.scope.span_ids or call.scope.label == "retry":
                why = f"the conversation was refused: {_text(cause, call)}"
                refusal = None if call.scope.span_ids else Refusal(cause.finish_reason, why)
                return Outcome(failure=why, refusal=refusal)
            case ConversationError() | EndpointError() | AccessError() | ProtocolError():
                raise cause from (None if cause is error else error)
            case _:
                pass
    if isinstance(error, R3Error) and not isinstance(error, AgentError | PolicyError):
        raise error
    failed = error if isinstance(error, AgentError) else None
    failed = failed or AgentError(f"the agent failed on task {call.task.id!r}: {_text(error, call)}")
    if not records:
        raise failed from (None if failed is error else error)
    return Outcome(error=_as_error(failed))


def _as_error(error: R3Error) -> EpisodeError:
    return EpisodeError(kind=type(error).__name__, message=str(error))


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


def _text(error: BaseException, call: AgentCall) -> str:
    return call.episode.redact(described(error))[:MAX_CHARS]


def _no_step(request: SpanRequest, policy: Policy) -> Span:
    """Make the span of a try without a recorded model call."""
    return Span(
        parent_id=request.parent and request.parent.span_id,
        label=request.label,
        text="",
        model=str(getattr(policy, "model", "")),
        completion_tokens=0,
        answer="",  # what the agent gives takes its place
        purpose="no model call",  # no version of the policy answered
        capability_note="the agent made no model call that is recorded",
    )


@cache
def _tell_of_no_step(agent: str) -> None:
    """Warn once of each agent whose tries have no step."""
    logger.warning(
        "%s made a try without a recorded model call: it made none, or not with the client that it was given, or with "
        "a model that instrument() did not return; such tries are judged, and never trained on",
        agent,
    )
