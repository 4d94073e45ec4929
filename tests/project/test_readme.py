"""README's Python is run as it stands, against an endpoint that knows the answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from r3agent.cli.main import VERBS, parser
from r3agent.testing import ScriptedEndpoint
from tests.support.printed import blocks, commands

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize("code", blocks(README, "python"))
def test_python_runs_as_printed(code: str) -> None:
    with ScriptedEndpoint("It is 42.", model="bundled") as endpoint:
        code = code.replace("http://127.0.0.1:8000/v1", endpoint.url)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "It is 42. True\n"), done.stderr


def test_commands_parse_as_printed():
    ours = commands(README)
    assert {words[0] for words in ours} >= {"serve", "init", "collect", "train", "deploy", "eval", "rollback"}
    for words in ours:
        assert parser().parse_args(words).verb in VERBS
