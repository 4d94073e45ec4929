"""Find the fenced code blocks of a reply.

A fence is a line of three or more backticks or tildes, as in CommonMark: with any indentation, after the marker of a
list item, with attributes after the language, in replies with Windows line ends. Longer fences enclose shorter ones.
Replies of models are read where CommonMark is stricter: a block also opens after text on the same line, may be one line
as a whole, may end at the end of a line of code, and ends where the next block opens or the reply ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from textwrap import dedent
from typing import NamedTuple

from r3agent.verifiers.text import tagged

_FENCE = re.compile(r"(?P<lead>[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*)(?P<fence>`{3,}|~{3,})(?P<info>.*)")
_LANGUAGE = re.compile(r"[\s{.]*([\w+#.-]*)")
_MARKUP = ("markdown", "md")
"""Languages of blocks that have blocks in them."""
_INDENT = 3
"""Maximum indentation of a closing fence, relative to the opening one; deeper fences belong to the code."""


class Block(NamedTuple):
    """Fenced block; its language is in lower case, and empty if the fence names none."""

    language: str
    text: str


def blocks_or_all(reply: str, languages: str) -> list[str]:
    """Return the blocks in one of the languages, else those without a language, else the whole reply.

    The reply is the content of the last `<answer>` tags, if it has them outside its blocks. A reply that is one code
    span is its content.

    Args:
        languages: regular expression of the languages, in lower case.
    """
    blocks = list(find_blocks(reply, languages))
    content = tagged(reply)
    if content is not None and not any("<answer>" in block.text for block in blocks):
        reply = content
        blocks = list(find_blocks(reply, languages))
    nested = [inner for block in blocks if block.language in _MARKUP for inner in find_blocks(block.text, languages)]
    named = [block.text for block in [*blocks, *nested] if re.fullmatch(languages, block.language)]
    return named or [block.text for block in blocks if not block.language] or [_without_span(reply)]


def block_or_all(reply: str, languages: str) -> str:
    """Return the last of the blocks of `blocks_or_all`."""
    return blocks_or_all(reply, languages)[-1]


def find_blocks(text: str, languages: str) -> Iterator[Block]:
    """Yield the blocks of a text that are not blank, closed or not; one pass, however many fences a hostile text has.

    Args:
        languages: regular expression of the languages that are read in a block of one line: ```` ```sql X``` ````.
    """
    opening: re.Match[str] | None = None
    lines: list[str] = []
    for line in [*text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), None]:
        fence = None if line is None else _FENCE.match(line) or _after_text(line, is_inside=opening is not None)
        if opening is None:
            if fence and "`" in fence["info"]:
                yield from _one_line(fence, languages)
            elif fence:
                opening = fence
        elif line is None or (fence and _ends(fence, opening)):
            is_closed = fence is not None and not _names_language(fence)
            yield from _block(opening, lines, is_closed=is_closed)
            opening, lines = (None if is_closed else fence), []
        else:
            lines.append(line)


def _after_text(line: str, *, is_inside: bool) -> re.Match[str] | None:
    """Match a fence of backticks after other text at the end of a line, as in "Code: ```python"."""
    place = line.find("```")
    info = line[place:].lstrip("`")
    if place < 0 or is_inside or "`" in info or " " in info.strip():
        return None
    return _FENCE.match(line, place)


def _names_language(fence: re.Match[str]) -> bool:
    """Return True if a fence inside a block opens the next one; text after a closing fence is a sentence or a tag."""
    info = fence["info"].strip()
    language = _LANGUAGE.match(info)
    return bool(language and language[1]) and (" " not in info or not fence["info"].startswith(" "))


def _ends(fence: re.Match[str], opening: re.Match[str]) -> bool:
    is_near = len(fence["lead"]) <= len(opening["lead"]) + _INDENT
    return is_near and fence["fence"].startswith(opening["fence"]) and "`" not in fence["info"]


def _block(opening: re.Match[str], lines: list[str], *, is_closed: bool) -> Iterator[Block]:
    fence, width = opening["fence"], len(opening["lead"])
    if not is_closed:  # a fence at the end of a line of code closes it
        ends = (place for place, line in enumerate(lines) if line.rstrip().endswith(fence))
        if (end := next(ends, None)) is not None:
            lines = [*lines[:end], lines[end].rstrip().removesuffix(fence)]
    text = dedent("\n".join(line[min(width, len(line) - len(line.lstrip(" \t"))) :] for line in lines))
    language = _LANGUAGE.match(opening["info"])
    if text.strip():
        yield Block(language[1].lower() if language else "", f"{text}\n" if is_closed else text)


def _one_line(fence: re.Match[str], languages: str) -> Iterator[Block]:
    content, closed, _ = fence["info"].rpartition(fence["fence"])
    word, _, rest = content.strip().partition(" ")
    if closed and re.fullmatch(languages, word.lower()) and rest.strip():
        yield Block(word.lower(), rest.strip())
    elif closed and content.strip():
        yield Block("", content.strip())


def _without_span(text: str) -> str:
    inside = text.strip()
    is_span = len(inside) > 2 and inside[0] == inside[-1] == "`" and "`" not in inside[1:-1]
    return inside[1:-1].strip() if is_span else text
