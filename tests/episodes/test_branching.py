"""Branches of recorded failures: their groups, their ids, and those that are left out."""

from __future__ import annotations

import asyncio
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from r3agent import Task, Trajectory, Verdict, build_graph, groups, load
from r3agent.episodes.branches import branch
from r3agent.episodes.quota import CollectLimits
from r3agent.errors import ConfigError
from r3agent.recording.redaction import redact_trajectory
from r3agent.records.branching import branch_of
from r3agent.records.trajectory import EpisodeError
from r3agent.testing import ScriptedPolicy
from r3agent.verifiers import find_verifier
from tests.episodes.agents.scripts import ANSWER, TASK, answers, calling

REFLECTIONS = count()


def reply(messages: Any) -> str:
    """Give no right answer at first; after every second reflection, give one."""
    said = [str(m["content"]) for m in messages]
    if "Reflect" in said[-1]:
        return "try six" if next(REFLECTIONS) % 2 else "try again"
    return "6" if any("try six" in text for text in said) else "5"


def check(task: Task, answer: str) -> bool:
    return answer == "6"


def recorded(n: int = 3) -> list[Trajectory]:
    """Episodes as an application records them: another version answered, with one reflection that did not help."""
    graph = build_graph(policy=ScriptedPolicy(reply, model="tiny@v0007"), verifier=check).compile()
    tasks = ({"messages": [{"role": "user", "content": f"{i}: 2 * 3?"}]} for i in range(n))
    episodes = [Trajectory.model_validate(graph.invoke({"task": task})["trajectory"]) for task in tasks]
    return [
        t.changed(spans=tuple(span.model_copy(update={"policy_version": "v0007"}) for span in t.spans))
        for t in episodes
    ]


async def test_branch_draws_a_group_of_each_failure_and_is_resumed(tmp_path: Path) -> None:
    episodes = recorded()
    given: Any = {"policy": ScriptedPolicy(reply, model="tiny@v0001"), "verifier": check, "out": tmp_path}
    first = await branch(episodes, reflections=4, **given)
    again = await branch(episodes, reflections=4, **given)
    assert (first.branches, first.summary.groups_with_variance, first.summary.resumed) == (3, 3, 0)
    assert (again.summary.resumed, again.summary.outdated, len(load(tmp_path))) == (3, 0, 3)
    assert first.summary.first_try is None
    parents = {episode.trajectory_id: episode for episode in episodes}
    for branched in load(tmp_path):
        parent = parents.pop(str(branched.parent_id))
        assert (branched.spans[0].policy_version, branched.policy_versions) == ("v0007", (None,))
        assert branched.trajectory_id != parent.trajectory_id
        assert branched.spans[0] == parent.spans[0]
        assert branched.prompt(branched.sampled[0])[:2] == parent.prompt(parent.spans[1])[:2]
    assert not list(groups(load(tmp_path), "attempt"))  # the recorded try earns nothing


async def test_branch_says_which_failures_it_leaves_out(tmp_path: Path) -> None:
    episode, *others = recorded(4)
    first = episode.spans[0]
    unlabelled = others[0].changed(spans=(others[0].spans[0].model_copy(update={"verdict": None}),))
    held_out = others[1].changed(metadata={"split": "test"})
    passed = others[2].changed(spans=(first.model_copy(update={"verdict": Verdict(passed=True, score=1.0)}),))
    given: Any = {"policy": ScriptedPolicy(reply), "out": tmp_path, "reflections": 2}
    report = await branch([episode, unlabelled, held_out, passed], verifier=check, **given)
    assert (report.read, report.branches, report.left_out) == (4, 1, {"unlabelled": 1, "held_out": 1})
    assert "r3agent label" in report.remedies["unlabelled"]
    for verifier, reason in (("later", "unjudged"), ("person", "unjudged")):
        with pytest.raises(ConfigError, match=f"1 left out, {reason}: .* --verifier"):
            await branch([episode], verifier=find_verifier(verifier), **given)
    with pytest.raises(ConfigError, match="1 left out, disputed: "):
        await branch([episode], verifier=lambda task, answer: True, **given)
    with pytest.raises(
        ConfigError, match=r"in 2 recorded episodes:\s+1 left out, passed: .*\s+1 left out, unlabelled: "
    ):
        await branch([passed, unlabelled], verifier=check, failed=True, **given)
    with pytest.raises(ConfigError, match="since = 'soon': no time"):
        await branch([episode], verifier=check, since="soon", **given)


