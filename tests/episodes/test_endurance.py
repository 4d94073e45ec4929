"""Tasks that the endpoint fails on, and an endpoint that fails."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest

from r3agent.episodes.collect import collect
from r3agent.errors import (
    AccessError,
    EndpointError,
    ProtocolError,
    R3Error,
    UnreachableError,
    VerifierError,
)
from r3agent.policy import OpenAIPolicy
from r3agent.records.summary import CollectSummary
from r3agent.records.trajectory import Message, Task
from r3agent.store.trajectories import load
from r3agent.testing import SERVER_ERROR, ScriptedEndpoint, ScriptedPolicy, rate_limited


def tasks(n: int) -> list[Task]:
    return [Task(id=f"t{i}", messages=({"role": "user", "content": f"question {i}"},)) for i in range(n)]


async def run(out: Path, policy: Any, n: int, verifier: Any = lambda task, answer: True, **more: Any) -> CollectSummary:
    return await collect(tasks(n), policy=policy, verifier=verifier, out=out, **more)


def failing(error: Exception, is_hit: Callable[[int, int], bool]) -> ScriptedPolicy:
    """A policy that fails if `is_hit(question, calls so far)`."""
    calls = 0

    def answer(messages: Sequence[Message]) -> str:
        nonlocal calls
        calls += 1
        if is_hit(int(messages[0]["content"].split()[1]), calls):
            raise error
        return "right"

    return ScriptedPolicy(answer)


@pytest.mark.parametrize("error", [EndpointError("500 no"), ProtocolError("html")])
@pytest.mark.parametrize("concurrency", [1, 64])
async def test_a_poisoned_task_is_recorded(tmp_path: Path, error: R3Error, concurrency: int) -> None:
    poisoned = {0, *range(5, 100, 6), *range(80, 100)}  # the first one, one here and there, and all of the last
    policy = failing(error, lambda question, _: question in poisoned)
    for resumed in (0, 100 - len(poisoned)):
        summary = await run(tmp_path, policy, 100, concurrency=concurrency)
        assert summary.errors == {type(error).__name__: len(poisoned)}
        assert (summary.episodes, summary.resumed) == (100, resumed)
    assert {t.task.id for t in load(tmp_path) if t.error} == {f"t{i}" for i in poisoned}


@pytest.mark.parametrize("concurrency", [1, 4, 64])
@pytest.mark.parametrize("healthy", [0, 1, 40, 97])
async def test_an_endpoint_that_fails_ends_the_collection(tmp_path: Path, concurrency: int, healthy: int) -> None:
    policy = failing(EndpointError("500 gone"), lambda _, calls: calls > healthy)
    with pytest.raises(EndpointError, match=r"500 gone; \d+ episodes ended with such an error"):
        await run(tmp_path, policy, 100, concurrency=concurrency)
    stored = load(tmp_path)
    assert not any(t.error for t in stored)  # an outage makes no errors of episodes
    assert healthy - concurrency < len(stored) <= healthy  # the others may not have ended when the collection did
    in_a_row = 2 * max(8, concurrency)  # a healthy answer may be judged only after some errors
    assert len(policy.calls) <= healthy + in_a_row + 3 + concurrency - 1  # probes, and what runs meanwhile
    summary = await run(tmp_path, ScriptedPolicy("right"), 100)
    assert (summary.episodes, summary.resumed, summary.errors) == (100, len(stored), {})


@pytest.mark.parametrize("concurrency", [1, 64])
async def test_a_share_of_errors_ends_no_collection(tmp_path: Path, concurrency: int) -> None:
    draw = random.Random(0)
    policy = failing(EndpointError("500 no"), lambda *_: draw.random() < 0.25)
    summary = await run(tmp_path, policy, 800, concurrency=concurrency)
    errors = summary.errors["EndpointError"]
    assert (summary.episodes, 150 < errors < 250) == (800, True)
    assert len(policy.calls) < 820  # the endpoint is rarely tried again
    stored = load(tmp_path)
    assert (len(stored), sum(t.error is not None for t in stored)) == (800, errors)


@pytest.mark.parametrize("error", [AccessError("wrong key"), UnreachableError("nothing listens")])
async def test_what_no_task_caused_ends_the_collection_at_once(tmp_path: Path, error: R3Error) -> None:
    policy = failing(error, lambda question, _: question == 2)
    with pytest.raises(type(error), match=str(error)):
        await run(tmp_path, policy, 10, concurrency=1)
    assert (len(policy.calls), [t.error for t in load(tmp_path)]) == (3, [None, None])


async def test_a_judges_endpoint_is_told_apart_alike(tmp_path: Path) -> None:
    asked: list[str] = []

    def judge(task: Task, answer: str) -> bool:
        asked.append(task.id)
        if task.id == "t1" or len(asked) > 30:
            raise EndpointError("the judge is down")
        return True

    with pytest.raises(VerifierError, match="the judge is down; 8 episodes ended with such an error"):
        await run(tmp_path, ScriptedPolicy("right"), 100, verifier=judge, concurrency=8)
    stored = load(tmp_path)
    assert {t.task.id for t in stored if t.error} <= {"t1"}
    answered = sum(t.error is None for t in stored)
    assert 20 < answered < 30
    summary = await run(tmp_path, ScriptedPolicy("right"), 100)
    assert (summary.resumed, summary.errors) == (answered, {})


async def test_a_poisoned_request_over_http(tmp_path: Path) -> None:
    with ScriptedEndpoint("right", faults=[None, SERVER_ERROR]) as endpoint:
        async with OpenAIPolicy(endpoint.url, endpoint.model, max_tries=1) as policy:
            summary = await run(tmp_path, policy, 3, concurrency=1)
            assert summary.errors == {"EndpointError": 1}
        gone = endpoint.url
    async with OpenAIPolicy(gone, "scripted", max_tries=1) as policy:
        with pytest.raises(UnreachableError):
            await run(tmp_path, policy, 4)


async def test_an_endpoint_that_asks_to_come_back_in_an_hour(tmp_path: Path) -> None:
    faults = chain([None] * 5, repeat(rate_limited(3600)))
    with ScriptedEndpoint("right", faults=faults) as endpoint:
        async with OpenAIPolicy(endpoint.url, endpoint.model) as policy:
            with pytest.raises(
                EndpointError, match=r"it asks to wait 3600 s, .* at most 300 s: .*finished episodes are"
            ):
                await run(tmp_path, policy, 100, concurrency=4)
    assert [t.error for t in load(tmp_path)] == [None] * 5
    with ScriptedEndpoint("right") as endpoint:
        async with OpenAIPolicy(endpoint.url, endpoint.model) as policy:
            summary = await run(tmp_path, policy, 100)
    assert (summary.episodes, summary.resumed, summary.errors) == (100, 5, {})


async def test_an_evaluation_does_not_draw_its_errors_again(tmp_path: Path) -> None:
    policy = failing(EndpointError("500 no"), lambda question, _: question == 1)
    await run(tmp_path, policy, 3, rerun_errors=False, concurrency=1)
    again = ScriptedPolicy("right")
    summary = await run(tmp_path, again, 3, rerun_errors=False)
    assert (again.calls, summary.resumed, summary.errors) == ([], 3, {"EndpointError": 1})

    def broken(task: Task, answer: str) -> bool:
        raise ValueError("no gold answer")

    with pytest.raises(R3Error, match="the first 3 episodes all errored"):
        await run(tmp_path / "all", again, 3, verifier=broken, rerun_errors=False)
    summary = await run(tmp_path / "all", again, 3, rerun_errors=False)  # all of them failed: nothing is favoured
    assert (summary.resumed, summary.errors) == (0, {})
