"""Map of the tasks whose failures can teach, of `benchmarks/signal_map.py`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from unittest.mock import ANY

import pytest

from benchmarks.models import MODELS, PLAIN_STOP
from benchmarks.results import Finished, replace_section, weights_of
from benchmarks.signal_map import FORMS, HINT, Subject, cells_of, key_of, measure, texts_of
from benchmarks.signal_tables import FLOOR, TRIES, Cell, conclusion, first_try, gain, mixed_rate, section, table
from r3agent import ConfigError, OpenAIPolicy, Sampling
from r3agent.records.prompts import PROMPTS
from r3agent.records.trajectory import Message
from r3agent.tasks import find_tasks
from r3agent.testing import ScriptedEndpoint, ScriptedPolicy

RIGHT, NEVER, LATER = [True] * 8, [False] * 8, [False] * 7 + [True]


def cell(*passes: list[bool], hinted: float | None = 1.0) -> Cell:
    retries = [{"after reflection": 0.0, "blind retry": 0.0, "oracle hint": hinted} for tries in passes if not tries[0]]
    return Cell(passes=list(passes), retries=retries, errors=0, seconds=1)


def copied(messages: Sequence[Message]) -> str:
    """Repeat the answer of the message before the request."""
    return messages[-2]["content"].rpartition("\n")[2]


async def test_measure_retries_blindly_and_with_the_right_answer(tmp_path: Path):
    policy = ScriptedPolicy({"attempt": "<answer>1</answer>", "reflect": "hm", "retry": copied, "blind_retry": "no"})
    tasks = find_tasks("countdown", 3)
    found = await measure("countdown", tasks, policy=policy, out=tmp_path)
    assert found["passes"] == [[False] * TRIES] * 3
    assert found["retries"] == [{"after reflection": 0.0, "blind retry": 0.0, "oracle hint": 1.0}] * 3
    assert found["errors"] == 0


async def test_measure_draws_the_tries_with_one_request(tmp_path: Path):
    policy = ScriptedPolicy("no")
    tasks = find_tasks("countdown", FLOOR + 2)
    found = await measure("countdown", tasks, policy=policy, out=tmp_path)
    assert [call.n for call in policy.calls][: len(tasks)] == [TRIES] * len(tasks)
    assert len(found["retries"]) == FLOOR  # no try passed


async def test_measure_goes_on_with_stored_episodes(tmp_path: Path):
    tasks, policy = find_tasks("countdown", 3), ScriptedPolicy("no")
    await measure("countdown", tasks[:2], policy=policy, out=tmp_path)
    before = len(policy.calls)
    found = await measure("countdown", tasks, policy=policy, out=tmp_path)
    assert len(policy.calls) == before * 3 // 2
    assert len(found["retries"]) == len(tasks)


async def test_retries_anew_read_the_reflection_and_not_the_failed_answer(tmp_path: Path):
    [task] = tasks = find_tasks("countdown", 1)
    question = task.messages[-1]["content"]
    with ScriptedEndpoint("no") as endpoint:
        policy = OpenAIPolicy(endpoint.url, "scripted", sampling=Sampling(temperature=0.5, max_tokens=8))
        await measure("countdown", tasks, policy=policy, out=tmp_path, **FORMS["anew"].options)
        asked = [received.body["messages"] for received in endpoint.received]
        await policy.aclose()
    assert [messages[1:] for messages in asked if len(messages) > 1] == [[{"role": "assistant", "content": "no"}, ANY]]
    note = "\n\nNote on an earlier answer, which was wrong:\n"
    read = {messages[0]["content"].removeprefix(question) for messages in asked}
    assert read == {"", f"{note}no", f"{note}{HINT.format(gold=task.gold['content'])}"}


async def test_measure_asks_for_no_retry_without_a_failure(tmp_path: Path):
    [task] = find_tasks("countdown", 1)
    assert task.gold is not None
    found = await measure("countdown", [task], policy=ScriptedPolicy(task.gold["content"]), out=tmp_path)
    assert found["passes"] == [RIGHT]
    assert found["retries"] == []


async def test_measure_counts_later_tries_as_mixed(tmp_path: Path):
    [task] = find_tasks("countdown", 1)
    assert task.gold is not None
    gold, number = task.gold["content"], count()
    script = {
        "attempt": lambda _: gold if next(number) == 7 else "no",
        "reflect": "hm",
        "retry": "a",
        "blind_retry": "b",
    }
    found = await measure("countdown", [task], policy=ScriptedPolicy(script), out=tmp_path)
    assert found["passes"] == [LATER]


def test_first_try_counts_all_tries():
    assert first_try(cell(RIGHT, NEVER, LATER)).rate == pytest.approx((1 + 0 + 1 / 8) / 3)


def test_mixed_is_a_share_of_the_failed_tasks():
    found = mixed_rate(cell(RIGHT, NEVER, LATER))
    assert found is not None
    assert (found.rate, found.n_tasks) == (0.5, 2)
    assert mixed_rate(cell(RIGHT)) is None


def test_gain_leaves_out_failures_without_a_hint():
    found = gain({"a": cell(NEVER, NEVER), "b": cell(NEVER, hinted=None)}, "oracle hint")
    assert found is not None
    assert (found.points, found.n_tasks) == (100.0, 2)


def test_conclusion_names_mixed_sources_by_share():
    cells = {"a": cell(*[LATER, NEVER] * 5), "b": cell(*[NEVER] * 10), "c": cell(*[LATER] * 10), "d": cell(RIGHT)}
    text = conclusion("m", cells)
    assert (
        "3 of 4 sources have at least 10 failures; at least 20 % of them are mixed in 2: `c` (100), `a` (50)." in text
    )
    assert text.endswith("It can use a hint.")


def test_conclusion_from_few_failures_is_undecided():
    text = conclusion("m", {"a": cell(LATER, *[RIGHT] * 59)})
    assert "0 of 1 sources have at least 10 failures; at least 20 % of them are mixed in 0: none." in text
    assert text.endswith("Undecided: 10 points, from which a model can use a hint, are in the interval.")
    assert section({"m": {"a": cell(LATER)}}, ["a"], engine="vllm", temperature=1)[1]["m"]["can_use_hint"] is None


def test_conclusion_on_a_model_that_cannot_use_a_hint():
    assert "is not to be trained on reflections" in conclusion("m", {"a": cell(*[NEVER] * 30, hinted=0.0)})


def test_table_leaves_cells_empty_that_were_not_measured():
    [row] = table({"a": cell(NEVER, hinted=None)})[2:]
    assert row == "| `a` | 1 | 0 [0, 79] | 1 | 0 [0, 79] | 0 [0, 79] |  | 0 [0, 79] |"


def test_section_names_sources_without_a_cell():
    text, data = section({"m": {"a": cell(*[LATER] * 10)}}, ["a", "b"], engine="embedded", temperature=1)
    assert "Not measured: `b`." in text
    assert data["m"]["can_use_hint"] is True
    assert data["m"]["sources"]["a"]["mixed"]["rate"] == 1


def test_section_explains_how_the_tries_were_sampled():
    text, _ = section({}, [], engine="embedded", temperature=0.4)
    assert f"share of {TRIES} tries" in text
    assert "with the engine `embedded`, in the number type" in text
    assert text.endswith("tries at temperature 0.4, reflections at 1.")


def test_finished_cells_have_the_same_settings(tmp_path: Path):
    finished = Finished(tmp_path / "new" / "cells.jsonl")
    m = Subject("m", "1")
    for outcomes in (cell(RIGHT), cell(LATER)):
        finished.add(key_of(m, "countdown", 60, "vllm", "anew"), outcomes)
    assert cells_of(finished, m, 60, "vllm", "anew") == {"countdown": cell(LATER)}
    others = [(m, 61, "vllm", "anew"), (m, 60, "embedded", "anew"), (m, 60, "vllm", "conversation")]
    others += [
        (other, 60, "vllm", "anew") for other in (Subject("n", "1"), Subject("m", "2"), Subject("m", "1", ("x",)))
    ]
    assert not any(cells_of(finished, *other) for other in others)


def test_key_has_what_the_model_reads():
    read = texts_of("bfcl:multiple", "conversation")
    assert read == {"hint": HINT, **PROMPTS["function_call"].model_dump(), "anew": None}
    assert texts_of("countdown", "anew")["anew"] == {"note": ANY, "temperature": FORMS["anew"].temperature}


def checkpoint(directory: Path, *, weights: str = "", **config: object) -> str:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").write_text(weights)
    return str(directory)


def test_subjects_are_told_apart_by_their_weights(tmp_path: Path):
    name = next(iter(MODELS))
    one, other = checkpoint(tmp_path / "a" / name, weights="1"), checkpoint(tmp_path / "b" / name, weights="2")
    subjects = [Subject.of(model) for model in (name, one, other)]
    assert {subject.name for subject in subjects} == {name}
    assert len({subject.weights for subject in subjects}) == 3
    assert Subject.of("gemma3-270m").stop == PLAIN_STOP


def test_weights_are_those_of_any_copy(tmp_path: Path):
    one = checkpoint(tmp_path / "one", weights="1", width=2, transformers_version="1")
    copy = checkpoint(tmp_path / "copy", weights="1", width=2, transformers_version="2")
    wider = checkpoint(tmp_path / "wider", weights="1", width=3)
    assert weights_of(one) == weights_of(copy) != weights_of(wider)
    assert weights_of("org/model") != weights_of("org/other")
    with pytest.raises(ConfigError, match="there is no such directory"):
        weights_of(str(tmp_path / "none"))


def test_replace_section_keeps_the_others(tmp_path: Path):
    file = tmp_path / "RESULTS.md"
    for title, text in (("A (1)", "old\n\n### Part\n\nold"), ("B", "kept"), ("A (1)", "new")):
        replace_section(file, title, "make it", text)
    assert file.read_text() == "# Results\n\n## B\n\n`make it`\n\nkept\n\n## A (1)\n\n`make it`\n\nnew\n"
