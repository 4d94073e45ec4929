from __future__ import annotations

import asyncio
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from langgraph.types import interrupt

from r3agent.episodes.collect import HOPELESS, collect
from r3agent.errors import ConfigError, R3Error, RequestError
from r3agent.policy import OpenAIPolicy, Sampling
from r3agent.records.record import MENDED
from r3agent.records.summary import CollectSummary, summarise
from r3agent.records.trajectory import EpisodeError, Task, Verdict
from r3agent.store.shards import shards
from r3agent.store.trajectories import load
from r3agent.testing import HANG, ScriptedEndpoint, ScriptedPolicy
from tests.support.trees import span, tree


def tasks(n: int) -> list[Task]:
    return [Task(id=f"t{i}", messages=({"role": "user", "content": f"question {i}"},)) for i in range(n)]


def right(task: Task, answer: str) -> bool:
    return answer == "right"


def fails_on(*ids: str) -> Any:
    def verifier(task: Task, answer: str) -> bool:
        if task.id in ids:
            raise ValueError(f"no gold answer for {task.id}")
        return answer == "right"

    return verifier


async def run(out: Path, policy: Any, n: int = 3, verifier: Any = right, **settings: Any) -> CollectSummary:
    return await collect(tasks(n), policy=policy, verifier=verifier, out=out, **{"reflections": 2, **settings})


