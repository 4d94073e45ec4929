"""Exit codes of the verbs where the gate decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from r3agent.cli.main import main
from r3agent.store.history import Event, EventKind, record_event
from r3agent.store.registry import Registry
from tests.run.test_gate import GATE, N_TASKS, opened
from tests.run.test_gate import reply as reply
from tests.support.chatting import ChattingEndpoint, subject


@pytest.fixture
def run(endpoint: ChattingEndpoint, tmp_path: Path) -> str:
    """A run whose v0001 is better than v0000, and v0002 worse than v0001."""
    settings: dict[str, Any] = {**subject(endpoint, tmp_path, N_TASKS), **GATE, "eval.n": 24, "eval.split": "all"}
    opened(tmp_path / "run", {**settings, "gate.n": 24})
    return str(tmp_path / "run")


def test_deploy_exits_with_3_if_the_version_did_not_pass(
    run: str, endpoint: ChattingEndpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = len(endpoint.calls)
    assert main(["deploy", "v0001", "--gate", "--run", run, "--json"]) == 3
    assert orjson.loads(capsys.readouterr().out) == {"version": "v0001", "live": "v0000", "passed": False}
    assert len(endpoint.calls) == asked
    Registry(run).set_live("v0001", passed=True)
    assert main(["deploy", "v0001", "--gate", "--run", run]) == 0
    assert main(["deploy", "--run", run]) == 0  # the newest, by hand
    assert main(["deploy", "v0000", "--gate", "--run", run]) == 0
    decided: tuple[tuple[EventKind, int], ...] = (("failed", 3), ("passed", 0), ("evaluated", 0))
    for event, code in decided:  # the last decision counts, e.g. of a new task
        record_event(Registry(run).policies_dir, Event(event=event, version="v0001", other="v0000"))
        assert main(["deploy", "v0001", "--gate", "--run", run]) == code


def test_gate_is_refused_where_it_has_nothing_to_decide(
    run: str, endpoint: ChattingEndpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0 would say that a version passed; the live one is the base."""
    asked = len(endpoint.chats)
    assert main(["eval", "--gate", "--run", run]) == 2
    assert "--before and --after are both v0000; name another one" in capsys.readouterr().err
    assert main(["deploy", "v0001", "--by", " gate ", "--run", run]) == 2
    assert len(endpoint.chats) == asked


def test_eval_exits_with_3_if_the_gate_would_say_no(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    versions = ["--before", "v0001", "--after", "v0002", "--run", run]
    assert main(["eval", *versions]) == 0
    capsys.readouterr()
    assert main(["eval", "--gate", "--json", *versions]) == 3
    decision = orjson.loads(capsys.readouterr().out)["decision"]
    assert (decision["promote"], decision["reasons"][0][:7]) == (False, "NOT met")
    assert main(["eval", "--gate", "--after", "v0001", "--run", run]) == 0
    assert "passed the gate:\n  met: after reflection +100.0 points" in capsys.readouterr().out
