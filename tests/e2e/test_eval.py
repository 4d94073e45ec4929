"""An evaluation with all controls, through the command line, on the embedded server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r3agent.cli.main import main
from r3agent.evaluate import Evaluation
from r3agent.run.stages import Run
from r3agent.serve import ServerProcess
from r3agent.store.trajectories import load

SMALL = {
    "task.source": "countdown",
    "sampling.max_tokens": 24,
    "eval.n": 24,
    "eval.controls": ["generic", "donor"],
    "policy.prices": {"prompt": 1.0, "sampled": 2.0},
}


def test_eval_measures_every_control_on_the_embedded_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "run"
    with ServerProcess("bundled", log_path=tmp_path / "log") as server:
        Run(directory, {**SMALL, "policy.base_url": server.base_url}).write_config()
        assert main(["eval", "--run", str(directory), "--before", "v0000", "--after", "v0000", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    sentence, plan = printed.pop("finding"), printed.pop("plan")
    found = Evaluation.model_validate(printed)
    assert (sentence.startswith("v0000 solves "), plan) == (True, None)
    assert found.first_try is not None
    failed = 24 - round(24 * found.first_try.rate)
    assert 2 <= failed <= 24  # a small policy fails often
    for control, cell in (("generic", found.generic_reflection), ("donor", found.donor_reflection)):
        branches = load(directory / "eval" / f"v0000.{control}")
        assert len(branches) == failed
        assert {span.capability for t in branches for span in t.sampled} == {"trainable-exact"}
        assert cell is not None
        passed = sum(t.sampled[-1].passed is True for t in branches)
        assert cell.rate == pytest.approx(found.first_try.rate + passed / 24)
        assert found.first_try.rate <= cell.rate
    assert found.behaviour is not None
    assert found.behaviour.leaks is not None
    assert found.behaviour.reflection_length is not None
    assert 0 < found.behaviour.reflection_length.tokens <= 24
    spent = found.behaviour.per_success["after_reflection"]
    assert spent.cost is not None
    assert spent.cost > 2 * spent.tokens / 1e6  # the prompts cost too
    assert main(["eval", "--run", str(directory), "--before", "v0000", "--after", "v0000"]) == 0  # without a server
    assert capsys.readouterr().out.strip().endswith(sentence)
