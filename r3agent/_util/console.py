"""Text for terminals: aligned columns, sizes, escaped control characters, and no progress bars of libraries."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import Any

WIDTH = 100_000
"""Width of rendered output, so large that only the terminal cuts or wraps it."""


def columns(rows: Iterable[Sequence[str]], *, gap: int = 2, indent: int = 0, first: int = 0) -> list[str]:
    """Align rows in columns, the first at least `first` wide; one plain line per row, without markup or wrapping."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, gap, 0, 0), pad_edge=False)
    table.add_column(min_width=first)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(file=StringIO(), width=WIDTH, force_terminal=False, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(table)  # without `Padding`, which cuts the first column if the last one is empty
    return [f"{' ' * indent}{line}".rstrip() for line in capture.get().splitlines()]


def size(n_bytes: int) -> str:
    """Render a number of bytes in MB, or in kB below 1 MB."""
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.1f} kB"


@contextmanager
def without_bars(datasets: Any) -> Generator[None]:
    """Disable the progress bars of `datasets`, which do not belong in a program's log."""
    were_enabled = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_enabled:
            datasets.enable_progress_bars()


def printable(text: str) -> str:
    """Replace control characters, which a terminal would interpret."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
