"""Cost of collecting besides the model: calls on an endpoint that answers at once, in a process of its own.

Every answer has 64 tokens with logprobs and ids. In
alternating turns, 64 at a time, the same requests are made by `build_graph` (an attempt, 8 reflections, 8 retries and a
blind retry) and by a loop of bare `AsyncOpenAI` calls, both with garbage collection as `r3agent collect` sets it.
`vs_openai_client` is the median over the turns of the graph's calls per second divided by those of the loop, and
`vs_openai_client_application` the same for a chain of an attempt, a reflection and a retry, with the interpreter's
garbage collection. `cpu_ms_per_call` is the CPU time of the client's process for a call. Then 4,000 requests are under
way at once, begun at 500 a second and each held for 10 s: `in_flight_4000` is the share that is answered,
`loop_lag_p99_ms` the delay of the event loop meanwhile. `benchmarks.store` measures the rest.

`vs_verifiers` compares rollouts of one call and a verdict, 64 at a time, by an episode of one attempt and by the
`verifiers` library's own `Environment.generate`: the library's time divided by ours, in seconds or in CPU time,
whichever is less. It is version 0.1.14, which samples in its process; 0.4.0 starts a program for each rollout, even
with its null harness. It is installed into an environment of its own in `--verifiers DIR`; where it cannot be, and
without the option, the result is null.

    python -m benchmarks.collect_overhead [--seconds 3] [--turns 5] [--in-flight 4000] [--httpx] [--verifiers DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai

from benchmarks import store, verifiers_loop
from benchmarks.gateway import ANSWER, MESSAGES, TOKENS, http, percentile, serve
from r3agent import OpenAIPolicy, build_graph
from r3agent._util.cycles import rare_garbage_collection
from r3agent.records.trajectory import Task
from r3agent.verifiers import Answer

CONCURRENCY = 64
FORMS: dict[str, dict[str, int]] = {
    "collecting": {"reflections": 8, "retries": 1, "blind_retries": 1},
    "application": {"reflections": 1, "retries": 1},
}
VERIFIERS = "0.1.14"
"""Version of the library that `vs_verifiers` is about."""

HOLD = b'"hold":true'
HOLD_S = 10.0


def serve_stub(port_of: Connection) -> None:
    """Answer every request at once, or, if it asks for that, after 10 s."""
    answers = {n: http("HTTP/1.1 200 OK", json.dumps(answer_of(n)).encode()) for n in (1, 8)}

    async def answer_to(body: bytes) -> bytes:
        if HOLD in body:
            await asyncio.sleep(HOLD_S)
        return answers[8 if b'"n":8' in body else 1]

    allow_files()
    serve(port_of, answer_to)


def answer_of(n: int) -> dict[str, Any]:
    [choice] = ANSWER["choices"]
    usage = {**ANSWER["usage"], "completion_tokens": TOKENS * n}
    return {**ANSWER, "choices": [{**choice, "index": i} for i in range(n)], "usage": usage}


def allow_files() -> None:
    """Let this process open as many files as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Turn(NamedTuple):
    """Calls of one turn."""

    calls: int
    seconds: float
    cpu_s: float

    @property
    def rate(self) -> float:
        return self.calls / self.seconds


async def turn(episode: Callable[[], Awaitable[int]], seconds: float) -> Turn:
    """Run episodes, 64 at a time, and count their calls."""
    calls, start, cpu = 0, time.perf_counter(), time.process_time()

    async def worker() -> None:
        nonlocal calls
        while time.perf_counter() - start < seconds:
            made = await episode()
            calls += made

    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
    return Turn(calls, time.perf_counter() - start, time.process_time() - cpu)


def never(task: Task, answer: Answer) -> bool:
    return False


class Recording(OpenAIPolicy):
    """Policy that notes the requests of an episode, so that the bare client can make the same."""

    requests: list[dict[str, Any]]

    async def _ask(self, target: Any, body: dict[str, Any], *args: Any) -> Any:  # pyright: ignore
        self.requests.append({"model": target.model, **body})
        return await super()._ask(target, body, *args)


SDK_FIELDS = {"model", "messages", "n", "logprobs", "temperature", "top_p", "max_tokens", "seed", "stop"}


