"""Redaction of texts around payloads in base64."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest

from r3agent.recording.redaction import redact_trajectory
from r3agent.records.trajectory import Span, Task, Trajectory

PAYLOAD = base64.b64encode(bytes(range(256)) * 8).decode()
URL = f"data:image/png;base64,{PAYLOAD}"


class Hide:
    """Function that hides addresses by a regular expression that is quadratic in a run without spaces."""

    def __init__(self) -> None:
        self.steps = 0
        """Bound of the steps of the regular expression."""

    def __call__(self, text: str) -> str:
        self.steps += sum(len(run) ** 2 for run in text.split())
        return re.sub(r"\S+@\S+", "[address]", text)


def episode(*contents: Any) -> Trajectory:
    messages = tuple({"role": "user", "content": content} for content in contents)
    return Trajectory(task=Task(messages=messages), spans=(Span(label="attempt", text="ok", model="m"),))


@pytest.mark.parametrize(
    ("content", "redacted"),
    [
        ([{"type": "image_url", "image_url": {"url": URL}}], [{"type": "image_url", "image_url": {"url": URL}}]),
        ([{"type": "input_audio", "input_audio": {"data": PAYLOAD}}], None),
        ([{"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PAYLOAD}"}}], None),
        (f"ann@x.org sent ![it]({URL}) to bob@x.org", f"[address] sent ![it]({URL}) to [address]"),
        (f"key {PAYLOAD[:600]}ann@x.org", "key [address]"),  # no payload: too short
        ([{"type": "image_url", "image_url": {"url": "https://x.org/ann@x.org"}}], "[address]"),
    ],
)
def test_payloads_are_kept_and_the_text_around_them_redacted(content: Any, redacted: Any) -> None:
    cleaned = redact_trajectory(episode(content), Hide())
    if isinstance(redacted, str) and isinstance(content, list):
        assert cleaned.task.messages[0]["content"][0]["image_url"]["url"] == redacted
    else:
        assert cleaned.task.messages[0]["content"] == (content if redacted is None else redacted)


def test_work_grows_with_the_text_and_not_with_payloads() -> None:
    steps: list[int] = []
    for length in (1, 100):
        hide = Hide()
        payload = PAYLOAD * length
        redact_trajectory(episode(f"see data:image/png;base64,{payload}", payload, payload), hide)
        steps.append(hide.steps)
    assert steps[0] == steps[1] < 10_000


def test_a_text_is_redacted_once() -> None:
    asked: list[str] = []
    redact_trajectory(episode("a b c", "a b c", "a b c"), lambda text: asked.append(text) or text)
    assert asked.count("a b c") == 1
