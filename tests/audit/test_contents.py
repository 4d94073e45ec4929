"""Contents of tasks: what they give away about each other, and their lengths."""

from __future__ import annotations

import json
from typing import Any

import pytest

from r3agent.audit.answers import answer_checks
from r3agent.audit.contents import content_checks
from r3agent.audit.lengths import EndpointAddress, Lengths, length_check
from r3agent.audit.records import Check
from r3agent.records.trajectory import Task
from r3agent.testing.faults import Fault
from r3agent.testing.http import JsonServer
from tests.audit.planted import task

CLEAN = {"train": [task(1), task(2)], "gate": [task(3)], "test": [task(4)]}


def statuses(**drawn: list[Task]) -> dict[str, str]:
    drawn = {**CLEAN, **drawn}
    checks = [*content_checks(drawn), *answer_checks(drawn, 0.9)]
    return {check.name: check.status for check in checks if check.status not in ("ok", "skipped")}


def words(text: str, **parts: Any) -> Task:
    return Task.model_validate({"messages": [{"role": "user", "content": text}], **parts})


def test_tasks_that_differ_are_ok() -> None:
    assert statuses() == {}


def test_each_defect_of_contents_is_found_and_no_other() -> None:
    assert statuses(train=[task(1), task(9, id="1")]) == {"unique ids": "failed"}
    assert statuses(train=[task(1), task(1)]) == {"unique ids": "warning"}
    assert statuses(train=[words("Add  2 to 3"), words("add 2 TO 3")]) == {"unique prompts": "failed"}
    assert statuses(train=[words("Add 2 to 3")], test=[words("add 2 to 3 ")]) == {"splits apart": "failed"}
    assert statuses(train=[task(3)]) == {"splits apart": "failed"}  # the same id as in the gate's
    assert statuses(gate=[]) == {"splits apart": "warning"}
    assert statuses(train=[]) == {"splits apart": "failed"}
    assert statuses(train=[words("Add 2 to 3")], test=[words("Add\u200b 2 to 3.")]) == {"splits apart": "failed"}
    parts = words("?", messages=[{"role": "user", "content": [{"type": "text", "text": "Add 2 to 3"}]}])
    assert statuses(train=[words("Add 2 to 3")], test=[parts]) == {"splits apart": "failed"}
    ends = words("?", messages=[{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}])
    assert statuses(train=[ends]) == {"prompts end with the user": "failed"}


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("It is BLUE. Which colour?", {"gold": {"role": "assistant", "content": "blue"}}),
        ("It is BLUE. Which colour?", {"info": {"answer": "blue"}}),
        ("6 times 7? Answer: 42", {"gold": {"role": "assistant", "content": "42"}}),
        ("6 times 7?\n#### 42", {"info": {"answer": 42}}),
    ],
)
def test_a_prompt_that_tells_the_answer_is_found(prompt: str, parts: dict[str, Any]) -> None:
    assert statuses(train=[words(prompt, **parts)]) == {"answer not told": "warning"}


@pytest.mark.parametrize(
    ("answers", "status"),
    [
        (["1"] * 40, {"answers differ": "failed"}),
        (["a"] * 90 + ["b", "c", "d"], {"answers differ": "failed"}),
        (["a", "b"] * 20, {}),
        (["a"] * 5, {}),
        ([float(2**100 + i) for i in range(40)], {"answers differ": "failed", "answers exact": "warning"}),
        ([str(2**100 + i) for i in range(40)], {"answers exact": "warning"}),
        ([float(i) for i in range(40)], {"answers exact": "warning"}),
        ([i / 2 for i in range(40)], {}),
    ],
)
def test_answers_that_are_one_or_have_lost_digits_are_found(answers: list[Any], status: dict[str, str]) -> None:
    tasks = [words(f"Question {i * 1000003}", info={"answer": answer}) for i, answer in enumerate(answers)]
    assert statuses(train=tasks) == status


def test_answers_that_no_function_fits_may_be_one() -> None:
    gold = {"role": "assistant", "content": "None of the functions fits."}
    assert statuses(train=[words(f"Question {i}", gold=gold, info={"expect": "no_call"}) for i in range(40)]) == {}


def test_tasks_are_not_one_for_their_words_alone() -> None:
    assert statuses(train=[words("2 + 3"), words("2 - 3"), words("2 + 3", id="t", tools=[{"name": "add"}])]) == {}
    hidden = words("It is bluest. Which colour?", gold={"role": "assistant", "content": "blue"})
    assert statuses(train=[hidden, words("6?", gold={"role": "assistant", "content": "6"})]) == {}


