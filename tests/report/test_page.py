from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from r3agent import ConfigError, load
from r3agent.evaluate import compare
from r3agent.evaluate.comparison import write_comparison
from r3agent.evaluate.sentinel import Example
from r3agent.evaluate.sequential import examine
from r3agent.report import write_report
from r3agent.store.history import Event, record_event
from r3agent.store.registry import Registry
from tests.report.runs import HOSTILE, episode, make_run, store

Visit = Callable[..., Any]


def ids(page: Any) -> list[str]:
    return [text.split(" · ")[-1] for text in page.locator("#list .row .quiet").all_inner_texts()]


def test_report_says_how_sure_the_gain_is(report: Path, visit: Visit) -> None:
    page = visit(report)
    assert page.locator("h1").inner_text() == "a <run>"
    assert "better: v0001 solves 75.0 points more than v0000" in page.locator("#headline").inner_text().lower()
    assert "(12.5 % → 87.5 %)" in page.locator("#headline").inner_text()
    detail = page.locator("#detail").inner_text()
    assert "40 tasks of the gate split" in detail
    assert "p = 1.9e-09" in detail
    assert "decided on the promotion too" in detail
    events = page.locator("#events li").all_inner_texts()
    assert any("v0001 passed the gate against v0000: +75.0 points" in text for text in events)
    assert any("v0001 trained from v0000 on 64 rows in 8 steps" in text for text in events)


def test_report_draws_charts_with_their_figures(report: Path, visit: Visit) -> None:
    page = visit(report)
    titles = page.locator("figcaption").all_inner_texts()
    assert "Gate, gate split" in titles
    assert {"Tries that passed, mean over tasks, by round of collection", "Training: loss", "Training: kl"} <= {*titles}
    for figure in page.locator("figure").all():
        figure.scroll_into_view_if_needed()
        figure.locator("canvas").wait_for()
    drawn = page.evaluate(
        """() => [...document.querySelectorAll(".plot canvas")].map((c) =>
            new Set(new Uint32Array(c.getContext("2d").getImageData(0, 0, c.width, c.height).data.buffer)).size)"""
    )
    assert len(drawn) == len(titles)
    assert min(drawn) > 10, drawn  # colours of lines, axes and their edges
    page.locator("#curves summary").first.click()
    figures = page.locator("#curves table").first.inner_text()
    assert "1 · v0000" in figures
    assert "100.0 %" in figures  # of the first tries of round 2, but for two
    behaviour = page.locator("#cells details", has_text="Behaviour").inner_text()
    assert "wrong to right" in behaviour
    assert "v0001, gate\t87.5 %" in behaviour
    costs = page.locator("#costs table").inner_text()
    assert "Cost, USD" in costs
    assert "wrong answer" in page.locator("#kinds table").inner_text()


def test_curves_leave_out_an_unknown_version(run_dir: Path, tmp_path: Path, visit: Visit) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    store(run / "trajectories", *(episode(f"recorded-{i}", None, i < 1, True) for i in range(4)))
    page = visit(write_report(run).path)
    curves = page.locator("#curves")
    assert "4 episodes of round 1 whose policy version is not known · first try 25.0 %" in curves.inner_text()
    assert "unknown" not in curves.text_content()


def test_charts_of_a_phone_cut_no_label(run_dir: Path, tmp_path: Path, visit: Visit) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    log = (json.dumps({"step": i, "loss": i / 1e6, "grad_norm": 123456.0 * i}) + "\n" for i in range(1, 9))
    (run / "policies" / "v0001" / "steps.jsonl").write_text("".join(log))
    page = visit(write_report(run).path, viewport={"width": 390, "height": 844}, device_scale_factor=2)
    for figure in page.locator("figure").all():
        figure.scroll_into_view_if_needed()
        figure.locator("canvas").wait_for()
    ink = page.evaluate(
        """() => [...document.querySelectorAll(".plot canvas")].map((c) =>
            Math.max(...c.getContext("2d").getImageData(0, 0, 1, c.height).data))"""
    )
    assert len(ink) > 3
    assert max(ink) == 0, ink  # of the leftmost pixels


