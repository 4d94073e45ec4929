"""The part of a reply that counts: what stands between the last `<answer>` and `</answer>`."""

from __future__ import annotations


def tagged(reply: str) -> str | None:
    """The content of the last closed tag, or `None`; in one pass, however many tags a hostile reply opens."""
    before, closed, _ = reply.rpartition("</answer>")
    _, opened, content = before.rpartition("<answer>")
    return content if closed and opened else None


def tagged_or_all(reply: str) -> str:
    """The content of the last closed tag, the whole reply where there is none; stripped."""
    content = tagged(reply)
    return (reply if content is None else content).strip()
