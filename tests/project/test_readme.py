"""README's Python runs as it stands on the policy in the package; its commands parse, its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from r3agent.cli.main import VERBS, parse
from r3agent.serve import ServerProcess
from tests.support.printed import commands, scripts

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(("code", "expected"), scripts(README))
def test_python_prints_what_is_printed(code: str, expected: str) -> None:
    with ServerProcess("bundled") as server:
        code = code.replace("http://127.0.0.1:8000/v1", server.base_url)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, expected), done.stderr


def test_commands_parse_as_printed():
    ours = commands(README)
    assert {words[0] for words in ours} >= {"serve", "init", "loop"}
    for words in ours:
        assert parse(words).verb in VERBS


def test_every_verb_is_in_the_table():
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`\w+`.*?) \|", README, re.M)))) == set(VERBS)


def test_links_lead_to_files_and_headings():
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#([\w-]+))?\)", README)
    assert links
    for file, heading in links:
        page = (ROOT / file).read_text()
        anchors = [
            re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
            for line in re.findall("^#+ (.+)$", page, re.M)
        ]
        assert not heading or heading in anchors, f"{file}#{heading}"


def test_it_is_a_screen_and_a_half():
    assert len(README.splitlines()) <= 130
