"""Spans of verdicts that stored episodes get later: labels, outcomes, and those of a verifier that judges again."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry.trace import StatusCode

import r3agent
from r3agent.errors import RecordError
from r3agent.run.outcomes import label_outcomes
from r3agent.run.reverify import reverify
from r3agent.store.labels import label
from r3agent.store.shards import TrajectoryWriter
from r3agent.verifiers import PENDING
from tests.support.exported import Exported, has
from tests.support.trees import TASK, span, tree

NAME, TRAJECTORY = "gen_ai.evaluation.name", "r3agent.trajectory.id"
SCORE, WORD = "gen_ai.evaluation.score.value", "gen_ai.evaluation.score.label"


@pytest.fixture
def prod(tmp_path: Path) -> Path:
    with TrajectoryWriter(tmp_path / "prod") as writer:
        for i, text in enumerate(("yes", "hm", "boom")):
            first = span("attempt", passed=False, text=text, span_id=f"a{i}")
            retry = span("retry", first, passed=True, text=text, span_id=f"r{i}")
            writer.append(tree(first, retry).changed(trajectory_id=f"t{i}"))
    return tmp_path / "prod"


def judge(task: object, answer: str) -> object:
    if answer == "boom":
        raise ValueError("cannot read it")
    return PENDING if answer == "hm" else True


async def judge_slowly(task: object, answer: str) -> object:
    return judge(task, answer)


def told(exported: Exported) -> list[tuple[object, ...]]:
    found = [has(one) for one in exported.named("evaluate")]
    return sorted((one[TRAJECTORY], *one["r3agent.span.ids"], one.get(SCORE), one.get(WORD)) for one in found)


def test_label_is_a_span_of_the_episode_it_is_on(exported: Exported, prod: Path, tmp_path: Path) -> None:
    with r3agent.trace(task=TASK, out=tmp_path / "other"):  # another episode, in whose trace it is
        label(prod, "t0", passed=False, feedback="private", by="ann")
    label(prod, "t1", passed=True, span_id="attempt")
    assert told(exported) == [("t0", "r0", 0.0, "fail"), ("t1", "a1", 1.0, "pass")]
    [first, _] = exported.named("evaluate label")
    assert has(first)[NAME] == "label"
    assert "private" not in str(has(first))
    assert "ann" not in str(has(first))


def test_label_that_is_not_written_has_no_span(exported: Exported, prod: Path) -> None:
    (prod / "labels").write_text("in the way")
    with pytest.raises(RecordError):
        label(prod, "t0", passed=False)
    assert not exported.spans


def test_label_outcomes_makes_a_span_of_each_label(
    exported: Exported, prod: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    (tmp_path / "outcomes.csv").write_text("episode,score,note,by\nt0,0.25,half,ann\nt1,1,,bob\nt9,1,,bob\n")
    label_outcomes(prod, tmp_path / "outcomes.csv")
    label_outcomes(prod, tmp_path / "outcomes.csv")  # which writes none
    assert told(exported) == [("t0", "r0", 0.25, "fail"), ("t1", "r1", 1.0, "pass")]
    half, _ = exported.named("evaluate label")
    assert (has(half)["gen_ai.evaluation.explanation"], has(half)["r3agent.verdict.by"]) == ("half", "ann")


@pytest.mark.parametrize("verifier", ["judge", "judge_slowly"])
async def test_reverify_makes_a_span_of_each_verdict(exported: Exported, prod: Path, verifier: str) -> None:
    name = f"{__name__}:{verifier}"
    found = await reverify(prod, name)
    assert (found.judged, found.open, found.errors) == (4, 2, 2)
    spans = exported.named(f"evaluate {verifier}")
    judged = [one for one in spans if one.status.status_code is StatusCode.UNSET]
    assert told(exported)[:2] == [("t0", "a0", 1.0, "pass"), ("t0", "r0", 1.0, "pass")]
    assert sorted((has(one)[TRAJECTORY], has(one)[WORD]) for one in judged) == [
        *[("t0", "pass"), ("t0", "pass"), ("t1", "pending"), ("t1", "pending")]
    ]
    exported.spans.clear()
    await reverify(prod, name)  # goes on, and writes none
    assert [one for one in exported.spans if one.status.status_code is StatusCode.UNSET] == []