async def measure(url: str, seconds: float, turns: int) -> dict[str, float]:
    task = {"task": {"messages": MESSAGES}}
    results: dict[str, float] = {}
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    policy = OpenAIPolicy(url, "stub", concurrency=2 * CONCURRENCY)
    noting = Recording(url, "stub")
    for form, limits in FORMS.items():
        noting.requests = []
        out = await build_graph(policy=noting, verifier=never, **limits).compile().ainvoke(task)
        spans = out["trajectory"]["spans"]
        assert {span["capability"] for span in spans} == {"trainable-exact"}, spans[0]["capability_note"]
        requests = [
            {
                **{k: v for k, v in body.items() if k in SDK_FIELDS},
                "extra_body": {k: v for k, v in body.items() if k not in SDK_FIELDS},
            }
            for body in noting.requests
        ]
        graph: Any = build_graph(policy=policy, verifier=never, **limits).compile()

        async def through_graph(graph: Any = graph, calls: int = len(requests)) -> int:
            await graph.ainvoke(task)
            return calls

        async def bare(requests: list[dict[str, Any]] = requests) -> int:
            for request in requests:
                answer = await client.chat.completions.create(**request)
                assert answer.choices[0].message.content
            return len(requests)

        ours: list[Turn] = []
        theirs: list[Turn] = []
        for _ in range(turns):
            with rare_garbage_collection() if form == "collecting" else nullcontext():
                theirs.append(await turn(bare, seconds))
                ours.append(await turn(through_graph, seconds))
        name = "" if form == "collecting" else "_application"
        ratios = [mine.rate / other.rate for mine, other in zip(ours, theirs, strict=True)]
        results[f"vs_openai_client{name}"] = round(statistics.median(ratios), 2)
        results[f"calls_per_s{name}"] = round(statistics.median(each.rate for each in ours))
        for ways, label in ((ours, "cpu_ms_per_call"), (theirs, "openai_cpu_ms_per_call")):
            results[f"{label}{name}"] = round(statistics.median(each.cpu_s / each.calls * 1e3 for each in ways), 2)
    for each in (client.close(), policy.aclose(), noting.aclose()):
        await each
    return results


async def hold_many(url: str, number: int, starts_per_s: float, *, on_httpx: bool = False) -> dict[str, float]:
    """Have many requests under way at once, begun in a ramp, and measure how late the event loop is."""
    lags: list[float] = []
    own = httpx.AsyncClient(limits=httpx.Limits(max_connections=number)) if on_httpx else None
    policy = OpenAIPolicy(url, "stub", concurrency=number, http_client=own, max_tries=1)
    sampling = policy.sampling.model_copy(update={"extra": {"hold": True}})
    most = under_way = 0

    async def watch() -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.01)
            lags.append((time.perf_counter() - start - 0.01) * 1e3)

    async def call(i: int) -> None:
        nonlocal most, under_way
        await asyncio.sleep(i / starts_per_s)
        under_way += 1
        most = max(most, under_way)
        try:
            await policy.sample(MESSAGES, sampling=sampling)
        finally:
            under_way -= 1

    watching = asyncio.create_task(watch())
    done = await asyncio.gather(*(call(i) for i in range(number)), return_exceptions=True)
    watching.cancel()
    await policy.aclose()
    if own is not None:
        await own.aclose()
    for error in {str(each) for each in done if each is not None}:
        print(error)
    return {
        "in_flight_4000": sum(each is None for each in done) / number,
        "in_flight_most": most,
        "loop_lag_p99_ms": round(percentile(lags, 0.99), 1),
    }


