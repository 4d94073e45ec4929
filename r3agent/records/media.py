"""Parts of messages that are no text: images, audio, video and files. Token ids alone do not rebuild them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from r3agent.records.reply import TEXT_PARTS, THINKING_PARTS
from r3agent.records.task import Message

TEXT = {*TEXT_PARTS, *THINKING_PARTS, "redacted_thinking"}
"""Types of parts that are in the text of a prompt, or are left out of it."""

FIELDS = {"images", "audio", "videos", "files"}
"""Fields of messages that some servers read media from."""


def media_in(messages: Iterable[Message]) -> list[str]:
    """Return the types of the parts of a conversation that are no text, such as `image_url`.

    >>> media_in([{"role": "user", "content": [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {}}]}])
    ['image_url']
    """
    found: set[str] = set()
    for message in messages:
        found.update(name for name in FIELDS & message.keys() if message[name])
        content: Any = message.get("content")
        if isinstance(content, str):
            continue
        parts: Any = content if isinstance(content, list | tuple) else [content]
        found.update(_type(part) for part in parts if isinstance(part, Mapping))
    return sorted(found - TEXT)


def why_untrainable(messages: Iterable[Message]) -> str | None:
    """Return why answers to a conversation cannot be trained on as text; `None` if they can."""
    types = media_in(messages)
    return f"the prompt has parts that token ids do not rebuild: {', '.join(types)}" if types else None


def flat(message: Message) -> Message:
    """Return a message whose content is a list of texts with one text, joined as vLLM does for most templates."""
    content: Any = message.get("content")
    if not isinstance(content, list | tuple) or media_in([message]):
        return message
    texts = (part.get("text") if isinstance(part, Mapping) else part for part in content)
    return {**message, "content": "\n".join(str(text) for text in texts if text)}


def _type(part: Mapping[str, Any]) -> str:
    """Return the type of a part; one without is named after its field, as Qwen's `{"image": ...}`."""
    return str(part.get("type") or next((key for key in part if key not in TEXT), "text"))
