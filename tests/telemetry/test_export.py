"""Export of spans over OTLP and HTTP, read with the protocol's own messages, and a collector that does not answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from r3agent import ConfigError, load
from r3agent.run.config import load_config
from r3agent.store.shards import TrajectoryWriter
from r3agent.telemetry.tracing import TRAJECTORY
from r3agent.testing import ScriptedEndpoint
from tests.support.trees import TASK, span, tree


class Collector:
    """Receiver of OTLP over HTTP on this machine."""

    def __init__(self) -> None:
        self.url = ""
        self.received: list[tuple[str, str | None, ExportTraceServiceRequest]] = []
        """Path, header of the key, and content of each request."""
        self.hangs = threading.Event()
        self.hangs.set()  # a collector that answers


@contextmanager
def listening() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            collector.hangs.wait(60)
            request = ExportTraceServiceRequest.FromString(content)
            collector.received.append((self.path, self.headers["x-key"], request))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        collector.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield collector
        finally:
            collector.hangs.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with listening() as collector:
        yield collector


def collected(run: Path, url: str, *flags: str, **variables: str) -> dict[str, Any]:
    """Collect a few episodes by command; return what it prints."""
    tasks = run.parent / "tasks.jsonl"
    tasks.write_text("".join(json.dumps({"id": f"t{i}", "prompt": "?", "answer": "right"}) + "\n" for i in range(8)))
    words = f"collect --run {run} --url {url} --model scripted --base-model tiny --verifier exact --n 8 --reflections 2"
    settings = [word for flag in flags for word in ("--set", flag)]
    command = ["-m", "r3agent", *words.split(), "--task", str(tasks), *settings, "--json"]
    return json.loads(in_process(*command, **variables))


def in_process(*words: str, **variables: str) -> str:
    """Run Python; return what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment |= variables
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def spans_at(collector: Collector) -> list[Any]:
    groups = [group for _, _, request in collector.received for group in request.resource_spans]
    return [span for group in groups for scope in group.scope_spans for span in scope.spans]


def test_command_line_exports_to_a_collector(collector: Collector, tmp_path: Path) -> None:
    run = tmp_path / "mine"
    with ScriptedEndpoint("right") as server:
        variables = {"OTEL_EXPORTER_OTLP_HEADERS": "x-key=secret", "OTEL_RESOURCE_ATTRIBUTES": "team=a"}
        collected(run, server.url, "telemetry.traces=otlp", f"telemetry.endpoint={collector.url}", **variables)
    paths, keys, requests = zip(*collector.received, strict=True)
    assert ({*paths}, {*keys}) == ({"/v1/traces"}, {"secret"})
    groups = [group for request in requests for group in request.resource_spans]
    resource = {a.key: a.value.string_value for a in groups[0].resource.attributes}
    assert (resource["service.name"], resource["r3agent.run"], resource["team"]) == ("r3agent", "mine", "a")
    spans = spans_at(collector)
    episodes = {span.span_id: span for span in spans if span.name == "invoke_agent r3agent"}
    chats = [span for span in spans if span.name == "chat scripted" and span.parent_span_id in episodes]
    ids = [next(a.value.string_value for a in c.attributes if a.key == "r3agent.trajectory.id") for c in chats]
    assert sorted(ids) == sorted(t.trajectory_id for t in load(run))


def test_verdicts_on_stored_episodes_are_exported(collector: Collector, tmp_path: Path) -> None:
    run, settings = tmp_path / "run", f'[telemetry]\ntraces = "otlp"\nendpoint = "{collector.url}"\n'
    (run / "trajectories").mkdir(parents=True)
    (run / "r3.toml").write_text(settings)
    with TrajectoryWriter(run / "trajectories") as writer:
        task = TASK.model_copy(update={"info": {"answer": "right"}})
        writer.append(tree(span("attempt", text="right", passed=False)).changed(task=task))
    [stored] = load(run)
    verbs = [
        ["label", str(run / "trajectories"), stored.trajectory_id, "--passed"],
        ["reverify", str(run), "--verifier", "exact"],
    ]
    in_process("-c", f"from r3agent.cli.main import main\nassert [main(words) for words in {verbs}] == [0, 0]")
    told = [(s.name, *({a.key: a.value.string_value for a in s.attributes}[TRAJECTORY],)) for s in spans_at(collector)]
    assert told == [("evaluate label", stored.trajectory_id), ("evaluate exact", stored.trajectory_id)]


def test_a_collector_that_hangs_stops_nobody(collector: Collector, tmp_path: Path) -> None:
    collector.hangs.clear()
    with ScriptedEndpoint("right") as server:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "10"}
        summary = collected(tmp_path / "run", server.url, "telemetry.traces=otlp", **variables)
    assert summary["episodes"] == len(load(tmp_path / "run")) > 1
    assert (summary["errors"], collector.received) == ({}, [])


def test_spans_without_a_collector_are_told_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "trajectories").mkdir(parents=True)
    (run / "r3.toml").write_text('[telemetry]\ntraces = "otlp"\nendpoint = "http://127.0.0.1:9"\n')
    with TrajectoryWriter(run / "trajectories") as writer:
        writer.append(tree(span("attempt", text="right")))
    [stored] = load(run)
    words = ["label", str(run / "trajectories"), stored.trajectory_id, "--passed"]
    done = subprocess.run([sys.executable, "-m", "r3agent", *words], capture_output=True, check=True, text=True)
    said = " ".join(done.stderr.split())
    assert "http://127.0.0.1:9/v1/traces does not take the spans of telemetry ([Errno 111] Connection refused)" in said
    assert said.count("WARNING") == said.count("telemetry.endpoint") == 1


def test_endpoint_with_a_password_is_refused() -> None:
    with pytest.raises(ConfigError, match="endpoint"):
        load_config(None, {"telemetry.endpoint": "http://user:secret@host:4318"})