async def beside_verifiers(url: str, python: Path, turns: int, rollouts: int) -> dict[str, float]:
    """Make as many rollouts in alternating turns here and in the library's process."""
    task = {"task": {"messages": MESSAGES}}
    policy = OpenAIPolicy(url, "stub", concurrency=2 * CONCURRENCY)
    graph: Any = build_graph(policy=policy, verifier=never, max_attempts=1).compile()
    sampling = {"logprobs": True, "temperature": 1.0, "max_tokens": 512, "extra_body": {"return_token_ids": True}}
    arguments = [json.dumps(each) for each in (url, MESSAGES, sampling)]
    library = await asyncio.create_subprocess_exec(
        python,
        verifiers_loop.__file__,
        *arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "VERIFIERS_KEY": "none"},
    )
    assert library.stdin is not None
    assert library.stdout is not None

    async def theirs(number: int) -> Turn:
        library.stdin.write(f"{number}\n".encode())
        return Turn(*json.loads(await library.stdout.readline()))

    async def ours(number: int) -> Turn:
        left = iter(range(number))

        async def worker() -> None:
            for _ in left:
                await graph.ainvoke(task)

        start, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
        return Turn(number, time.perf_counter() - start, time.process_time() - cpu)

    for way in (theirs, ours):
        await way(CONCURRENCY)
    pairs: list[tuple[Turn, Turn]] = []
    with rare_garbage_collection():
        for _ in range(turns):
            pairs.append((await theirs(rollouts), await ours(rollouts)))
    library.stdin.close()
    await library.wait()
    await policy.aclose()
    rate = statistics.median(other.seconds / mine.seconds for other, mine in pairs)
    cpu = statistics.median(other.cpu_s / mine.cpu_s for other, mine in pairs)
    return {
        "vs_verifiers": round(min(rate, cpu), 2),
        "vs_verifiers_rate": round(rate, 2),
        "vs_verifiers_cpu": round(cpu, 2),
        "cpu_ms_per_rollout": round(statistics.median(mine.cpu_s / rollouts * 1e3 for _, mine in pairs), 2),
        "verifiers_cpu_ms_per_rollout": round(statistics.median(other.cpu_s / rollouts * 1e3 for other, _ in pairs), 2),
    }


def install_verifiers(directory: Path | None) -> Path | None:
    """Return the interpreter of an environment with the library; `None` if there is none, and print why."""
    if directory is None:
        print("vs_verifiers is null: pass --verifiers DIR, a directory to install the library into")
        return None
    python = directory / "venv" / "bin" / "python"
    check = f"from importlib.metadata import version; assert version('verifiers') == '{VERIFIERS}'"
    try:
        if python.exists() and subprocess.run([python, "-c", check], stderr=subprocess.DEVNULL).returncode == 0:
            return python
        subprocess.run([sys.executable, "-m", "venv", directory / "venv"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"verifiers=={VERIFIERS}"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"vs_verifiers is null: verifiers {VERIFIERS} cannot be installed: {error}")
        return None
    return python


LAST = (
    *("vs_openai_client", "vs_verifiers", "cpu_ms_per_call", "bytes_per_trajectory", "load_rate", "peak_gib"),
    *("in_flight_4000", "loop_lag_p99_ms"),
)
"""Results in the last line; those that were not measured are null."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--in-flight", type=int, default=4000)
    parser.add_argument("--starts-per-s", type=float, default=500)
    parser.add_argument("--stored", type=int, default=10_000, help="episodes in the store that is measured")
    parser.add_argument("--httpx", action="store_true", help="hold as many requests on httpx too")
    parser.add_argument("--verifiers", type=Path, help="directory for an environment with the verifiers library")
    parser.add_argument("--rollouts", type=int, default=1000, help="rollouts of a turn beside that library")
    options = parser.parse_args()
    allow_files()
    ours, theirs = multiprocessing.Pipe()
    stub = multiprocessing.get_context("spawn").Process(target=serve_stub, args=(theirs,), daemon=True)
    stub.start()
    url = f"http://127.0.0.1:{ours.recv()}/v1"
    results = asyncio.run(measure(url, options.seconds, options.turns))
    if (python := install_verifiers(options.verifiers)) is not None:
        results |= asyncio.run(beside_verifiers(url, python, options.turns, options.rollouts))
    for on_httpx in (True, False) if options.httpx else (False,):
        found = asyncio.run(hold_many(url, options.in_flight, options.starts_per_s, on_httpx=on_httpx))
        results |= {f"{name}{'_httpx' * on_httpx}": value for name, value in found.items()}
    stub.terminate()
    results |= store.measure(options.turns, options.stored)
    for name, value in results.items():
        print(f"{name:36} {value}")
    print(json.dumps({name: results.get(name) for name in LAST}))


if __name__ == "__main__":
    main()
