"""The four nodes: each takes the state and returns a partial update, and writes nothing anywhere.

A node works on the whole frontier of the tree at once, that is on every failed try that may be tried again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from r3agent._util.templates import Template
from r3agent.episodes.checkpointed import Drawing, draw
from r3agent.episodes.state import EpisodeContext, EpisodeState, Place, frontier_of, task_of, tree_of
from r3agent.errors import ConfigError
from r3agent.policy import Pinnable, Policy, Sampling
from r3agent.records.trajectory import Generation, Label, Message, Span, Trajectory
from r3agent.verifiers import Answer, Verifier, judge

NOT_RUN = "This call was not run."
"""Answers the calls of a failed try."""

Update: TypeAlias = dict[str, Any]
Sample: TypeAlias = Callable[..., Awaitable[list[Generation]]]
Telling: TypeAlias = Callable[[Sample, Sequence[Message], Sequence[Place]], Awaitable[list[Generation]]]


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The nodes with their collaborators and limits, which `build_graph` documents.

    Raises:
        ConfigError: a limit is no whole number or out of range, or none would retry; a sampling is no `Sampling`.
    """

    policy: Policy
    verifier: Verifier
    max_attempts: int
    reflections: int
    retries: int
    blind_retries: int
    reflect_prompt: Template
    retry_prompt: Template
    blind_retry_prompt: Template
    sampling: Sampling | None
    reflect_sampling: Sampling | None
    telling: Telling | None
    """Draws as `sample` does, and tells of every piece of text."""

    def __post_init__(self) -> None:
        for name, least in (("max_attempts", 1), ("reflections", 0), ("retries", 1), ("blind_retries", 0)):
            limit: object = getattr(self, name)
            if not isinstance(limit, int) or isinstance(limit, bool):
                raise ConfigError(f"{name} = {limit!r}: must be a whole number, at least {least}")
            if limit < least:
                raise ConfigError(f"{name} = {limit}: must be at least {least}")
        for name in ("sampling", "reflect_sampling"):
            drawn: object = getattr(self, name)
            if not isinstance(drawn, Sampling | None):
                raise ConfigError(f"{name} = {drawn!r}: must be a Sampling, such as Sampling(temperature=0.7)")
        if self.max_attempts > 1 and not self.reflections and not self.blind_retries:
            raise ConfigError(
                "reflections = 0 and blind_retries = 0: nothing would retry, with max_attempts = "
                f"{self.max_attempts}; pass reflections=1, or blind_retries=1 to retry without reflecting"
            )

    def under(self, context: object) -> Nodes:
        """As a run with this context wants them. One of another type is of a larger graph and says nothing here."""
        return replace(self, **context.given) if isinstance(context, EpisodeContext) else self

    async def attempt(self, state: EpisodeState) -> Update:
        tree = Trajectory(task=task_of(state))
        return _update(await self._sample(tree, None, "attempt", None, 1))

    async def verify(self, state: EpisodeState) -> Update:
        tree = tree_of(state)
        waiting = [span for span in tree.spans if span.label != "reflect" and span.verdict is None]
        verdicts = await judge(self.verifier, tree.task, waiting)
        judged = {s.span_id: s.model_copy(update={"verdict": v}) for s, v in zip(waiting, verdicts, strict=True)}
        tree = tree.model_copy(update={"spans": tuple(judged.get(s.span_id, s) for s in tree.spans)})
        answer, frontier = tree.answer, self._frontier(tree)
        assert answer is not None  # the graph enters at `attempt`
        return {
            **_update(judged.values()),
            "answer": str(Answer.of(answer.message)),
            "passed": answer.passed,
            "frontier": [span.span_id for span in frontier],
            **({} if frontier else {"trajectory": tree.model_dump(mode="json")}),
        }

    async def reflect(self, state: EpisodeState) -> Update:
        tree = tree_of(state)
        return await _grow(
            partial(self._sample, tree, failed, "reflect", self.reflect_prompt, self.reflections)
            for failed in frontier_of(state, tree)
        )

    async def retry(self, state: EpisodeState) -> Update:
        tree = tree_of(state)
        frontier = frontier_of(state, tree)
        guided = [
            partial(self._sample, tree, reflection, "retry", self.retry_prompt, self.retries)
            for failed in frontier
            for reflection in tree.children(failed, "reflect")
        ]
        blind = [
            partial(self._sample, tree, failed, "retry", self.blind_retry_prompt, self.blind_retries)
            for failed in frontier
            if self.blind_retries
        ]
        return await _grow([*guided, *blind])

    def _frontier(self, tree: Trajectory) -> list[Span]:
        """The failed tries that may be tried again: none once a try of the policy's own has passed.

        Next to reflections, blind retries are a control: they are not followed up and end nothing.
        """
        tries = [s for s in tree.spans if s.label != "reflect" and not (self.reflections and tree.is_blind(s))]
        if any(s.passed for s in tries):
            return []
        failed = [s for s in tries if s.passed is False]  # one whose verdict is pending has not failed
        return [s for s in failed if not tree.children(s) and self._n_tries(tree, s) < self.max_attempts]

    @staticmethod
    def _n_tries(tree: Trajectory, span: Span) -> int:
        return sum(s.label != "reflect" for s in tree.path(span))

    async def _sample(
        self, tree: Trajectory, parent: Span | None, label: Label, prompt: Template | None, n: int
    ) -> list[Span]:
        """`n` children of `parent`, asked for with `prompt`."""
        messages, request = list(tree.task.messages), ()
        if parent is not None and prompt is not None:
            turn = parent.turn
            # OpenAI's API wants every call answered before the conversation goes on.
            unrun = [
                {"role": "tool", "tool_call_id": c.get("id", ""), "content": NOT_RUN}
                for c in turn.get("tool_calls", ())
            ]
            request = (*unrun, {"role": "user", "content": prompt.render(**self._seen(tree, parent))})
            messages = [*tree.prompt(parent), turn, *request]
        places = Place.several(n, label, parent and parent.span_id)
        sample: Sample = partial(
            self._policy_of(tree).sample,
            messages,
            n=n,
            tools=() if label == "reflect" else tree.task.tools,
            sampling=(label == "reflect" and self.reflect_sampling) or self.sampling,
        )
        generations = await (self.telling(sample, messages, places) if self.telling else sample())
        return [
            Span.model_validate(
                {**dict(drawn), "span_id": at.span_id, "parent_id": at.parent_id, "label": label, "request": request}
            )
            for drawn, at in zip(generations, places, strict=True)
        ]

    def _seen(self, tree: Trajectory, parent: Span) -> dict[str, Any]:
        """What a prompt below `parent`, a failed try or a reflection on one, may name; `prompts.py` explains it."""
        failed = tree.parent(parent) if parent.label == "reflect" else parent
        assert failed is not None  # a reflection is on a try
        answer = Answer.of(failed.message)
        return {
            "task": {"messages": tree.task.messages, "tools": tree.task.tools},
            "answer": str(answer),
            "thinking": answer.thinking,
            "feedback": (failed.verdict and failed.verdict.feedback) or "",
            "attempt": self._n_tries(tree, failed),
            "reflection": str(Answer.of(parent.message)) if parent.label == "reflect" else "",
        }

    def _policy_of(self, tree: Trajectory) -> Policy:
        """An episode goes on with the version it began with, whatever is live by now."""
        began = tree.attempt
        return self.policy.pinned(began.model) if began and isinstance(self.policy, Pinnable) else self.policy


async def _grow(drawings: Iterable[Drawing]) -> Update:
    return _update(span for spans in await draw(drawings) for span in spans)


def _update(spans: Iterable[Span]) -> Update:
    return {"spans": [span.model_dump(mode="json") for span in spans]}
