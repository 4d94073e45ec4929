"""Code and output of Markdown pages, for tests that run it."""

from __future__ import annotations

import re
import shlex


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The words of each `r3agent ...` of its console blocks, without `r3agent`."""
    lines = [line.split("#")[0].strip(" &") for block in blocks(page, "console") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("r3agent ")]


def scripts(page: str) -> list[tuple[str, str]]:
    """Its Python blocks in order, each with what it prints: the `output` block below it, or nothing."""
    return re.findall(r"```python\n(.*?)```\n(?:\n```output\n(.*?)```)?", page, re.DOTALL)