TASKS = [words("x" * 40, id="short"), words("x" * 400, id="long")]


@pytest.mark.parametrize(
    ("limit", "status", "counts"),
    [
        (None, "ok", (0, 0, 0)),
        (1000, "ok", (0, 0, 0)),
        (120, "warning", (0, 0, 1)),
        (105, "warning", (0, 1, 0)),
        (100, "failed", (1, 0, 0)),
        (15, "failed", (1, 1, 0)),
        (10, "failed", (2, 0, 0)),
    ],
)
async def test_prompts_are_held_against_the_limit(limit: int | None, status: str, counts: tuple[int, ...]) -> None:
    check = await length_check(TASKS, Lengths(max_tokens=10, limit=limit))
    assert (check.status, tuple(check.counts[key] for key in ("wrong", "no_room", "tight"))) == (status, counts)
    assert "estimated: 4 characters a token" in check.detail
    assert check.ok or check.examples[0] == "task 'long': 100 tokens"


async def test_length_remedy_leaves_room_for_the_longest_retry() -> None:
    check = await length_check(TASKS, Lengths(max_tokens=10, limit=120))
    assert check.remedy == "lower sampling.max_tokens to at most 6 for the longest retry too"
    assert (await length_check(TASKS, Lengths(max_tokens=6, limit=120))).status == "ok"


async def test_a_tokenizer_counts_and_what_its_template_refuses_is_named() -> None:
    def count(messages: Any, tools: Any) -> int:
        if len(messages[0]["content"]) > 100:
            raise ValueError("the chat template does not take it")
        return 7

    check = await length_check(TASKS, Lengths(max_tokens=10, limit=50, tokenizer=count))
    assert check.examples == ("task 'long': the chat template does not take it",)
    assert "longest 7 tokens (by the model's tokenizer)" in check.detail


async def checked_at(card: dict[str, Any], *, max_tokens: int, limit: int | None = None) -> Check:
    """An audit against an endpoint that counts a token for each character and lists the model with this card."""

    def respond(path: str, authorization: str | None, body: Any) -> Fault:
        if path == "/v1/models":
            return Fault(body=json.dumps({"data": [{"id": "other", "max_model_len": 9}, {"id": "m", **card}]}))
        return Fault(body=json.dumps({"count": len(body["messages"][0]["content"])}))

    with JsonServer(respond) as server:
        endpoint = EndpointAddress(f"{server.url}/v1", "m")
        return await length_check(TASKS, Lengths(max_tokens=max_tokens, limit=limit, endpoint=endpoint))


async def test_an_endpoint_counts_and_says_its_limit() -> None:
    check = await checked_at({"max_model_len": 50}, max_tokens=10)
    assert check.examples == ("task 'long': 400 tokens",)
    assert "by the endpoint's /tokenize); the endpoint allows 50" in check.detail


@pytest.mark.parametrize(
    ("card", "settings", "status"),
    [
        ({"owned_by": "r3agent", "max_model_len": 512}, {"max_tokens": 512}, "warning"),
        ({"owned_by": "vllm", "max_model_len": 512}, {"max_tokens": 512}, "failed"),
        ({"owned_by": "vllm"}, {"max_tokens": 512, "limit": 512}, "failed"),
        ({"owned_by": "r3agent", "max_model_len": 512}, {"max_tokens": 513}, "failed"),
    ],
)
async def test_no_room_for_a_completion_fails_only_where_the_server_is_known_to_refuse(
    card: dict[str, Any], settings: dict[str, int], status: str
) -> None:
    check = await checked_at(card, **settings)
    assert (check.status, check.counts["no_room"]) == (status, 2)
    assert check.remedy == "lower sampling.max_tokens to at most 112 for a first try, 37 for the longest retry too"
    assert "refuses such requests (HTTP 400)" in check.detail


async def test_an_endpoint_that_is_not_there_leaves_an_estimate() -> None:
    check = await length_check(TASKS, Lengths(max_tokens=10, endpoint=EndpointAddress("http://127.0.0.1:9/v1", "m")))
    assert check.ok
    assert "estimated" in check.detail
    assert "no limit is known" in check.detail


def test_the_model_s_own_template_is_counted_with() -> None:
    pytest.importorskip("transformers", reason="needs the train extra")
    from r3agent.store.models import resolve_model
    from r3agent.train.tokenizer import prompt_tokens

    count = prompt_tokens(resolve_model("bundled"))
    assert count([{"role": "user", "content": "Using 1 2 3 equals 6"}], ()) == 9  # user, 6 words, end, assistant
