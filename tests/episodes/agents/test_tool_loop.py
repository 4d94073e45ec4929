"""The tool loop: a try of completions and tool calls, recorded step by step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r3agent import OpenAIPolicy, Sampling, build_graph
from r3agent.errors import ContextLengthError, EndpointError, RequestError
from r3agent.testing import ScriptedEndpoint, ScriptedPolicy
from tests.episodes.agents.scripts import ANSWER, TASK, Worlds, answers, calling, episode


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first.
        b: the second.
    """
    return a + b


async def test_loop_records_each_step_of_a_try() -> None:
    policy = answers(calling(("add", {"a": 1, "b": 3})), calling(("add", {"a": 4, "b": 0})), ANSWER)
    tree = await episode(policy, tools=[add])
    [attempt] = tree.tries
    assert [step.request for step in attempt.steps[1:]] == [
        ({"role": "tool", "tool_call_id": "call-0", "content": "4"},)
    ] * 2
    assert (attempt.message["content"], attempt.passed, attempt.first.parent_id) == (ANSWER, True, None)
    assert [step.parent_id for step in attempt.steps[1:]] == [step.span_id for step in attempt.steps[:-1]]
    assert [call.messages for call in policy.calls] == [tree.prompt(step) for step in attempt.steps]
    [definition] = tree.task.tools
    assert definition["function"]["parameters"]["properties"]["a"] == {"type": "integer", "description": "the first."}
    assert all(call.tools == [definition] for call in policy.calls)


async def test_loop_reflects_on_the_whole_try_and_retries_it_all() -> None:
    policy = answers(calling(("add", {"a": 1, "b": 2})), "3")
    tree = await episode(policy, tools=[add], verifier=lambda task, answer: False, retries=2)
    assert [len(a_try.steps) for a_try in tree.tries] == [2, 2, 2]
    [reflection] = [span for span in tree.spans if span.label == "reflect"]
    said = [message["role"] for message in tree.prompt(reflection)]
    assert said == ["user", "assistant", "tool", "assistant", "user"]
    assert all(tree.parent(a_try.first) == reflection for a_try in tree.tries[1:])


ARGUMENTS = ['{"a": 1, "b": 2}', '{"a": ', "[1]", '{"a": "one", "b": 2}', '{"c": 3}', ""]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(["add", "slow", "nope"]), min_size=1, max_size=6),
    st.lists(
        st.sampled_from(['{"a": 1, "b": 2}', '{"a": ', "[1]", '{"a": "one", "b": 2}', '{"c": 3}', ""]), min_size=6
    ),
)
def test_loop_gives_every_call_one_result_in_order(names: list[str], arguments: list[str]) -> None:
    async def slow(a: int, b: int) -> str:
        """Take a while that depends on what comes after it."""
        await asyncio.sleep(0.001 * (len(names) - a))
        return f"slow {a}"

    calls = [(name, arguments[i].replace('"a": 1', f'"a": {i}')) for i, name in enumerate(names)]
    tree = asyncio.run(episode(answers(calling(*calls), ANSWER), tools=[add, slow], max_attempts=1))
    sent = [call["id"] for call in tree.spans[0].turn.get("tool_calls", ())]
    results = [message for message in tree.spans[1].request if message["role"] == "tool"]
    assert [message["tool_call_id"] for message in results] == sent
    faults = "".join(message["content"] for message in tree.spans[1].request if message["role"] == "user")
    assert len(faults.splitlines()) == len(calls) - len(sent)
    for message in results:
        name, given_to = calls[int(message["tool_call_id"].removeprefix("call-"))]
        is_good = name != "nope" and '"b"' in given_to and "one" not in given_to
        assert message["content"].startswith("Error: ") is not is_good


async def test_loop_runs_the_calls_of_one_answer_at_once() -> None:
    both = asyncio.Barrier(2)

    async def meet(name: str) -> str:
        """Wait for the other call."""
        await asyncio.wait_for(both.wait(), 30)
        return name

    tree = await episode(answers(calling(("meet", {"name": "a"}), ("meet", {"name": "b"})), ANSWER), tools=[meet])
    assert [message["content"] for message in tree.spans[1].request] == ["a", "b"]


