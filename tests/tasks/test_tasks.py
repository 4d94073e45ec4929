from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from r3agent.errors import ConfigError
from r3agent.tasks import default_verifier, find_tasks
from r3agent.tasks.countdown import generate
from r3agent.tasks.splits import split_of

SOURCES = """
from itertools import count
from r3agent import Task

def endless(n, *, seed, split, prefix="q"):
    for i in count():
        yield Task(id=f"{prefix}{i}-{seed}-{split}", messages=[{"role": "user", "content": "?"}])

def prompts(n, *, seed, split):
    yield "not a task"

def nothing(n, *, seed, split):
    return []

def number(n, *, seed, split):
    return 7

def broken(n, *, seed, split):
    yield Task(messages=[{"role": "user", "content": "?"}])
    raise ValueError("row 2 has no question")

def half(n, *, seed, split):
    yield Task(messages=[])

def dicts(n, *, seed, split):
    yield {"messages": [{"role": "user", "content": "?"}], "info": {"answer": "1"}}

def wrong_dicts(n, *, seed, split):
    yield from dicts(n, seed=seed, split=split)
    yield {"messages": [{"role": "user", "content": "?"}], "infos": {}}

def seedless(n, split):
    return []

LIMIT = 3
"""


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a user's module in the current directory."""
    (tmp_path / "my_sources.py").write_text(SOURCES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "my_sources"
    sys.modules.pop("my_sources", None)


def test_shipped_source_is_found_by_name_and_takes_its_params() -> None:
    found = find_tasks("countdown", 3, seed=4, split="test", max_number=6)
    assert found == list(generate(3, seed=4, split="test", max_number=6))


def test_own_source_is_asked_for_n(sources: str) -> None:
    tasks = find_tasks(f"{sources}:endless", 2, seed=1, split="test", prefix="p")
    assert [task.id for task in tasks] == ["p0-1-test", "p1-1-test"]


def test_own_source_may_yield_dicts(sources: str) -> None:
    (task,) = find_tasks(f"{sources}:dicts", 2)
    assert task.info == {"answer": "1"}


def test_a_path_as_a_source_is_refused_with_the_module_s_name() -> None:
    with pytest.raises(ConfigError, match=r"names a path; name a module, mine:tasks, and run where it is"):
        find_tasks("./mine.py:tasks", 2)


def test_an_empty_split_says_where_the_tasks_are(tmp_path: Path) -> None:
    ids = [str(i) for i in range(40) if split_of(str(i)) == "test"][:3]
    path = tmp_path / "few.jsonl"
    path.write_text("\n".join(f'{{"id": "{i}", "prompt": "?"}}' for i in ids))
    with pytest.raises(ConfigError, match=r"here train 0, gate 0, test 3; give it more tasks$"):
        find_tasks(str(path))
    with pytest.raises(ConfigError, match=r"give it more tasks, or choose another split \(gate\.split"):
        find_tasks(str(path), split="gate")


def test_a_package_brings_a_source_by_entry_point(sources: str, tmp_path: Path) -> None:
    info = tmp_path / "own-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: own\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[r3agent.tasks]\nendless = {sources}:endless\n")
    sys.path.insert(0, str(tmp_path))
    assert len(find_tasks("endless", 2)) == 2


def test_default_verifier_is_the_source_s_own(sources: str) -> None:
    assert default_verifier("countdown") == "countdown"
    assert default_verifier("mine.jsonl") == "exact"
    with pytest.raises(ConfigError, match=r"'my_sources:endless': name what decides success with --verifier"):
        default_verifier(f"{sources}:endless")


@pytest.mark.parametrize(
    ("source", "n", "params", "says"),
    [
        (
            "contdown",
            1,
            {},
            r"'contdown' is unknown; did you mean 'countdown'\? use one of \[.*\], a file \(.jsonl, .*\), or your own",
        ),
        ("countdown", None, {}, "countdown is generated: say how many tasks with --n"),
        ("countdown:9", 3, {}, "countdown:9: the file is none of .jsonl, "),
        ("reasoning-gym", 3, {}, r"'reasoning-gym' is unknown; did you mean 'reasoning-gym:NAME'\?"),
        ("bcfl:simple_python", 3, {}, r"importing 'bcfl' failed: .*; did you mean 'bfcl:CATEGORY'\?"),
        (".", 3, {}, r"task '\.' is a directory; name it as hf:\."),
        ("countdown", 0, {}, "n = 0: ask for at least 1 task"),
        ("countdown", -1, {}, "n = -1: ask for at least 1 task"),
        (
            "countdown",
            1,
            {"max_numbr": 9},
            r"unknown key 'task\.params\.max_numbr'; did you mean 'task\.params\.max_number'\?",
        ),
        ("countdown", 1, {"max_number": 10.5}, r"task\.params\.max_number = 10\.5: Input should be a valid integer"),
        ("countdown", 1, {"numbers": "three"}, r"task\.params\.numbers = 'three': Input should be a valid integer"),
    ],
)
def test_what_cannot_work_is_refused_by_name(source: str, n: int | None, params: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        find_tasks(source, n, **params)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("prompts", "yielded a str; it must yield r3agent.Task, or its fields as a dict"),
        ("nothing", "holds no task"),
        ("number", "'int' object is not iterable"),
        ("LIMIT", "'int' object is not callable"),
        ("broken", r"task 'my_sources:broken' with \{'seed': 0, 'split': 'train'\}: ValueError: row 2 has no question"),
        ("half", r"Task.messages = \[\]: List should have at least 1 item"),
        ("missing", "has no 'missing'"),
        ("seedless", r"unexpected keyword argument 'seed'; write `def seedless\(n, \*, seed, split\)`"),
        ("wrong_dicts", r"item 1: unknown key 'infos'; did you mean 'info'"),
    ],
)
def test_own_source_that_yields_no_tasks_is_refused(sources: str, name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        find_tasks(f"{sources}:{name}", 2)


def test_a_file_is_split_and_drawn_by_seed(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(f'{{"id": "{i}", "prompt": "?"}}' for i in range(100)))
    splits = [{task.id for task in find_tasks(str(path), split=split)} for split in ("train", "gate", "test")]
    assert len(set.union(*splits)) == sum(map(len, splits)) == 100
    assert find_tasks(str(path), 10, seed=1) == find_tasks(str(path), 10, seed=1)
    assert find_tasks(str(path), 10, seed=1) != find_tasks(str(path), 10, seed=2)