def test_gate_decisions_show_their_evidence_and_examples(run_dir: Path, tmp_path: Path, visit: Visit) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    path = run / "gate" / "v0001" / "v0000-v0001.gate.0123abcd.json"
    before, after = (load(path.parent / version) for version in ("v0000", "v0001"))
    compared = compare(before, after, order=[t.task.id for t in before])
    shown = Example(trajectory_id=after[3].trajectory_id, excerpt=HOSTILE), Example(trajectory_id="gone", excerpt="x")
    examples = {"leaks": shown, "arithmetic": shown[1:]}
    write_comparison(path, "settings", compared.model_copy(update={"examples": examples}), drawn={})
    decided: dict[str, Any] = {"version": "v0001", "other": "v0000", "file": path.relative_to(run).as_posix()}
    reasons = "met: e-value 1e+06 for a gain, at least 40", "NOT met: reflections that give <b>the</b> answer away"
    record_event(run / "policies", Event(event="passed", version="v0009", other="v0000"))  # of an older release
    event = Event(event="failed", reasons=reasons, alpha=0.05, blocked_by=("leaks",), **decided)
    record_event(run / "policies", event)
    page = visit(write_report(run).path)
    gate = page.locator("#gate")
    first = gate.locator("#decisions > details").first
    assert first.locator("summary").first.inner_text().startswith("refused v0001 against v0000")
    assert [e.inner_text() for e in first.locator(".reasons li").all()] == [r.replace(": ", " ", 1) for r in reasons]
    titles = first.locator("figcaption").all_inner_texts()
    assert [title.partition(" ")[0] for title in titles] == ["Evidence", "Gain"]
    evidence = examine(compared.draw.gains if compared.draw else (), planned=40, level=0.025)
    first.locator("figure").first.scroll_into_view_if_needed()
    first.locator("figure canvas").first.wait_for()
    first.locator("figure summary").first.click()
    assert f"40 tasks\t{evidence.e_value:.2e}" in first.locator("figure table").first.inner_text().replace("e+", "e+0")
    signs = first.locator(".examples")
    assert signs.first.is_visible()
    assert not signs.nth(1).is_visible()  # it blocked nothing
    assert "<img src=x onerror=" in signs.first.inner_text()
    assert "gone, not on this page" in signs.first.inner_text()
    signs.first.locator("a").click()
    page.locator(".pane h3:focus").wait_for()
    assert f"· {after[3].trajectory_id} ·" in page.locator(".pane").inner_text()
    assert page.evaluate("() => window.ran") is None
    assert "passed" not in gate.locator("#decisions > details").nth(1).inner_text()


def test_filters_find_what_they_name(report: Path, visit: Visit) -> None:
    page = visit(report)
    count = page.locator("#count")
    assert count.inner_text() == "93 of 93 trajectories"
    page.fill("#f-text", "NEEDLE in")
    assert count.inner_text() == "1 of 93 trajectories"
    page.click("button[type=reset]")
    count.filter(has_text="93 of 93").wait_for()
    page.fill("#f-task", "train-5")
    page.select_option("#f-version", label="v0001")
    assert count.inner_text() == "1 of 93 trajectories"
    page.click("button[type=reset]")
    page.select_option("#f-label", label="blind retry")
    page.select_option("#f-outcome", label="failed")
    page.select_option("#f-store", label="gate/v0001/v0000")
    assert count.inner_text() == "35 of 93 trajectories"
    page.fill("#f-text", "nothing has this")
    assert page.locator("#list .row").count() == 0


def test_list_is_paged(report: Path, visit: Visit) -> None:
    page = visit(report)
    first = ids(page)
    assert len(first) == 50
    page.click("#after")
    assert len(ids(page)) == 43
    assert not {*first} & {*ids(page)}
    assert page.locator("#after").is_disabled()
    page.click("#before")
    assert ids(page) == first


