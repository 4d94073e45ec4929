"""Tries without a whole answer: cut off, or refused because the policy's own text made the conversation too long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from r3agent import build_graph
from r3agent.episodes.collect import collect
from r3agent.errors import ContentFilterError, ContextLengthError
from r3agent.evaluate import evaluate
from r3agent.policy import OpenAIPolicy
from r3agent.records.credit import groups, reward
from r3agent.records.trajectory import Generation, Task, Trajectory, Verdict
from r3agent.store.trajectories import load
from r3agent.testing import PROMPT_TOO_LONG, ScriptedEndpoint, ScriptedPolicy
from r3agent.train import TrainConfig, credit_spans
from r3agent.train.remedies import REMEDIES

TASK = Task(id="t", messages=({"role": "user", "content": "question"},))
TOO_LONG = ContextLengthError("400 maximum context length is 64 tokens")


def accepts(task: Task, answer: str) -> bool:
    return "right" in answer


async def episode(out: Path, policy: Any, verifier: Any = accepts, **settings: Any) -> Trajectory:
    await collect([TASK], policy=policy, verifier=verifier, out=out, **settings)
    [trajectory] = load(out)
    return trajectory


def cut(text: str, **fields: Any) -> Generation:
    return Generation(text=text, model="m", finish_reason="length", completion_tokens=7, **fields)


# ---- refused conversations ----


async def test_an_over_long_reflection_is_paid_nothing_and_keeps_its_siblings(tmp_path: Path) -> None:
    policy = ScriptedPolicy(
        {"attempt": "wrong", "reflect": ["short", "a very long one", "shorter"], "retry": ["right", TOO_LONG, "wrong"]}
    )
    seen: list[str] = []

    def verifier(task: Task, answer: str) -> bool:
        seen.append(answer)
        return accepts(task, answer)

    trajectory = await episode(tmp_path, policy, verifier, reflections=3)
    assert trajectory.error is None
    assert sorted(seen) == ["right", "wrong", "wrong"]  # the verifier never sees the try without an answer
    [group] = groups([trajectory])
    assert [(s.text, r) for s, r in zip(group.spans_G, group.rewards_G, strict=True)] == [
        ("short", 1.0),
        ("a very long one", 0.0),
        ("shorter", 0.0),
    ]
    [retry] = trajectory.children(group.spans_G[1], "retry")
    assert (retry.finish_reason, retry.capability, retry.token_ids, retry.passed) == (
        "context_overflow",
        "eval-only",
        None,
        False,
    )
    assert retry.verdict is not None
    assert "maximum context length is 64" in str(retry.verdict.feedback)

    spans = tuple(span.model_copy(update={"policy_version": "v0000"}) for span in trajectory.spans)
    config = TrainConfig(recipe="paper", credit={"reflect": "retry_success", "retry": "success"})
    credited = credit_spans([trajectory.changed(spans=spans)], config=config, version="v0000")
    assert [(row.span_id, row.reward) for row in credited.rows] == [
        (span.span_id, earned) for span, earned in zip(group.spans_G, group.rewards_G, strict=True)
    ]
    reasons = {drop.span_id: drop.reason for drop in credited.dropped}
    assert reasons[retry.span_id] == "refused"
    assert set(reasons.values()) <= REMEDIES.keys()


async def test_a_refused_try_counts_by_name(tmp_path: Path) -> None:
    policy = ScriptedPolicy(
        {"attempt": "wrong", "reflect": "hm", "retry": [TOO_LONG, "wrong"], "blind_retry": ContentFilterError("no")}
    )
    summary = await collect(
        [TASK], policy=policy, verifier=accepts, out=tmp_path, reflections=1, retries=1, blind_retries=1
    )
    assert summary.unfinished == {"context_overflow": 1, "content_refused": 1}
    assert (summary.retry_after_reflection, summary.retry_blind, summary.errors) == (0.0, 0.0, {})
    evaluation = evaluate(load(tmp_path))
    assert evaluation.after_reflection is not None
    assert (evaluation.after_reflection.rate, evaluation.errors.rate) == (0.0, 0.0)
    assert evaluation.unfinished == {"context_overflow": 1, "content_refused": 1}


async def test_an_attempt_too_long_to_reflect_on_is_a_failed_episode(tmp_path: Path) -> None:
    policy = ScriptedPolicy({"attempt": "a very long one", "reflect": TOO_LONG, "retry": "never asked for"})
    trajectory = await episode(tmp_path, policy, reflections=2, max_attempts=4)
    assert trajectory.error is None
    assert [(s.label, s.unfinished) for s in trajectory.spans] == [
        ("attempt", None),
        *[("reflect", "context_overflow")] * 2,
        *[("retry", "context_overflow")] * 2,
    ]
    assert [c.asked for c in policy.calls] == ["attempt", "reflect"]
    assert [reward(trajectory, s) for s in trajectory.spans if s.label == "reflect"] == [0.0, 0.0]
    assert trajectory.answer == trajectory.attempt  # an application shows the answer that exists
    evaluation = evaluate([trajectory])
    assert evaluation.after_reflection is not None
    assert evaluation.after_reflection.rate == 0.0


async def test_a_task_that_is_too_long_is_an_error(tmp_path: Path) -> None:
    policy = ScriptedPolicy({"attempt": [TOO_LONG, "right"]})
    summary = await collect(
        [TASK, TASK.model_copy(update={"id": "u"})], policy=policy, verifier=accepts, out=tmp_path, concurrency=1
    )
    assert summary.errors == {"ContextLengthError": 1}
    assert summary.unfinished == {}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_application_gets_its_failed_answer(stream: bool) -> None:
    with ScriptedEndpoint("wrong", faults=[None, None, PROMPT_TOO_LONG]) as endpoint:
        async with OpenAIPolicy(endpoint.url, endpoint.model) as policy:
            graph = build_graph(policy=policy, verifier=accepts, stream=stream).compile()
            output = await graph.ainvoke({"task": TASK.model_dump(mode="json")})
    assert (output["answer"], output["passed"]) == ("wrong", False)
    assert Trajectory.model_validate(output["trajectory"]).spans[-1].finish_reason == "context_overflow"


# ---- answers that were cut off ----


@pytest.mark.parametrize(
    "generation",
    [
        cut("right", sampling={"max_tokens": 7}),
        cut("<think>the right one is"),
        cut("", reasoning="right"),
        cut("right").model_copy(update={"finish_reason": "max_tokens"}),
        cut("right").model_copy(update={"finish_reason": "content_filter"}),
        # vLLM's finish reason of a completion that called a tool before it was cut off
        cut("right", token_ids=range(7), sampling={"max_tokens": 7}).model_copy(update={"finish_reason": "tool_calls"}),
    ],
    ids=["length", "thinking", "reasoning", "max_tokens", "content_filter", "tool_calls"],
)
async def test_a_truncated_answer_fails(tmp_path: Path, generation: Generation) -> None:
    policy = ScriptedPolicy({"attempt": generation, "reflect": "hm", "retry": ["right", generation]})
    trajectory = await episode(tmp_path / "fail", policy, lambda task, answer: True, reflections=2)
    assert [s.passed for s in trajectory.spans if s.label != "reflect"] == [False, True, False]
    assert trajectory.attempt is not None
    assert trajectory.attempt.verdict is not None
    assert "cut off" in str(trajectory.attempt.verdict.feedback)

    judged = await episode(tmp_path / "judge", policy, lambda task, answer: True, cut_off="judge")
    assert [s.passed for s in judged.spans] == [True]


async def test_a_truncated_answer_names_the_limit(tmp_path: Path) -> None:
    trajectory = await episode(tmp_path, ScriptedPolicy(cut("right", sampling={"max_tokens": 7})), max_attempts=1)
    assert trajectory.attempt is not None
    assert trajectory.attempt.verdict is not None
    assert trajectory.attempt.verdict.feedback == "cut off after 7 tokens, at max_tokens = 7: the answer is not whole"


async def test_a_truncated_reflection_is_judged_by_its_retry(tmp_path: Path) -> None:
    policy = ScriptedPolicy({"attempt": "wrong", "reflect": cut("hm"), "retry": "right"})
    trajectory = await episode(tmp_path, policy, reflections=1)
    assert trajectory.passed
    assert [reward(trajectory, s) for s in trajectory.spans if s.label == "reflect"] == [1.0]


@pytest.mark.parametrize("thought", [cut("", reasoning="so the tables"), cut("<think>so the tables"), cut(" ")])
async def test_a_reflection_cut_off_in_thought_earns_nothing(tmp_path: Path, thought: Generation) -> None:
    policy = ScriptedPolicy(
        {"attempt": "wrong", "reflect": [thought, "use tables"], "retry": "right", "blind_retry": "wrong"}
    )
    limits: dict[str, Any] = {"reflections": 2, "blind_retries": 1, "max_attempts": 3}
    summary = await collect([TASK], policy=policy, verifier=accepts, out=tmp_path, **limits)
    [trajectory] = load(tmp_path)
    assert sorted(c.asked for c in policy.calls) == ["attempt", "blind_retry", "reflect", "retry"]
    [group] = groups([trajectory])
    assert group.rewards_G == (0.0, 1.0)
    [retry] = trajectory.children(group.spans_G[0], "retry")
    assert (retry.unfinished, retry.refused, retry.passed) == ("no_reflection", True, False)
    assert retry.verdict is not None
    assert retry.verdict.feedback == "no whole reflection: length"
    for counted in (summary, evaluate([trajectory])):
        assert (counted.unfinished, counted.unfinished_reflections) == ({"no_reflection": 1}, {"length": 1})

    lucky = retry.model_copy(update={"finish_reason": "stop", "verdict": Verdict(passed=True, score=1.0)})
    spans = tuple(lucky if span.span_id == retry.span_id else span for span in trajectory.spans)
    [group] = groups([trajectory.changed(spans=spans)])  # another loop did ask for a retry
    assert group.rewards_G == (0.0, 1.0)
