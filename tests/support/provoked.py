"""How to get each error message of the FAQ: the beginning of the message, up to what differs, to what raises it."""

from __future__ import annotations

import asyncio
import pickle
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import HumanMessage

from r3agent import Answer, OpenAIPolicy, Sampling, Task, Trajectory, build_graph, collect, load
from r3agent._util.lock import file_lock
from r3agent.cli.main import parse
from r3agent.deploy.server import Server
from r3agent.run.config import load_config
from r3agent.run.stages import Run
from r3agent.store.registry import Registry
from r3agent.tasks import read_tasks
from r3agent.testing import HTML_PAGE, PROMPT_TOO_LONG, SERVER_ERROR, Fault, ScriptedEndpoint, ScriptedPolicy
from r3agent.testing.http import JsonServer
from r3agent.train import PolicyStart, TrainConfig, build_rows

ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "What is 6 times 7?"}]}


def matches(text: str, template: str, *, whole: bool = False) -> bool:
    """Tell whether `text` is, or begins with, the template, in which `…` stands for anything."""
    pattern = ".*".join(re.escape(part) for part in template.split("…"))
    return (re.fullmatch if whole else re.match)(pattern, " ".join(text.split()), re.DOTALL) is not None


def ask_broken_off() -> None:
    piece = 'data: {"choices": [{"index": 0, "delta": {"content": "4"}}]}\n\n'

    async def sample() -> None:
        with ScriptedEndpoint(
            model="my-model", faults=[Fault(body=piece, content_type="text/event-stream")]
        ) as endpoint:
            async with OpenAIPolicy(endpoint.url, "my-model", max_tries=1) as policy:
                await policy.sample(ASKED["messages"], on_delta=lambda choice, text: None)

    asyncio.run(sample())


def ask(url: str, model: str = "my-model", **settings: Any) -> None:
    async def sample() -> None:
        async with OpenAIPolicy(url, model, **{"max_tries": 1, **settings}) as policy:
            await policy.sample(ASKED["messages"])

    asyncio.run(sample())


def ask_scripted(model: str = "my-model", **script: Any) -> None:
    with ScriptedEndpoint("42", model="my-model", **script) as endpoint:
        ask(endpoint.url, model, api_key="sk-wrong")


