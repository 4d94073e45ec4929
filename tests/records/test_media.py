"""Messages with parts that are no text."""

from __future__ import annotations

from typing import Any

import pytest

from r3agent.records.media import flat, media_in

TEXT = {"type": "text", "text": "What is it?"}


@pytest.mark.parametrize(
    ("message", "types"),
    [
        ({"content": "plain"}, []),
        ({"content": None}, []),
        ({"content": [TEXT, "plain", {"type": "input_text", "text": "?"}, {"text": "no type"}]}, []),
        ({"content": [{"type": "thinking", "thinking": "hm"}, TEXT]}, []),
        ({"content": [TEXT, {"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}]}, ["image_url"]),
        (
            {"content": [{"type": "input_audio", "input_audio": {}}, {"type": "file", "file": {}}]},
            ["file", "input_audio"],
        ),
        ({"content": [{"image": "a.png"}, {"text": "?"}]}, ["image"]),
        ({"content": "?", "images": ["aGk="]}, ["images"]),
        ({"content": {"type": "image", "source": {}}}, ["image"]),
    ],
)
def test_media_in_names_the_parts_that_are_no_text(message: dict[str, Any], types: list[str]) -> None:
    assert media_in([{"role": "user", **message}]) == types


def test_flat_joins_texts_as_vllm_does() -> None:
    assert flat({"role": "user", "content": [TEXT, "Say."]}) == {"role": "user", "content": "What is it?\nSay."}
    image = {"role": "user", "content": [TEXT, {"type": "image_url", "image_url": {}}]}
    assert flat(image) == image