async def test_every_task_becomes_a_stored_trajectory(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    policy = ScriptedPolicy({"attempt": "wrong", "reflect": "hm", "retry": "right"})
    summary = await run(
        tmp_path,
        policy,
        verifier_name="right",
        metadata={"round": 1},
        on_episode=lambda done, total: progress.append((done, total)),
    )
    stored = load(tmp_path)
    assert {t.task.id for t in stored} == {"t0", "t1", "t2"}
    assert {(t.verifier, t.sample, t.metadata["round"], len(t.spans)) for t in stored} == {("right", 0, 1, 5)}
    assert progress == [(1, 3), (2, 3), (3, 3)]
    assert (summary.episodes, summary.resumed, summary.errors) == (3, 0, {})


async def test_samples_are_episodes_of_one_task(tmp_path: Path) -> None:
    await run(tmp_path, ScriptedPolicy("right"), n=2, samples=3)
    assert Counter(t.task.id for t in load(tmp_path)) == {"t0": 3, "t1": 3}
    assert sorted(t.sample for t in load(tmp_path)) == [0, 0, 1, 1, 2, 2]
    assert len({t.trajectory_id for t in load(tmp_path)}) == 6


# ---- resume ----


async def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    first = await run(tmp_path, ScriptedPolicy("wrong"))
    again = ScriptedPolicy("wrong")
    second = await run(tmp_path, again)
    assert again.calls == []
    assert len(shards(tmp_path)) == 1
    assert (second.episodes, second.resumed) == (3, 3)
    assert second.model_copy(update={"resumed": 0, "seconds": 0.0}) == first.model_copy(update={"seconds": 0.0})


async def test_new_tasks_and_samples_are_added_to_what_is_done(tmp_path: Path) -> None:
    await run(tmp_path, ScriptedPolicy("right"), n=2)
    policy = ScriptedPolicy("right")
    summary = await run(tmp_path, policy, n=3, samples=2)
    assert (len(policy.calls), summary.resumed, summary.episodes) == (4, 2, 6)


async def test_errored_episodes_are_done_again(tmp_path: Path) -> None:
    await run(tmp_path, ScriptedPolicy("right"), verifier=fails_on("t1"))
    policy = ScriptedPolicy("right")
    summary = await run(tmp_path, policy)
    assert [c.messages[0]["content"] for c in policy.calls] == ["question 1"]
    assert (summary.episodes, summary.resumed, summary.errors) == (3, 2, {})
    assert all(t.error is None for t in load(tmp_path))


@pytest.mark.parametrize(
    "other",
    [
        {"policy_name": "m@v0002"},
        {"verifier_name": "strict"},
        {"verifier_params": {"tolerance": 0.1}},
        {"cut_off": "judge"},
        {"max_attempts": 3},
        {"reflections": 3},
        {"retries": 2},
        {"blind_retries": 1},
        {"reflect_prompt": "why?"},
        {"retry_prompt": "again"},
        {"blind_retry_prompt": "once more"},
        {"sampling": Sampling(temperature=0.5)},
    ],
    ids=lambda other: next(iter(other)),
)
async def test_episodes_of_other_settings_are_not_mistaken_for_done(tmp_path: Path, other: dict[str, Any]) -> None:
    settings = {"policy_name": "m@v0001", "verifier_name": "right", "sampling": Sampling()}
    await run(tmp_path, ScriptedPolicy("right"), **settings)
    summary = await run(tmp_path, ScriptedPolicy("right"), **{**settings, **other})
    assert (summary.episodes, summary.resumed) == (3, 0)
    assert len(load(tmp_path)) == 6


@pytest.mark.parametrize(
    "changed",
    [
        {"info": {"answer": "42"}},
        {"gold": {"role": "assistant", "content": "42"}},
        {"tools": ({"type": "function", "function": {"name": "f"}},)},
        {"messages": ({"role": "user", "content": "question 0, corrected"},)},
    ],
    ids=lambda changed: next(iter(changed)),
)
async def test_a_corrected_task_is_judged_anew(tmp_path: Path, changed: dict[str, Any]) -> None:
    policy, settings = ScriptedPolicy("right"), {"policy": ScriptedPolicy("right"), "verifier": right, "out": tmp_path}
    await collect(tasks(2), **settings)
    first, second = tasks(2)
    summary = await collect([first.model_copy(update=changed), second], **{**settings, "policy": policy})
    assert (len(policy.calls), summary.resumed, summary.outdated) == (1, 1, 1)
    assert len(load(tmp_path)) == 3


@pytest.mark.parametrize("name", ["sampling", "model"])
async def test_the_policys_own_settings_are_part_of_the_key(tmp_path: Path, name: str) -> None:
    for own in ({"sampling": Sampling(), "model": "a"}, {"sampling": Sampling(temperature=0.5), "model": "b"}):
        policy = ScriptedPolicy("right")
        policy.__dict__[name] = own[name]
        summary = await run(tmp_path, policy)
        assert summary.resumed == 0


async def test_collection_resumes_with_a_policy_that_wraps_a_model(tmp_path: Path) -> None:
    class Wrapper:
        def __init__(self) -> None:
            self.model = object()  # differs from process to process, and is no name
            self.sample = ScriptedPolicy("right").sample

    await run(tmp_path, Wrapper())
    assert (await run(tmp_path, Wrapper())).resumed == 3


# ---- stopped ----


async def test_a_cancelled_collection_keeps_what_is_stored_and_leaves_no_request(tmp_path: Path) -> None:
    with ScriptedEndpoint("right", faults=[None, None, HANG, HANG]) as endpoint:
        policy = OpenAIPolicy(endpoint.url, endpoint.model)
        collecting = asyncio.create_task(run(tmp_path, policy, n=8, concurrency=2))
        await asyncio.to_thread(endpoint.wait_for_hanging, 2)
        collecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await collecting
        await asyncio.to_thread(endpoint.wait_for_hanging, 0)
        assert len(load(tmp_path)) == 2
        summary = await run(tmp_path, policy, n=8)
        await policy.aclose()
    assert (summary.episodes, summary.resumed) == (8, 2)
    assert len(endpoint.received) == 4 + 6


# ---- errors of episodes ----


async def test_a_verifier_that_raises_is_recorded_and_not_learnt_from(tmp_path: Path) -> None:
    policy = ScriptedPolicy({"attempt": "wrong", "reflect": "hm", "retry": ["right", "wrong", "right", "wrong"]})
    summary = await run(tmp_path, policy, verifier=fails_on("t1"), concurrency=1)
    errored = next(t for t in load(tmp_path) if t.error)
    assert errored.error is not None
    assert errored.error.kind == "VerifierError"
    assert "no gold answer for t1" in errored.error.message
    assert [s.passed for s in errored.spans] == [None]  # what was sampled is kept, without a score
    assert summary.errors == {"VerifierError": 1}
    assert (summary.first_try, summary.groups, summary.groups_with_variance) == (0.0, 2, 2)


async def test_verifier_that_hangs_ends_its_episode_alone(tmp_path: Path) -> None:
    async def check(task: Task, answer: str) -> bool:
        if task.id == "t0":
            await asyncio.Event().wait()
        return True

    await run(tmp_path, ScriptedPolicy("x"), verifier=check, verify_timeout_s=0.2)
    errors = {t.task.id: t.error for t in load(tmp_path) if t.error}
    assert [*errors] == ["t0"]
    assert "verify_timeout_s = 0.2" in str(errors)


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_verifier_that_asks_a_person_is_an_error_and_its_episode_is_collected_again(
    tmp_path: Path, is_async: bool
) -> None:
    def person(task: Task, answer: str) -> bool:
        return interrupt(f"is {answer} right?") if task.id == "t1" else right(task, answer)

    async def person_async(task: Task, answer: str) -> bool:
        return person(task, answer)

    policy = ScriptedPolicy({"attempt": "wrong", "reflect": "hm", "retry": "right"})
    summary = await run(tmp_path, policy, verifier=person_async if is_async else person)
    assert summary.errors == {"VerifierError": 1}
    [errored] = [t for t in load(tmp_path) if t.error]
    assert errored.error is not None
    assert "the verifier interrupted the graph to ask a person" in errored.error.message
    assert (errored.task.id, [(s.label, s.passed) for s in errored.spans]) == ("t1", [("attempt", None)])
    again = await run(tmp_path, policy)
    assert (again.resumed, again.errors) == (2, {})
    assert all(t.error is None for t in load(tmp_path))


async def test_a_request_that_is_refused_ends_its_episode_alone(tmp_path: Path) -> None:
    replies = {"attempt": "wrong", "reflect": "hm", "retry": [RequestError("no"), "right", "right", "right"]}
    summary = await run(tmp_path, ScriptedPolicy(replies), n=2, concurrency=1)
    assert summary.errors == {"RequestError": 1}
    errored, whole = load(tmp_path)
    assert [s.label for s in errored.spans] == ["attempt", "reflect", "reflect"]
    assert whole.passed


async def test_when_the_first_episodes_all_error_the_rest_is_not_tried(tmp_path: Path) -> None:
    policy = ScriptedPolicy("right")
    everything = fails_on(*(f"t{i}" for i in range(100)))
    with pytest.raises(R3Error, match=f"the first {HOPELESS} episodes all errored, the last one with VerifierError"):
        await run(tmp_path, policy, n=100, verifier=everything, concurrency=1)
    assert len(policy.calls) == len(load(tmp_path)) == HOPELESS


async def test_a_small_collection_that_errored_throughout_says_so(tmp_path: Path) -> None:
    with pytest.raises(R3Error, match="the first 2 episodes all errored"):
        await run(tmp_path, ScriptedPolicy("right"), n=2, verifier=fails_on("t0", "t1"))


async def test_one_episode_that_always_errors_does_not_spoil_a_finished_collection(tmp_path: Path) -> None:
    for _ in range(2):
        summary = await run(tmp_path, ScriptedPolicy("right"), verifier=fails_on("t2"))
        assert summary.errors == {"VerifierError": 1}


async def test_late_errors_do_not_count_as_a_hopeless_start(tmp_path: Path) -> None:
    late = fails_on(*(f"t{i}" for i in range(1, 40)))
    summary = await run(tmp_path, ScriptedPolicy("right"), n=40, verifier=late, concurrency=1)
    assert summary.errors == {"VerifierError": 39}


# ---- limits ----


async def test_no_more_episodes_are_under_way_than_concurrency(tmp_path: Path) -> None:
    under_way: set[str] = set()
    most: list[int] = []

    async def answer(messages: Any) -> str:
        under_way.add(messages[0]["content"])
        most.append(len(under_way))
        await asyncio.sleep(0)
        if len(messages) > 1:
            under_way.discard(messages[0]["content"])
        return "wrong"

    policy = ScriptedPolicy(answer)
    await run(tmp_path, policy, n=20, concurrency=3, reflections=0, blind_retries=1)
    assert max(most) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "nothing to collect, in 0 tasks; check --n"),
        ({"samples": 0}, "samples = 0: Input should be greater than or equal to 1"),
        ({"concurrency": 0}, "concurrency = 0: Input should be greater than or equal to 1"),
        ({"retries": 0}, "retries = 0: .* greater than or equal to 1"),
    ],
)
async def test_settings_that_cannot_work_are_refused_before_anything_is_sampled(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    policy = ScriptedPolicy("right")
    with pytest.raises(ConfigError, match=message):
        await run(tmp_path, policy, **settings)
    assert policy.calls == []
    assert list(tmp_path.iterdir()) == []


async def test_two_tasks_of_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="task id 't0' appears twice"):
        await collect([*tasks(2), *tasks(1)], policy=ScriptedPolicy("right"), verifier=right, out=tmp_path)