def test_trajectory_opens_beside_another_version(report: Path, visit: Visit) -> None:
    page = visit(report)
    page.fill("#f-task", "train-0")
    page.click("#list .row >> nth=0")
    tree = page.locator(".pane").first
    assert tree.locator(".span .label").all_inner_texts() == [
        "attempt",
        "reflect",
        "retry",
        "reflect",
        "retry",
        "blind retry",
    ]
    assert "reward 1.00, advantage +0.71 of 2" in tree.locator(".span.reflect").first.inner_text()
    colours = {
        tree.locator(f".span.{label}").first.evaluate("e => getComputedStyle(e).borderLeftColor")
        for label in ("attempt", "reflect", "retry", "blind_retry")
    }
    assert len(colours) == 4
    page.select_option(".compare select", index=1)
    other = page.locator(".panes.two .pane >> nth=1")
    other.wait_for()
    assert "v0001" in other.locator("h3").inner_text()
    assert page.url.split("#trajectory=")[1] == page.locator(".pane").first.inner_text().split(" · ")[3].strip()
    again = visit(page.url)  # the address opens it
    again.locator(".pane .span").first.wait_for()


def test_tokens_tell_their_logprobs_to_mouse_and_keys(report: Path, visit: Visit) -> None:
    page = visit(report)
    page.fill("#f-task", "train-0")
    page.click("#list .row >> nth=0")
    button = page.locator(".span.reflect button").first
    assert button.inner_text() == "Show 2 tokens"  # by their ids: another model has them
    button.click()
    tokens = page.locator(".span.reflect .token")
    tokens.nth(1).hover()
    tip = page.locator("#tip")
    assert "logprob -1.000 (36.8 %), reward 1.00, advantage +0.71" in tip.inner_text()
    page.locator(".span.reflect .tokens").first.focus()
    page.keyboard.press("Home")
    assert "logprob -0.500" in tip.inner_text()
    page.keyboard.press("ArrowRight")
    assert "logprob -1.000" in tip.inner_text()
    assert tokens.nth(1).get_attribute("aria-selected") == "true"
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_keyboard_alone_operates_the_page(report: Path, visit: Visit) -> None:
    page = visit(report)
    focused = "() => document.activeElement.id || document.activeElement.className"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "f-text"
    assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.type("problem of train-1")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate(focused) == "row":
            break
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.locator(".pane h3:focus").wait_for()
    assert "train-1 · v0001" in page.locator(".pane h3").inner_text()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # Close
    assert page.locator(".pane").count() == 0
    assert page.evaluate(focused) == "row"


def test_hostile_text_runs_nothing_and_is_visible(report: Path, visit: Visit) -> None:
    page = visit(report)
    page.fill("#f-text", "gnp.exe")
    page.click("#list .row")
    pane = page.locator(".pane")
    pane.locator(".span").first.wait_for()
    text = pane.inner_text()
    for part in ("</script><script>window.ran = 1</script>", "<img src=x onerror=", "<!--<script>", "hostileU+202E<b>"):
        assert part in text, part
    hidden = pane.locator(".hidden-char").all_inner_texts()
    assert {"U+202E", "U+2069", "ESC", "U+2028", "NUL", "U+E0041"} <= {*hidden}
    assert pane.locator("img, a, b, script").count() == 0
    assert page.evaluate("() => window.ran") is None
    assert "\u202e" not in page.locator("body").inner_text()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
