"""The part of a reply that counts: between the last `<answer>` and `</answer>`, or in the last code block."""

from __future__ import annotations

import re

_BLOCK = r"^[ \t]*```[ \t]*(?:{languages})[ \t]*\n(.*?)(?:^[ \t]*```|\Z)"


def tagged(reply: str) -> str | None:
    """The content of the last closed tag, or `None`; in one pass, however many tags a hostile reply opens."""
    before, closed, _ = reply.rpartition("</answer>")
    _, opened, content = before.rpartition("<answer>")
    return content if closed and opened else None


def tagged_or_all(reply: str) -> str:
    """The content of the last closed tag, the whole reply where there is none; stripped."""
    content = tagged(reply)
    return (reply if content is None else content).strip()


def block_or_all(reply: str, *languages: str) -> str:
    """The last Markdown code block in one of the languages, closed or not; the whole reply where there is none."""
    pattern = _BLOCK.format(languages="|".join(languages))
    blocks: list[str] = re.findall(pattern, reply, re.DOTALL | re.MULTILINE | re.IGNORECASE)
    return blocks[-1] if blocks else reply