async def test_a_directory_that_cannot_be_written_is_refused_before_anything_is_sampled(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    policy = ScriptedPolicy("right")
    with pytest.raises(ConfigError, match="choose another directory"):
        await run(tmp_path / "file" / "trajectories", policy)
    assert policy.calls == []


# ---- the summary ----


def test_the_summary_as_counted_by_hand() -> None:
    exact: dict[str, Any] = {
        "prompt_token_ids": (1,),
        "token_ids": (2, 3),
        "logprobs": (-0.5, -0.5),
        "completion_tokens": 2,
        "capability": "trainable-exact",
        "policy_version": "v0000",
    }
    first_time = tree(span("attempt", passed=True, **exact))

    failed = span("attempt", passed=False, **exact)
    helped, misled = span("reflect", failed, **exact), span("reflect", failed, **exact)
    learnt = tree(
        failed,
        helped,
        misled,
        span("retry", helped, True, **{**exact, "policy_version": "v0001"}),
        span("retry", misled, False, **exact),
        span("retry", failed, False, **exact),
    )

    stuck = span("attempt", passed=False, completion_tokens=5, capability_note="the endpoint returned no token ids")
    reflections = [span("reflect", stuck) for _ in range(2)]
    alike = tree(
        stuck, *reflections, *(span("retry", r, passed=False) for r in reflections), span("retry", stuck, True)
    )

    errored = learnt.model_copy(update={"error": EpisodeError(kind="VerifierError", message="no")})

    summary = summarise([first_time, learnt, alike, errored], resumed=1, seconds=2.345)
    assert {kind: (r.passed, r.tries, r.n_tasks) for kind, r in summary.by_task.items()} == {
        "first_try": (1, 3, 1),
        "retry_after_reflection": (1, 4, 1),
        "retry_blind": (1, 2, 1),
    }
    assert summary.model_copy(update={"by_task": {}}) == CollectSummary(
        episodes=4,
        resumed=1,
        errors={"VerifierError": 1},
        unlabelled=0,
        first_try=1 / 3,
        retry_after_reflection=1 / 4,
        retry_blind=1 / 2,
        noisy_verdicts=0,
        tries=1 + 4 + 4 + 4,
        tries_of_policy=1 + 4 + 4 + 4,
        steps_per_try=1.0,
        groups=2,
        groups_with_variance=1,
        mixed_versions=2,  # what was learnt, and its copy that errored
        tokens_sampled=2 + 6 * 2 + 5 + 6 * 2,
        uncounted=2 + 2 + 1,  # of the third, all but its first try
        capabilities={"trainable-exact": 1 + 6 + 6, "eval-only": 6},
        notes={"the endpoint returned no token ids": 1},
        seconds=2.35,
    )


def test_the_summary_of_nothing_has_no_rates() -> None:
    summary = summarise([])
    assert summary.episodes == 0
    assert (summary.first_try, summary.retry_after_reflection, summary.retry_blind) == (None, None, None)


async def test_values_that_no_json_holds_stop_no_collection(tmp_path: Path) -> None:
    infos: list[dict[Any, Any]] = [
        {"n": 2**70},
        {"least": -math.inf},
        {"of": {2, 1}},
        {"half": "\ud83d"},
        {1: object()},
    ]
    odd = [  # as a store or the state of a graph has them; Task(...) refuses some
        Task.model_validate({"messages": ({"role": "user", "content": f"{i} \ud83d"},), "info": info})
        for i, info in enumerate(infos)
    ]

    def noting(task: Task, answer: str) -> Verdict:
        return Verdict(passed=answer == "right", score=0, feedback="half of it: \udc00")

    settings: Any = {"reflections": 1, "metadata": {"learning_rate": math.nan, "at": {1: b"\xff"}}}
    for resumed in (0, 5):  # the hash of a task, and so its episode, is the same again
        summary = await collect(odd, policy=ScriptedPolicy("no \ud83d"), verifier=noting, out=tmp_path, **settings)
        assert (summary.episodes, summary.resumed, summary.errors) == (5, resumed, {})
    stored = sorted(load(tmp_path, strict=True), key=lambda t: t.task.messages[0]["content"])
    assert [t.task.info for t in stored] == [
        {"n": 2**70},
        {"least": None},
        {"of": [1, 2]},
        {"half": "\ufffd"},
        {"1": "<object object>"},
    ]
    assert stored[0].metadata["at"] == {"1": "/w=="}
    assert stored[1].metadata[MENDED] == [
        "task.info.least: -inf: not finite",
        "metadata.learning_rate: nan: not finite",
    ]
    assert {t.spans[0].text for t in stored} == {"no \ufffd"}
