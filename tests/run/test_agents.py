"""A run whose tries an agent makes: settings, stages, and the versions that its calls reach."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from r3agent._util.aio import run_in_thread_loop
from r3agent.cli.main import main
from r3agent.errors import ConfigError
from r3agent.evaluate import compare
from r3agent.run.config import load_config, to_toml
from r3agent.run.stages import Run
from r3agent.store.trajectories import load
from tests.deploy import endpoint as weights
from tests.support.chatting import ChattingEndpoint, subject

N_TASKS = 4
MODULE = '''
from contextlib import asynccontextmanager

from langchain_openai import ChatOpenAI

from r3agent import instrument

NAMES = ["tiny", "tiny@live", "policy"]

async def ask(messages, client):
    """Asks twice, by another name of the policy in turn, and a router that is none of it."""
    said = []
    for name in NAMES[: 2]:
        NAMES.append(NAMES.pop(0))
        answer = await client.chat.completions.create(model=name, messages=messages)
        said.append(answer.choices[0].message.content)
    return said[-1]

def ask_none(messages, client):
    """Has rules of its own."""
    return "6" if "use the tables" in str(messages) else "5"

def make():
    return ask

class Broken:
    def __init__(self):
        raise OSError("no disk")

def fails(messages, client):
    raise KeyError("lost")

def double(x: int) -> int:
    """Double a number."""
    return 2 * x

TOOLS = [double]
chat = instrument(ChatOpenAI(model="tiny", base_url="http://127.0.0.1:1/v1", api_key="EMPTY"))
nothing = 3

@asynccontextmanager
async def world(task):
    yield {"answer": "6"}

def in_world(task, answer, environment):
    return answer == environment["answer"]
'''


def reply(body: dict[str, Any]) -> str:
    """The base is never right; v0001 after a reflection."""
    said = [str(m["content"]) for m in body["messages"]]
    is_learnt = body["model"] == "tiny@v0001" and "use the tables" in "".join(said)
    return "use the tables" if "Reflect" in said[-1] else "6" if is_learnt else "5"


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_agent.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_agent", None)


@pytest.fixture
def settings(endpoint: ChattingEndpoint, tmp_path: Path) -> dict[str, Any]:
    few = {"eval.n": N_TASKS, "eval.split": "all", "collect.reflections": 2}
    return {**subject(endpoint, tmp_path, N_TASKS), **few, "agent.agent": "my_agent:ask"}


def models(endpoint: ChattingEndpoint) -> set[str]:
    asked = {chat["model"] for chat in endpoint.chats}
    endpoint.chats.clear()
    return asked


def test_stages_run_the_agent_with_the_version_in_question(
    settings: dict[str, Any], endpoint: ChattingEndpoint, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", settings)
    summary = run.collect()
    assert models(endpoint) == {"tiny"}
    stored = load(tmp_path / "run" / "trajectories")
    assert {len(a_try.steps) for t in stored for a_try in t.tries} == {2}
    assert {t.metadata["agent"] for t in stored} == {"my_agent:ask"}
    assert run.collect().resumed == summary.episodes

    weights.Run(run.registry, Path(run.config.policy.base_model)).train("lora", seed=1)
    comparison = run.evaluate("v0000", "v0001")
    assert comparison.candidate.after_reflection is not None
    assert (comparison.candidate.after_reflection.rate, comparison.candidate.policy) == (1.0, "v0001")
    for version, name in (("v0000", "tiny"), ("v0001", "tiny@v0001")):
        episodes = load(tmp_path / "run" / "eval" / version)
        spans = [span for t in episodes for span in t.spans]
        assert {(span.model, span.policy_version) for span in spans} == {(name, version)}
        assert {len(a_try.steps) for t in episodes for a_try in t.tries} == {2}
    assert models(endpoint) == {"tiny", "tiny@v0001"}


def test_agent_is_evaluated_with_weights_that_are_reloaded_in_place(
    settings: dict[str, Any], endpoint: ChattingEndpoint, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", settings)
    run.collect()
    weights.Run(run.registry, Path(run.config.policy.base_model)).train("full", seed=1)
    run.deploy("v0001")
    comparison = run.evaluate("v0000", "v0001")
    assert (comparison.baseline.errors.rate, comparison.candidate.errors.rate) == (0, 0)
    for version in ("v0000", "v0001"):
        episodes = load(tmp_path / "run" / "eval" / version)
        assert {(s.label, s.policy_version) for t in episodes for s in t.spans} == {
            (label, version) for label in ("attempt", "reflect", "retry")
        }


def test_agent_keeps_its_client_from_one_version_to_the_next(settings: dict[str, Any], tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {**settings, "agent.agent": "my_agent:chat"})
    run.collect()
    weights.Run(run.registry, Path(run.config.policy.base_model)).train("lora", seed=1)
    comparison = run.evaluate("v0000", "v0001")
    assert (comparison.baseline.errors.rate, comparison.candidate.errors.rate) == (0, 0)
    run_in_thread_loop(sys.modules["my_agent"].chat.root_async_client.close())


def test_gate_and_eval_refuse_an_agent_that_asks_no_version(settings: dict[str, Any], tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {**settings, "agent.agent": "my_agent:ask_none", "gate.split": "all"})
    summary = run.collect()
    assert summary.tries_of_policy == 0 < summary.tries
    weights.Run(run.registry, Path(run.config.policy.base_model)).train("lora", seed=1)
    for for_gate in (True, False):
        with pytest.raises(ConfigError, match=r"0 of 12 tries asked the policy; .* 12 x no model call \(tiny\)"):
            run.evaluate("v0000", "v0001", for_gate=for_gate)
        assert run.comparison("v0000", "v0001", for_gate=for_gate) is None
    with pytest.raises(ConfigError, match="0 of 12 tries asked the policy"):
        run.measure("v0001")


def test_another_agent_or_limit_makes_other_episodes(settings: dict[str, Any], tmp_path: Path) -> None:
    run = Run(tmp_path / "run", settings)
    n = run.collect().episodes
    for change in ({"agent.agent": "my_agent:make"}, {"agent.max_steps": 5}, {"agent.environment": "my_agent:world"}):
        other = Run(tmp_path / "run", {**settings, **change})
        assert other.episode_digest() != run.episode_digest()
        assert other.collect().resumed == 0
    (tmp_path / "my_agent.py").write_text(MODULE.replace("return said[-1]", "return 'edited'"))
    del sys.modules["my_agent"]
    edited = Run(tmp_path / "run", settings).collect()  # under the same name
    assert (edited.resumed, edited.episodes) == (n, n)
    stored = load(tmp_path / "run" / "trajectories")
    by_agent = {t.metadata["agent"]: t for t in stored if t.task.id == stored[0].task.id}
    with pytest.raises(ConfigError, match=r"the agent is .my_agent.* a comparison would mix them"):
        compare([by_agent["my_agent:ask"]], [by_agent["my_agent:make"]])


def test_verifier_judges_in_the_world_of_a_try(settings: dict[str, Any], tmp_path: Path) -> None:
    world = {"agent.environment": "my_agent:world", "task.verifier": "my_agent:in_world"}
    run = Run(tmp_path / "run", {**settings, **world})
    assert run.collect().errors == {}
    assert {a_try.passed for t in load(tmp_path / "run" / "trajectories") for a_try in t.tries} == {False}


def test_label_finds_a_try_by_any_of_its_steps(settings: dict[str, Any], tmp_path: Path) -> None:
    Run(tmp_path / "run", settings).collect()
    trajectory = load(tmp_path / "run" / "trajectories")[0]
    first = trajectory.tries[0].first
    words = ["label", str(tmp_path / "run"), trajectory.trajectory_id, "--span", first.span_id, "--passed"]
    assert main(words) == 0
    [labelled] = [t for t in load(tmp_path / "run" / "trajectories") if t.trajectory_id == trajectory.trajectory_id]
    assert (labelled.tries[0].passed, labelled.tries[0].last.verdict is not None) == (True, True)
    assert main(["inspect", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"agent.agent": "my_agnt:ask"}, "agent.agent: 'my_agnt:ask': importing 'my_agnt' failed"),
        ({"agent.agent": "my_agent:aks"}, "agent.agent: 'my_agent:aks': module 'my_agent' has no 'aks'"),
        ({"agent.agent": "my_agent:nothing"}, "agent = 3: no agent"),
        ({"agent.agent": "my_agent:Broken"}, "'my_agent:Broken', without arguments: OSError: no disk"),
        ({"agent.agent": "my_agent"}, "agent.agent: 'my_agent': no module:name of your own"),
        ({"agent.tools": ["my_agent:TOOLS"]}, "agent and tools are set: each makes the tries; keep one"),
        ({"agent.tools": "my_agent:TOOLS"}, "agent.tools: 'my_agent:TOOLS': a text; write a list"),
        ({"agent.environment": "my_agent:nothing"}, "environment = 3"),
        ({"agent.command": ["node", "a.js"]}, "agent and command are set"),
        ({"agent.agent": "", "agent.command": ["no-such-program"]}, "there is no such program"),
        ({"agent.memory_mb": 10}, "memory_mb = 10 limits the command, and there is none"),
        ({"agent.max_steps": 0}, "agent.max_steps = 0"),
        (
            {"agent.agent": "", "task.verifier": "my_agent:in_world"},
            "the verifier takes a third argument, the environment",
        ),
    ],
)
def test_wrong_agents_are_refused_before_any_request(
    settings: dict[str, Any], endpoint: ChattingEndpoint, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        Run(tmp_path / "run", {**settings, **change}).collect()
    assert (endpoint.chats, (tmp_path / "run").exists()) == ([], False)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--agent missing:agent", "agent.agent: 'missing:agent': importing 'missing' failed"),
        ("--agent my_agent:nothing --task countdown", "agent = 3: no agent"),
        ("--tools my_agent:trouble", "agent.tools: 'my_agent:trouble': module 'my_agent' has no 'trouble'"),
        ("--environment my_agent:words", "agent.environment: 'my_agent:words': module 'my_agent' has no 'words'"),
        ("--verifier missing:verify", "'missing:verify': importing 'missing' failed"),
        ("--verifier my_agent:nothing", "verifier 'my_agent:nothing' is a int; it must be a callable"),
        ("--verifier my_agent:in_world --task countdown", "the verifier takes a third argument, the environment"),
    ],
)
def test_init_refuses_names_that_cannot_be_used(
    words: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "--run", str(tmp_path / "run"), *words.split()]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_settings_of_an_agent_are_written_and_read(settings: dict[str, Any], tmp_path: Path) -> None:
    config = load_config(None, {"agent.tools": ["my_agent:TOOLS"], "agent.try_timeout_s": "none"})
    (tmp_path / "r3.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "r3.toml", {}) == config
    assert config.agent.load().tools[0].__name__ == "double"


def test_agent_that_raises_is_recorded(settings: dict[str, Any], tmp_path: Path) -> None:
    words = ["collect", "--run", str(tmp_path / "run"), "--agent", "my_agent:fails"]
    for key, value in settings.items():
        if key != "agent.agent":
            words += ["--set", f"{key}={json.dumps(value)}"]
    assert main(words) == 1
    episodes = load(tmp_path / "run" / "trajectories")
    assert {t.error.kind for t in episodes if t.error} == {"AgentError"}
    assert all("KeyError" in t.error.message for t in episodes if t.error)
    assert load_config(tmp_path / "run" / "r3.toml", {}).agent.agent == "my_agent:fails"


def test_command_makes_the_tries(settings: dict[str, Any], endpoint: ChattingEndpoint, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import openai, sys\n"
        "ask = openai.OpenAI().chat.completions.create\n"
        "said = [{'role': 'user', 'content': sys.stdin.read()}]\n"
        "for _ in range(2):\n"
        "    said.append(ask(model='policy', messages=said).choices[0].message.model_dump(exclude_none=True))\n"
        "print(said[-1]['content'])\n"
    )
    command = {"agent.agent": "", "agent.command": [sys.executable, str(tmp_path / "program.py")], "collect.n": 1}
    run = Run(tmp_path / "run", {**settings, **command, "collect.reflections": 1})
    assert run.collect().errors == {}
    [episode] = load(tmp_path / "run" / "trajectories")
    assert [(len(t.steps), t.passed) for t in episode.tries] == [(2, False), (2, False)]
    assert {(span.model, span.policy_version) for span in episode.spans} == {("tiny", "v0000")}
    assert episode.metadata["agent"] == run.config.agent.name
