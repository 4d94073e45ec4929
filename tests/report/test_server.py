from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from r3agent import load
from r3agent._util.wait import wait_until
from r3agent.report import ReportServer
from tests.report.runs import episode, store

Visit = Callable[..., Any]


@pytest.fixture
def served(run_dir: Path, tmp_path: Path) -> Iterator[ReportServer]:
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    with ReportServer(run) as server:
        yield server


def test_served_report_updates_by_itself(served: ReportServer, visit: Visit) -> None:
    page = visit(served.url)
    page.fill("#f-task", "train-0")
    page.click("#list .row >> nth=0")
    store(served.run / "trajectories", episode("train-0", "v0002", True, trajectory_id="0123456789abcdef"))
    page.locator("#count").filter(has_text="3 of 94 trajectories").wait_for()  # the filter stays
    assert page.locator(".pane .span").count() == 6
    page.select_option("#f-version", label="v0002")
    page.click("#list .row")
    page.locator(".pane h3", has_text="v0002").wait_for()


def test_label_buttons_attach_labels(served: ReportServer, visit: Visit) -> None:
    page = visit(served.url)
    page.fill("#f-text", "needle")
    page.click("#list .row")
    retry = page.locator(".span.retry").first
    retry.locator("input").fill("it is </script> wrong")
    retry.get_by_role("button", name="Failed").click()
    page.locator(".span.retry .chip.failed", has_text="by ").wait_for()
    (labelled,) = [t for t in load(served.run) if t.task.id == "train-5" and t.sample]
    verdict = labelled.tries[1].verdict
    assert verdict is not None
    assert (verdict.passed, verdict.feedback, verdict.overruled) == (False, "it is </script> wrong", True)
    assert "the verifier said passed" in retry.inner_text()
    page.locator(".span.attempt").get_by_role("button", name="Passed").click()
    page.locator(".span.attempt .chip", has_text="the verifier said failed").wait_for()


def test_labels_are_refused_without_the_page(served: ReportServer) -> None:
    url = f"{served.url}api/label"
    page = httpx.get(served.url)
    token = re.search(r'"token":"([^"]+)"', page.text)
    assert token is not None
    given = {"store": "trajectories", "trajectory_id": "f00dfeedf00dfeed", "passed": True}
    mine = {"X-R3-Token": token[1]}
    for headers, status in (
        ({}, 403),
        ({"X-R3-Token": "guessed"}, 403),
        ({**mine, "Origin": "https://evil.example"}, 403),
        ({**mine, "Host": "evil.example"}, 403),
        ({**mine, "Content-Type": "text/plain"}, 415),
    ):
        assert httpx.post(url, json=given, headers=headers).status_code == status, headers
    assert httpx.get(served.url, headers={"Host": "evil.example"}).status_code == 403
    for wrong in (
        {"store": "../.."},
        {"passed": "yes"},
        {"trajectory_id": "none"},
        {"directory": "/"},
        {"span_id": "x"},
        {"store": ["trajectories"]},
    ):
        answer = httpx.post(url, json={**given, **wrong}, headers=mine)
        assert answer.status_code == 400, wrong
        assert answer.json()["error"]
    for content in (b"[]", b"{", b"null", b"\xff", b"[" * 60_000):
        for kind in ("application/json", "application/json; charset=nonsense"):
            headers = {**mine, "Content-Type": kind}
            assert httpx.post(url, content=content, headers=headers).status_code == 400
    assert not (served.run / "trajectories" / "labels").exists()
    assert httpx.post(url, json=given, headers=mine).json()["passed"] is True
    assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]


def test_server_goes_on_after_a_file_that_it_cannot_read(
    served: ReportServer, caplog: pytest.LogCaptureFixture
) -> None:
    def revision() -> int:
        return httpx.get(f"{served.url}api/state").json()["revision"]

    steps = served.run / "policies" / "v0001" / "steps.jsonl"
    steps.unlink()
    steps.symlink_to("/proc/self/mem")  # a file whose first byte nobody can read
    wait_until(lambda: "keeps its last state: OSError" in caplog.text, timeout_s=30)
    assert revision() == 1
    steps.unlink()
    wait_until(lambda: revision() == 2, timeout_s=30)
