"""README's Python is run as it stands, against an endpoint that knows the answer."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from r3agent.cli import VERBS, parser
from r3agent.testing import ScriptedEndpoint

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs_as_printed(code: str) -> None:
    with ScriptedEndpoint("It is 42.", model="my-model") as endpoint:
        code = code.replace("http://127.0.0.1:8000/v1", endpoint.url)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "It is 42. True\n"), done.stderr


def test_commands_parse_as_printed():
    commands = [line.split("#")[0].strip(" &") for block in blocks("console") for line in block.splitlines()]
    ours = [shlex.split(command)[1:] for command in commands if command.startswith("r3agent ")]
    assert {words[0] for words in ours} >= {"serve", "init", "collect", "train", "deploy", "eval", "rollback"}
    for words in ours:
        assert parser().parse_args(words).verb in VERBS
