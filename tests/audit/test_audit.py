"""Each planted defect is found, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest

from r3agent.audit import Audit, AuditConfig, Check, Lengths, audit, report
from r3agent.audit.probes import Probe, ProbeResult
from r3agent.audit.records import some
from r3agent.audit.verdicts import Trial, TrialResult, trials, verdict_checks
from r3agent.errors import ConfigError
from tests.audit import planted

SETTINGS = AuditConfig(n=12, repeats=2, concurrency=1, timeout_s=60, slow_s=60)


async def audited(source: str = "source", verifier: str = "right", **settings: Any) -> Audit:
    return await audit(
        f"{planted.__name__}:{source}",
        params={},
        verifier=f"{planted.__name__}:{verifier}",
        verifier_params={},
        settings=SETTINGS.model_copy(update=settings),
        lengths=Lengths(max_tokens=16, limit=200),
    )


def found(result: Audit) -> dict[str, Check]:
    """Every check that is not ok."""
    return {check.name: check for check in result.checks if check.status != "ok"}


@pytest.mark.parametrize("verifier", ["right", "right_async", "Heavy"])
async def test_nothing_is_found_where_nothing_is_wrong(verifier: str) -> None:
    result = await audited(verifier=verifier)
    assert found(result) == {}
    assert result.ok
    assert result.tasks == {"train": 4, "gate": 4, "test": 4}
    tried = {check.name: check.counts["tried"] for check in result.checks}
    assert (tried["gold passes"], tried["empty fails"], tried["shuffled fails"]) == (12, 12, 12)
    assert (tried["verdicts agree"], tried["verifier errors"]) == (36, 72)
    assert "fit to train on" in report(result)


@pytest.mark.parametrize(
    ("source", "verifier", "name", "rate", "example"),
    [
        ("wrong_gold", "right", "gold passes", 1 / 12, "task '2', gold answer 'it is 5'"),
        ("source", "takes_empty", "empty fails", 1, "task '0', empty answer ''"),
        ("source", "takes_any", "shuffled fails", 1, "task '0', shuffled answer 'it is 200'"),
        ("source", "flaky", "verdicts agree", 1 / 36, "task '2', gold answer 'it is 4': [1.0, 0.0]"),
        ("source", "raising", "verifier errors", 24 / 72, "ValueError: no number in it"),
        ("source", "dying", "verifier errors", 2 / 72, "the verifier's process ended with 7"),
    ],
)
async def test_a_defect_is_found_and_no_other(source: str, verifier: str, name: str, rate: float, example: str) -> None:
    result = await audited(source, verifier)
    failed = {check.name: check for check in result.checks if not check.ok}
    assert list(failed) == [name]
    assert example in " ".join(failed[name].examples)
    assert failed[name].rate == pytest.approx(rate)
    assert failed[name].remedy
    assert not result.ok
    text = report(result)
    assert f"not fit to train on: {name}" in text
    assert example in text


async def test_a_verifier_that_hangs_is_ended_and_reported() -> None:
    result = await audited(verifier="hanging", timeout_s=10.0, repeats=1, n=3)
    failed = {check.name: check for check in result.checks if not check.ok}
    assert list(failed) == ["verdict time"]
    assert failed["verdict time"].counts["hung"] == 1
    assert failed["verdict time"].examples == ("task '0', gold answer 'it is 0': hangs",)


def test_a_share_that_is_allowed_is_a_warning() -> None:
    tasks = [planted.task(i) for i in range(10)]
    said = [ProbeResult(passed=i > 0, score=float(i > 0)) for i in range(10)]
    golds = [Trial("gold", Probe(task, task.gold or {})) for task in tasks]
    outcomes = [TrialResult(trial, (verdict,)) for trial, verdict in zip(golds, said, strict=True)]
    for allowed, status in ((0.1, "warning"), (0.09, "failed")):
        checks = verdict_checks(outcomes, tasks, SETTINGS.model_copy(update={"max_gold_failing": allowed}))
        assert {c.name: c.status for c in checks}["gold passes"] == status


def test_only_answers_that_differ_are_shuffled_and_an_empty_gold_is_not_tried_as_empty() -> None:
    says = ["yes", "yes", "no", ""]
    tasks = [planted.task(i, gold={"role": "assistant", "content": text}) for i, text in enumerate(says)]
    tried = [(t.kind, t.probe.task.id, t.probe.message["content"]) for t in trials(tasks)]
    assert [(i, said) for kind, i, said in tried if kind == "shuffled"] == [
        ("0", "no"),
        ("1", "no"),
        ("2", ""),
        ("3", "yes"),
    ]
    assert [i for kind, i, _ in tried if kind == "empty"] == ["0", "1", "2"]


async def test_errors_of_a_shipped_verifier_are_mended_in_the_tasks_and_whole() -> None:
    lacking = await audit(
        f"{planted.__name__}:source",
        params={},
        verifier="exact",
        verifier_params={},
        settings=SETTINGS,
        lengths=Lengths(max_tokens=16),
    )
    check = found(lacking)["verifier errors"]
    assert "no 'answer', which the verifier reads; name its column with task.params.answer" in check.examples[0]
    assert "task.params.answer" in check.remedy
    assert "say False" not in check.remedy
    assert some(["x" * 300 + 'packages = ["numpy"]'])[0].endswith('packages = ["numpy"]')


async def test_what_cannot_be_asked_at_all_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigError, match="has no 'missing'"):
        await audited(verifier="missing")
    with pytest.raises(ConfigError, match="has no 'missing'"):
        await audited("missing")
    with pytest.raises(ConfigError, match=r"task\.params: split cannot be set; .*gate\.split"):
        await audit(
            "countdown",
            params={"split": "all"},
            verifier_params={},
            settings=SETTINGS,
            lengths=Lengths(max_tokens=16),
        )
