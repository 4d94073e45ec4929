"""Budgets of a collection, and the time limit of one episode."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from r3agent.cli.limits_view import limit_lines
from r3agent.data import stats
from r3agent.episodes.collect import collect
from r3agent.episodes.quota import CollectLimits, Quota
from r3agent.errors import ConfigError
from r3agent.policy import OpenAIPolicy
from r3agent.records.cost import Prices
from r3agent.records.summary import CollectSummary, Tally
from r3agent.records.trajectory import Task
from r3agent.store.shards import read
from r3agent.testing import ScriptedEndpoint, ScriptedPolicy

TASKS = [Task(id=f"t{i}", messages=({"role": "user", "content": f"question {i}"},)) for i in range(6)]


def right(task: Task, answer: str) -> bool:
    return answer == "right"


async def run(out: Path, policy: Any, limits: CollectLimits | None = None, **settings: Any) -> CollectSummary:
    given: Any = {"reflections": 2, "concurrency": 1, **settings}
    return await collect(TASKS, policy=policy, verifier=right, out=out, limits=limits, **given)


@pytest.mark.parametrize(
    ("limits", "runs"),
    [({"max_episodes": 2}, 2), ({"max_tokens": 20}, 2), ({"max_cost": 20.0}, 2), ({"max_seconds": 1e-9}, 0)],
)
async def test_a_spent_budget_leaves_the_rest_to_the_next_call(
    tmp_path: Path, limits: dict[str, Any], runs: int
) -> None:
    def answer(body: dict[str, Any], _: int) -> str:
        return (
            "hm" if "reflect" in str(body["messages"][-1]).lower() else "right" if len(body["messages"]) > 2 else "no"
        )

    with ScriptedEndpoint(answer) as endpoint:
        prices = Prices(prompt=0, sampled=1e6)
        async with OpenAIPolicy(endpoint.url, "scripted", api_key="none", prices=prices) as policy:
            whole = await run(tmp_path / "whole", policy)
            first = await run(tmp_path / "cut", policy, CollectLimits(**limits))
            assert (first.episodes, first.left) == (runs, len(TASKS) - runs)
            ((name, value),) = limits.items()
            assert first.ended_by == f"{name} = {value:g}"
            rest = await run(tmp_path / "cut", policy)
    assert (rest.resumed, rest.ended_by, rest.left) == (runs, None, 0)
    assert first.cost == first.tokens_sampled
    assert whole.cost == whole.tokens_sampled
    ids = [[t.trajectory_id for t in read(tmp_path / name)] for name in ("whole", "cut")]
    assert ids[0] == ids[1]


async def test_the_summary_says_what_running_episodes_spent_beyond(tmp_path: Path) -> None:
    with ScriptedEndpoint("no") as endpoint:  # 5 completions of 3 tokens each
        prices = Prices(prompt=0, sampled=1e6)
        async with OpenAIPolicy(endpoint.url, "scripted", api_key="none", prices=prices) as policy:
            limits = CollectLimits(max_tokens=20, max_cost=1000, max_seconds=3600)
            apart = await run(tmp_path / "apart", policy, limits)
            together = await run(tmp_path / "together", policy, limits, concurrency=6)
            at_once = CollectLimits(max_seconds=1e-9)
            late = await run(tmp_path / "late", policy, at_once)
    assert (apart.ended_by, apart.left, apart.exceeded) == ("max_tokens = 20", 4, {"max_tokens": 10})
    assert (together.ended_by, together.left, together.exceeded) == (None, 0, {"max_tokens": 70})
    assert limit_lines(apart, limits) == [
        "ended by max_tokens = 20: 4 episodes not run; the same command goes on with them",
        "exceeded by episodes that had begun: max_tokens = 20 by 10 to 30",
    ]
    assert late.exceeded.keys() == {"max_seconds"}
    assert "; collect.episode_timeout_s limits their time" in limit_lines(late, at_once)[-1]


async def test_a_target_that_all_episodes_miss_says_so(tmp_path: Path) -> None:
    policy = ScriptedPolicy({"attempt": "no", "reflect": ["a", "b"], "retry": ["right", "no"]})
    limits = CollectLimits(target_groups=2)
    missed = await run(tmp_path, policy, limits)
    assert (missed.ended_by, missed.unreached) == (None, "target_groups = 2: the rewards of 1 differ")
    [line] = limit_lines(missed, limits)
    assert line.startswith("target_groups = 2: the rewards of 1 differ, and every episode was run: collect more tasks")
    assert (await run(tmp_path, policy, CollectLimits(target_groups=1))).unreached is None
    cut = await run(tmp_path / "cut", policy, CollectLimits(target_groups=2, max_episodes=2))
    assert (cut.ended_by, cut.unreached) == ("max_episodes = 2", None)


async def test_budgets_count_siblings_without_token_ids(tmp_path: Path) -> None:
    with ScriptedEndpoint("no", ignores=["return_token_ids"]) as endpoint:  # usage has the sum of the siblings alone
        prices = Prices(prompt=0, sampled=1e6)
        async with OpenAIPolicy(endpoint.url, "scripted", api_key="none", prices=prices) as policy:
            whole = await run(tmp_path / "whole", policy)
            tokens = await run(tmp_path / "tokens", policy, CollectLimits(max_tokens=30))
            cost = await run(tmp_path / "cost", policy, CollectLimits(max_cost=30))
    assert (whole.tokens_sampled, whole.cost, whole.uncounted) == (90, 90, 0)  # 5 completions of 3 tokens each
    assert (tokens.tokens_sampled, tokens.ended_by) == (30, "max_tokens = 30")
    assert (cost.cost, cost.ended_by) == (30, "max_cost = 30")
    assert stats(tmp_path / "whole").tokens_sampled == 90


@pytest.mark.parametrize("limits", [{"max_tokens": 1000}, {"max_cost": 1000}])
async def test_budgets_end_where_no_tokens_are_counted(tmp_path: Path, limits: dict[str, Any]) -> None:
    edits = [lambda answer: answer.pop("usage")]
    with ScriptedEndpoint("no", ignores=["return_token_ids"], edits=edits) as endpoint:
        prices = Prices(prompt=0, sampled=1)
        async with OpenAIPolicy(endpoint.url, "scripted", api_key="none", prices=prices) as policy:
            summary = await run(tmp_path, policy, CollectLimits(**limits))
    ((name, value),) = limits.items()
    assert (summary.episodes, summary.uncounted, summary.tokens_sampled) == (1, 5, 0)
    assert summary.ended_by == f"{name} = {value}: the endpoint does not count its tokens"


async def test_a_budget_of_cost_needs_prices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"max_cost = 1: the policy has no prices; .*\[policy.prices\]"):
        await run(tmp_path, ScriptedPolicy("right"), CollectLimits(max_cost=1))


async def test_an_episode_over_its_time_limit_is_recorded(tmp_path: Path) -> None:
    async def stuck(task: Task, answer: str) -> bool:
        await asyncio.sleep(3600 if task.id == "t0" else 0)
        return True

    limits = CollectLimits(episode_timeout_s=1.0)
    summary = await collect(TASKS, policy=ScriptedPolicy("right"), verifier=stuck, out=tmp_path, limits=limits)
    assert (summary.episodes, summary.errors) == (6, {"EpisodeTimeoutError": 1})
    (late,) = [t for t in read(tmp_path) if t.error]
    assert late.error is not None
    assert "episode_timeout_s = 1;" in late.error.message
    assert [s.text for s in late.spans] == ["right"]


def test_quota_shares_what_is_left_among_parts() -> None:
    prices = Prices(prompt=0, sampled=1e6)
    limits = CollectLimits(max_tokens=10, max_cost=0.9, max_episodes=5, episode_timeout_s=7, target_groups=6)
    quota, lent = Quota(limits, Tally(), prices), list[CollectLimits]()
    while share := quota.share(3 - len(lent), lent):
        lent.append(share)
        assert len(lent) <= 3
    assert [share.max_tokens for share in lent] == [3, 3, 4]
    assert sum(share.max_cost or 0 for share in lent) == pytest.approx(0.9)
    assert [(share.target_groups, share.episode_timeout_s, share.max_episodes) for share in lent] == [(2, 7, None)] * 3
    assert quota.ended_by is None
    quota.spend(3, 0.1)
    assert quota.share(1, lent[1:]) is None  # the rest is lent
    quota.spend(1, 0.1)
    again = quota.share(1, lent[2:])
    assert again is not None
    assert (again.max_tokens, again.max_cost) == (2, pytest.approx(0.4))
    quota.spend(6, 0.1)
    assert quota.share(3, []) is None
    assert quota.ended_by == "max_tokens = 10"
