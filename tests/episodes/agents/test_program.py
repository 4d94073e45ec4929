"""Programs as agents: real processes that ask a scripted endpoint through the gateway."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from r3agent import OpenAIPolicy, Sampling, Task, Trajectory, build_graph
from r3agent._util.wait import wait_until
from r3agent.episodes.agents.program import Program, as_text
from r3agent.errors import AgentError, ConfigError, EndpointError
from r3agent.testing import Fault, ScriptedEndpoint

TASK = {"id": "t", "messages": [{"role": "user", "content": "6 * 7?"}]}

ASK = """
import json, os, sys, urllib.request
def ask(messages, **fields):
    body = json.dumps({"model": os.environ["OPENAI_MODEL"], "messages": messages, **fields}).encode()
    headers = {"Content-Type": "application/json", "Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
    url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
    with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]
task = json.load(open(os.environ["R3_TASK_FILE"]))
"""
TWO_STEPS = """
plan = ask(task["messages"])
told = [*task["messages"], {"role": "assistant", "content": plan}, {"role": "user", "content": "go on"}]
print(ask(told))
"""


def script(body: dict[str, Any], choice: int) -> str:
    last = body["messages"][-1]["content"]
    if last == "go on":
        return "42" if any("better" in str(m["content"]) for m in body["messages"]) else "41"
    return "do better" if "Reflect" in last else "a plan"


def program(tmp_path: Path, source: str, **limits: Any) -> Program:
    file = tmp_path / "agent.py"
    file.write_text(ASK + source)
    return Program([sys.executable, str(file)], **limits)


def is_42(task: Task, answer: str) -> bool:
    return answer == "42"


def run(agent: Program, verifier: Any = is_42, **options: Any) -> Trajectory:
    with ScriptedEndpoint(script) as endpoint:
        policy = OpenAIPolicy(endpoint.url, endpoint.model, api_key="sk-the-policys-own", sampling=Sampling(seed=1))
        graph = build_graph(policy=policy, verifier=verifier, agent=agent, **options).compile()
        try:
            result = graph.invoke({"task": TASK})
        finally:
            policy.close()
            agent.close()
    return Trajectory.model_validate(result["trajectory"])


def test_program_makes_tries_whose_steps_are_exact(tmp_path: Path) -> None:
    episode = run(program(tmp_path, TWO_STEPS), reflections=2, retries=2)
    assert [len(t.steps) for t in episode.tries] == [2] * 5
    assert [t.passed for t in episode.tries] == [False, True, True, True, True]
    assert {s.capability for s in episode.spans} == {"trainable-exact"}
    assert {s.policy_version for s in episode.spans} == {"v0000"}
    assert len({s.sampling["seed"] for s in episode.spans if s.label != "reflect"}) == 10
    first = episode.tries[1].first
    assert episode.prompt(first)[: len(TASK["messages"])] == TASK["messages"]
    assert [m["content"] for m in episode.prompt(first)][1:4:2] == ["a plan", "41"]
    assert "sk-the-policys-own" not in episode.model_dump_json()


def test_program_gets_the_task_as_text_and_its_own_directory(tmp_path: Path) -> None:
    source = "open('out.txt', 'w').write(sys.stdin.read()); ask(task['messages']); print(os.getcwd())"

    def judged(task: Task, answer: str, directory: Path) -> bool:
        assert str(directory) == answer
        return (directory / "out.txt").read_text() == "6 * 7?\n"

    episode = run(program(tmp_path, source), judged)
    assert episode.passed
    assert episode.spans[-1].answer is not None
    assert not Path(episode.spans[-1].answer).exists()


def test_program_finds_its_file_from_its_own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program(tmp_path, TWO_STEPS)  # writes agent.py
    assert run(Program([sys.executable, "agent.py"])).tries[0].last.text == "41"


def test_program_is_ended_with_all_its_processes(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    source = f"""
import subprocess, time
for settings in ({{}}, {{"start_new_session": True}}, {{"env": {{}}}}):
    child = subprocess.Popen(["/bin/sleep", "600"], **settings)
    open({str(pids)!r}, "a").write(f"{{child.pid}}\\n")
