"""Mistakes that users make: each is answered at the call that makes it, by one line with the value and a remedy."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessage
from pydantic import BaseModel

from r3agent import (
    ConfigError,
    Generation,
    OpenAIPolicy,
    Recorder,
    Sampling,
    Span,
    Task,
    Trajectory,
    build_graph,
    collect,
    groups,
    label,
    load,
    trace,
)
from r3agent.deploy import deploy
from r3agent.doctor import diagnose
from r3agent.evaluate import compare, evaluate, spend_alpha, table, wilson
from r3agent.policy.langchain import ChatModelPolicy
from r3agent.serve import ServerProcess, VLLMProcess
from r3agent.store.registry import Registry
from r3agent.tasks import find_tasks
from r3agent.testing import ScriptedEndpoint, ScriptedPolicy
from r3agent.train import TrainConfig, build_rows, credit_spans
from r3agent.verifiers import find_verifier

URL = "http://127.0.0.1:9/v1"
MESSAGES = ({"role": "user", "content": "What is 6 times 7?"},)


class Person(BaseModel):
    name: str


@dataclasses.dataclass
class Turn:
    role: str
    content: str


@tool
def search(query: str) -> str:
    """Search the web."""
    return query


def refused(call: Callable[[], object], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        call()
    message = str(error.value)
    assert says in message
    assert "\n" not in message
    assert "errors.pydantic.dev" not in message


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("base_url", [None, 5, "", "127.0.0.1:8000"]),
        ("model", ["", " ", None, 5, b"m"]),
        ("concurrency", [0, -1, 1.5, "8", True, None, math.nan]),
        ("timeout_s", [0, -1, math.nan, math.inf, "5", True, None]),
        ("outage_s", [-1, math.nan, "5", None]),
        ("max_tries", [0, 1.5, "3", True, None]),
        ("api_key", [5, b"sk-secret"]),
        ("sampling", [{"temperature": 1}, 0.5, Sampling, "greedy"]),
        ("registry", [5]),
        ("concurency", [8]),
    ],
)
def test_openai_policy_refuses_a_setting_when_it_is_made(setting: str, values: list[Any]) -> None:
    for value in values:
        refused(lambda value=value: OpenAIPolicy(**{"base_url": URL, "model": "m", setting: value}), setting)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Sampling(temprature=1), "unknown key 'Sampling.temprature'; did you mean 'Sampling.temperature'?"),
        (lambda: Sampling(temperature=math.inf), "Sampling.temperature = inf: Input should be a finite number"),
        (lambda: Sampling(stop="END"), "Sampling.stop = 'END': Input should be a valid list; write ['END']"),
        (
            lambda: Sampling(extra={"response_format": Person}),
            '"schema": Person.model_json_schema()}',
        ),
        (lambda: Sampling(extra={"min_p": math.nan}), "min_p = nan is not JSON"),
        (lambda: Task(mesages=MESSAGES), "did you mean 'Task.messages'?"),
        (lambda: Trajectory(tsak={}), "did you mean 'Trajectory.task'?"),
        (lambda: Span(lable="attempt", text="", model="m"), "did you mean 'Span.label'?"),
        (lambda: TrainConfig(learning_rat=1), "did you mean 'TrainConfig.learning_rate'?"),
        (lambda: TrainConfig(credit={"reflct": "lift"}), "unknown label 'reflct'; did you mean 'reflect'?"),
    ],
)
def test_record_names_the_nearest_key(make: Callable[[], object], says: str) -> None:
    refused(make, says)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"messages": "hi"}, 'write [{"role": "user", "content": "..."}]'),
        ({"messages": MESSAGES[0]}, 'write [{"role": "user", "content": "..."}]'),
        ({"messages": [("user", "hi")]}, 'write {"role": "user", "content": "..."}'),
        ({"messages": [HumanMessage("hi")]}, "langchain_core.messages.convert_to_openai_messages"),
        ({"messages": [ChatCompletionMessage(role="assistant", content="hi")]}, "model_dump(exclude_none=True)"),
        ({"messages": [Turn("user", "hi")]}, "dataclasses.asdict"),
        ({"messages": MESSAGES, "tools": [search]}, "langchain_core.utils.function_calling.convert_to_openai_tool"),
        ({"messages": MESSAGES, "tools": [len]}, "langchain_core.utils.function_calling.convert_to_openai_tool"),
        ({"messages": MESSAGES, "gold": "42"}, 'write {"role": "user", "content": "..."}'),
    ],
)
def test_task_names_the_converter_of_what_it_gets(fields: dict[str, Any], says: str) -> None:
    refused(lambda: Task(**fields), says)
    refused(lambda: Task.of(fields), says)


def is_right(task: Task, answer: str) -> bool:
    return answer == "42"


class Checker:
    def __call__(self, task: Task, answer: str) -> bool:
        return True


class Sync:
    def sample(self, messages: Any, **settings: Any) -> list[Generation]:
        return []


class Short:
    async def sample(self, messages: Any, **settings: Any) -> list[Generation]:
        return []


class Narrow:
    async def sample(self, messages: Any) -> list[Generation]:
        return []


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"policy": FakeListChatModel(responses=["42"])}, "pass r3agent.policy.langchain.ChatModelPolicy(model)"),
        ({"policy": AsyncOpenAI(api_key="sk", base_url=URL)}, f"pass OpenAIPolicy('{URL}/', model)"),
        ({"policy": OpenAIPolicy}, "policy = OpenAIPolicy: a class; pass an instance, such as OpenAIPolicy(…)"),
        ({"policy": Narrow()}, "its sample() does not fit: got an unexpected keyword argument 'n'; write async def"),
        ({"policy": Sync()}, "Sync.sample returned [], which cannot be awaited; write async def sample"),
        ({"policy": Short()}, "Short.sample returned [] for n = 1; return a list of 1 r3agent.Generation"),
        ({"verifier": Checker}, "verifier = Checker: a class; pass a function or an instance of a class"),
        ({"verifier": lambda answer: True}, "it does not take (task, answer): too many positional arguments"),
        (
            {"verifier": lambda task, answer, gold: True},
            "there is none; write def check(task, answer), or pass environment=",
        ),
        ({"max_atempts": 2}, "did you mean 'max_attempts'?"),
        ({"tools": is_right}, "tools = <function is_right"),
        (
            {"tools": [{"type": "function"}]},
            "no tool; give a function, a LangChain tool, or an object with a definition",
        ),
        (
            {"tools": [is_right]},
            "tool 'is_right' has no definition: it has no docstring, which tells the policy what it",
        ),
        ({"tools": [is_right], "agent": is_right}, "agent and tools: an agent has its own tools; give them to it"),
        ({"environment": 5}, "environment = 5: no callable (task); pass an async generator function (task)"),
        ({"environment": lambda: None}, "it does not take (task): too many positional arguments; pass an async"),
        ({"max_steps": 0}, "max_steps = 0: Input should be greater than or equal to 1"),
        ({"context": {"sample": -1}}, "context.sample = -1: Input should be greater than or equal to 0"),
        ({"context": {"smaple": 1}}, "unknown key 'context.smaple'; did you mean 'context.sample'?"),
    ],
)
def test_graph_refuses_what_it_cannot_use(given: dict[str, Any], says: str) -> None:
    context = given.get("context")
    settings = {name: value for name, value in given.items() if name != "context"}

    def run() -> None:
        graph = build_graph(**{"policy": ScriptedPolicy("42"), "verifier": is_right, **settings}).compile()
        graph.invoke({"task": {"messages": MESSAGES}}, context=context)

    refused(run, says)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tasks": "tasks.jsonl"}, "the name of a source; pass r3agent.tasks.find_tasks('tasks.jsonl')"),
        ({"tasks": Path("tasks.jsonl")}, "pass r3agent.tasks.find_tasks('tasks.jsonl')"),
        ({"tasks": Task(messages=MESSAGES)}, "one task; pass a list of tasks"),
        ({"tasks": {"messages": MESSAGES}}, "one task; pass a list of tasks"),
        ({"tasks": 5}, "tasks = 5: no tasks can be read from it; pass a list of r3agent.Task"),
        ({"tasks": ["What is 6 times 7?"]}, "tasks[0] = 'What is 6 times 7?'"),
        ({"tasks": iter([])}, "pass a list, because a generator gives its tasks only once"),
        ({"samples": 0}, "samples = 0: Input should be greater than or equal to 1"),
        ({"first_sample": -1}, "first_sample = -1: Input should be greater than or equal to 0"),
        ({"concurrency": "8"}, "concurrency = '8': Input should be a valid integer"),
        ({"accept": 5}, "accept = 5: Input should be callable"),
        ({"out": None}, "out = None: must be str or Path"),
        ({"reflection": 8}, "unknown key 'reflection'; did you mean 'reflections'?"),
    ],
)
def test_collect_refuses_what_it_cannot_use(given: dict[str, Any], says: str, tmp_path: Path) -> None:
    settings = {"tasks": [Task(messages=MESSAGES)], "policy": ScriptedPolicy("42"), "verifier": is_right, **given}
    refused(lambda: asyncio.run(collect(**{"out": tmp_path / "out", **settings})), says)
    assert not (tmp_path / "out").exists()


def test_collect_takes_tasks_as_json(tmp_path: Path) -> None:
    tasks = [{"messages": MESSAGES}]
    summary = asyncio.run(collect(tasks, policy=ScriptedPolicy("42"), verifier=is_right, out=tmp_path))
    assert summary.first_try == 1


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_policy_can_be_copied_and_not_pickled(copied: Callable[[Any], Any], tmp_path: Path) -> None:
    with ScriptedEndpoint("42") as endpoint, Recorder(tmp_path) as recorder:
        policy = OpenAIPolicy(endpoint.url, endpoint.model, api_key="sk-secret")
        graph = build_graph(policy=copied(policy), verifier=is_right).compile()
        copied(recorder).record(graph.invoke({"task": {"messages": MESSAGES}}))
        assert recorder.flush()
        assert recorder.counts.recorded == 1
        for held in (policy, recorder, ScriptedPolicy("42")):
            refused(lambda held=held: pickle.dumps(held), f"{type(held).__name__} cannot be pickled")
        policy.close()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"directory": None}, "give a store, or a run with `run`, and not both"),
        ({"sample_rate": 2}, "sample_rate = 2: Input should be less than or equal to 1"),
        ({"sample_rate": "x"}, "sample_rate = 'x': Input should be a valid number"),
        ({"queue_size": 0}, "queue_size = 0: Input should be greater than or equal to 1"),
        ({"redact": "email"}, "redact = 'email': Input should be callable"),
    ],
)
def test_recorder_refuses_a_setting_when_it_is_made(given: dict[str, Any], says: str, tmp_path: Path) -> None:
    refused(lambda: Recorder(**{"directory": tmp_path, **given}), says)


def test_recorder_tells_what_is_no_trajectory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Recorder(tmp_path) as recorder:
        recorder.record({"answer": "42", "passed": True})
        assert recorder.counts.failed == 1
    assert "it has no trajectory_id; pass the result of a graph that ended, or a Trajectory" in caplog.text


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ({"atempt": "42"}, "script of 'atempt': no kind of call; did you mean 'attempt'?"),
        (5, "script has 5; a reply is a text, a Generation or an exception"),
        (["42", None], "script has None; a reply is a text"),
    ],
)
def test_scripted_policy_refuses_a_script_when_it_is_made(script: Any, says: str) -> None:
    refused(lambda: ScriptedPolicy(script), says)


def test_scripted_policy_answers_content_in_parts() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is 6 times 7?"}]}]
    graph = build_graph(policy=ScriptedPolicy("42"), verifier=is_right).compile()
    assert graph.invoke({"task": {"messages": messages}})["passed"] is True


def test_scripted_endpoint_lets_the_interpreter_end() -> None:
    script = (
        "import httpx; from r3agent.testing import ScriptedEndpoint; endpoint = ScriptedEndpoint('42').__enter__(); "
        "client = httpx.Client(); print(client.get(endpoint.url + '/models').status_code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("200\n", "")


def test_scripted_endpoint_has_no_url_before_it_runs() -> None:
    endpoint = ScriptedEndpoint("42")
    refused(lambda: endpoint.url, "it does not run; write `with ScriptedEndpoint(...) as endpoint:`")
    with endpoint:
        assert endpoint.url.endswith("/v1")


TRAJECTORY = Trajectory(task=Task(messages=MESSAGES))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("runs/mine", "the name of a store; pass r3agent.load('runs/mine')"),
        (TRAJECTORY, "one trajectory; pass a list of them"),
        (5, "trajectories = 5: not iterable; pass what r3agent.load returns"),
        ([TRAJECTORY.model_dump()], "no Trajectory; pass what r3agent.load returns, or Trajectory.model_validate(...)"),
    ],
)
@pytest.mark.parametrize(
    "read",
    [
        groups,
        evaluate,
        lambda given: compare([TRAJECTORY], given),
        lambda given: build_rows(given, config=TrainConfig(), version="v0000"),
        lambda given: credit_spans(given, config=TrainConfig(), version="v0000"),
    ],
    ids=["groups", "evaluate", "compare", "build_rows", "credit_spans"],
)
def test_readers_of_trajectories_refuse_anything_else(read: Callable[[Any], Any], given: Any, says: str) -> None:
    refused(lambda: read(given), says)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: groups([], "reflct"), "unknown label 'reflct'; did you mean 'reflect'?"),
        (lambda: groups([], "reflect", "sucess"), "reflect = 'sucess': what fits reflect is"),
        (lambda: load(None), "directory = None: must be str or Path"),
        (lambda: label("runs", 5, passed=True), "trajectory_id = 5: must be str or Trajectory"),
        (lambda: label("runs", "3f2a", passed=0.5), "passed = 0.5: Input should be a valid boolean"),
        (lambda: wilson(3, 0), "needs 0 <= k <= n, n above 0"),
        (lambda: spend_alpha(5, [True]), "alpha = 5: Input should be less than or equal to 1"),
        (lambda: table(None), "result = None: must be"),
        (lambda: find_tasks("countdwn"), "did you mean 'countdown'?"),
        (lambda: find_verifier("exactt"), "did you mean 'exact'?"),
        (lambda: find_verifier(None), "name = None: Input should be a valid string"),
        (lambda: find_tasks("countdown", 0), "n = 0: ask for at least 1 task"),
        (lambda: find_tasks("countdown", n=2), "argument 'n': pass it by its position"),
        (lambda: asyncio.run(diagnose(URL, timeout_s=0)), "timeout_s = 0: Input should be greater than 0"),
        (
            lambda: deploy("v0001", registry="runs/mine", base_url=URL),
            "Input should be an instance of Registry",
        ),
        (lambda: ServerProcess(port=99999), "port = 99999: Input should be less than or equal to 65535"),
        (lambda: VLLMProcess("m", timeout_s=-1), "timeout_s = -1: Input should be greater than 0"),
        (lambda: ChatModelPolicy("gpt-4"), "model = 'gpt-4': Input should be an instance of BaseChatModel"),
        (lambda: Registry(5), "run_dir = 5: must be Path or str"),
        (lambda: trace(metadata="x"), "metadata = 'x': Input should be a valid dictionary"),
        (lambda: trace(MESSAGES[0]), "task.messages: Field required"),
    ],
)
def test_functions_name_what_they_cannot_use(call: Callable[[], object], says: str) -> None:
    refused(call, says)
