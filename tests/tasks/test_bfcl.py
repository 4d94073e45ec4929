from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task
from r3agent.tasks import default_verifier, find_tasks
from r3agent.tasks.bfcl import CATEGORIES, data_directory
from r3agent.tasks.calling import json_schema, make_task, tool_name
from r3agent.verifiers import Answer, find_verifier
from r3agent.verifiers.function_call import Expectation, function_call

needs_data = pytest.mark.skipif(
    find_spec("bfcl_eval") is None, reason="no bfcl-eval: pip install --no-deps bfcl-eval, which `make setup` does"
)

USER = {"role": "user", "content": "?"}
SIGNATURE = {"required": ["i"], "types": {"i": ["integer"]}}

SIZES = [400, 200, 200, 200, 240, 258, 1053, 16, 24, 884, 16]

WITHOUT_GOLD = {
    "live_simple": {"live_simple_106-63-0", "live_simple_112-68-0"},
    "live_multiple": {"live_multiple_862-181-3", "live_multiple_964-207-0"},
}
"""Tasks that no answer passes, in bfcl-eval as here."""


@pytest.fixture(scope="module", params=CATEGORIES)
def category(request: pytest.FixtureRequest) -> tuple[str, list[Task], list[Task]]:
    """Its name, and its tasks with native calls and with calls as text."""
    name = str(request.param)
    native, text = (find_tasks(f"bfcl:{name}", split="all", calls=calls) for calls in ("native", "text"))
    return name, native, text


@needs_data
def test_all_tasks_load_and_their_gold_answers_pass(category: tuple[str, list[Task], list[Task]]) -> None:
    name, native, text = category
    assert len(native) == len(text) == SIZES[CATEGORIES.index(name)]
    assert [task.id for task in native] == [task.id for task in text]
    for tasks in (native, text, find_tasks(f"bfcl:{name}", split="all", calls="bfcl")):
        golds = {task.id.removeprefix("bfcl:"): task for task in tasks if task.gold is not None}
        failed = [i for i, task in golds.items() if not function_call(task, Answer.of(task.gold or {})).passed]
        assert not failed
        missing = {task.id.removeprefix("bfcl:") for task in tasks} - golds.keys()
        assert len(missing) == len(tasks) if name == "live_relevance" else missing == WITHOUT_GOLD.get(name, set())


@needs_data
def test_bfcl_s_wording_is_its_default_prompt() -> None:
    theirs = run_path(str(data_directory().parent / "constants" / "default_prompts.py"))
    style = theirs["PROMPT_STYLE_TEMPLATES"]["classic"]
    documents = [{"name": "f", "description": "Größe", "parameters": {"type": "object", "properties": {}}}]
    prompt = theirs["PROMPT_TEMPLATE_MAPPING"]["plaintext"].format(
        persona=style["persona"],
        task=style["task"],
        tool_call_format=style["tool_call_no_tag"].format(
            output_format=theirs["OUTPUT_FORMAT_MAPPING"]["python"], param_types=""
        ),
        multiturn_behavior=style["multiturn_behavior"],
        available_tools=style["available_tools"].format(format="json", functions=json.dumps(documents, indent=4)),
    )
    info = {"expect": "no_call", "calls": [], "functions": {"f": {}}}
    system, _ = make_task("t", [USER], functions=documents, info=info, calls="bfcl").messages
    assert system == {"role": "system", "content": prompt}


def test_calls_in_text_are_asked_for_as_one_object_each() -> None:
    calls = [{"name": name, "accepts": {"i": [1]}} for name in ("f", "g.h")]
    info = {"expect": "calls", "calls": calls, "functions": {c["name"]: SIGNATURE for c in calls}}
    for key, text in (
        ("text", '{"name": "f", "arguments": {"i": 1}}\n{"name": "g.h", "arguments": {"i": 1}}'),
        ("bfcl", "[f(i=1), g.h(i=1)]"),
    ):
        own = {"role": "system", "content": "Be brief."}
        task = make_task("t", [own, USER], functions=[{"name": "f", "parameters": {}}], info=info, calls=key)
        assert task.gold == {"role": "assistant", "content": text}
        assert str(task.messages[0]["content"]).endswith("\n\nBe brief.")


@needs_data
def test_an_empty_and_a_wrong_answer_fail(category: tuple[str, list[Task], list[Task]]) -> None:
    _, native, text = category
    wrong = Answer.of({"tool_calls": [{"function": {"name": "none", "arguments": "{}"}}]})
    for task in [*native[:20], *text[:20]]:
        assert not function_call(task, Answer("")).passed
        assert not function_call(task, wrong).passed


