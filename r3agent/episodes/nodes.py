"""Nodes of the loop: each takes the course of an episode and returns the next, without side effects.

A node works on the whole frontier of the tree at once, that is, on every failed try that may be retried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from r3agent._util.messages import shorten
from r3agent._util.templates import Template
from r3agent.episodes.agents.base import Equipped
from r3agent.episodes.agents.tries import TryRunner
from r3agent.episodes.budget import ENDED, Budget
from r3agent.episodes.checkpointed import Drawing, draw
from r3agent.episodes.collaborators import check_policy
from r3agent.episodes.config import EpisodeConfig, EpisodeContext
from r3agent.episodes.course import Course
from r3agent.episodes.requests import Refusal, SpanRequest, appended_after, is_blind
from r3agent.episodes.sampler import Sampler
from r3agent.episodes.spending import Spending
from r3agent.errors import BudgetError, ConfigError, ConversationError
from r3agent.policy import Policy, Renamable, Sampling, prices_of, sampling_of
from r3agent.records.branching import n_tries
from r3agent.records.cost import Prices
from r3agent.records.credit import reward
from r3agent.records.trajectory import AT_ONCE, RECORDED, Label, Span, Trajectory
from r3agent.verifiers import Answer, Verifier, judge


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Nodes with their collaborators and settings, which `build_graph` documents."""

    policy: Policy
    verifier: Verifier
    config: EpisodeConfig
    templates: dict[str, Template]
    """Compiled prompts of `config`, by the names of their settings."""
    sampler: Sampler
    sample: int = 0
    """Index of the episode among several of its task."""
    budget: Budget = field(default_factory=Budget)
    prices: Prices | None = None
    """Prices for a budget of cost."""
    begin: Trajectory | None = None
    """Branch of a recorded episode, whose spans take the place of a first try."""
    runner: TryRunner | None = None
    """Runner of an agent's tries; without one, a try is one completion."""

    def under(self, context: object) -> Nodes:
        """Apply a run's context; one of another type belongs to a larger graph and is ignored."""
        if not isinstance(context, EpisodeContext):
            return self
        policy: Policy = self.policy
        if context.policy is not None:
            check_policy(policy := context.policy)
        if context.model is not None:
            if not isinstance(policy, Renamable):
                raise ConfigError(
                    f"context: model = {context.model!r}: {type(policy).__name__} has no `asking(model)`; pass policy="
                )
            policy = policy.asking(context.model)
        for name in ("max_steps", "try_timeout_s"):
            if self.runner is None and (value := getattr(context, name)) is not None:
                raise ConfigError(
                    f"context: {name} = {value:g}: limits tries of an agent or with tools, and this graph has none; "
                    "leave it out"
                )
        if (prices := context.prices or prices_of(policy)) is None and context.max_cost is not None:
            raise ConfigError(
                f"context: max_cost = {context.max_cost:g}: {type(policy).__name__} has no prices; give it "
                "prices=Prices(prompt=..., sampled=...), per million tokens, or limit max_tokens_total"
            )
        config, sample = self.config.override(context), context.sample or 0
        begin: Any = context.begin
        if begin is not None and not (isinstance(begin, Trajectory) and begin.recorded):
            raise ConfigError(f"context: begin = {shorten(begin)}: not the beginning of a branch; pass branch_of(...)")
        given = {"budget": context, "prices": prices, "begin": begin}
        return replace(self, policy=policy, config=config, sample=sample, **given)

    async def attempt(self, course: Course) -> Course:
        tree = course.tree
        if self.begin is not None and self.begin.task.digest != tree.task.digest:
            raise ConfigError(
                f"context: begin is a try of another task than {tree.task.id!r}; pass the task of that try"
            )
        if self.runner is not None and isinstance(agent := self.runner.agent, Equipped):
            tree = tree.changed(task=await agent.equip(tree.task))
            course = replace(course, tree=tree)
        if (begin := self.begin) is None:
            spans = await _grow(self._drawings(course, self._spending(course), None, "attempt", 1))
            return course.grown(spans, trajectory_id=spans[0].span_id)
        recorded = {**tree.metadata, RECORDED: [span.span_id for span in begin.spans]}
        named: Any = {"trajectory_id": begin.trajectory_id, "parent_id": begin.parent_id}
        return course.grown(begin.spans, metadata=recorded, **named)

    async def verify(self, course: Course) -> Course:
        tree = course.tree
        waiting = [t for t in tree.tries if t.verdict is None and t.error is None]
        if self.runner is not None and self.runner.judges:
            waiting = []  # a verdict that is still missing is pending
        verdicts = await judge(
            self.verifier,
            tree.task,
            waiting,
            cut_off=self.config.cut_off,
            timeout_s=self.config.verify_timeout_s,
        )
        judged = {
            t.last.span_id: t.last.model_copy(update={"verdict": v}) for t, v in zip(waiting, verdicts, strict=True)
        }
        changed: dict[str, Any] = {"spans": tuple(judged.get(s.span_id, s) for s in tree.spans), "sample": self.sample}
        if n := self.config.reflections_at_once:
            changed["metadata"] = {**tree.metadata, AT_ONCE: n}
        tree = tree.changed(**changed)
        frontier = self._frontier(tree)
        is_open = frontier or any(s.label == "reflect" and not tree.children(s) for s in tree.spans)
        reason = self._spending(replace(course, tree=tree)).spent() if is_open else _stopped(tree)
        if reason is not None:
            tree, frontier = tree.changed(metadata={**tree.metadata, ENDED: reason}), []
        if tree.attempt is not None and tree.attempt.error is not None:
            tree = tree.changed(error=tree.attempt.error)
        return replace(course, tree=tree, frontier=frontier, ended=not frontier)

    async def reflect(self, course: Course) -> Course:
        spending, tree = self._spending(course), course.tree
        spans = await _grow(
            drawing
            for failed in course.frontier
            if (n := self._wanted(tree, failed)) > 0
            for drawing in self._drawings(course, spending, failed, "reflect", n)
        )
        return course.grown(spans)

    async def retry(self, course: Course) -> Course:
        spending, tree = self._spending(course), course.tree
        frontier = [] if spending.spent() else course.frontier
        guided = [
            drawing
            for failed in frontier
            for reflection in tree.children(failed, "reflect")
            if not tree.children(reflection)
            for drawing in self._drawings(course, spending, reflection, "retry", self.config.retries)
        ]
        blind = [
            drawing
            for failed in frontier
            if self.config.blind_retries and not tree.children(failed, "retry")
            for drawing in self._drawings(course, spending, failed, "retry", self.config.blind_retries)
        ]
        return course.grown(await _grow([*guided, *blind]))

    def _spending(self, course: Course) -> Spending:
        return Spending(self.budget, self.prices, course.tree, course.began)

    def _frontier(self, tree: Trajectory) -> list[Span]:
        """List the last spans of the failed tries that need reflections or may be retried; none once a try has passed.

        A group of reflections that is drawn in parts is completed first, also if a try of it has passed. If there are
        reflections, blind retries are only a control: they are not retried, and a pass does not count. A try whose
        conversation was refused is not retried, because a longer one would be refused too. A control branch begins with
        a reflection that awaits its retry.
        """
        tries = [t for t in tree.tries if not (self.config.reflections and t.is_blind)]
        if undecided := [t.last for t in tries if self._undecided(tree, t.last)]:
            return undecided
        if any(t.passed for t in tries):
            return []
        return [
            t.last
            for t in tries
            if t.passed is False  # one with a pending verdict has not failed
            and all(s.span_id in tree.recorded and not tree.children(s) for s in tree.children(t.last))
            and not t.refused
            and n_tries(tree, t.last) < self.config.max_attempts
        ]

    def _wanted(self, tree: Trajectory, failed: Span) -> int:
        """Return the number of reflections to draw next on a failed try."""
        missing = self.config.reflections - len(tree.children(failed, "reflect"))
        return min(missing, self.config.reflections_at_once or missing)

    def _undecided(self, tree: Trajectory, failed: Span) -> bool:
        """Return True if reflections on this try are missing, and those that there are have no variance."""
        reflections = tree.children(failed, "reflect")
        if not self.config.reflections_at_once or not reflections or self._wanted(tree, failed) <= 0:
            return False
        if any(span.span_id in tree.recorded for span in reflections):  # of an earlier episode, which was complete
            return False
        return len({reward(tree, reflection) for reflection in reflections} - {None}) < 2

    def _drawings(self, course: Course, spending: Spending, parent: Span | None, label: Label, n: int) -> list[Drawing]:
        """Return what draws `n` children of `parent`: one request for all, or one run for each try of an agent."""
        request = self._request(course, parent, label)
        if self.runner is None or label == "reflect":
            return [partial(self._sample, course.tree, request, n)]
        return [partial(self._run, self.runner, spending, request, choice) for choice in range(n)]

    def _request(self, course: Course, parent: Span | None, label: Label) -> SpanRequest:
        tree = course.tree
        messages, appended = list(tree.task.messages), ()
        if parent is not None:
            template = self.templates["blind_retry_prompt" if is_blind(label, parent) else f"{label}_prompt"]
            appended = appended_after(tree, parent, template.render(**self._prompt_values(tree, parent)))
            messages = [*tree.prompt(parent), parent.turn, *appended]
        sampling = self._sampling(label)
        if sampling is not None:
            branch = () if tree.parent_id is None else (tree.trajectory_id,)  # it does not draw what it left again
            earlier = len(tree.children(parent, "reflect")) if parent is not None and label == "reflect" else 0
            part = (earlier,) if earlier else ()
            place = tree.position(parent), "blind_retry" if is_blind(label, parent) else label, *branch, *part
            sampling = sampling.at(tree.task.id, self.sample, course.earlier, *place)
        return SpanRequest(label, parent, messages, appended, sampling)

    async def _run(self, runner: TryRunner, spending: Spending, request: SpanRequest, choice: int) -> list[Span]:
        """Run one try of an agent."""
        if (obstacle := request.obstacle) is not None:
            return [request.refused(slot, obstacle) for slot in request.slots(1)]
        sampling = request.sampling and request.sampling.for_choice(choice)
        policy = self._policy_of(spending.tree)
        return await runner.run(request._replace(sampling=sampling), spending, policy=policy, config=self.config)

    async def _sample(self, tree: Trajectory, request: SpanRequest, n: int) -> list[Span]:
        """Sample `n` children with one request.

        A conversation that the endpoint refuses for its text makes failed tries without an answer: the policy's own
        text made it too long. Only if it is the task alone, the error passes through.
        """
        slots = request.slots(n)
        if (obstacle := request.obstacle) is not None:
            return [request.refused(slot, obstacle) for slot in slots]
        try:
            return await self.sampler.draw(self._policy_of(tree), request, slots, tree.task.tools)
        except ConversationError as error:
            if request.parent is None:
                raise
            refusal = Refusal(error.finish_reason, f"{error.finish_reason}: the conversation was refused: {error}")
            return [request.refused(slot, refusal) for slot in slots]

    def _sampling(self, label: Label) -> Sampling | None:
        """Return the settings of a request; `None` if the policy has its own and does not show them."""
        sampling = self.config.sampling or sampling_of(self.policy)
        if label == "reflect":
            return self.config.reflect_sampling or (sampling and sampling.without_grammar())
        return sampling

    def _prompt_values(self, tree: Trajectory, parent: Span) -> dict[str, Any]:
        """Collect the template variables of a prompt that follows `parent`, a failed try or a reflection on one."""
        failed = tree.parent(parent) if parent.label == "reflect" else parent
        assert failed is not None  # the parent of a reflection is a try
        a_try = tree.try_of(failed)
        answer = Answer.of(a_try.message)
        return {
            "task": {"messages": tree.task.messages, "tools": tree.task.tools},
            "answer": str(answer),
            "thinking": answer.thinking,
            "feedback": ("" if a_try.verdict is None else a_try.verdict.feedback) or "",
            "attempt": n_tries(tree, failed),
            "reflection": str(Answer.of(parent.message)) if parent.label == "reflect" else "",
        }

    def _policy_of(self, tree: Trajectory) -> Policy:
        """Pin the policy to the version that the episode began with, even if another is live by now."""
        pinned: Callable[[str], Policy] | None = getattr(self.policy, "pinned", None)  # of a `Pinnable`
        began = next((span for span in tree.spans if span.span_id not in tree.recorded), None)
        return self.policy if pinned is None or began is None else pinned(began.model)


async def _grow(drawings: Iterable[Drawing]) -> list[Span]:
    return [span for spans in await draw(drawings) for span in spans]


def _stopped(tree: Trajectory) -> str | None:
    """Return why a budget ended a try; `None` if it ended none."""
    errors = [a_try.error for a_try in tree.tries if a_try.error is not None]
    return next((error.message for error in errors if error.kind == BudgetError.__name__), None)
