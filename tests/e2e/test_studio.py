"""`langgraph dev` with the graphs of `langgraph.json`, over its HTTP API; `make studio` installs it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.shop import tasks
from r3agent import EpisodeContext, Trajectory
from r3agent.records.prompts import PROMPTS
from r3agent.serve import ServerProcess
from r3agent.store.registry import Registry
from r3agent.testing import ScriptedEndpoint
from tests.support.outage import free_port
from tests.support.processes import started
from tests.support.registries import add

ROOT = Path(__file__).parents[2]
LANGGRAPH = Path(os.environ.get("R3AGENT_LANGGRAPH", ROOT / ".venv-studio/bin/langgraph"))
CHAIN = ["attempt", "reflect", "retry"]
PUZZLE = {"numbers": [2, 3, 4], "target": 20}

pytestmark = pytest.mark.skipif(
    not LANGGRAPH.exists(),
    reason=f"{LANGGRAPH} is not there: `make studio` installs it, R3AGENT_LANGGRAPH names another",
)


class Studio:
    """A client of the running server."""

    def __init__(self, http: httpx.Client, log: Path) -> None:
        self.http = http
        self.log = log

    def post(self, path: str, body: Any) -> Any:
        return self.http.post(path, json=body).raise_for_status().json()

    def wait(self, graph: str, input: Any, context: Any = None) -> Any:
        body = {"assistant_id": graph, "input": input, "context": context or {}}
        return self.post("/runs/wait", body)

    def stream(self, graph: str, input: Any, context: Any = None) -> list[tuple[str, Any]]:
        """Names and data of the server-sent events."""
        body = {
            "assistant_id": graph,
            "input": input,
            "context": context or {},
            "stream_mode": ["custom", "values"],
            "stream_subgraphs": True,
        }
        events, name = list[tuple[str, Any]](), ""
        with self.http.stream("POST", "/runs/stream", json=body) as answer:
            for line in answer.raise_for_status().iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    events.append((name, json.loads(value)))
        return events

    def schemas(self, graph: str) -> Any:
        [assistant] = self.post("/assistants/search", {"graph_id": graph})
        return self.http.get(f"/assistants/{assistant['assistant_id']}/schemas").raise_for_status().json()


@contextmanager
def studio(tmp_path: Path, base_url: str, model: str, **more: str) -> Iterator[Studio]:
    """Run LangGraph Studio's server.

    Args:
        more: variables of the environment.
    """
    port, log = free_port(), tmp_path / "studio.log"
    url = f"http://127.0.0.1:{port}"
    env = {
        **os.environ,
        "LANGSMITH_TRACING": "false",
        "LANGGRAPH_CLI_NO_ANALYTICS": "1",
        "R3AGENT_BASE_URL": base_url,
        "R3AGENT_MODEL": model,
        **more,
    }
    for name in ("langgraph.json", "graphs", "examples"):  # it keeps threads where it runs
        (tmp_path / name).symlink_to(ROOT / name)
    options = ["--no-browser", "--no-reload", "--port", str(port)]
    with (
        started([LANGGRAPH, "dev", *options], healthy=f"{url}/ok", env=env, cwd=tmp_path, log=log),
        httpx.Client(base_url=url, timeout=300) as http,
    ):
        yield Studio(http, log)


def trajectory(output: Any) -> Trajectory:
    assert "trajectory" in output, output
    return Trajectory.model_validate(output["trajectory"])


@pytest.fixture(scope="module")
def countdown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """Studio with the policy in the package."""
    tmp_path = tmp_path_factory.mktemp("studio")
    with (
        ServerProcess("bundled", log_path=tmp_path / "log") as server,
        studio(tmp_path, server.base_url, "bundled") as running,
    ):
        yield running


def test_it_shows_what_goes_in_what_comes_out_and_what_can_be_turned(countdown: Studio) -> None:
    schemas = countdown.schemas("countdown")
    assert schemas["input_schema"]["properties"].keys() == PUZZLE.keys()
    assert schemas["output_schema"]["properties"].keys() == {"answer", "passed", "trajectory"}
    knobs = schemas["context_schema"]["properties"]
    assert knobs.keys() >= {"max_attempts", "reflections", "retries", "sampling"}
    assert knobs["max_attempts"]["description"] == EpisodeContext.model_fields["max_attempts"].description


def test_an_answer_is_recorded_token_by_token(countdown: Studio) -> None:
    spans = trajectory(countdown.wait("countdown", PUZZLE)).spans
    assert {span.capability for span in spans} == {"trainable-exact"}
    assert spans[0].verdict is not None


def test_a_stream_has_every_token_and_its_context_counts(countdown: Studio) -> None:
    events = countdown.stream("countdown", PUZZLE, {"max_attempts": 1})
    deltas = [data for name, data in events if name.startswith("custom")]
    [*_, (_, last)] = [event for event in events if event[0] == "values"]
    [attempt] = trajectory(last).spans
    assert len(deltas) > 1
    assert {delta["span_id"] for delta in deltas} == {attempt.span_id}
    assert "".join(delta["delta"] for delta in deltas) == attempt.text


def test_a_setting_that_does_not_fit_is_explained_in_the_log(countdown: Studio) -> None:
    events = countdown.stream("countdown", PUZZLE, {"max_attempts": 0})
    [error] = [data for name, data in events if name == "error"]
    assert error["error"] == "ConfigError"  # the server keeps messages to itself
    assert "context.max_attempts = 0: Input should be greater than or equal to 1" in countdown.log.read_text()


FUNCTION = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
WEATHER = {
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    "tools": [{"type": "function", "function": FUNCTION}],
    "info": {
        "expect": "calls",
        "calls": [{"name": "weather", "accepts": {"city": ["Paris"]}}],
        "functions": {"weather": {"required": ["city"], "types": {"city": ["string"]}}},
    },
}


def script(body: dict[str, Any], choice: int) -> Any:
    """A model that needs a reflection: of SQL, and of tool calls."""
    asked = body["messages"][-1]["content"]
    if asked in {prompts.reflect_prompt for prompts in PROMPTS.values()}:
        return "I left something out."
    is_retry = len(body["messages"]) > 3
    if any("SQLite" in message["content"] for message in body["messages"][:1]):
        join = "LEFT JOIN" if is_retry else "JOIN"
        return f"SELECT name, count(o.id) FROM customers c {join} orders o ON customer_id = c.id GROUP BY 1 ORDER BY 1"
    city = "Paris" if is_retry else "London"
    call = {"name": "weather", "arguments": json.dumps({"city": city})}
    return {"content": None, "tool_calls": [{"id": "1", "type": "function", "function": call}]}


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """Studio with a script in place of a model that can do more than the policy in the package."""
    with (
        ScriptedEndpoint(script) as endpoint,
        studio(tmp_path_factory.mktemp("studio"), endpoint.url, "scripted") as running,
    ):
        yield running


def test_sql_is_right_when_its_rows_are(scripted: Studio) -> None:
    task = next(task for task in tasks(None) if task.id == "shop/orders-each")
    output = scripted.wait("sql", {"question": task.messages[-1]["content"], "gold": task.info["answer"]})
    spans = trajectory(output).spans
    assert output["passed"]
    assert ([span.label for span in spans], spans[0].verdict.feedback) == (CHAIN, "5 rows, not 6")


@pytest.mark.parametrize("as_node", [None, "verify", "attempt"])
def test_an_edited_state_is_a_branch(scripted: Studio, as_node: str | None) -> None:
    thread = f"/threads/{scripted.post('/threads', {})['thread_id']}"
    run = {"assistant_id": "function_calling"}
    first = trajectory(scripted.post(f"{thread}/runs/wait", {**run, "input": {"task": WEATHER}}))
    [*_, failed] = [s for s in scripted.post(f"{thread}/history", {"limit": 99}) if s["next"] == ["reflect"]]
    edit = {"spans": [{"span_id": first.spans[0].span_id, "tool_calls": first.spans[-1].model_dump()["tool_calls"]}]}
    body = {"values": edit, "checkpoint": failed["checkpoint"], **({"as_node": as_node} if as_node else {})}
    edited = scripted.post(f"{thread}/state", body)["checkpoint"]
    second = trajectory(scripted.post(f"{thread}/runs/wait", {**run, "input": None, "checkpoint": edited}))
    assert second.parent_id == first.trajectory_id
    assert [span.capability for span in second.spans[:1]] == ["eval-only"]
    assert [span.label for span in second.spans] == (["attempt"] if as_node == "attempt" else CHAIN)


def test_tools_are_called_as_they_should_be(scripted: Studio) -> None:
    output = scripted.wait("function_calling", {"task": WEATHER})
    spans = trajectory(output).spans
    assert (output["passed"], [span.label for span in spans]) == (True, CHAIN)
    assert "Paris" in spans[-1].tool_calls[0]["function"]["arguments"]


def test_a_run_s_live_version_answers_and_the_next_one_when_it_is_live(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "run")
    registry.add_base("tiny", "org/tiny")
    registry.set_live("v0000")
    add(registry, "v0001", "lora")
    with (
        ScriptedEndpoint("<answer>2</answer>", model="tiny") as endpoint,
        studio(tmp_path, endpoint.url, "tiny@live", R3AGENT_RUN=str(registry.run_dir)) as running,
    ):
        endpoint.adapters = ["tiny@v0001"]
        once = {"max_attempts": 1}
        [before] = trajectory(running.wait("countdown", PUZZLE, once)).spans
        registry.set_live("v0001")
        [after] = trajectory(running.wait("countdown", PUZZLE, once)).spans
    assert (before.model, before.policy_version) == ("tiny", "v0000")
    assert (after.model, after.policy_version) == ("tiny@v0001", "v0001")
