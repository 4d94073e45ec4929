"""A reflection that names a first step teaches; one that writes the whole answer leaks it."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from benchmarks.bundled.tokenizer import build_tokenizer
from r3agent.records.leak import LEAK_SHARE, leak_share, leaks
from r3agent.records.trajectory import Span, Task, Trajectory, Verdict
from r3agent.tasks.countdown import make_task


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def episode(
    failed: str, reflection: str, *answers: str, passed: bool = True, tokenizer: PreTrainedTokenizerFast | None = None
) -> Trajectory:
    """Recorded as words, or with a tokenizer as token ids and with nothing in the texts after the failed try."""
    task = make_task([3, 5, 2], 16)
    verdict = Verdict(passed=passed, score=float(passed))
    spans = [
        Span(label="attempt", span_id="a", text=failed, model="m"),
        Span(label="reflect", span_id="r", parent_id="a", text=reflection, model="m"),
        *(Span(label="retry", parent_id="r", text=answer, model="m", verdict=verdict) for answer in answers),
    ]
    words = Trajectory(task=task, spans=tuple(spans))
    return (
        words if tokenizer is None else Trajectory(task=task, spans=tuple(as_ids(words, s, tokenizer) for s in spans))
    )


def as_ids(words: Trajectory, span: Span, tokenizer: PreTrainedTokenizerFast) -> Span:
    prompt = tokenizer.apply_chat_template(words.prompt(span), tokenize=False)
    prompt_ids, ids = (
        tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (prompt, f"{span.text} <|end|>")
    )
    text = span.text if span.label == "attempt" else ""
    return span.model_copy(update={"prompt_token_ids": prompt_ids, "token_ids": ids, "text": text})


ANSWER = "<answer> ( 3 + 5 ) * 2 </answer>"
FAR, NEAR, NEARER = (f"<answer> {x} </answer>" for x in ("3 - 2 * 5", "( 3 - 5 ) * 2", "( 5 - 3 ) * 2"))
WHOLE = "Answer ( 3 + 5 ) * 2 next time"


@pytest.mark.parametrize("recorded", [True, False], ids=["ids", "words"])
@pytest.mark.parametrize("failed", [FAR, NEAR, NEARER])
@pytest.mark.parametrize(
    ("reflection", "leaked"),
    [
        ("Start with 3 + 5 = 8", False),
        ("Start with 5 * 2 = 10", False),
        ("Using 3 , 5 and 2 with + and *", False),
        ("", False),
        (WHOLE, True),
        ("Start with ( 3 + 5 ) * 2 = 16", True),
        (ANSWER, True),
    ],
)
def test_a_first_step_is_no_leak_and_the_whole_expression_is(
    failed: str, reflection: str, leaked: bool, recorded: bool, tokenizer: PreTrainedTokenizerFast
) -> None:
    grown = episode(failed, reflection, ANSWER, tokenizer=tokenizer if recorded else None)
    assert leaks(grown, grown.spans[1]) == leaked


def test_an_expression_without_parentheses_leaks_too() -> None:
    for reflection, leaked in (("Start with 3 + 5 = 8", False), ("Answer 3 + 5 * 2", True)):
        grown = episode(FAR, reflection, "<answer> 3 + 5 * 2 </answer>")
        assert leaks(grown, grown.spans[1]) == leaked


def test_spacing_does_not_hide_a_leak() -> None:
    grown = episode(FAR, "It is (3+5)*2.", ANSWER)
    assert leaks(grown, grown.spans[1])


def test_what_task_and_failed_try_contain_is_no_leak() -> None:
    grown = episode("<answer> ( 3 + 5 ) * 2 + 1 </answer>", WHOLE, "( 3 + 5 ) * 2")
    assert leak_share(grown, grown.spans[1]) == 0
    words = "each number must be used exactly once"
    grown = episode(FAR, f"remember that {words}", f"{words} and so on")
    assert leak_share(grown, grown.spans[1]) == 0


def test_leak_share_counts_own_retries_that_passed() -> None:
    failed = episode(FAR, WHOLE, ANSWER, passed=False)
    assert leak_share(failed, failed.spans[1]) == 0
    both = episode(FAR, WHOLE, "<answer> 2 * ( 5 + 3 ) </answer>", ANSWER)
    assert leak_share(both, both.spans[1]) >= LEAK_SHARE
    other = Span(label="reflect", span_id="other", parent_id="a", text=WHOLE, model="m")
    assert leak_share(both.model_copy(update={"spans": (*both.spans, other)}), other) == 0


def test_arguments_of_a_call_leak() -> None:
    def call(city: str) -> tuple[dict[str, Any], ...]:
        arguments = f'{{"city": "{city}", "unit": "celsius", "days": 3}}'
        return ({"id": "1", "function": {"name": "weather", "arguments": arguments}},)

    task = Task(messages=({"role": "user", "content": "How warm will it be there?"},))
    clock = ({"id": "0", "function": {"name": "clock", "arguments": "{}"}},)
    attempt = Span(label="attempt", span_id="a", text="", tool_calls=clock, model="m")
    passed = Verdict(passed=True, score=1)
    retry = Span(label="retry", parent_id="r", text="", tool_calls=call("Rome"), model="m", verdict=passed)
    for text, leaked in (
        ("I asked for the time and not for the weather of the city", False),
        ('Call weather with {"city": "Rome", "unit": "celsius", "days": 3}', True),
    ):
        reflection = Span(label="reflect", span_id="r", parent_id="a", text=text, model="m")
        assert leaks(Trajectory(task=task, spans=(attempt, reflection, retry)), reflection) == leaked


@pytest.mark.parametrize("recorded", [True, False], ids=["ids", "words"])
@pytest.mark.parametrize(("reflection", "leaked"), [(WHOLE, True), ("Start with 3 + 5 = 8", False)])
def test_the_answer_of_a_try_of_several_steps_is_its_last(
    recorded: bool, reflection: str, leaked: bool, tokenizer: PreTrainedTokenizerFast
) -> None:
    grown = episode(FAR, reflection, "look", passed=True)
    attempt, reflected, call = grown.spans
    result = ({"role": "tool", "tool_call_id": "c", "content": "8"},)
    last = Span(label="retry", parent_id=call.span_id, text=ANSWER, model="m", request=result, verdict=call.verdict)
    steps = (attempt, reflected, call.model_copy(update={"verdict": None}), last)
    words = grown.changed(spans=steps)
    whole = words.changed(spans=tuple(as_ids(words, s, tokenizer) for s in steps)) if recorded else words
    assert leaks(whole, whole.spans[1]) is leaked
    elsewhere = (*whole.spans[:3], whole.spans[3].model_copy(update={"answer": "done"}))
    assert not leaks(whole.changed(spans=elsewhere), whole.spans[1])
    given = (*whole.spans[:3], whole.spans[3].model_copy(update={"answer": ANSWER, "text": "done"}))
    assert leaks(words.changed(spans=given), reflected) is leaked
