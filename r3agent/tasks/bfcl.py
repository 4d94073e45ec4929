"""Single-turn function-calling problems of the Berkeley leaderboard (BFCL), read from the package `bfcl-eval`.

`bfcl:CATEGORY` is one of `CATEGORIES`, or several with commas between them. Not supported are `simple_java` and
`simple_javascript`, whose arguments use the syntax of these languages, and multi-turn categories. Four of the live
tasks need parameters that their functions do not declare, or accept no value: no answer passes them, in BFCL either,
and they have no gold answer. `live_relevance` has none because any call passes. If no function fits (`irrelevance`,
`live_irrelevance`), an empty reply passes in BFCL and fails here. Only the package's data files are read: it is not
imported, and its dependencies are not needed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task
from r3agent.tasks.calling import Calls, function, make_task, tool_name
from r3agent.tasks.splits import draw

CATEGORIES = (
    "simple_python",
    "multiple",
    "parallel",
    "parallel_multiple",
    "irrelevance",
    "live_simple",
    "live_multiple",
    "live_parallel",
    "live_parallel_multiple",
    "live_irrelevance",
    "live_relevance",
)

INSTALL = "pip install --no-deps bfcl-eval (its data is all it takes; r3agent[bfcl] brings its whole evaluator as well)"


def load(n: int | None, *, seed: int, split: str, name: str, calls: Calls = "native") -> list[Task]:
    """Return the tasks of the category `name`, or of several.

    Args:
        name: categories, separated by commas.
        calls: `native` offers the functions as `tools`, with `_` in place of dots in names, which OpenAI's API
            refuses; `text` and `bfcl` describe them in the system prompt unchanged, in our words or in BFCL's own.

    Raises:
        ConfigError: there is no such category, or `bfcl-eval` is not installed or has other files.
    """
    categories = name.split(",")
    for category in categories:
        if category in ("simple_java", "simple_javascript"):
            raise ConfigError(
                f"bfcl:{category}: arguments in the syntax of Java or JavaScript are not verified; take another"
            )
        if category not in CATEGORIES:
            raise ConfigError(f"bfcl:{category}: no such category; use one or more of {', '.join(CATEGORIES)}")
    directory = data_directory()
    tasks = (task for category in categories for task in _tasks(directory, category, calls))
    return draw(tasks, n, seed=seed, split=split)


def _tasks(directory: Path, category: str, calls: Calls) -> Iterator[Task]:
    answers: dict[str, Any] = {}
    if not category.endswith("relevance"):
        answers = {row["id"]: row["ground_truth"] for row in _rows(directory / "possible_answer", category)}
    return (_task(row, answers.get(row["id"]), category, calls) for row in _rows(directory, category))


def data_directory() -> Path:
    """Return the data directory of `bfcl-eval`.

    Raises:
        ConfigError: it is not installed.
    """
    spec = importlib.util.find_spec("bfcl_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"bfcl-eval is not installed; {INSTALL}")
    return Path(spec.submodule_search_locations[0]) / "data"


def _rows(directory: Path, name: str) -> list[dict[str, Any]]:
    found = sorted(directory.glob(f"BFCL_v*_{name}.json"))
    # `BFCL_v4_live_simple.json` ends in `_simple.json` too.
    path = next((path for path in found if path.stem.split("_", 2)[2] == name), None)
    if path is None:
        raise ConfigError(f"{directory} has no file BFCL_v…_{name}.json; install bfcl-eval 2026.3 or newer")
    return [orjson.loads(line) for line in path.read_bytes().splitlines() if line.strip()]


def _task(row: dict[str, Any], answers: Sequence[dict[str, Any]] | None, category: str, calls: Calls) -> Task:
    named = {doc["name"]: tool_name(doc["name"]) if calls == "native" else doc["name"] for doc in row["function"]}
    documents = {named[doc["name"]]: doc for doc in row["function"]}
    expected = [
        {"name": named[name], "accepts": accepts} for answer in answers or () for name, accepts in answer.items()
    ]
    if answers is None:
        expect = "no_call" if category.endswith("irrelevance") else "some_call"
        signed = {name: {} for name in documents}
    else:
        expect, signed = "calls", {c["name"]: _signature(documents[c["name"]]["parameters"]) for c in expected}
        for call in expected:  # some accepted parameters are not declared, so they cannot be given
            signed[call["name"]]["types"] = {name: [] for name in call["accepts"]} | signed[call["name"]]["types"]
    return make_task(
        f"bfcl:{row['id']}",
        row["question"][0],
        functions=[function(name, doc["description"], doc["parameters"]) for name, doc in documents.items()],
        info={"expect": expect, "calls": expected, "functions": signed},
        calls=calls,
    )


def _signature(parameters: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = parameters["properties"]
    return {
        "required": parameters["required"],
        "types": {name: _types(document) for name, document in properties.items()},
    }


def _types(document: dict[str, Any]) -> list[str]:
    kind = document["type"]
    return [kind, document["items"]["type"]] if kind in ("array", "tuple") else [kind]