@needs_data
def test_tools_are_what_openai_s_api_takes(category: tuple[str, list[Task], list[Task]]) -> None:
    _, native, text = category
    for task in native:
        names = [tool["function"]["name"] for tool in task.tools]
        assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in names)
        assert len({*names}) == len(names)
        assert {*Expectation.model_validate(task.info).functions} <= {*names}
        for tool in task.tools:
            assert types_in(tool["function"]["parameters"]) <= JSON_TYPES
    for task, same in zip(text, native, strict=True):
        assert not task.tools
        assert task.messages[0]["role"] == "system"
        assert same.messages[-1] == task.messages[-1]
        told = [json.loads(line) for line in task.messages[0]["content"].splitlines() if line.startswith('{"name"')]
        assert [tool_name(told["name"]) for told in told] == [tool["function"]["name"] for tool in same.tools]


JSON_TYPES = {"object", "array", "string", "integer", "number", "boolean"}


def types_in(schema: dict[str, Any]) -> set[str]:
    inner = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
    return set().union({schema["type"]} if "type" in schema else (), *map(types_in, inner))


@needs_data
def test_several_categories_are_one_source() -> None:
    both = find_tasks("bfcl:simple_python,multiple", 10_000, split="all")
    parts = [find_tasks(f"bfcl:{name}", 10_000, split="all") for name in ("simple_python", "multiple")]
    assert [*both] == [task for part in parts for task in part]


@needs_data
def test_splits_and_draws_are_those_of_all_sources() -> None:
    source = "bfcl:simple_python"
    splits = [{task.id for task in find_tasks(source, split=split)} for split in ("train", "gate", "test")]
    assert len(set.union(*splits)) == sum(map(len, splits)) == 400
    assert find_tasks(source, 5, seed=1) == find_tasks(source, 5, seed=1) != find_tasks(source, 5, seed=2)
    assert default_verifier(source) == "function_call"
    assert find_verifier("function_call") is function_call


@pytest.mark.parametrize(
    ("source", "params", "says"),
    [
        ("bfcl", {}, "'bfcl' is unknown; did you mean 'bfcl:CATEGORY'"),
        ("bfcl:simple", {}, "no such category; use one or more of simple_python, multiple,"),
        ("bfcl:multiple,simple", {}, "bfcl:simple: no such category"),
        ("bfcl:simple_java", {}, "Java or JavaScript are not verified"),
        ("bfcl:simple_javascript", {}, "Java or JavaScript are not verified"),
        ("bfcl:multiple", {"calls": "xml"}, r"task\.params\.calls = 'xml': Input should be 'native', 'text' or 'bfcl'"),
    ],
)
def test_what_is_not_offered_is_refused(source: str, params: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        find_tasks(source, 1, **params)


def test_without_the_package_its_installation_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bfcl_eval", None)  # Python's own way to say that there is none
    with pytest.raises(ConfigError, match="bfcl-eval is not installed; pip install --no-deps bfcl-eval"):
        find_tasks("bfcl:multiple", 1)


@needs_data
def test_nothing_of_the_package_is_imported() -> None:
    find_tasks("bfcl:live_parallel", split="all")
    assert not [name for name in sys.modules if name.startswith("bfcl_eval")]


@needs_data
def test_the_verifier_agrees_with_that_of_the_leaderboard() -> None:
    benchmark = Path(__file__).parents[2] / "benchmarks" / "bfcl_agreement.py"
    categories = ["parallel", "live_parallel_multiple", "live_relevance"]
    command = [sys.executable, str(benchmark), "--mutations", "3", "--categories", *categories]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["gold"], found["unexplained"]) == (2 * (200 + 24), 0)
    assert found["mutated"] > 1000
    assert found["disagreements"] == sum(line.startswith("  bfcl:") for line in done.stdout.splitlines())


def test_function_documents_become_json_schema_at_any_depth() -> None:
    document = {
        "type": "dict",
        "required": ["a"],
        "properties": {
            "a": {"type": "tuple", "items": {"type": "array", "items": {"type": "float"}}, "optional": True},
            "type": {"type": "any", "default": 1},
        },
    }
    number = {"type": "number", "format": "float"}
    assert json_schema(document) == {
        "type": "object",
        "required": ["a"],
        "properties": {
            "a": {"type": "array", "items": {"type": "array", "items": number}},
            "type": {"default": 1},
        },
    }


# ---- the format of APIGen ----

TOOL = {
    "name": "live.giveaways",
    "description": "Lists giveaways.",
    "parameters": {
        "kind": {"type": "str", "description": "Which.", "default": "game"},
        "ids": {"type": "List[int], optional", "description": "Ids."},
        "more": {"type": "Optional[Dict[str, Any]]", "description": "More."},
        "limit": {"type": "int", "description": "How many.", "default": ""},
        "exact": {"type": "Union[int, float]", "description": "Price."},
    },
}