def nowhere() -> str:
    """An address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def judged_by(check: Callable[..., Any]) -> None:
    check.__qualname__ = "check"
    build_graph(policy=ScriptedPolicy("42"), verifier=check).compile().invoke({"task": ASKED})


async def forgets_await(task: Task, answer: Answer) -> bool:
    graph = build_graph(policy=ScriptedPolicy("42"), verifier=lambda task, answer: True).compile()
    return graph.invoke({"task": ASKED})["passed"]


def out_of_memory(directory: Path) -> None:
    async def gather() -> None:
        with ScriptedEndpoint("42", model="my-model", faults=[SERVER_ERROR]) as endpoint:
            async with OpenAIPolicy(endpoint.url, "my-model", max_tries=1) as policy:
                await collect([Task.of(ASKED)], policy=policy, verifier=lambda task, answer: True, out=directory)

    asyncio.run(gather())


def trained_on(n: int, passes: bool, directory: Path, reflections: int = 2) -> None:
    tasks = [Task(messages=({"role": "user", "content": str(i)},)) for i in range(n)]
    asyncio.run(
        collect(
            tasks,
            policy=ScriptedPolicy("42"),
            verifier=lambda task, answer: passes,
            out=directory,
            reflections=reflections,
        )
    )
    build_rows(load(directory), config=TrainConfig(recipe="paper"), version="v0000")


def other_weights(gap: float, older_gap: float = 0.0) -> None:
    """Check a row of the starting version and one of the version before, whose tokens deviate by the gaps."""
    from r3agent.train.mismatch import check, measure
    from r3agent.train.row import Row

    row = Row("g", "t", "s", "reflect", "v0001", [1], [2] * 64, [-0.5] * 64, 1.0, False, 1.0, 1.0)
    rows = [row, row._replace(policy_version="v0000", logprobs_T=[-5.0] * 64)]
    scores = [[-0.5 - gap] * 64, [-5.0 - older_gap] * 48 + [-5.0 + older_gap] * 16]
    start = PolicyStart(version="v0001", name="bundled", model="bundled")
    config = TrainConfig(recipe="paper")
    check(measure(rows, scores, "v0001", config), config, start)


def not_a_trajectory(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "00000.jsonl").write_text('{"task": 3}\n')
    load(directory, strict=True)


def far_from_the_base() -> None:
    from r3agent.train.drift import Drift, check_drift

    check_drift(Drift(rows=64, tokens=640, kl=0.25), TrainConfig(max_drift=0.1), "v0009")


def of_an_adapter(directory: Path) -> None:
    from r3agent.train.base import read_config

    directory.mkdir(exist_ok=True)
    (directory / "adapter_config.json").write_text("{}")
    read_config(PolicyStart(version="v0000", name="tiny", model=str(directory)), TrainConfig(recipe="paper"))


def of_a_larger_vocabulary() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from r3agent.train.base import check_ids
    from r3agent.train.row import Row

    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    row = Row("g", "t", "s", "reflect", "v0000", [1], [40], [-0.5], 1.0, False, 1.0, 1.0)
    start = PolicyStart(version="v0000", name="tiny", model="tiny")
    check_ids([row], LlamaForCausalLM(LlamaConfig(vocab_size=32, **size)), start)


def to_a_missing_service() -> None:
    from r3agent.telemetry.services import check_service

    check_service("wandb")


def without(module: str, script: str) -> None:
    """Run a script where a package is missing, and raise the last line that it says."""
    code = f"import sys; sys.modules[{module!r}] = None; {script}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    raise RuntimeError(done.stderr.strip().splitlines()[-1].partition(": ")[2])


def verb(words: Sequence[str]) -> None:
    parse(words)()


def of_another_task(directory: Path) -> None:
    Run(directory, {"task.source": "countdown", "task.verifier": "exact"}).write_config()
    Run(directory, {"task.source": "other.jsonl"})


def held(path: Path) -> None:
    with file_lock(path, "deploying v0001"), file_lock(path, "deploying v0002"):
        pass


def onto_a_server_without_adapters() -> None:
    missing = Fault(404, '{"detail": "Not Found"}')  # as vLLM says it
    with JsonServer(lambda path, key, body: missing) as http, Server(f"{http.url}/v1") as server:
        server.load_adapter("my-model@v0001", Path())


def onto_no_server() -> None:
    with Server(f"{nowhere()}/v1") as server:
        server.models()


def from_rows(path: Path, content: str) -> None:
    path.write_bytes(content.encode("cp1252"))
    read_tasks(str(path))


PROVOKED: dict[str, Callable[[Path], object]] = {
    "unknown key 'Sampling": lambda _: Sampling(temprature=1),
    "concurrency = 0": lambda _: OpenAIPolicy("http://127.0.0.1:9/v1", "my-model", concurrency=0),
    "Task.messages.0 =": lambda _: Task(messages=[HumanMessage("Hello")]),
    "policy = ": lambda _: build_graph(policy=FakeListChatModel(responses=[]), verifier=lambda t, a: True),
    "OpenAIPolicy cannot be pickled": lambda _: pickle.dumps(OpenAIPolicy("http://127.0.0.1:9/v1", "my-model")),
    "unknown key 'train": lambda _: load_config(None, {"train.learning_rat": 1e-5}),
    "reflections = 0": lambda _: build_graph(policy=ScriptedPolicy(""), verifier=lambda t, a: True, reflections=0),
    "trl is not": lambda _: without("trl", "import r3agent.train; r3agent.train.train"),
    "….toml: there is no such run": lambda path: verb(["train", "--run", str(path / "none")]),
    "task.source = 'other.jsonl'": of_another_task,
    "… is held by": lambda path: held(path / "lock"),
    "schema_version = 99": lambda _: Trajectory.model_validate({"schema_version": 99, "task": ASKED}),
    "….jsonl:1: not a trajectory": not_a_trajectory,
    "….json: nothing is live": lambda path: Registry(path).rollback_target(),
    "….jsonl:1: its prompt ends": lambda path: from_rows(
        path / "a.jsonl", '{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}'
    ),
    "….csv:2 is not UTF-8": lambda path: from_rows(path / "a.csv", "prompt\ngröße\n"),
    "task.params.prompt: ….csv": lambda path: from_rows(path / "a.csv", "question,answer\n?,1\n"),
    "http://…, model 'my-model': … (tried": lambda _: ask(f"{nowhere()}/v1", max_tries=2),
    "http://…, model 'my-modle': 404": lambda _: ask_scripted("my-modle"),
    "http://…, model 'my-model': 401": lambda _: ask_scripted(api_key="sk-right"),
    "http://…, model 'my-model': answered": lambda _: ask_scripted(faults=[HTML_PAGE] * 9),
    "http://…, model 'my-model': the stream": lambda _: ask_broken_off(),
    "http://…, model 'my-model': 400": lambda _: ask_scripted(faults=[PROMPT_TOO_LONG]),
    "http://…, model 'my-model': 500": out_of_memory,
    "check failed on task '…': KeyError": lambda _: judged_by(lambda task, answer: task.info["gold"] in answer),
    "check failed on task '…': TypeError": lambda _: judged_by(lambda task, answer: "yes"),
    "check failed on task '…': RuntimeError": lambda _: judged_by(forgets_await),
    "0 of 3 first attempts": lambda path: trained_on(3, True, path),
    "0 of 4 reflect": lambda path: trained_on(2, False, path),
    "0 of 2 reflect": lambda path: trained_on(2, False, path, reflections=1),
    "mean |logprob gap|": lambda _: other_weights(0.4),
    "effective sample size": lambda _: other_weights(0.0, 2.0),
    "KL to v0000": lambda _: far_from_the_base(),
    "model '…' is a LoRA adapter": of_an_adapter,
    "span … has token id 40": lambda _: of_a_larger_vocabulary(),
    "report_to = 'wandb'": lambda _: to_a_missing_service(),
    "http://…/v1/load_lora_adapter": lambda _: onto_a_server_without_adapters(),
    "http://…/v1/models: …": lambda _: onto_no_server(),
}
