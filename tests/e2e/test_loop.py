"""The whole loop on the embedded server with the bundled policy, small."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from r3agent.cards import check_version, list_versions
from r3agent.cli.main import main
from r3agent.run.loop import run_loop
from r3agent.run.stages import Run
from r3agent.serve import ServerProcess
from r3agent.store.registry import Registry
from r3agent.store.trajectories import load

SMALL = {
    "task.source": "countdown",
    "sampling.max_tokens": 24,
    "collect.n": 24,
    "collect.reflections": 4,
    "train.learning_rate": 1e-4,
    "train.batch_size": 64,
    "train.lora_r": 4,
    "train.lora_alpha": 8,
    "eval.n": 12,
    "loop.rounds": 2,
}


class Silent:
    def stage(self, text: str, kind: str = "") -> None: ...

    def episodes(self, done: int, total: int) -> None: ...

    def steps(self, done: int, total: int) -> None: ...


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("server") / "log"
    with ServerProcess("bundled", log_path=log) as server:
        yield server


@pytest.fixture(scope="module")
def finished(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("loop") / "run", {**SMALL, "policy.base_url": server.base_url})
    run_loop(run, Silent())
    return run


def test_two_rounds_make_two_versions_sampled_by_their_parents(finished):
    assert finished.registry.versions() == ["v0000", "v0001", "v0002"]
    parents = [finished.registry.card(version).parent for version in ("v0001", "v0002")]
    spans = [s for t in load(finished.directory / "trajectories") for s in t.spans]
    assert {s.capability for s in spans} == {"trainable-exact"}
    assert {s.policy_version for s in spans} == set(parents)
    assert {s.model for s in spans} == {"bundled" if v == "v0000" else f"bundled@{v}" for v in parents}


def test_training_met_its_own_logprobs(finished):
    mismatch = finished.registry.card("v0001").metrics["mismatch"]
    assert mismatch["gap"]["mean"] < 1e-3


def test_cards_say_who_decided_and_why(finished):
    reports = list_versions(finished.directory)
    assert reports[0].history == ()
    for report in reports[1:]:
        compared, decided, *deployed = report.history
        assert (compared.event, decided.by) == ("evaluated", "gate")
        assert [evaluation.file for evaluation in report.evaluations] == [compared.file]
        assert decided.event == ("passed" if deployed else "failed")
        assert any("after reflection" in reason for reason in decided.reasons)
        assert report.provenance is not None
        assert report.provenance.made_with.keys() == {"graph", "prompts", "verifier"}
        assert check_version(finished.directory, report.version).ok
        card = (finished.registry.version_dir(report.version) / "adapter/README.md").read_text()
        assert f"{decided.event} (v000" in card
        assert ("| deployed" in card) == bool(deployed)


def written(run: Run) -> dict[Path, int]:
    """When each file of the run was last written; the lock of a deployment is touched by every one."""
    return {p: p.stat().st_mtime_ns for p in run.directory.rglob("*") if p.is_file() and p.suffix != ".lock"}


def test_a_finished_loop_does_nothing_again_and_says_so(finished, server, capsys):
    before = written(finished)
    exit_code = 0 if "v0002" in finished.registry.passed else 3
    assert main(["loop", "--run", str(finished.directory), "--url", server.base_url]) == exit_code
    assert written(finished) == before
    printed = capsys.readouterr().out
    assert printed.count("(evaluated before)") == 2
    assert "no round was left: all 2 were evaluated before; --rounds adds more" in printed


def test_rollback_and_deploy_again(finished):
    finished.deploy("v0002")
    report = finished.rollback("v0000")
    assert (report.version, report.previous, finished.registry.live) == ("v0000", "v0002", "v0000")
    report = finished.deploy("v0001")
    assert report.served_name == "bundled@v0001"
    assert report.fingerprint is not None
    assert report.fingerprint.gap < 1e-4


def collects(run: Path) -> bool:
    return any(path.stat().st_size for path in run.glob("trajectories/*.jsonl"))


def trains(run: Path) -> bool:
    return (run / "policies" / "v0001.partial").exists()


def evaluates(run: Path) -> bool:
    return any(path.stat().st_size for path in run.glob("gate/v0002/v0002/*.jsonl"))


def test_a_demo_killed_while_it_collects_trains_and_evaluates_goes_on_where_it_was(tmp_path):
    """SIGKILL when the run directory shows what is under way; then the same command, and so on to the end."""
    run = tmp_path / "run"
    script = (
        "from pathlib import Path; import r3agent.run.demo as demo\n"
        f"demo.SETTINGS.update({SMALL!r})\n"
        "from r3agent.cli.progress import ConsoleReporter\n"
        f"summary, text = demo.run_demo(Path({str(run)!r}), 0, ConsoleReporter())\n"
        "print(summary.model_dump_json())\n"
    )
    for is_there in (collects, trains, evaluates):
        with subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as demo:
            assert not is_there(run)
            while not is_there(run):
                assert demo.poll() is None, demo.stderr.read().decode()
                time.sleep(0.005)
            demo.kill()
        assert Registry(run).live in (None, "v0000")
        assert demo.returncode == -signal.SIGKILL, f"it was over before {is_there.__name__} was seen"
    last = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert '"rounds":2' in last.stdout
    assert (run / "summary.json").exists()
    assert not list(run.rglob("*.partial"))
    assert Registry(run).versions() == ["v0000", "v0001", "v0002"]
    collected = load(run / "trajectories")
    assert len({t.trajectory_id for t in collected}) == len(collected) == 2 * SMALL["collect.n"]
