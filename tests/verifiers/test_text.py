from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers.text import Regex, normal_form, normalised


def expecting(**info: Any) -> Task:
    return Task(id="n", messages=({"role": "user", "content": "?"},), info=info)


@pytest.mark.parametrize(
    ("expected", "reply"),
    [
        ("Paris", " paris.\n"),
        ("Paris", "I say <answer>**Paris**</answer>!"),
        ("Paris", "`Paris`"),
        ("the Eiffel Tower", "Eiffel  tower"),
        ("Eiffel Tower", "An Eiffel\n\nTower"),
        ("café", "cafe\u0301"),
        ("file", "ﬁle"),
        ("STRASSE", "straße"),
        ("１２", "12"),
        (3.5, "3.5"),
        ("-7", "−7."),
        ("£5", "5"),
        ("don't", "dont"),
        (["NYC", "New York City"], "new york city"),
        ("The The", "the the"),
        ("A", "a."),
        ("?", "?"),
    ],
)
def test_what_reads_the_same_passes(expected: Any, reply: str) -> None:
    assert normalised(expecting(answer=expected), reply)


@pytest.mark.parametrize(
    ("expected", "reply"),
    [
        ("Paris", ""),
        ("Paris", "Paris, France"),
        ("Paris", "parís"),
        ("35", "3.5"),
        ("5", ".5"),
        ("5", "-5"),
        ("12", "1 2"),
        ("12", "1/2"),
        ("a + b", "a b"),
        ("x < y", "x > y"),
        ("!", "?"),
        ("The", "a"),
        (["NYC", "New York City"], "New York"),
        ([], "anything"),
        ("theatre", "atre"),
    ],
)
def test_what_does_not_read_the_same_fails(expected: Any, reply: str) -> None:
    assert not normalised(expecting(answer=expected), reply)


def test_articles_count_when_asked() -> None:
    task = expecting(answer="vitamin A")
    assert normalised(task, "vitamin")
    assert not normalised(task, "vitamin", articles=True)
    assert normalised(task, "Vitamin a", articles=True)


def test_needed_info_names_what_a_recording_gives() -> None:
    with pytest.raises(KeyError, match=r"info has \[\] and no 'answer'.* pass trace\(task=\{.*'info': \{'answer'"):
        normalised(expecting(), "42")


def test_an_expectation_is_needed() -> None:
    with pytest.raises(KeyError, match="answer"):
        normalised(expecting(), "x")


@given(st.text(), st.booleans())
def test_normal_form_is_its_own_and_every_text_matches_itself(text: str, articles: bool) -> None:
    form = normal_form(text, articles=articles)
    assert form == " ".join(form.split())
    assert normalised(expecting(answer=text), f"<answer>{text}</answer>") or "</answer>" in text or "<answer>" in text


@given(st.integers() | st.decimals(allow_nan=False, allow_infinity=False, places=3), st.integers())
def test_numbers_are_never_taken_for_others(one: Any, other: int) -> None:
    assert normalised(expecting(answer=f"{one}"), f"{other}") == (f"{one}" == f"{other}")


def test_hostile_text_is_only_text() -> None:
    for reply in ("a" * 10**6, "the " * 10**5, "." * 10**5, "\0", "\ud800", "́" * 10**5, "<answer>" * 10**5):
        assert not normalised(expecting(answer="Paris"), reply)


@pytest.mark.parametrize(
    ("pattern", "reply", "full", "anywhere"),
    [
        (r"\d{3}-\d{4}", "555-1234", True, True),
        (r"\d{3}-\d{4}", "call 555-1234 now", False, True),
        (r"\d{3}-\d{4}", "<answer> 555-1234 </answer>", True, True),
        (r"yes|no", "yesterday", False, True),
        (r"(?i)yes", "YES", True, True),
        (r"yes", "YES", False, False),
        (r"a.c", "a\nc", False, False),
        (r"(?s)a.c", "a\nc", True, True),
        (r"^b$", "a\nb", False, False),
        (r"(?m)^b$", "a\nb", False, True),
        (r"\p{Greek}+", "αβγ", True, True),
        (r"", "", True, True),
    ],
)
def test_all_of_the_answer_or_some_of_the_reply(pattern: str, reply: str, full: bool, anywhere: bool) -> None:
    assert Regex()(expecting(pattern=pattern), reply) == Verdict(passed=full, score=float(full))
    assert Regex(search=True)(expecting(pattern=pattern), reply).passed is anywhere


def test_case_can_be_ignored() -> None:
    assert Regex(ignore_case=True)(expecting(pattern="straße"), "STRAßE").passed


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|a)*$", r"(.*a){20}$", r"(a?){50}a{50}$"])
def test_a_pattern_that_would_never_end_ends(pattern: str) -> None:
    for search in (False, True):
        assert not Regex(search=search)(expecting(pattern=f"^{pattern}"), "a" * 50_000 + "b").passed


@pytest.mark.parametrize("pattern", [r"(?=a)", r"(a)\1", "(", "a{2000}{2000}"])
def test_a_pattern_that_is_none_here_is_an_error(pattern: str) -> None:
    import re2

    with pytest.raises(re2.error):
        Regex()(expecting(pattern=pattern), "a")


@given(st.text() | st.text("ab\n\0"))
def test_any_reply_gets_a_verdict(text: str) -> None:
    assert not Regex()(expecting(pattern="c+d"), text).passed or "d" in text
    assert Regex(search=True)(expecting(pattern="(?s).*"), text).passed


def test_what_is_too_long_fails_unread() -> None:
    verdict = Regex(max_chars=10)(expecting(pattern="a*"), "a" * 11)
    assert verdict.feedback == "11 characters; at most 10 are looked at"
    assert Regex(max_chars=10)(expecting(pattern="a*"), "a" * 10).passed
