"""Cost of collecting besides the model: calls on an endpoint that answers at once, in a process of its own.

In alternating turns, 64 at a time, the same requests are made by episodes as `collect` runs them (an attempt, 8
reflections, 8 retries and a blind retry) and by a loop of bare `AsyncOpenAI` calls, both with garbage collection as
`r3agent collect` sets it. `vs_openai_client` is the median over the turns of the episodes' calls per second divided by
those of the loop, and `vs_openai_client_application` the same for the graph of `build_graph`, a chain of an attempt, a
reflection and a retry, with the interpreter's garbage collection. `cpu_ms_per_call` is the CPU time of the client's
process for a call. Then 4,000 requests are under way at once, begun at 500 a second and each held for 10 s:
`in_flight_4000` is the share that is answered, `loop_lag_p99_ms` the delay of the event loop meanwhile.
`benchmarks.store` measures the rest.

`vs_verifiers` is measured by `benchmarks.beside_verifiers`; where the library cannot be installed, and without the
option, it is null.

    python -m benchmarks.collect_overhead [--seconds 3] [--turns 5] [--in-flight 4000] [--httpx] [--verifiers DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import openai

from benchmarks import store
from benchmarks.beside_verifiers import beside_verifiers, install_verifiers
from benchmarks.stub import MESSAGES, allow_files, percentile, stub_server
from benchmarks.turns import CONCURRENCY, Turn, turn
from r3agent import OpenAIPolicy, Task, build_graph
from r3agent._util.cycles import rare_garbage_collection
from r3agent.episodes.assembly import assemble
from r3agent.episodes.nodes import Nodes
from r3agent.episodes.run_episode import run_episode
from r3agent.verifiers.text import exact

FORMS: dict[str, dict[str, Any]] = {
    "collecting": {"reflections": 8, "retries": 1, "blind_retries": 1},
    "application": {"reflections": 1, "retries": 1},
}


class Recording(OpenAIPolicy):
    """Policy that notes the requests of an episode, so that the bare client can make the same."""

    requests: list[dict[str, Any]]

    async def _ask(self, target: Any, body: dict[str, Any], *args: Any) -> Any:  # pyright: ignore
        self.requests.append({"model": target.model, **body})
        return await super()._ask(target, body, *args)


SDK_FIELDS = {"model", "messages", "n", "logprobs", "temperature", "top_p", "max_tokens", "seed", "stop"}


async def measure(url: str, seconds: float, turns: int) -> dict[str, float]:
    own = Task(messages=tuple(MESSAGES), info={"answer": "none"})
    task: Any = {"task": own.model_dump(mode="json")}
    results: dict[str, float] = {}
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    policy = OpenAIPolicy(url, "stub", concurrency=2 * CONCURRENCY)
    noting = Recording(url, "stub")
    for form, limits in FORMS.items():
        noting.requests = []
        out = await build_graph(policy=noting, verifier=exact, **limits).compile().ainvoke(task)
        spans = out["trajectory"]["spans"]
        assert {span["capability"] for span in spans} == {"trainable-exact"}, spans[0]["capability_note"]
        requests = [
            {
                **{k: v for k, v in body.items() if k in SDK_FIELDS},
                "extra_body": {k: v for k, v in body.items() if k not in SDK_FIELDS},
            }
            for body in noting.requests
        ]
        graph: Any = build_graph(policy=policy, verifier=exact, **limits).compile()
        nodes = assemble(policy=policy, verifier=exact, **limits)

        async def through_graph(graph: Any = graph, calls: int = len(requests)) -> int:
            await graph.ainvoke(task)
            return calls

        async def collecting(nodes: Nodes = nodes, calls: int = len(requests)) -> int:
            assert (await run_episode(nodes, own)).cause is None
            return calls

        async def bare(requests: list[dict[str, Any]] = requests) -> int:
            for request in requests:
                answer = await client.chat.completions.create(**request)
                assert answer.choices[0].message.content
            return len(requests)

        ours: list[Turn] = []
        theirs: list[Turn] = []
        way = collecting if form == "collecting" else through_graph
        for _ in range(turns):
            with rare_garbage_collection() if form == "collecting" else nullcontext():
                theirs.append(await turn(bare, seconds))
                ours.append(await turn(way, seconds))
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
    with stub_server() as port:
        url = f"http://127.0.0.1:{port}/v1"
        results = asyncio.run(measure(url, options.seconds, options.turns))
        if (python := install_verifiers(options.verifiers)) is not None:
            results |= asyncio.run(beside_verifiers(url, python, options.turns, options.rollouts))
        for on_httpx in (True, False) if options.httpx else (False,):
            found = asyncio.run(hold_many(url, options.in_flight, options.starts_per_s, on_httpx=on_httpx))
            results |= {f"{name}{'_httpx' * on_httpx}": value for name, value in found.items()}
    results |= store.measure(options.turns, options.stored, options.stored)
    for name, value in results.items():
        print(f"{name:36} {value}")
    print(json.dumps({name: results.get(name) for name in LAST}))


if __name__ == "__main__":
    main()
