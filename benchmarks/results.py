"""Sections of benchmarks/RESULTS.md, each written by one benchmark."""

from __future__ import annotations

import re
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")


def replace_section(file: Path, title: str, command: str, text: str) -> None:
    """Write a benchmark's section of the results at their end, and remove the old one.

    Args:
        command: command that reproduces it.
    """
    before = file.read_text() if file.exists() else "# Results\n"
    kept = re.sub(rf"\n## {re.escape(title)}\n.*?(?=\n## |\Z)", "", before, flags=re.DOTALL).rstrip("\n")
    file.write_text(f"{kept}\n\n## {title}\n\n`{command}`\n\n{text}\n")
