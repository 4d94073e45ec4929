"""One try of an agent: its world, its outcomes, and the errors that are none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from openai import AsyncOpenAI

from r3agent import ConfigError, Task, build_graph
from r3agent.errors import AccessError, AgentError, EndpointError
from r3agent.testing import PROMPT_TOO_LONG, SERVER_ERROR, Fault, ScriptedEndpoint
from r3agent.verifiers import PENDING
from tests.episodes.agents.endpoints import TASK, policy_at, steps, trajectory

ASK: Any = {"model": "policy"}


def verifier(task: Task, answer: str, environment: Any) -> bool:
    return environment["sum"] == 4


class Worlds:
    """Factory of worlds, which remembers how each was closed."""

    def __init__(self, opens: BaseException | None = None, closes: BaseException | None = None) -> None:
        self.n_made, self.closed_by = 0, list[str]()
        self.opens, self.closes = opens, closes

    def __call__(self, task: Task) -> Any:
        return self._world(task)

    @asynccontextmanager
    async def _world(self, task: Task) -> AsyncGenerator[dict[str, int]]:
        if self.opens:
            raise self.opens
        self.n_made += 1
        try:
            yield {"sum": 0}
        except BaseException as error:
            self.closed_by.append(type(error).__name__)
            return  # as if it could suppress it
        self.closed_by.append("")
        if self.closes:
            raise self.closes


async def adds(messages: list[Any], client: AsyncOpenAI, environment: Any) -> Any:
    answer = await client.chat.completions.create(**ASK, messages=messages)
    environment["sum"] += int(answer.choices[0].message.content or 0)


async def run(agent: Any, answer: Any = "4", *, faults: Any = (), **options: Any) -> Any:
    with ScriptedEndpoint(answer, faults=faults) as endpoint:
        async with policy_at(endpoint) as policy:
            options = {"verifier": verifier, "environment": Worlds(), "max_attempts": 1, **options}
            return await build_graph(policy=policy, agent=agent, **options).compile().ainvoke(TASK)


async def test_verifier_judges_the_world_of_each_try() -> None:
    worlds, texts = Worlds(), iter(["3", "think", "4"])
    output = await run(adds, lambda body, i: next(texts), environment=worlds, max_attempts=2)
    assert [a_try.passed for a_try in trajectory(output).tries] == [False, True]
    assert (worlds.n_made, worlds.closed_by) == (2, ["", ""])


async def test_verifier_without_a_world_gets_what_the_try_left() -> None:
    def left(task: Task, answer: str, environment: Any) -> bool:
        return environment is None

    async def agent(messages: list[Any], client: AsyncOpenAI) -> Any:
        return "done"

    output = await run(agent, verifier=left, environment=None)
    assert output["passed"]
    assert trajectory(output).spans[0].answer == "done"


async def raises(messages: list[Any], client: AsyncOpenAI) -> Any:
    await client.chat.completions.create(**ASK, messages=messages)
    raise KeyError("the key is sk-policy1")


async def exits(messages: list[Any], client: AsyncOpenAI) -> Any:
    await client.chat.completions.create(**ASK, messages=messages)
    raise SystemExit(2)


async def awaits_cancelled(messages: list[Any], client: AsyncOpenAI) -> Any:
    await client.chat.completions.create(**ASK, messages=messages)
    raise asyncio.CancelledError


@pytest.mark.parametrize("agent", [raises, exits, awaits_cancelled])
async def test_error_of_an_agent_is_raised_or_recorded(agent: Any) -> None:
    worlds = Worlds()
    with pytest.raises(AgentError) as raised:
        await run(agent, environment=worlds)
    assert isinstance(raised.value.__cause__, KeyError | SystemExit | asyncio.CancelledError)
    output = await run(agent, environment=worlds, agent_errors="record")
    assert len(worlds.closed_by) == 2
    [span] = trajectory(output).spans
    assert span.error is not None
    assert span.verdict is None
    assert span.error == trajectory(output).error
    assert (span.capability, span.error.kind) == ("trainable-exact", "AgentError")
    assert "sk-policy1" not in str(output)


async def test_error_of_one_retry_leaves_its_siblings() -> None:
    n = 0

    async def agent(messages: list[Any], client: AsyncOpenAI, environment: Any) -> Any:
        nonlocal n
        n += 1
        if n == 3:
            raise RuntimeError("flaky")
        await adds(messages, client, environment)

    def answer(body: Any, choice: int) -> str:
        return "4" if len(body["messages"]) > 3 else "3"

    output = await run(agent, answer, max_attempts=2, retries=3, agent_errors="record")
    first, *retries = trajectory(output).tries
    assert (first.passed, sorted(str(a_try.passed) for a_try in retries)) == (False, ["None", "True", "True"])
    assert output["passed"]
    assert trajectory(output).error is None


@pytest.mark.parametrize("when", ["opens", "closes"])
async def test_error_of_a_world_is_raised_or_recorded(when: str) -> None:
    def worlds() -> Worlds:
        return Worlds(**{when: OSError("disk full")})

    with pytest.raises(AgentError, match=f"cannot be {'opened' if when == 'opens' else 'closed'}: OSError: disk full"):
        await run(adds, environment=worlds())
    output = await run(adds, environment=worlds(), agent_errors="record")
    assert "disk full" in str(trajectory(output).error)
    assert output["passed"] is None


@pytest.mark.parametrize("error", [SystemExit(2), asyncio.CancelledError()])
@pytest.mark.parametrize("when", ["opens", "closes"])
async def test_world_that_exits_is_an_error_of_its_try(when: str, error: BaseException) -> None:
    output = await run(adds, environment=Worlds(**{when: error}), agent_errors="record")
    assert type(error).__name__ in str(trajectory(output).error)


@pytest.mark.parametrize("when", ["opened", "closed"])
async def test_world_that_hangs_is_an_error_of_its_try(when: str) -> None:
    @asynccontextmanager
    async def hangs(task: Task) -> AsyncGenerator[dict[str, int]]:
        if when == "opened":
            await asyncio.Event().wait()
        yield {"sum": 0}
        await asyncio.Event().wait()

    output = await run(adds, environment=hangs, agent_errors="record", try_timeout_s=0.5)
    error = trajectory(output).error
    assert error is not None
    assert f"cannot be {when}: TimeoutError: it took longer than try_timeout_s = 0.5" in error.message


class Strange(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


async def test_error_on_the_record_names_the_first_cause() -> None:
    async def group(messages: list[Any], client: AsyncOpenAI) -> Any:
        raise ExceptionGroup("two tasks", [KeyError("k"), Strange()])

    output = await run(group, environment=Worlds(closes=OSError("disk full")), agent_errors="record")
    error = trajectory(output).error
    assert error is not None
    assert error.message.endswith("ExceptionGroup: two tasks (2 sub-exceptions); KeyError: 'k'; Strange: <Strange>")


async def test_factory_that_makes_no_world_is_refused() -> None:
    for factory in (lambda task: {}, lambda task: memoryview(b"")):
        with pytest.raises(ConfigError, match="no async context manager"):
            await run(adds, environment=factory)


async def test_endpoint_that_fails_is_no_fault_of_the_agent() -> None:
    async def swallows(messages: list[Any], client: AsyncOpenAI) -> Any:
        try:
            await client.with_options(max_retries=0).chat.completions.create(**ASK, messages=messages)
        except Exception:
            return "sorry"

    async def plain(messages: list[Any], client: AsyncOpenAI) -> Any:
        await client.with_options(max_retries=0).chat.completions.create(**ASK, messages=messages)

    wrong_key = Fault(401, '{"error": {"message": "no such key sk-policy1"}}')
    for fault, kind in ((SERVER_ERROR, EndpointError), (wrong_key, AccessError)):
        for agent, options in (
            (plain, {}),
            (plain, {"agent_errors": "record"}),
            (swallows, {"agent_errors": "record"}),
        ):
            with pytest.raises(kind):
                await run(agent, faults=[fault] * 20, **options)
        assert (await run(swallows, faults=[fault] * 20))["answer"] == "sorry"  # an application has its answer


async def test_conversation_that_became_too_long_fails() -> None:
    async def twice(messages: list[Any], client: AsyncOpenAI) -> Any:
        for _ in range(2):
            await client.chat.completions.create(**ASK, messages=messages)

    output = await run(twice, faults=[None, PROMPT_TOO_LONG])
    assert steps(output) == [["4"]]
    assert "the conversation was refused" in str(trajectory(output).tries[0].verdict)


async def test_retry_whose_conversation_is_too_long_asked_the_policy(caplog: pytest.LogCaptureFixture) -> None:
    async def once(messages: list[Any], client: AsyncOpenAI) -> Any:
        return (await client.chat.completions.create(**ASK, messages=messages)).choices[0].message.content

    def never(task: Task, answer: str) -> bool:
        return False

    faults = [None, None, PROMPT_TOO_LONG]
    output = await run(once, faults=faults, verifier=never, environment=None, max_attempts=2)
    retry = trajectory(output).spans[-1]
    assert (retry.label, retry.finish_reason, retry.passed, retry.purpose) == ("retry", "context_overflow", False, None)
    assert "without a recorded model call" not in caplog.text


async def test_agent_without_an_answer_fails() -> None:
    async def silent(messages: list[Any], client: AsyncOpenAI) -> Any: ...

    def judge(task: Task, answer: str) -> bool:
        return True

    output = await run(silent, verifier=judge)
    assert "no answer" in str(trajectory(output).tries[0].verdict)
    assert "no model call" in str(trajectory(output).spans[0].capability_note)


async def test_agent_without_a_model_call_may_be_judged_later() -> None:
    async def acts(messages: list[Any], client: AsyncOpenAI, environment: Any) -> None:
        environment["sum"] = 4

    def later(task: Task, answer: str, environment: Any) -> Any:
        return PENDING

    output = await run(acts, verifier=later)
    (attempt,) = trajectory(output).tries
    assert (attempt.verdict, attempt.passed) == (None, None)
