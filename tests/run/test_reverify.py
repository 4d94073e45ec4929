"""Verdicts on stored answers again, without sampling."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from r3agent import groups, load
from r3agent.cli.main import main
from r3agent.records.trajectory import EpisodeError
from r3agent.store.check import check_store
from r3agent.store.labels import label
from r3agent.store.shards import TrajectoryWriter
from r3agent.store.verdicts import verdicts_path
from tests.support.trees import span, tree

CHECKS = """
import os, time
from r3agent.verifiers import PENDING

def says_yes(task, answer):
    return "yes" in answer

def lenient(task, answer):
    return 0.5 if "no" in answer else True

def world(task, answer, environment):
    return True

def some(task, answer):
    if answer == "boom":
        raise ValueError("cannot read it")
    return PENDING if answer == "hm" else True

def longer(task, answer, *, than):
    return len(answer) > than

def slow(task, answer):
    time.sleep(0.05)
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(answer + "\\n")
    return True
"""


@pytest.fixture
def prod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "checks.py").write_text(CHECKS)
    monkeypatch.syspath_prepend(tmp_path)
    with TrajectoryWriter(tmp_path / "prod") as writer:
        for i, (text, passed) in enumerate([("yes", True), ("no", True), ("yes", False), ("no", False), ("hm", None)]):
            writer.append(tree(span("attempt", passed=passed, text=text)).changed(trajectory_id=f"t{i}"))
        broken = span("attempt", text="").model_copy(update={"error": EpisodeError(kind="OSError", message="down")})
        writer.append(tree(broken).changed(trajectory_id="t5"))
    return tmp_path / "prod"


def reverify(store: Path, verifier: str, *words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    code = main(["reverify", str(store), "--verifier", verifier, "--json", *words])
    printed = capsys.readouterr()
    return code, json.loads(printed.out) if printed.out else printed.err


def passed(store: Path) -> list[bool | None]:
    return [t.passed for t in load(store)]


def test_reverify_layers_its_verdicts_over_the_recorded(prod: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shard,) = prod.glob("*.jsonl")
    before = shard.read_bytes()
    code, report = reverify(prod, "checks:says_yes", capsys=capsys)
    assert code == 0
    assert (report["tries"], report["judged"], report["left_out"]) == (6, 5, {"no_answer": 1})
    assert report["changes"] == {
        "open->wrong": 1, "right->right": 1, "right->wrong": 1, "wrong->right": 1, "wrong->wrong": 1,
    }  # fmt: skip
    assert passed(prod)[:5] == [True, False, True, False, False]
    assert shard.read_bytes() == before
    assert check_store(prod).ok
    code, report = reverify(prod, "checks:lenient", capsys=capsys)
    assert (report["layer"], report["changes"]["wrong->right"]) == (2, 1)
    assert [t.spans[0].verdict.score for t in load(prod)[:5] if t.spans[0].verdict] == [1, 0.5, 1, 0.5, 1]


def test_labels_of_people_count_before_a_layer(prod: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label(prod, "t0", passed=False, by="ann")
    reverify(prod, "checks:says_yes", capsys=capsys)
    verdict = load(prod)[0].spans[0].verdict
    assert verdict is not None
    assert (verdict.passed, verdict.by, verdict.overruled) == (False, "ann", True)


def test_reverify_again_goes_on_and_anew_begins_a_layer(prod: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, first = reverify(prod, "checks:says_yes", capsys=capsys)
    written = verdicts_path(prod).read_bytes()
    _, again = reverify(prod, "checks:says_yes", capsys=capsys)
    assert (again["layer"], again["judged"], again["resumed"], again["changes"]) == (1, 0, 5, first["changes"])
    assert verdicts_path(prod).read_bytes() == written
    _, anew = reverify(prod, "checks:says_yes", "--anew", capsys=capsys)
    assert (anew["layer"], anew["judged"]) == (2, 5)
    assert "right->wrong" not in anew["changes"]


def test_reverify_of_an_earlier_verifier_makes_its_verdicts_count_again(
    prod: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reverify(prod, "checks:says_yes", capsys=capsys)
    strict = passed(prod)
    reverify(prod, "checks:lenient", capsys=capsys)
    assert passed(prod) != strict
    _, report = reverify(prod, "checks:says_yes", capsys=capsys)
    assert (report["layer"], report["judged"], report["resumed"]) == (3, 0, 5)
    assert (report["changes"]["right->wrong"], passed(prod)) == (1, strict)
    written = verdicts_path(prod).read_bytes()
    reverify(prod, "checks:says_yes", capsys=capsys)
    assert verdicts_path(prod).read_bytes() == written


def test_reverify_counts_what_it_cannot_judge(prod: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = reverify(prod, "checks:world", capsys=capsys)
    assert (code, report["judged"], report["left_out"]) == (0, 0, {"no_answer": 1, "no_environment": 5})
    assert not verdicts_path(prod).exists()
    with TrajectoryWriter(prod) as writer:
        writer.append(tree(span("attempt", passed=True, text="boom")).changed(trajectory_id="t6"))
    code, report = reverify(prod, "checks:some", capsys=capsys)
    assert (code, report["errors"], report["open"], report["judged"]) == (1, 1, 1, 5)
    assert report["kept"] == {"recorded": 1}
    assert "cannot read it" in report["first_error"]
    assert passed(prod) == [True, True, True, True, None, None, True]
    code, says = reverify(prod, "exact", capsys=capsys)
    assert code == 1
    assert "exact could judge no try, and failed on 6; name another verifier with --verifier" in says


def test_verdicts_that_count_are_counted_by_verifier(prod: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label(prod, "t0", passed=False, by="ann")
    reverify(prod, "checks:lenient", capsys=capsys)
    _, report = reverify(prod, "checks:some", capsys=capsys)
    assert report["kept"] == {"checks:lenient": 1}
    for verb in (["inspect", str(prod)], ["data", "stats", str(prod)]):
        assert main([*verb, "--json"]) == 0
        verdicts = json.loads(capsys.readouterr().out)["verdicts"]
        assert verdicts == {"checks:lenient": 1, "checks:some": 3, "people": 1}
        assert main(verb) == 0
        assert "of several verifiers: checks:lenient 1 try, checks:some 3 tries" in capsys.readouterr().out


def test_reverify_that_is_killed_goes_on(prod: Path, tmp_path: Path) -> None:
    with TrajectoryWriter(prod) as writer:
        for i in range(200):
            writer.append(tree(span("attempt", passed=False, text=f"{i}")).changed(trajectory_id=f"more{i}"))
    command = [sys.executable, "-m", "r3agent", "reverify", str(prod), "--verifier", "checks:slow", "--json"]
    command += ["--concurrency", "1"]
    environment = {**os.environ, "CALLS": str(tmp_path / "calls"), "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment)
    while not verdicts_path(prod).exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    n_stored = len(verdicts_path(prod).read_bytes().splitlines())
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert 0 < report["resumed"] <= n_stored < 205
    assert report["resumed"] + report["judged"] == 205
    assert report["changes"]["wrong->right"] == 202
    calls = (tmp_path / "calls").read_text().split()
    assert len(calls) - len({*calls}) < 205 - report["resumed"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--verifier", "later"], "judges nothing; `r3agent label`"),
        ([], "name the verifier with --verifier"),
        (["--verifier", "exat"], "did you mean 'exact'"),
    ],
)
def test_reverify_refuses(words: list[str], message: str, prod: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reverify", str(prod), *words]) == 2
    assert message in capsys.readouterr().err


def test_reverify_of_a_run_uses_its_verifier(prod: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(prod.parent / "run")
    words = ["--set", "task.verifier_params.than=2", "--verifier", "checks:longer"]
    assert main(["init", "--task", "recorded", "--run", run, "--from", str(prod), *words]) == 0
    capsys.readouterr()
    assert main(["reverify", run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verifier"] == "checks:longer"
    assert passed(Path(run))[:4] == [True, False, True, False]
    code, report = reverify(Path(run), "checks:says_yes", capsys=capsys)
    assert (code, report["layer"]) == (0, 2)


def test_reflections_on_what_it_calls_right_are_no_group(prod: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = span("attempt", passed=False, text="yes")
    reflections = [span("reflect", failed) for _ in range(2)]
    retries = [span("retry", r, p, text="hm") for r, p in zip(reflections, (True, False), strict=True)]
    with TrajectoryWriter(prod) as writer:
        writer.append(tree(failed, *reflections, *retries))
    assert len([*groups(load(prod))]) == 1
    assert reverify(prod, "checks:says_yes", capsys=capsys)[0] == 0
    assert [*groups(load(prod))] == []
