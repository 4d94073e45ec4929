"""Spans in an application's tracer provider: what they say, and whose children they are."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import openai
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind, StatusCode

import r3agent
from r3agent import build_graph, collect, load
from r3agent.policy import OpenAIPolicy, Sampling
from r3agent.testing import SERVER_ERROR, ScriptedEndpoint, ScriptedPolicy
from r3agent.verifiers.llm_judge import LLMJudge
from tests.support.exported import Exported, has, id_of, trace_of

ASK: list[Any] = [{"role": "user", "content": "a private question"}]
TRAJECTORY = "r3agent.trajectory.id"


def tasks(n: int) -> list[dict[str, Any]]:
    return [{"id": f"t{i}", "messages": ASK} for i in range(n)]


def right(task: Any, answer: str) -> bool:
    return answer == "right"


def call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": f"call-{name}", "type": "function", "function": {"name": name, "arguments": arguments}}


async def test_episodes_at_once_are_traces_of_their_own(exported: Exported, tmp_path: Path) -> None:
    policy = ScriptedPolicy({"attempt": "wrong", "reflect": "hm", "retry": "right"})
    limits: Any = {"reflections": 2, "concurrency": 200}
    await collect(tasks(200), policy=policy, verifier=right, out=tmp_path, agent_name="solver", **limits)
    stored = {t.trajectory_id: t for t in load(tmp_path)}
    roots = exported.named("invoke_agent solver")
    assert {has(root)[TRAJECTORY] for root in roots} == stored.keys()
    assert len({trace_of(root) for root in roots}) == 200
    for root in roots:
        inside, episode = exported.children(root), stored[has(root)[TRAJECTORY]]
        assert {trace_of(s) for s in inside} == {trace_of(root)}
        assert {has(s)[TRAJECTORY] for s in inside} == {episode.trajectory_id}
        chats = [has(s) for s in inside if s.name == "chat scripted"]
        assert sorted(i for c in chats for i in c["r3agent.span.ids"]) == sorted(s.span_id for s in episode.spans)
        assert sum(c["gen_ai.usage.output_tokens"] for c in chats) == sum(
            s.completion_tokens or 0 for s in episode.spans
        )
        judged = [has(s)["gen_ai.evaluation.score.label"] for s in inside if s.name == "evaluate right"]
        assert sorted(judged) == ["fail", "pass", "pass"]
        assert has(root)["r3agent.task.id"] == episode.task.id
    assert not any("private" in str(has(s)) for s in exported.spans)


async def test_calls_of_tools_and_judges_are_spans_with_their_kinds(exported: Exported, tmp_path: Path) -> None:
    def weather(city: str) -> str:
        """Tell the weather."""
        if city != "Rome":
            raise ValueError("unknown")
        return "sunny"

    said = iter([[call("weather", '{"city": "Rome"}'), call("weather", '{"city": "Oz"}')], "right"])

    def answer(body: Any, i: int) -> Any:
        if body["model"] == "judge":
            return '{"explanation": "it is", "passed": true}'
        found = next(said)
        return found if isinstance(found, str) else {"content": "", "tool_calls": found}

    with ScriptedEndpoint(answer) as server:
        server.adapters.append("judge")
        judge = LLMJudge(server.url, "judge")
        policy = OpenAIPolicy(server.url, "scripted", sampling=Sampling(temperature=0.5, seed=1, stop=("END",)))
        await collect(tasks(1), policy=policy, verifier=judge, out=tmp_path, tools=[weather], reflections=2)
        await policy.aclose()
        await judge.aclose()
    root = exported.one("invoke_agent")
    good, bad = exported.named("execute_tool weather")
    assert {s.parent and s.parent.span_id for s in (good, bad)} == {id_of(root)}
    assert (good.status.status_code, bad.status.status_code) == (StatusCode.UNSET, StatusCode.ERROR)
    assert has(good)["gen_ai.tool.call.id"] == "call-weather"
    evaluate = exported.one("evaluate")
    [judging] = exported.children(evaluate)
    assert (judging.name, judging.kind, has(judging)["r3agent.purpose"]) == ("chat judge", SpanKind.CLIENT, "judge")
    first, *_ = exported.named("chat scripted")
    port = int(server.url.split(":")[2].split("/")[0])
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "scripted",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 512,
        "gen_ai.request.stop_sequences": ("END",),
        "gen_ai.response.finish_reasons": ("tool_calls",),
        "server.address": "127.0.0.1",
        "server.port": port,
        "r3agent.policy.version": "v0000",
    }
    assert {name: has(first).get(name) for name in expected} == expected
    assert not any("Rome" in str(has(s)) for s in exported.spans)


async def test_embedded_graph_is_a_part_of_the_applications_trace(exported: Exported) -> None:
    policy = ScriptedPolicy({"attempt": "wrong", "reflect": "hm", "retry": "right"})
    graph = build_graph(policy=policy, verifier=right).compile()
    with trace.get_tracer("app").start_as_current_span("request") as request:
        result = await graph.ainvoke({"task": {"messages": ASK}})
    with trace.get_tracer("app").start_as_current_span("sync request"):
        graph.invoke({"task": {"messages": ASK}})
    for name in ("request", "sync request"):
        around = next(s for s in exported.spans if s.name == name)
        assert [s.name for s in exported.children(around)] == [
            *("chat scripted", "evaluate right", "chat scripted", "chat scripted", "evaluate right")
        ]
    assert request.get_span_context().trace_id in {trace_of(s) for s in exported.named("chat")}
    ids = {has(s)[TRAJECTORY] for s in exported.children(next(s for s in exported.spans if s.name == "request"))}
    assert ids == {result["trajectory"]["trajectory_id"]}


async def test_recorded_application_is_one_trace_across_threads(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    with ScriptedEndpoint("an answer", faults=[None, None, *[SERVER_ERROR] * 9]) as server:
        client = r3agent.instrument(openai.OpenAI(base_url=server.url, api_key="sk-hidden", max_retries=0))

        def ask(**fields: Any) -> Any:
            return client.chat.completions.create(model="scripted", messages=ASK, **fields)

        with r3agent.trace(out=tmp_path) as episode:
            with trace.get_tracer("app").start_as_current_span("step"):
                [*ask(stream=True, stream_options={"include_usage": True})]
            episode.verdict(passed=True)

            def in_thread() -> None:
                with episode:
                    ask()

            thread = threading.Thread(target=in_thread)
            thread.start()
            thread.join()
            with pytest.raises(openai.InternalServerError):
                ask(logprobs=False)
        assert not trace.get_current_span().get_span_context().is_valid
    [stored] = load(tmp_path)
    root = exported.one("invoke_agent")
    streamed, other, failed = exported.named("chat scripted")
    assert {has(s)[TRAJECTORY] for s in (root, streamed, other, failed)} == {stored.trajectory_id}
    assert exported.children(exported.one("step")) == [streamed]
    assert {s.name for s in exported.children(root)} == {"step", "chat scripted", "evaluate application"}
    assert has(streamed)["gen_ai.request.stream"] is True
    assert has(streamed)["gen_ai.usage.output_tokens"] == stored.spans[0].completion_tokens
    assert "a private question" in has(other)["gen_ai.input.messages"]
    assert "an answer" in has(other)["gen_ai.output.messages"]
    assert failed.status.status_code is StatusCode.ERROR
    assert "sk-hidden" not in str([has(s) for s in exported.spans])


async def test_a_failed_episode_says_why(exported: Exported, tmp_path: Path) -> None:
    def verifier(task: Any, answer: str) -> bool:
        if task.id == "t1":
            raise ValueError("no gold answer")
        return True

    await collect(tasks(2), policy=ScriptedPolicy("right"), verifier=verifier, out=tmp_path, reflections=2)
    errors = [has(s).get("error.type") for s in exported.named("invoke_agent")]
    assert sorted(map(str, errors)) == ["None", "VerifierError"]


class Broken(SpanProcessor):
    def on_start(self, span: Any, parent_context: Any = None) -> None:
        raise RuntimeError("broken")

    def on_end(self, span: ReadableSpan) -> None:
        raise RuntimeError("broken")


BROKEN = f"""
import asyncio, sys
from pathlib import Path
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from tests.telemetry.test_tracing import Broken, collect, load, right, tasks, ScriptedPolicy
provider = {TracerProvider.__name__}()
provider.add_span_processor(Broken())
trace.set_tracer_provider(provider)
out = Path(sys.argv[1])
asyncio.run(collect(tasks(3), policy=ScriptedPolicy("right"), verifier=right, out=out, reflections=2))
assert len(load(out)) == 3
"""


def test_a_broken_span_processor_breaks_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", BROKEN, tmp_path], check=True, capture_output=True, text=True)
    assert done.stderr.count("a span of telemetry is lost: RuntimeError: broken") == 1


def test_no_tracer_provider_needs_no_opentelemetry(tmp_path: Path) -> None:
    script = """
import asyncio, sys
from pathlib import Path
sys.modules["opentelemetry"] = None
from r3agent import collect, load
from r3agent.testing import ScriptedPolicy
tasks = [{"id": "t", "messages": [{"role": "user", "content": "?"}]}]
out = Path(sys.argv[1])
asyncio.run(collect(tasks, policy=ScriptedPolicy("wrong"), verifier=lambda t, a: False, out=out, reflections=2))
assert len(load(out)[0].spans) == 5
"""
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True)


async def test_concurrent_traces_do_not_mix(exported: Exported, tmp_path: Path) -> None:
    with ScriptedEndpoint("an answer") as server:
        client = r3agent.instrument(openai.AsyncOpenAI(base_url=server.url, api_key="-", max_retries=0))

        async def one(i: int) -> None:
            with r3agent.trace(out=tmp_path / str(i)):
                await client.chat.completions.create(model="scripted", messages=ASK)

        await asyncio.gather(*map(one, range(20)))
        await client.close()
    assert len({trace_of(s) for s in exported.named("chat")}) == 20
    stored = {load(tmp_path / str(i))[0].trajectory_id for i in range(20)}
    assert {has(s)[TRAJECTORY] for s in exported.named("chat")} == stored
