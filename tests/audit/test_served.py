"""A try on a served model names its prevailing fault, and finds nothing where nothing is wrong."""

from __future__ import annotations

import pytest

from r3agent.audit import Audit, AuditConfig, Check, Lengths, ServedModel, audit, report
from r3agent.errors import AccessError
from r3agent.policy import Sampling
from r3agent.records.trajectory import Generation
from r3agent.testing import ScriptedPolicy
from r3agent.testing.policy import ScriptedReply
from tests.audit import planted

SETTINGS = AuditConfig(n=4, repeats=1, concurrency=1, timeout_s=60, slow_s=60, probe_n=4, probe_samples=2)
CUT = Generation(text="it is", model="scripted", finish_reason="length")


async def tried(*replies: ScriptedReply, source: str = f"{planted.__name__}:source", verifier: str = "right") -> Audit:
    """Each first try gets the next reply, one task after another."""
    return await audit(
        source,
        params={},
        verifier="" if source == "countdown" else f"{planted.__name__}:{verifier}",
        verifier_params={},
        settings=SETTINGS,
        lengths=Lengths(max_tokens=16, limit=400),
        served=ServedModel(ScriptedPolicy(list(replies)), Sampling(max_tokens=16), concurrency=1),
    )


def served(result: Audit) -> dict[str, Check]:
    return {c.name.removeprefix("served: "): c for c in result.checks if c.name.startswith("served: ")}


async def test_a_model_that_passes_sometimes_is_fit_to_train() -> None:
    result = await tried("it is 0", "?", "?", "it is 2", "it is 4", "it is 4", "?", "?")
    checks = served(result)
    assert result.ok
    assert {check.status for check in checks.values()} == {"ok"}
    assert checks["first try"].counts == {"tried": 8, "wrong": 4, "tasks": 4}
    assert checks["first try"].detail.startswith("4 of 8 pass, 50.0 % [")
    assert checks["first try"].detail.endswith("prevailing fault: wrong, 4 of 4")
    assert checks["groups vary"].counts == {"tried": 4, "wrong": 2}


@pytest.mark.parametrize(
    ("replies", "source", "failed", "fault", "remedy"),
    [
        ([CUT] * 8, "", ["answers read", "groups vary"], "cut off, 8 of 8", "raise sampling.max_tokens"),
        ([""] * 8, "", ["answers read", "groups vary"], "empty, 8 of 8", "chat template"),
        (["?"] * 8, "", ["groups vary"], "wrong, 8 of 8", "take easier tasks"),
        (["It is 3."] * 8, "countdown", ["answers read", "groups vary"], "unreadable, 8 of 8", "task.params.calls"),
        (["<answer> 1 </answer>"] * 8, "countdown", ["groups vary"], "wrong, 8 of 8", "take easier tasks"),
        ([f"it is {2 * (i // 2)}" for i in range(8)], "", ["groups vary"], "", "take harder tasks"),
    ],
)
async def test_the_prevailing_fault_is_named_with_its_remedy(
    replies: list[ScriptedReply], source: str, failed: list[str], fault: str, remedy: str
) -> None:
    result = await tried(*replies, source=source or f"{planted.__name__}:source")
    checks = served(result)
    assert [name for name, check in checks.items() if not check.ok] == failed
    assert fault in checks["first try"].detail
    assert remedy in checks[failed[0]].remedy
    assert f"not fit to train on: served: {failed[0]}" in report(result)


async def test_an_error_of_one_try_is_a_warning() -> None:
    refusal = AccessError("the key is wrong")
    checks = served(await tried("it is 0", refusal, "?", "it is 2", "it is 4", "?", "?", "?"))
    assert checks["no errors"].status == "warning"
    assert "the key is wrong" in checks["no errors"].examples[0]
    assert checks["first try"].counts["tried"] == 7
    assert checks["answers read"].counts["tried"] == 7
    with pytest.raises(AccessError, match="the key is wrong"):
        await tried(refusal)


async def test_tries_that_all_end_with_an_error_read_no_answer() -> None:
    checks = served(await tried(*["?"] * 8, verifier="raising_always"))
    assert {name: check.status for name, check in checks.items()} == {
        "no errors": "failed",
        "answers read": "skipped",
        "first try": "skipped",
    }