ask(task["messages"])
time.sleep(600)
"""
    began = time.monotonic()
    episode = run(program(tmp_path, source), max_attempts=1, try_timeout_s=3.0)
    assert time.monotonic() - began < 60
    (attempt,) = episode.tries
    assert attempt.verdict is not None
    assert "try_timeout_s = 3" in str(attempt.verdict.feedback)
    gone = [Path(f"/proc/{pid}") for pid in pids.read_text().split()]
    assert len(gone) == 3
    assert wait_until(lambda: not any(map(_is_alive, gone)), timeout_s=10)


def test_program_does_not_wait_for_what_it_leaves_running(tmp_path: Path) -> None:
    source = "import subprocess; child = subprocess.Popen(['sleep', '600']); ask(task['messages']); print(child.pid)"
    episode = run(program(tmp_path, source), max_attempts=1, try_timeout_s=60.0)
    (attempt,) = episode.tries
    assert wait_until(lambda: not _is_alive(Path(f"/proc/{attempt.message['content']}")), timeout_s=10)


@pytest.mark.parametrize("rest", ["", "; time.sleep(600)"], ids=["ends", "hangs"])
def test_program_leaves_no_daemon_behind(tmp_path: Path, rest: str) -> None:
    """A daemon without our environment, in its own session, holds the program's stdout."""
    pid = tmp_path / "pid"
    source = f"""
import subprocess, time
subprocess.run(["sh", "-c", "env -i setsid sleep 600 & echo $! > {pid}"])
print(ask(task["messages"])){rest}
"""
    episode = run(program(tmp_path, source), max_attempts=1, try_timeout_s=3.0 if rest else 60.0)
    (attempt,) = episode.tries
    assert attempt.error is None
    assert ("try_timeout_s = 3" in str(attempt.verdict)) is bool(rest)
    assert "60" not in str(attempt.verdict)
    daemon = Path(f"/proc/{pid.read_text().strip()}")
    assert wait_until(lambda: not _is_alive(daemon), timeout_s=10)


def _is_alive(process: Path) -> bool:
    try:
        return "sleep" in (process / "cmdline").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("source", "limits", "message"),
    [
        ("print('half'); sys.exit('no such order')", {}, "exited with 1: no such order"),
        ("os.kill(os.getpid(), 9)", {}, "signal SIGKILL"),
        ("while True: print('x' * 200_000)", {"output_mb": 0.1}, "output_mb = 0.1"),
        ("x = bytearray(300_000_000); import time; time.sleep(60)", {"memory_mb": 150}, "memory_mb = 150"),
    ],
    ids=["exit", "signal", "output", "memory"],
)
def test_program_that_fails_is_an_error_of_its_try(
    tmp_path: Path, source: str, limits: dict[str, Any], message: str
) -> None:
    agent = program(tmp_path, f"ask(task['messages'])\n{source}", **limits)
    with pytest.raises(AgentError, match=message):
        run(agent)
    episode = run(agent, agent_errors="record")
    assert episode.error is not None
    assert message in episode.error.message
    assert [s.text for s in episode.spans] == ["a plan"]


@pytest.mark.parametrize("swallows", [False, True])
def test_program_that_asks_without_end_fails(tmp_path: Path, swallows: bool) -> None:
    asks = "ask(task['messages'])"
    source = f"while True:\n try: {asks}\n except Exception: pass" if swallows else f"while True: {asks}"
    episode = run(program(tmp_path, source), max_attempts=1, max_steps=3)
    (attempt,) = episode.tries
    assert len(attempt.steps) == 3
    assert "max_steps = 3" in str(attempt.verdict)


STREAMS = """
import openai
stream = openai.OpenAI(max_retries=0).chat.completions.create(model="policy", messages=task["messages"], stream=True)
print("".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices))
"""
HALF = {"object": "chat.completion.chunk", "model": "scripted", "choices": [{"index": 0, "delta": {"content": "4"}}]}


@pytest.mark.parametrize("body", ["", f"data: {json.dumps(HALF)}\n\n"], ids=["empty", "half"])
def test_program_is_not_blamed_for_a_stream_that_ends_early(tmp_path: Path, body: str) -> None:
    agent, fault = program(tmp_path, STREAMS), Fault(body=body, content_type="text/event-stream")
    with ScriptedEndpoint(script, faults=[fault]) as endpoint:
        policy = OpenAIPolicy(endpoint.url, endpoint.model)
        graph = build_graph(policy=policy, verifier=is_42, agent=agent, agent_errors="record").compile()
        try:
            with pytest.raises(EndpointError, match="the stream ended before the completion"):
                graph.invoke({"task": TASK})
        finally:
            policy.close()
            agent.close()


def test_program_that_prints_nothing_fails(tmp_path: Path) -> None:
    episode = run(program(tmp_path, "ask(task['messages'])"), max_attempts=1)
    assert episode.passed is False


def test_program_refuses_a_command_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="no-such-program"):
        Program("no-such-program --fast")


def test_as_text_names_the_speakers() -> None:
    call = {"function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "6 * 7?"},
        {"role": "assistant", "content": "41", "tool_calls": [call]},
        {"role": "tool", "content": "no"},
        {"role": "user", "content": "Again."},
    ]
    called = json.dumps(call["function"])
    said = ["Be brief.", "6 * 7?", f"You: 41\n{called}", "Result of the call: no", "Again."]
    assert as_text(messages) == "\n\n".join(said) + "\n"