def test_graph_goes_on_from_a_recorded_failure() -> None:
    (episode,) = recorded(1)
    graph = build_graph(policy=ScriptedPolicy(reply), verifier=check).compile()
    begin = branch_of(episode)
    state = graph.invoke({"task": episode.task.model_dump()}, context={"begin": begin, "reflections": 4})
    found = Trajectory.model_validate(state["trajectory"])
    assert (found.trajectory_id, found.parent_id) == (begin.trajectory_id, episode.trajectory_id)
    assert len(found.children(found.spans[0], "reflect")) == 4
    assert found.recorded == {episode.spans[0].span_id}
    for task, given in ((episode.task, episode), (episode.task, "2 * 3"), (recorded(2)[1].task, begin)):
        with pytest.raises(ConfigError, match="begin"):
            graph.invoke({"task": task.model_dump()}, context={"begin": given})


async def test_branch_limits_the_time_of_the_verdicts_before_it(tmp_path: Path) -> None:
    async def hangs(task: Task, answer: str) -> bool:
        await asyncio.Event().wait()
        return False

    given: Any = {"policy": ScriptedPolicy(reply), "verifier": hangs, "out": tmp_path, "verify_timeout_s": 0.1}
    with pytest.raises(ConfigError, match=r"(?s)1 left out, unjudged: .* verify_timeout_s = 0\.1"):
        await branch(recorded(1), **given)


async def test_branch_leaves_out_what_was_redacted_or_errored(tmp_path: Path) -> None:
    episode, other, third = recorded(3)
    hidden = redact_trajectory(episode, lambda text: text.replace("5", "[number]"))
    first = other.spans[0].model_copy(update={"verdict": None, "error": EpisodeError(kind="AgentError", message="no")})
    errored = other.changed(spans=(first,))
    given: Any = {"policy": ScriptedPolicy(reply), "verifier": check, "out": tmp_path, "reflections": 2}
    broken = errored.changed(trajectory_id="broken", spans=(), error=EpisodeError(kind="OSError", message="no"))
    report = await branch([hidden, errored, third, third, broken], **given)
    assert (report.branches, report.left_out) == (1, {"redacted": 1, "errored": 2})
    with pytest.raises(ConfigError, match=r"(?s)2 left out, unjudged: .*first error: .*cannot read it"):
        await branch(recorded(2), **{**given, "verifier": unable})


def unable(task: Task, answer: str) -> bool:
    raise ValueError("cannot read it")


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def test_branch_of_a_tool_conversation_needs_the_tools(tmp_path: Path) -> None:
    policy = answers(calling(("add", {"a": 1, "b": 2})), "3")
    graph = build_graph(policy=policy, verifier=lambda task, answer: answer == ANSWER, tools=[add]).compile()
    episode = Trajectory.model_validate((await graph.ainvoke(TASK))["trajectory"])
    right = answers(calling(("add", {"a": 1, "b": 3})), ANSWER)
    given: Any = {"policy": right, "verifier": lambda task, answer: answer == ANSWER, "out": tmp_path}
    with pytest.raises(ConfigError, match=r"1 left out, several_steps: .* --agent or --tools"):
        await branch([episode], **given)
    report = await branch([episode], tools=[add], reflections=3, **given)
    (branched,) = load(tmp_path)
    assert (report.branches, report.summary.steps_per_try, branched.passed) == (1, 2.0, True)
    retry = next(span for span in branched.sampled if span.label == "retry")
    assert [message["role"] for message in branched.prompt(retry)][:4] == ["user", "assistant", "tool", "assistant"]
    assert len(branched.recorded) == 2


async def test_branch_counts_what_it_spends_alone(tmp_path: Path) -> None:
    episode = recorded(1)[0]
    long = episode.spans[0].model_copy(update={"prompt_tokens": 10**6, "completion_tokens": 10**6})
    given: Any = {"policy": ScriptedPolicy(reply), "verifier": check, "out": tmp_path, "reflections": 2}
    spent = {"limits": CollectLimits(max_tokens=10**6)}
    report = await branch([episode.changed(spans=(long,)), recorded(1)[0]], concurrency=1, **given, **spent)
    assert (report.summary.episodes, report.summary.ended_by) == (2, None)
    assert report.summary.tokens_sampled < 10**6
