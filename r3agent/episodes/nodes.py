"""Nodes of the graph: each takes the state and returns a partial update, without side effects.

A node works on the whole frontier of the tree at once, that is, on every failed try that may be retried.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

from r3agent._util.templates import Template
from r3agent.episodes.checkpointed import Drawing, draw
from r3agent.episodes.collaborators import sampled
from r3agent.episodes.config import EpisodeConfig, EpisodeContext
from r3agent.episodes.renderings import Rendered, Renderer
from r3agent.episodes.state import EpisodeState, SpanSlot, earlier_episodes, frontier_of, task_of, tree_of
from r3agent.errors import ConversationError
from r3agent.policy import Pinnable, Policy, Sampling, sampling_of
from r3agent.records.prompts import NOT_RUN
from r3agent.records.trajectory import Generation, Label, Message, Span, Trajectory, Verdict
from r3agent.verifiers import Answer, Verifier, judge

Update: TypeAlias = dict[str, Any]
Sample: TypeAlias = Callable[..., Awaitable[list[Generation]]]
Streamer: TypeAlias = Callable[[Sample, Sequence[Message], Sequence[SpanSlot]], Awaitable[list[Generation]]]


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Nodes with their collaborators and settings, which `build_graph` documents."""

    policy: Policy
    verifier: Verifier
    config: EpisodeConfig
    templates: dict[str, Template]
    """Compiled prompts of `config`, by the names of their settings."""
    streamer: Streamer | None
    """Function that calls `sample` and writes every delta to LangGraph's streams."""
    sample: int = 0
    """Index of the episode among several of its task."""
    renderer: Renderer = field(default_factory=Renderer)

    def under(self, context: object) -> Nodes:
        """Apply a run's context; one of another type belongs to a larger graph and is ignored."""
        if not isinstance(context, EpisodeContext):
            return self
        return replace(self, config=self.config.override(context), sample=context.sample or 0)

    async def attempt(self, state: EpisodeState) -> Update:
        tree = Trajectory(task=task_of(state))
        return _update(await self._sample(state, tree, None, "attempt", 1))

    async def verify(self, state: EpisodeState) -> Update:
        tree = tree_of(state)
        waiting = [span for span in tree.spans if span.label != "reflect" and span.verdict is None]
        verdicts = await judge(self.verifier, tree.task, waiting, cut_off=self.config.cut_off)
        judged = {s.span_id: s.model_copy(update={"verdict": v}) for s, v in zip(waiting, verdicts, strict=True)}
        spans = tuple(judged.get(s.span_id, s) for s in tree.spans)
        tree = tree.changed(spans=spans, sample=self.sample)
        answer, frontier = tree.answer, self._frontier(tree)
        assert answer is not None  # `tree_of` requires an attempt
        return {
            **_update(judged.values()),
            "answer": str(Answer.of(answer.message)),
            "passed": answer.passed,
            "frontier": [span.span_id for span in frontier],
            **({} if frontier else {"trajectory": tree.model_dump(mode="json")}),
        }

    async def reflect(self, state: EpisodeState) -> Update:
        tree = tree_of(state)
        n = self.config.reflections  # a run's context may have none where an edit of the state led here
        return await _grow(
            partial(self._sample, state, tree, failed, "reflect", n) for failed in frontier_of(state, tree) if n
        )

    async def retry(self, state: EpisodeState) -> Update:
        tree = tree_of(state)
        frontier = frontier_of(state, tree)
        guided = [
            partial(self._sample, state, tree, reflection, "retry", self.config.retries)
            for failed in frontier
            for reflection in tree.children(failed, "reflect")
        ]
        blind = [
            partial(self._sample, state, tree, failed, "retry", self.config.blind_retries, is_blind=True)
            for failed in frontier
            if self.config.blind_retries
        ]
        return await _grow([*guided, *blind])

    def _frontier(self, tree: Trajectory) -> list[Span]:
        """List the failed tries that may be retried; none once a try has passed.

        If there are reflections, blind retries are only a control: they are not retried, and a pass does not count. A
        try whose conversation was refused is not retried, because a longer one would be refused too.
        """
        tries = [s for s in tree.spans if s.label != "reflect" and not (self.config.reflections and tree.is_blind(s))]
        if any(s.passed for s in tries):
            return []
        failed = [s for s in tries if s.passed is False]  # a try with a pending verdict has not failed
        return [
            s
            for s in failed
            if not tree.children(s) and not s.refused and self._n_tries(tree, s) < self.config.max_attempts
        ]

    @staticmethod
    def _n_tries(tree: Trajectory, span: Span) -> int:
        return sum(s.label != "reflect" for s in tree.path(span))

    async def _sample(
        self,
        state: EpisodeState,
        tree: Trajectory,
        parent: Span | None,
        label: Label,
        n: int,
        *,
        is_blind: bool = False,
    ) -> list[Span]:
        """Sample `n` children of `parent`.

        A conversation that the endpoint refuses for its text, or one after such a refusal, makes failed tries without
        an answer: the policy's own text made it too long. Only if it is the task alone, the error passes through. A
        reflection that was cut off before any answer makes such tries too: there is nothing to retry with.
        """
        messages, request = list(tree.task.messages), ()
        if parent is not None:
            turn, prompt = parent.turn, self.templates["blind_retry_prompt" if is_blind else f"{label}_prompt"]
            # OpenAI's API requires an answer to every tool call before the conversation continues.
            unrun = [
                {"role": "tool", "tool_call_id": c.get("id", ""), "content": NOT_RUN}
                for c in turn.get("tool_calls", ())
            ]
            request = (*unrun, {"role": "user", "content": prompt.render(**self._prompt_values(tree, parent))})
            messages = [*tree.prompt(parent), turn, *request]
        sampling = self._sampling(label)
        if sampling is not None:
            branch = () if tree.parent_id is None else (tree.trajectory_id,)  # it does not draw what it left again
            place = tree.position(parent), "blind_retry" if is_blind else label, *branch
            sampling = sampling.at(tree.task.id, self.sample, earlier_episodes(state, tree), *place)
        slots = SpanSlot.siblings(n, label, parent and parent.span_id)
        if parent is not None and parent.refused:
            why = f"{parent.finish_reason}: the conversation was refused: so was its parent's"
            return [_refused(slot, parent, request, sampling, str(parent.finish_reason), why) for slot in slots]
        if parent is not None and parent.label == "reflect" and parent.unanswered:
            why = f"no whole reflection: {parent.unfinished}"
            return [_refused(slot, parent, request, sampling, "no_reflection", why) for slot in slots]
        policy = self._policy_of(tree)

        async def ask(rendered: Rendered) -> list[Generation]:
            settings = _without_calls(sampling) if rendered.forbids_calls else sampling
            sample: Sample = partial(policy.sample, rendered.messages, n=n, tools=rendered.tools, sampling=settings)
            answer = self.streamer(sample, rendered.messages, slots) if self.streamer else sample()
            return await sampled(policy, answer, n)

        try:
            generations, sent = await self.renderer.send(ask, messages, tree.task.tools, may_call=label != "reflect")
        except ConversationError as error:
            if parent is None:
                raise
            why = f"{error.finish_reason}: the conversation was refused: {error}"
            return [_refused(slot, parent, request, sampling, error.finish_reason, why) for slot in slots]
        place = {"label": label, "request": request}
        if sent.messages != messages:
            place |= {"request": sent.messages, "standalone": True}
        return [
            Span.model_validate({**dict(one), "span_id": slot.span_id, "parent_id": slot.parent_id, **place})
            for one, slot in zip(generations, slots, strict=True)
        ]

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
        """Pin the policy to the version that the episode began with, even if another is live by now."""
        began = tree.attempt
        return self.policy.pinned(began.model) if began and isinstance(self.policy, Pinnable) else self.policy


def _refused(
    slot: SpanSlot, parent: Span, request: Sequence[Message], sampling: Sampling | None, reason: str, why: str
) -> Span:
    """Make the span of a generation that does not exist, and fail it if it is a try."""
    return Span(
        span_id=slot.span_id,
        parent_id=slot.parent_id,
        label=slot.label,
        request=tuple(request),
        text="",
        model=parent.model,
        policy_version=parent.policy_version,
        sampling={} if sampling is None else sampling.model_dump(mode="json"),
        finish_reason=reason,
        completion_tokens=0,
        capability_note=f"no generation: {reason}",
        verdict=Verdict.failed(why) if slot.label == "retry" else None,
    )


def _without_calls(sampling: Sampling | None) -> Sampling:
    """Return the settings of a request whose tools are not to be called."""
    given = sampling or Sampling(temperature=None, top_p=None, max_tokens=None)  # the policy has its own
    return given.model_copy(update={"extra": {**given.extra, "tool_choice": "none"}})


async def _grow(drawings: Iterable[Drawing]) -> Update:
    return _update(span for spans in await draw(drawings) for span in spans)


def _update(spans: Iterable[Span]) -> Update:
    return {"spans": [span.model_dump(mode="json") for span in spans]}