async def test_loop_ends_at_max_steps_with_a_failed_try() -> None:
    policy = answers(*[calling(("add", {"a": 1, "b": 1}))] * 4)
    tree = await episode(policy, tools=[add], max_steps=3)
    assert [len(a_try.steps) for a_try in tree.tries] == [3, 3]
    verdict = tree.tries[0].verdict
    assert verdict is not None
    assert (verdict.passed, verdict.feedback) == (False, "no answer after max_steps = 3 model calls")


async def test_loop_fails_a_try_whose_conversation_gets_too_long() -> None:
    policy = answers(calling(("add", {"a": 1, "b": 1})), ContextLengthError("4,097 tokens"))
    tree = await episode(policy, tools=[add])
    assert [len(a_try.steps) for a_try in tree.tries] == [1, 1]
    verdict = tree.tries[0].verdict
    assert verdict is not None
    assert "4,097 tokens" in str(verdict.feedback)


async def test_loop_passes_an_error_of_the_endpoint_through() -> None:
    worlds = Worlds()
    with pytest.raises(EndpointError, match="down"):
        await episode(
            answers(calling(("add", {"a": 1, "b": 1})), EndpointError("down")), tools=[add], environment=worlds
        )
    assert (len(worlds.made), worlds.n_open) == (1, 0)


async def test_loop_runs_no_call_of_an_answer_that_was_cut_off() -> None:
    policy = answers(calling(("add", {"a": 1, "b": 1}), finish_reason="length"))
    tree = await episode(policy, tools=[add], max_attempts=1)
    assert (len(tree.spans), tree.passed) == (1, False)


@pytest.mark.parametrize("name", ["find", "add"])
async def test_loop_takes_the_definitions_of_the_task_first(name: str) -> None:
    own = {"type": "function", "function": {"name": name, "description": "Mine.", "parameters": {"type": "object"}}}
    policy = answers(calling((name, {"a": 2, "b": 2})), ANSWER)
    tree = await episode(policy, tools=[add], task={"task": {**TASK["task"], "tools": [own]}})
    assert tree.task.tools[0] == own
    assert [d["function"]["name"] for d in tree.task.tools] == ([name] if name == "add" else [name, "add"])
    # A definition without code ends the try with its call.
    assert len(tree.spans) == (2 if name == "add" else 1)


async def test_loop_draws_each_step_with_a_seed_of_its_own() -> None:
    policy = answers(calling(("add", {"a": 1, "b": 2})), "3")
    sampling = Sampling(seed=7)
    await episode(policy, tools=[add], verifier=lambda task, answer: False, retries=2, sampling=sampling)
    seeds = [call.sampling and call.sampling.seed for call in policy.calls]
    await episode(policy, tools=[add], verifier=lambda task, answer: False, retries=2, sampling=sampling)
    again = [call.sampling and call.sampling.seed for call in policy.calls[len(seeds) :]]
    assert (len(set(seeds)), set(seeds)) == (len(seeds), set(again))


def chat(body: dict[str, Any], choice: int) -> Any:
    """Call `add` once, then answer."""
    if body["messages"][-1]["role"] == "tool":
        return f"the sum is {body['messages'][-1]['content']}"
    function = {"name": "add", "arguments": '{"a": 1, "b": 3}'}
    return {"content": None, "tool_calls": [{"id": "c1", "type": "function", "function": function}]}


@pytest.mark.parametrize("stream", [False, True])
async def test_loop_plays_on_a_server_whole_and_streamed(stream: bool) -> None:
    with ScriptedEndpoint(chat) as endpoint:
        async with OpenAIPolicy(endpoint.url, endpoint.model) as policy:
            graph = build_graph(
                policy=policy, verifier=lambda task, answer: answer == ANSWER, tools=[add], stream=stream
            )
            deltas: list[Any] = []
            async for mode, chunk in graph.compile().astream(TASK, stream_mode=["custom", "values"]):
                if mode == "custom":
                    deltas.append(chunk)
                else:
                    output = chunk
    assert output["passed"] is True
    spans = output["trajectory"]["spans"]
    assert [span["capability"] for span in spans] == ["trainable-exact"] * 2
    if stream:
        assert "".join(d["delta"] for d in deltas if d["span_id"] == spans[1]["span_id"]) == ANSWER


