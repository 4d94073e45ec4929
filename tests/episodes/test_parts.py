"""Groups that are drawn in parts, while the outcomes of their retries are alike."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from r3agent.episodes.collect import collect
from r3agent.episodes.graph import build_graph
from r3agent.episodes.quota import CollectLimits
from r3agent.errors import ConfigError
from r3agent.policy import Sampling
from r3agent.records.summary import summarise
from r3agent.records.trajectory import AT_ONCE, Task, Trajectory
from r3agent.store.trajectories import load
from r3agent.testing import ScriptedPolicy

TASK = Task(id="t", messages=({"role": "user", "content": "2 + 2?"},))


def right(task: Task, answer: str) -> bool:
    return answer == "right"


def run(replies: str | list[str], **limits: Any) -> tuple[ScriptedPolicy, Trajectory]:
    policy = ScriptedPolicy({"attempt": "wrong", "reflect": "hm", "retry": replies, "blind_retry": "right"})
    options: Any = {"reflections_at_once": 2, "reflections": 5, **limits}
    graph = build_graph(policy=policy, verifier=right, **options)
    output = graph.compile().invoke({"task": TASK.model_dump(mode="json")})  # pyright: ignore
    return policy, Trajectory.model_validate(output["trajectory"])


@pytest.mark.parametrize(
    ("retries", "parts"),
    [
        (["wrong", "right"], [2]),
        (["wrong", "wrong", "wrong", "right"], [2, 2]),
        ("wrong", [2, 2, 1]),
        ("right", [2, 2, 1]),
    ],
)
def test_a_group_grows_while_its_outcomes_are_alike(retries: str | list[str], parts: list[int]) -> None:
    policy, trajectory = run(retries, blind_retries=1)
    assert [c.n for c in policy.calls if c.asked == "reflect"] == parts
    labels = Counter(span.label for span in trajectory.spans)
    assert labels == {"attempt": 1, "reflect": sum(parts), "retry": sum(parts) + 1}
    assert all(len(trajectory.retries(s)) == 1 for s in trajectory.spans if s.label == "reflect")
    assert trajectory.metadata[AT_ONCE] == 2


@pytest.mark.parametrize(
    ("retries", "parts"),
    [
        (["right", "wrong", "right", "right"], [2]),
        (["right", "wrong", "right", "wrong", "wrong", "wrong"], [2, 2]),  # the same reward twice, and then another
    ],
)
def test_reflections_are_compared_by_the_mean_of_retries(retries: list[str], parts: list[int]) -> None:
    policy, trajectory = run([*retries, "wrong", "wrong"], retries=2)
    assert [c.n for c in policy.calls if c.asked == "reflect"] == parts
    assert summarise([trajectory]).groups_with_variance == 1


async def test_scores_that_do_not_pass_leave_a_group_undecided(tmp_path: Path) -> None:
    scores = iter([0.0, 0.2, 0.4, 0.6, 1.0])
    policy = ScriptedPolicy("wrong")
    given: Any = {"reflections": 8, "reflections_at_once": 2, "concurrency": 1}
    found = await collect([TASK], policy=policy, verifier=lambda task, answer: next(scores), out=tmp_path, **given)
    assert [c.n for c in policy.calls if c.asked == "reflect"] == [2, 2]
    assert (found.groups, found.groups_with_variance) == (1, 1)


def test_deeper_tries_wait_for_the_whole_group() -> None:
    policy, trajectory = run("wrong", max_attempts=3, reflections=3)
    asked = [c.n for c in policy.calls if c.asked == "reflect"]
    assert asked == [2, 1, *[2, 2, 2], *[1, 1, 1]]
    assert len(trajectory.tries) == 1 + 3 + 9


def test_parts_of_a_group_have_seeds_of_their_own() -> None:
    policy, _ = run("wrong", sampling=Sampling(seed=7))
    seeds = [c.sampling and c.sampling.seed for c in policy.calls if c.asked in ("reflect", "retry")]
    assert len(set(seeds)) == len(seeds)


def test_rates_count_the_part_that_no_outcome_decided_on() -> None:
    _, trajectory = run(["wrong", "wrong", "right", "wrong"])
    assert summarise([trajectory]).retry_after_reflection == 0


@pytest.mark.parametrize("wrong", [0, -1, 1.5, 6])
def test_a_part_has_one_reflection_to_all_of_them(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="reflections_at_once"):
        run("wrong", reflections_at_once=wrong)


async def test_collection_records_that_groups_were_drawn_in_parts(tmp_path: Path) -> None:
    policy = ScriptedPolicy({"attempt": "wrong", "reflect": "hm", "retry": ["wrong", "right"]})
    await collect([TASK], policy=policy, verifier=right, out=tmp_path, reflections_at_once=2, metadata={"day": 1})
    (stored,) = load(tmp_path)
    assert stored.metadata.items() >= {AT_ONCE: 2, "day": 1}.items()


async def test_collection_ends_at_its_target_of_groups(tmp_path: Path) -> None:
    tasks = [Task(id=f"t{i}", messages=({"role": "user", "content": f"question {i}"},)) for i in range(9)]

    async def collected(target: int) -> tuple[int, int, str | None]:
        policy = ScriptedPolicy({"attempt": "wrong", "reflect": "hm", "retry": ["wrong", "right"] * 9})
        limits = CollectLimits(target_groups=target)
        given: Any = {"reflections": 2, "concurrency": 1, "limits": limits}
        summary = await collect(tasks, policy=policy, verifier=right, out=tmp_path, **given)
        return summary.resumed, summary.groups_with_variance, summary.ended_by

    assert await collected(3) == (0, 3, "target_groups = 3")
    assert await collected(3) == (3, 3, "target_groups = 3")
    assert await collected(5) == (3, 5, "target_groups = 5")
