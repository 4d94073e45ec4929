"""Size and speed of a report with many trajectories, in a headless Chromium.

    python benchmarks/report.py [TRAJECTORIES]

It generates failed tries with 4 reflections each, writes their report, and opens it three times. `open_s` is the
longest time from the request of the page until its list is filled and every trajectory can be searched, `load_s` until
every body is read too; `filter_ms` is the longest of several filters, from the input until the list is painted;
`trajectory_ms` the longest to open one; `update_s` the longest that the server of the report takes to read one more
trajectory. The last line is one JSON object.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from playwright.sync_api import sync_playwright

from r3agent import Span, Task, Trajectory, Verdict
from r3agent.report import write_report
from r3agent.report.encoding import dumps
from r3agent.report.gather import RunReader
from r3agent.store.shards import TrajectoryWriter

WORDS = ("add", "the", "numbers", "carefully", "because", "result", "must", "equal", "target", "try", "again", "with")
DISTINCT = 1_000
"""Number of distinct trajectories, which are repeated: those that are compressed together differ."""

FILTERS = {"#f-text": "carefully", "#f-task": "task-77", "#f-outcome": "1", "#f-label": "2"}

PAINTED = """([selector, value]) => new Promise((resolve) => {
  const field = document.querySelector(selector), began = performance.now();
  field.value = value;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - began)));
})"""
"""Set a filter; return the milliseconds until the list is painted."""

OPENED = """(i) => new Promise((resolve) => {
  const row = document.querySelectorAll("#list .row")[i], panes = document.getElementById("panes");
  const began = performance.now();
  new MutationObserver((_, seen) => { seen.disconnect(); resolve(performance.now() - began); })
    .observe(panes, { childList: true });
  row.click();
})"""
"""Open a trajectory; return the milliseconds until it is in the page."""


def span(draw: random.Random, label: Any, parent: Span | None = None, passed: bool | None = None, n: int = 40) -> Span:
    ids = tuple(draw.randrange(50_000) for _ in range(n))
    return Span(
        label=label,
        parent_id=parent and parent.span_id,
        text=" ".join(draw.choices(WORDS, k=n)),
        verdict=None if passed is None else Verdict(passed=passed, score=float(passed)),
        model="policy",
        policy_version=f"v000{draw.randrange(8)}",
        prompt_token_ids=(1, 2, 3),
        token_ids=ids,
        logprobs=tuple(-draw.expovariate(2.0) for _ in ids),
        capability="trainable-exact",
        completion_tokens=n,
    )


def trajectory(draw: random.Random, number: int) -> Trajectory:
    spans = [span(draw, "attempt", passed=False)]
    for _ in range(4):
        spans.append(span(draw, "reflect", spans[0]))
        spans.append(span(draw, "retry", spans[-1], draw.random() < 0.4))
    prompt = {"role": "user", "content": " ".join(draw.choices(WORDS, k=60))}
    return Trajectory(task=Task(id=f"task-{number // 8}", messages=(prompt,)), sample=number % 8, spans=tuple(spans))


def updates(run: Path, added: list[Trajectory]) -> list[float]:
    """Add trajectories one after another to a run that is read; return the seconds that each update takes."""
    reader, seconds = RunReader(run, keep=True), list[float]()
    reader.read()
    with TrajectoryWriter(run / "trajectories") as writer:
        for trajectory in added:
            writer.append(trajectory)
            began = time.perf_counter()
            facts, browser = reader.read()
            assert all((dumps(facts), dumps(browser.index()), browser.texts(), browser.chunks()))
            seconds.append(time.perf_counter() - began)
    return seconds


def main(n: int) -> None:
    draw = random.Random(0)
    with TemporaryDirectory() as folder:
        run = Path(folder)
        (run / "r3.toml").write_text('[policy]\nbase_model = "none"\n')  # tokens are shown by their ids
        with TrajectoryWriter(run / "trajectories") as writer:
            made = [trajectory(draw, number) for number in range(min(n, DISTINCT))]
            for number in range(n):
                task = made[number % DISTINCT].task.model_copy(update={"id": f"task-{number // 8}"})
                again = {"trajectory_id": f"{number:016x}", "task": task}
                writer.append(made[number % DISTINCT].model_copy(update=again))
        began = time.perf_counter()
        written = write_report(run)
        write_s = time.perf_counter() - began
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
            opens: list[float] = []
            loads: list[float] = []
            page: Any = None
            for _ in range(3):
                page = browser.new_page()
                began = time.perf_counter()
                page.goto(written.path.as_uri(), wait_until="commit")
                page.locator("body[data-ready=all]").wait_for()
                opens.append(time.perf_counter() - began)
                page.wait_for_load_state()
                loads.append(time.perf_counter() - began)
            filters = [page.evaluate(PAINTED, [field, value]) for field, value in FILTERS.items()]
            filters += [page.evaluate(PAINTED, [field, ""]) for field in FILTERS]
            trajectories = [page.evaluate(OPENED, i) for i in range(0, 50, 7)]
            heap = page.evaluate("() => performance.memory.usedJSHeapSize")
            browser.close()
        updated = updates(run, [one.changed(trajectory_id=f"more-{i}") for i, one in enumerate(made[:3])])
    print(f"opened in {opens} s, filtered in {filters} ms, trajectories in {trajectories} ms, updated in {updated} s")
    print(
        json.dumps(
            {
                "trajectories": written.listed,
                "file_mb": round(written.bytes / 1e6, 1),
                "write_s": round(write_s, 1),
                "open_s": round(max(opens), 2),
                "load_s": round(max(loads), 2),
                "filter_ms": round(max(filters)),
                "trajectory_ms": round(max(trajectories)),
                "heap_mb": round(heap / 1e6),
                "update_s": round(max(updated), 2),
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
