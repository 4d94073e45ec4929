"""Metrics of a run at the services themselves, read with their own readers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from r3agent import ConfigError
from r3agent.run.stages import Run
from r3agent.testing import ScriptedEndpoint
from tests.support.services import REPORTERS, needs_services

Points = dict[str, list[tuple[float, float]]]
"""Values of each metric with their places on its axis."""

STAGES = f"""
import sys
sys.path.append({str(REPORTERS)!r})
from r3agent.run.stages import Run
for directory in sys.argv[1:]:
    run = Run(directory)
    run.collect()
    follow = run.metrics.following(lambda stage, values: None, 10)
    for step in (1, 2):
        follow("step", {{"step": step, "steps": 2, "loss": 1 / step, "seconds_left": 1.0}})
    run.measure("v0000")
"""
"""A collection, the steps of a training that follows 10 others, and an evaluation of each run, in one process."""

TENSORBOARD = """
from tensorboard.util.tensor_util import make_ndarray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(str(next((root / "tensorboard/tensorboard").iterdir()))).Reload()
points = {
    tag: [(e.step, float(make_ndarray(e.tensor_proto))) for e in events.Tensors(tag)]
    for tag in events.Tags()["tensors"]
}
"""
WANDB = """
from wandb.proto.wandb_internal_pb2 import Record
[file] = root.glob("wandb/wandb/offline-run-*/*.wandb")
content, records = file.read_bytes(), []
at, whole = 7, b""
while at < len(content):  # a log of LevelDB: blocks of 32 KiB with parts of records
    if 2**15 - at % 2**15 < 7:
        at += 2**15 - at % 2**15
        continue
    size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
    whole += content[at + 7 : at + 7 + size]
    at += 7 + size
    if kind in (1, 4):
        records.append(Record.FromString(whole))
        whole = b""
axes = {r.metric.name: r.metric.step_metric for r in records if r.HasField("metric")}
rows = [{i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in r.history.item} for r in records]
rows = [row for row in rows if row]
"""
TRACKIO = """
from trackio.sqlite_storage import SQLiteStorage
[name] = SQLiteStorage.get_runs("r3agent")
rows = SQLiteStorage.get_logs("r3agent", name)
axes = {key: "train/global_step" if key == "train/loss" else "round" for row in rows for key in row}
"""
ROWS = """
points = {}
for row in rows:
    for key in row.keys() & axes.keys():
        if axes[key] in row:
            points.setdefault(key, []).append((row[axes[key]], row[key]))
"""
READERS = {"tensorboard": TENSORBOARD, "wandb": WANDB + ROWS, "trackio": TRACKIO + ROWS}


def run_script(script: str, *arguments: object, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, **variables},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_services
def test_stages_report_to_each_service(tmp_path: Path) -> None:
    variables = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "files"), "TRACKIO_PROJECT": "r3agent"}
    with ScriptedEndpoint(lambda body, i: "wrong" if "3" in body["messages"][0]["content"] else "right") as server:
        runs = [a_run(tmp_path, server.url, service).directory for service in READERS]
        assert run_script(STAGES, *runs, **variables) == ""
    reader = f"import json, sys, pathlib\nsys.path.append({str(REPORTERS)!r})\nroot = pathlib.Path(sys.argv[1])\n"
    for service in READERS:
        reader += f"{READERS[service]}\nprint(json.dumps(points))\n"
    for service, line in zip(READERS, run_script(reader, tmp_path, **variables).splitlines(), strict=True):
        points: Points = json.loads(line)
        assert points["train/loss"] == [[11, 1.0], [12, 0.5]], service
        [[round_, episodes]] = points["collect/episodes"]
        assert round_ == 1, service
        assert episodes > 1, service
        [[round_, rate]] = points["eval/candidate/first_try/rate"]
        assert round_ == 0, service
        assert 0 <= rate <= 1, service
        assert 0 < points["collect/first_try"][0][1] < 1, service


def a_run(tmp_path: Path, url: str, service: str) -> Run:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps({"prompt": f"question {i}", "answer": "right"}) + "\n" for i in range(24)))
    settings = {
        "policy.base_url": url,
        "policy.model": "scripted",
        "policy.base_model": "tiny",
        "task.source": str(tasks),
        "task.verifier": "exact",
        "collect.reflections": 2,
        "telemetry.report_to": service,
    }
    run = Run(tmp_path / service, settings)
    run.write_config()
    return run


def test_a_missing_service_is_found_before_the_server_is_asked(tmp_path: Path) -> None:
    run = a_run(tmp_path, "http://127.0.0.1:1/v1", "trackio")
    with pytest.raises(ConfigError, match=r"telemetry.report_to = 'trackio': trackio is not installed; pip install"):
        run.collect()


BROKEN = """
import sys, pathlib
sys.path.append({reporters!r})
from r3agent.telemetry.metrics import Metrics
(pathlib.Path(sys.argv[1]) / "tensorboard").write_text("a file where the service needs a directory")
metrics = Metrics("tensorboard", pathlib.Path(sys.argv[1]), "run", {{}})
for i in range(3):
    metrics.log("collect", {{"episodes": i}}, i)
"""


@needs_services
def test_a_service_that_fails_ends_the_report_alone(tmp_path: Path) -> None:
    script = BROKEN.format(reporters=str(REPORTERS))
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, check=True, text=True)
    assert done.stderr.count("metrics are not reported to tensorboard") == 1