def test_axe_finds_nothing_serious(report: Path, visit: Visit, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page = visit(report, color_scheme=scheme, viewport={"width": width, "height": 800})
    page.fill("#f-text", "gnp.exe")
    page.click("#list .row")
    page.locator(".pane .span").first.wait_for()
    page.locator(".pane .span button").first.click()
    found = axe.Axe().run(page).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")] == []
    assert page.evaluate("() => document.documentElement.scrollWidth") == width


def test_report_of_an_empty_or_broken_run(tmp_path: Path, visit: Visit) -> None:
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    assert write_report(empty).episodes == 0
    (empty / "r3.toml").write_text('[task]\nsource = "countdown"\n')  # as `r3agent init` leaves it
    make_run(broken)
    store(broken / "trajectories", episode("other", "v0001", True, metadata={"verifier": "another"}))
    (broken / "r3.toml").write_text("[nonsense]\nx = 1\n")
    (broken / "live.json").write_text("{")
    (broken / "gate/v0001/v0000-v0001.gate.0123abcd.json").write_text('{"comparison": {}}')
    (broken / "policies/v0001/card.json").write_text("[]")
    with next((broken / "trajectories").glob("00000.jsonl")).open("a") as shard:
        shard.write('{"torn')
    page = visit(write_report(empty).path)
    assert page.locator("#headline").inner_text() == "Nothing is stored yet."
    page = visit(write_report(broken).path)
    assert "94 episodes are stored, and no two versions are compared" in page.locator("#headline").inner_text()
    notes = page.locator("#notes").inner_text()
    for part in ("nonsense", "live.json", "0123abcd.json", "card.json"):
        assert part in notes, part
    with pytest.raises(ConfigError, match="there is no such directory"):
        write_report(tmp_path / "missing")


def test_report_tells_of_a_rollback_and_of_a_store(run_dir: Path, tmp_path: Path, visit: Visit) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    Registry(run).set_live("v0000")
    page = visit(write_report(run).path)
    assert "rolled back from v0001 to v0000, which is live" in page.locator("#events").inner_text()
    record_event(run / "policies", Event(event="failed", version="v0001", other="v0000", reasons=("NOT met: p",)))
    record_event(run / "policies", Event(event="deployed", version="v0001", other="v0000", by="anna"))
    page = visit(write_report(run).path)
    texts = page.locator("#events").inner_text()
    assert "v0001 did not pass the gate against v0000, by gate: NOT met: p" in texts
    assert "v0001 made live in place of v0000, by anna" in texts
    assert "passed the gate against v0000: +75.0" not in texts
    written = write_report(run / "trajectories", tmp_path / "store.html")
    assert written.episodes == 13


def test_limit_keeps_whole_tasks_of_an_even_sample(run_dir: Path, tmp_path: Path, visit: Visit) -> None:
    written = write_report(run_dir, tmp_path / "part.html", limit=40)
    assert written.episodes == 93
    assert 20 < written.listed < 60
    page = visit(written.path)
    assert f"an even sample of the {written.episodes} stored" in page.locator("#count").inner_text()


def test_vendored_library_is_as_published() -> None:
    folder = files("r3agent.report") / "static" / "uplot"
    sums = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    assert {name for _, name in sums} == {"uPlot.iife.min.js", "uPlot.min.css", "LICENSE"}
    for digest, name in sums:
        assert sha256((folder / name).read_bytes()).hexdigest() == digest


def test_report_leaves_out_a_comparison_without_numbers(run_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    assert write_report(run).headline.startswith("Better")
    for path in run.glob("gate/v0001/*v0000-v0001.gate.*"):
        stored = json.loads(path.read_bytes())
        stored["comparison"]["after_reflection"]["p_value"] = None
        path.write_text(json.dumps(stored))
    assert write_report(run).headline.endswith("no two versions are compared yet.")


def test_report_shows_token_ids_of_no_model(tmp_path: Path) -> None:
    made = episode("other", "v0001", True)
    huge = made.spans[0].model_copy(update={"token_ids": (2**40, 5)})
    store(tmp_path / "trajectories", made.changed(spans=(huge,)))
    (tmp_path / "r3.toml").write_text('[policy]\nbase_model = "bundled"\n')
    assert write_report(tmp_path).listed == 1
