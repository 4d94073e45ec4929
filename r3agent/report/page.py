"""The page: one HTML file with its style, scripts and data, which makes no request.

A Content-Security-Policy admits only the scripts and styles of this package, by their hashes, and with Trusted Types no
text can become markup. Data stands in blocks that are not executed.
"""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from importlib.resources import files
from os import fspath
from pathlib import Path
from typing import NamedTuple

from r3agent._util.checked import checked
from r3agent._util.files import write_atomically
from r3agent.report.encoding import dumps, packed
from r3agent.report.gather import LIMIT, Content, gather
from r3agent.store.shards import REPORT_FILE

STYLES = ("uplot/uPlot.min.css", "style.css")
SCRIPTS = ("uplot/uPlot.iife.min.js",)
OWN_SCRIPTS = ("text.js", "charts.js", "overview.js", "decisions.js", "source.js", "tree.js", "browser.js", "main.js")
"""Scripts of this package, which make one script in this order."""


class Written(NamedTuple):
    """A report that was written."""

    path: Path
    bytes: int
    episodes: int
    listed: int
    headline: str


@checked
def write_report(run: str | Path, out: str | Path | None = None, *, limit: int = LIMIT) -> Written:
    """Write the report of a run, or of a store, as one file that opens offline.

    Args:
        out: file to write; default: `report.html` in `run`.
        limit: number of trajectories to list, about; the figures count all.

    Raises:
        ConfigError: there is no such directory, or the file cannot be written.
        SchemaVersionError: another version of r3agent wrote the run's records.
    """
    content = gather(Path(run), limit=limit)
    path = Path(out) if out is not None else Path(run) / REPORT_FILE
    write_atomically(path, (part.encode() for part in page(content)))
    facts = content.facts
    return Written(path, path.stat().st_size, facts["episodes"], facts["listed"], facts["headline"]["text"])


def page(content: Content | None, *, title: str = "", token: str = "") -> Iterator[str]:
    """Yield the parts of the page.

    Args:
        content: `None` for a page that asks its server for it.
        title: name of the run.
        token: secret that the page sends with a label.
    """
    name = html.escape(ascii_of(content.facts["run"] if content else title))
    styles, scripts = _parts()
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy(live=content is None)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f'<link rel="icon" href="data:,">\n<title>{name} – r3agent report</title>\n'
    )
    yield from (f"<style>{style}</style>\n" for style in styles)
    yield f"</head>\n<body>\n{_static('body.html')}\n"
    yield _block("r3-page", "application/json", dumps({"live": content is None, "token": token}))
    if content is not None:
        yield _block("r3-facts", "application/json", dumps(content.facts))
        yield _block("r3-index", "application/gzip", _packed(dumps(content.browser.index())))
        yield _block("r3-texts", "application/gzip", _packed(dumps([texts for _, texts in content.browser.texts()])))
    yield from (f"<script>{script}</script>\n" for script in scripts)
    if content is not None:  # most of the file: the page is of use before they are read
        for number, chunk in enumerate(content.browser.chunks()):
            yield _block(f"r3-chunk-{number}", "application/gzip", b64encode(chunk).decode())
    yield "</body>\n</html>\n"


def policy(*, live: bool) -> str:
    """Return the Content-Security-Policy of the page.

    Args:
        live: the page asks its server for data.
    """
    styles, scripts = _parts()
    directives = {
        "default-src": "'none'",
        "script-src": " ".join(map(_source, scripts)),
        "style-src": " ".join(map(_source, styles)),
        "img-src": "data:",
        "connect-src": "'self'" if live else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in directives.items())


def ascii_of(text: str) -> str:
    """Write characters that a terminal or a page may not show as escapes."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in fspath(text))


@cache
def _parts() -> tuple[list[str], list[str]]:
    """Return the styles and the scripts of the page."""
    own = "\n".join(map(_static, OWN_SCRIPTS))
    return [*map(_static, STYLES)], [*map(_static, SCRIPTS), own]


def _static(name: str) -> str:
    return (files("r3agent.report") / "static" / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _packed(text: str) -> str:
    return b64encode(packed(text)).decode()


def _block(name: str, kind: str, content: str) -> str:
    """Make a block of data; no text in it can end it."""
    return f'<script id="{name}" type="{kind}">{content.replace("<", chr(92) + "u003c")}</script>\n'
