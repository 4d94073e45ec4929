from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r3agent._util import templates
from r3agent._util.templates import compile_template
from r3agent.errors import ConfigError

KNOWN = ("task.messages", "answer")


def rendered(text: str, **given: Any) -> str:
    return compile_template(text, name="prompt", known=KNOWN).render(
        **{"task": {"messages": ()}, "answer": "", **given}
    )


def test_what_is_given_is_filled_in() -> None:
    text = "{% for m in task.messages %}{{ m.role }}: {{ m['content'] }}\n{% endfor %}{{ answer | upper }}"
    assert rendered(text, task={"messages": [{"role": "user", "content": "2 < 3 & 'x'?"}]}, answer="yes") == (
        "user: 2 < 3 & 'x'?\nYES"  # nothing is escaped for HTML
    )


def test_a_template_says_what_it_uses() -> None:
    used = compile_template("{{ answer }}{% for i in range(2) %}{{ i }}{% endfor %}", name="prompt", known=KNOWN).used
    assert used == {"answer"}


def test_json_is_readable_text() -> None:
    assert rendered("{{ task.messages | tojson }}", task={"messages": ["<é>"]}) == '["<é>"]'


@given(st.text(alphabet=st.characters(blacklist_characters="{}%#\r")))
def test_plain_text_is_a_template_of_itself(text: str) -> None:
    assert rendered(text) == text


@given(st.text())
def test_what_is_filled_in_is_never_taken_for_a_template(text: str) -> None:
    assert rendered("{{ answer }}", answer=text) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{{ reflection }}", r"prompt: reflection is unknown; known are task\.messages, answer"),
        (
            "{{ task.mesages }}",
            "task.mesages is unknown; did you mean 'task.messages'[?] known are task.messages, answer",
        ),
        ("{% if gold %}{% endif %}", "prompt: gold is unknown"),
        ("{{ task.info }}", r"prompt: task\.info is unknown"),
        ("{{ task['info']['answer'] }}", r"prompt: task\.info is unknown"),
        ("{{ lipsum() }}", "prompt: lipsum is unknown"),
        ("one\n{{ answer", "prompt: line 2: "),
        ("{{ answer | shout }}", "prompt: line 1: No filter named 'shout'"),
        ("{% include 'other' %}", "prompt: rendering it failed"),
    ],
)
def test_a_template_that_cannot_work_is_named(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        rendered(text)


@pytest.mark.parametrize(
    "text",
    [
        "{{ answer.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ task.messages.append(1) }}",  # nothing that is given can be changed
        "{{ answer.format.__globals__ }}",
        "{{ range(10 ** 9) | list }}",
    ],
)
def test_a_template_stays_in_its_sandbox(text: str) -> None:
    with pytest.raises(ConfigError, match="prompt: rendering it failed: "):
        rendered(text, task={"messages": [0]})


def test_what_a_field_lacks_is_an_error_and_no_empty_text() -> None:
    with pytest.raises(ConfigError, match=r"prompt: rendering it failed: UndefinedError: .*content"):
        rendered("{{ task.messages[0].content }}", task={"messages": [{"role": "assistant"}]})


def test_a_text_that_never_ends_is_stopped() -> None:
    text = "{% for i in range(99999) %}{% for j in range(99999) %}{{ answer }}{% endfor %}{% endfor %}"
    with pytest.raises(ConfigError, match=f"prompt: renders more than {templates.MAX_CHARS} characters"):
        rendered(text, answer="x" * 1000)
