from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from r3agent.report import write_report
from tests.report.runs import make_run

OWN = ("file:", "data:", "blob:", "http://127.0.0.1:")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, without a window; meanwhile this thread has a running event loop."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if (path := shutil.which("chromium")) is None:
        pytest.skip("there is no browser: apt-get install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Open a page; at the end, fail if it had an error or asked for anything but itself."""
    problems: list[str] = []
    contexts: list[Any] = []

    def opened(address: Path | str, **options: Any) -> Any:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(f"console: {message.type}: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
        page.on("request", lambda r: problems.append(f"request: {r.url}") if not r.url.startswith(OWN) else None)
        page.goto(address.as_uri() if isinstance(address, Path) else address)
        page.locator("body[data-ready=all]").wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report") / "a <run>")


@pytest.fixture(scope="session")
def report(run_dir: Path) -> Path:
    return write_report(run_dir).path