async def test_loop_renders_anew_what_a_strict_server_refuses() -> None:
    policy = Refusing(lambda messages: calling(("add", {"a": 1, "b": 3})) if len(messages) == 1 else ANSWER)
    tree = await episode(policy, tools=[add])
    assert [(step.standalone, step.request[-1]["role"]) for step in tree.spans[1:]] == [(True, "user")]
    assert "4" in tree.spans[1].request[-1]["content"]
    assert (tree.answer and tree.answer.text) == ANSWER


class Refusing(ScriptedPolicy):
    """A policy whose server takes no tool messages."""

    async def sample(self, messages: Any, **given: Any) -> Any:
        if any(message["role"] == "tool" for message in messages):
            raise RequestError("the role tool is not supported")
        return await super().sample(messages, **given)


async def test_world_is_fresh_for_every_try_of_many_at_once() -> None:
    worlds = Worlds()
    together = asyncio.Barrier(8)

    async def put(value: int, environment: list[int]) -> list[int]:
        """Put a value into the world."""
        if len(worlds.made) > 1:
            await asyncio.wait_for(together.wait(), 30)
        return [*environment, environment.append(value) or value]

    seen: list[Any] = []

    def check(task: Any, answer: str, environment: list[int]) -> bool:
        seen.append((worlds.n_open, list(environment)))
        return False

    policy = answers(calling(("put", {"value": 4})), ANSWER)
    tree = await episode(policy, tools=[put], environment=worlds, verifier=check, retries=8)
    assert (len(tree.tries), len(worlds.made), worlds.n_open) == (9, 9, 0)
    assert all(n_open > 0 and world == [4] for n_open, world in seen)


@pytest.mark.parametrize("end", ["cancelled", "timed out", "verifier", "tool"])
async def test_world_is_closed_whatever_happens(end: str) -> None:
    worlds, is_waiting = Worlds(), asyncio.Event()

    async def wait(environment: list[int]) -> str:
        """Wait for ever, or fail."""
        if end in ("verifier", "tool"):
            raise OSError("the tool fails")
        is_waiting.set()
        await asyncio.Event().wait()
        return ""

    def check(task: Any, answer: str, environment: list[int]) -> bool:
        if end == "verifier":
            raise OSError("the verifier fails")
        return True

    run = asyncio.ensure_future(
        episode(
            answers(calling(("wait", {})), ANSWER),
            tools=[wait],
            environment=worlds,
            verifier=check,
            max_attempts=1,
            try_timeout_s=0.5 if end == "timed out" else None,
        )
    )
    if end == "cancelled":
        await is_waiting.wait()
        run.cancel()
    [result] = await asyncio.gather(run, return_exceptions=True)
    assert (len(worlds.made), worlds.n_open) == (1, 0)
    if end == "timed out":
        assert not isinstance(result, BaseException)
        verdict = result.tries[0].verdict
        assert verdict is not None
        assert verdict.feedback == "no answer within try_timeout_s = 0.5"
    else:
        assert isinstance(result, BaseException) is (end != "tool")


async def test_sync_tools_change_the_world_in_the_order_of_their_calls() -> None:
    def put(value: int, environment: list[int]) -> int:
        """Put a value into the world."""
        environment.append(value)
        return len(environment)

    worlds = Worlds()
    calls = [("put", {"value": i}) for i in range(16)]
    tree = await episode(answers(calling(*calls), ANSWER), tools=[put], environment=worlds)
    assert worlds.made == [list(range(16))]
    assert [message["content"] for message in tree.spans[1].request] == [str(i) for i in range(1, 17)]


async def test_environment_without_tools_is_a_world_of_one_completion() -> None:
    worlds = Worlds()
    tree = await episode(ScriptedPolicy("4"), environment=worlds, verifier=lambda task, answer, environment: True)
    assert (len(tree.spans), tree.passed, len(worlds.made), worlds.n_open) == (1, True, 1, 0)


def test_loop_runs_under_invoke() -> None:
    worlds = Worlds()

    def put(value: int, environment: list[int]) -> None:
        """Put a value into the world."""
        environment.append(value)

    policy = answers(calling(("put", {"value": 4})), ANSWER)
    verifier: Callable[..., bool] = lambda task, answer, environment: environment == [4]  # noqa: E731
    graph = build_graph(policy=policy, verifier=verifier, tools=[put], environment=worlds).compile()
    assert graph.invoke(TASK)["passed"] is True
