"""Direct connections: what goes out, what comes back, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from r3agent.errors import ConfigError, EndpointError
from r3agent.policy import OpenAIPolicy
from r3agent.testing import Fault, ScriptedEndpoint
from r3agent.testing.http import JsonServer

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture
def few_files() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_a_limit_of_open_files_is_named(few_files: None) -> None:
    with ScriptedEndpoint("hi") as endpoint:
        policy = OpenAIPolicy(endpoint.url, endpoint.model, concurrency=64)
        await policy.sample(MESSAGES)
        used = [socket.socket() for _ in range(3)]
        most = max(each.fileno() for each in used) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        with pytest.raises(ConfigError, match=rf"too many open files \(`ulimit -n` is {most}\).*lower concurrency"):
            await asyncio.gather(*(policy.sample(MESSAGES) for _ in range(64)))
        for each in used:
            each.close()
        await policy.aclose()


async def test_a_connection_that_nobody_accepts_is_told_from_a_slow_answer() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(8)]
        for each in fillers:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        policy = OpenAIPolicy(f"http://127.0.0.1:{full.getsockname()[1]}/v1", "m", timeout_s=0.3, max_tries=1)
        with pytest.raises(EndpointError, match=r"no connection within 0\.3 s; .*lower concurrency = 64"):
            await policy.sample(MESSAGES)
        await policy.aclose()
        for each in fillers:
            each.close()


@pytest.mark.parametrize("length", [1, 3 * 2**20])
async def test_a_redirect_is_followed_with_its_body(length: int) -> None:
    messages = [{"role": "user", "content": "x" * length}]
    with ScriptedEndpoint("hi") as endpoint:
        moved = Fault(307, headers={"Location": f"{endpoint.url}/chat/completions"})
        with JsonServer(lambda *_: moved) as old:
            async with OpenAIPolicy(f"{old.url}/v1", endpoint.model) as policy:
                [generation] = await policy.sample(messages)
    assert generation.text == "hi"
    assert endpoint.received[0].body["messages"] == messages


async def test_text_that_is_no_unicode_is_sent_as_json_escapes() -> None:
    with ScriptedEndpoint("hi") as endpoint:
        async with OpenAIPolicy(endpoint.url, endpoint.model) as policy:
            await policy.sample([{"role": "user", "content": "\ud800"}])
    assert endpoint.received[0].body["messages"][0]["content"] == "\ud800"


UNCLOSED = """
import asyncio, gc, sys
from r3agent import OpenAIPolicy

policy = OpenAIPolicy(sys.argv[1], sys.argv[2])
loop = asyncio.new_event_loop()

async def sample(policy):
    await policy.sample([{"role": "user", "content": "hi"}])

async def forget():
    await sample(OpenAIPolicy(sys.argv[1], sys.argv[2]))
    gc.collect()
    await asyncio.sleep(0.01)

for _ in range(2):
    asyncio.run(sample(policy))
asyncio.run(forget())
loop.run_until_complete(sample(policy))
del policy
gc.collect()
loop.close()
"""


def test_an_unclosed_policy_says_nothing() -> None:
    with ScriptedEndpoint("hi") as endpoint:
        command = [sys.executable, "-c", UNCLOSED, endpoint.url, endpoint.model]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_unclosed_policy_runs_no_task_that_an_interrupt_left() -> None:
    ran = list[int]()

    async def left() -> None:
        ran.append(len(ran))

    async def interrupted() -> None:
        await policies[0].sample(MESSAGES)
        tasks.append(asyncio.create_task(left()))
        raise KeyboardInterrupt

    tasks = list[asyncio.Task[None]]()
    with ScriptedEndpoint("hi") as endpoint, closing(asyncio.new_event_loop()) as loop:
        policies = [OpenAIPolicy(endpoint.url, endpoint.model)]
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(interrupted())
        policies.clear()
        gc.collect()
        assert ran == []
        loop.run_until_complete(tasks[0])
        assert ran == [0]
        loop.run_until_complete(asyncio.sleep(0.01))


INTERRUPTED = """
import asyncio, os, signal, sys
from r3agent import OpenAIPolicy
from r3agent._util.aio import gather_all, run_in_thread_loop
from r3agent._util.interrupts import interrupt

signal.signal(signal.SIGINT, {"ignored": signal.SIG_IGN, "heard": signal.default_int_handler}[sys.argv[3]])
signal.signal(signal.SIGTERM, interrupt)
policy = OpenAIPolicy(sys.argv[1], sys.argv[2])

async def sample(number):
    await policy.sample([{"role": "user", "content": "hi"}])
    if number == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.Event().wait()

try:
    run_in_thread_loop(gather_all(sample(number) for number in range(8)))
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("ctrl_c", ["heard", "ignored"])
def test_an_interrupted_program_ends_with_nothing_to_say(ctrl_c: str) -> None:
    with ScriptedEndpoint("hi") as endpoint:
        command = [sys.executable, "-c", INTERRUPTED, endpoint.url, endpoint.model, ctrl_c]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")