def row(*answers: dict[str, Any], **more: Any) -> dict[str, Any]:
    named = [{"name": "live.giveaways", "arguments": arguments} for arguments in answers]
    return {"id": 7, "query": "Which?", "tools": json.dumps([TOOL]), "answers": json.dumps(named), **more}


def file_of(tmp_path: Path, *rows: Any) -> str:
    path = tmp_path / "apigen.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return f"xlam:{path}"


def one(tmp_path: Path, *answers: dict[str, Any], calls: str = "text") -> Task:
    return find_tasks(file_of(tmp_path, row(*answers)), split="all", calls=calls)[0]


def said(**arguments: Any) -> str:
    return json.dumps([{"name": "live.giveaways", "arguments": arguments}])


@pytest.mark.parametrize("calls", ["native", "text", "bfcl"])
@pytest.mark.parametrize(
    "answers",
    [
        [{"exact": 1}],
        [{"exact": 1.5, "kind": "beta"}, {"exact": 1, "kind": "game", "ids": [1, 2.0], "more": {"a": {"b": [1]}}}],
        [{"exact": "1", "kind": None, "ids": "all", "more": [], "limit": 3}],
        [{"exact": [{"a": 1}], "ids": [{"a": 1}], "more": {"a": ""}, "kind": "", "limit": ""}],
        [],
    ],
)
def test_gold_answers_pass_whatever_their_types(tmp_path: Path, answers: list[dict[str, Any]], calls: str) -> None:
    task = one(tmp_path, *answers, calls=calls)
    assert task.gold is not None
    assert function_call(task, Answer.of(task.gold)).passed
    function = {"name": tool_name("live.giveaways"), "arguments": '{"exact": 2}'}
    assert not function_call(task, Answer.of({"tool_calls": [{"function": function}]})).passed
    assert task.info["expect"] == ("calls" if answers else "no_call")


def test_native_tools_have_names_and_types_of_openai_s_api(tmp_path: Path) -> None:
    task = one(tmp_path, {"exact": 1}, calls="native")
    [tool] = task.tools
    assert tool["function"]["name"] == "live_giveaways"
    parameters = tool["function"]["parameters"]
    assert parameters["required"] == ["exact"]
    assert parameters["properties"]["ids"] == {"type": "array", "description": "Ids.", "items": {"type": "integer"}}
    assert parameters["properties"]["more"]["type"] == "object"
    assert "type" not in parameters["properties"]["exact"]


def test_a_default_may_be_given_or_left_out(tmp_path: Path) -> None:
    unsaid, default = one(tmp_path, {"exact": 1}), one(tmp_path, {"exact": 1, "kind": "game"})
    for task in (unsaid, default):
        assert function_call(task, Answer(said(exact=1))).passed
        assert function_call(task, Answer(said(exact=1, kind="game"))).passed
        assert not function_call(task, Answer(said(exact=1, kind="beta"))).passed
        assert not function_call(task, Answer(said(exact=1, ids=[1]))).passed
        assert not function_call(task, Answer(said(kind="game"))).passed


def test_the_data_set_s_own_file_is_one_list(tmp_path: Path) -> None:
    path = tmp_path / "xlam.json"
    lists = {"tools": [TOOL], "answers": [{"name": "live.giveaways", "arguments": {"exact": i}} for i in range(2)]}
    path.write_text(json.dumps([row({"exact": 1}, id=1), row(id="b", **lists)]))
    tasks = find_tasks(f"xlam:{path}", split="all")
    assert [task.id for task in tasks] == ["xlam:1", "xlam:b"]
    assert default_verifier(f"xlam:{path}") == default_verifier("xlam:a.jsonl") == "function_call"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (7, r":2 is 7; every row must be an object"),
        ({"query": "?"}, r":2: not in the format of APIGen.*(?s:.*)tools"),
        (row({"exact": 1}, id=8, tools="[{"), r":2: not in the format of APIGen"),
        (row({"exact": 1}, id=8, tools="[]"), r":2: .*the answer calls 'live.giveaways', which is none of the tools"),
        (row({"price": 1}, id=8), r":2: .*the answer gives 'live.giveaways' \['price'\], which it does not take"),
        (row({"exact": 2}), r"task id 'xlam:7' stands for two tasks that differ"),
    ],
)
def test_a_line_in_another_format_is_named_by_its_number(tmp_path: Path, line: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        find_tasks(file_of(tmp_path, row({"exact": 1}), line), split="all")


def test_a_missing_file_and_broken_json_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.jsonl: there is no such file"):
        find_tasks(f"xlam:{tmp_path}/none.jsonl")
    (tmp_path / "broken.jsonl").write_text("[{")
    with pytest.raises(ConfigError, match=r"broken\.jsonl:1: not JSON"):
        find_tasks(f"xlam:{tmp_path}/broken.jsonl")
