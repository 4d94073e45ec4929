"""Verbs from functions: what they load, what their help says, what a misspelt word is told, progress in a file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from r3agent.cli.main import main, parse
from r3agent.cli.progress import ConsoleReporter
from r3agent.records.cost import Prices
from r3agent.records.summary import Tally
from r3agent.records.trajectory import Trajectory
from r3agent.run.config import CollectConfig
from r3agent.store.registry import Registry
from tests.support.trees import span, tree

HEAVY = {"langgraph", "openai", "torch", "pydantic", "transformers", "scipy"}


def loaded(words: list[str]) -> set[str]:
    """The heavy packages that a command line loads, and the modules of its own."""
    script = (
        "import sys\nfrom r3agent.cli.main import main\n"
        f"try: main({words!r})\nexcept SystemExit: pass\n"
        "print('\\n', *sys.modules, sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines())


def test_help_loads_no_heavy_package_and_no_verb() -> None:
    modules = loaded(["--help"])
    assert not modules & HEAVY
    assert not {name for name in modules if name.startswith(("r3agent.run", "r3agent.cli.st"))}


def test_serve_loads_neither_other_stages_nor_clients() -> None:
    assert not loaded(["serve", "--help"]) & {"langgraph", "openai", "torch", "r3agent.run.stages"}


def test_doctor_loads_neither_the_graph_nor_verifiers() -> None:
    assert not loaded(["doctor", "--help"]) & {"langgraph", "r3agent.verifiers", "r3agent.run.config"}


def test_train_looks_for_rows_before_torch_is_loaded(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    assert main(["init", "--run", run, "--task", "recorded"]) == 0
    registry = Registry(run)
    registry.add_base("bundled", "bundled")
    registry.set_live("v0000")
    (tmp_path / "run" / "trajectories").mkdir()
    modules = loaded(["train", "--plan", "--run", run])
    assert "r3agent.run.trainable" in modules
    assert not modules & {"torch", "transformers"}


def test_interrupt_while_a_verb_is_imported_exits_130() -> None:
    script = """
import sys
from r3agent.cli.main import main

class Interrupt:
    def find_spec(self, name, *_):
        if name == "r3agent.cli.label":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
sys.exit(main(["label", "--help"]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert done.stderr == "r3agent label: interrupted; the same command goes on from here\n"


def test_flag_has_the_words_and_the_default_of_its_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["collect", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    field = CollectConfig.model_fields["n"]
    assert f"--n INT {field.description} [default: {field.default}]" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["colect"], 'r3agent: Unknown command "colect". Did you mean "collect"?'),
        (["collect", "--sampels", "2"], "r3agent collect: Unknown option: --sampels. Did you mean --samples?"),
        (["collect", "--n", "five"], 'r3agent collect: Invalid value for --n: unable to convert "five" into int.'),
        (["collect", "--n", "5" * 99 + "x"], f'unable to convert "{"5" * 99}x" into int.'),  # on one line
        (["serve", "--max-model-len", "x"], "r3agent serve: --max-model-len x: Input should be a valid integer, "),
        (["serve", "--engine", "vlm"], 'Did you mean "vllm"?'),
        (["collect", "--", "--seed", "1"], "--seed 1: only serve takes options after --"),
    ],
)
def test_usage_error_exits_2_and_names_the_nearest(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip().count(".") == 2


def test_completion_script_can_be_made() -> None:
    script = "from r3agent.cli.main import app; print(app().generate_completion(shell='bash'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "--blind-retries" in done.stdout


def test_progress_in_a_file_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleReporter(every_s=0) as reporter:
        reporter.expect({"collect": 21.0})
        reporter.stage("collecting [bold]with\x1b[31m red", "collect")
        reporter.episodes(1, 3)
        reporter.steps(2, 3)
    assert capsys.readouterr().err.splitlines() == [
        "r3agent collecting [bold]with\N{REPLACEMENT CHARACTER}[31m red (about 20 s)",
        "r3agent   1 of 3 episodes",
        "r3agent   2 of 3 steps",
    ]


def tried(task: str, passed: bool) -> Trajectory:
    grown = tree(span("attempt", passed=passed))
    return grown.changed(task=grown.task.model_copy(update={"id": task}))


def test_progress_counts_samples_of_a_task_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    counted, merged = Tally(), Tally()
    with ConsoleReporter(every_s=0) as reporter:
        for i in range(40):
            counted.add(tried(f"t{i % 4}", i % 4 < 2))
        merged.merge(counted)
        for tally in (counted, merged):
            reporter.tally(tally)
            reporter.episodes(1, 8)
    for line in capsys.readouterr().err.splitlines():
        assert ", first try of ended episodes 50% (15% to 85%, 4 tasks), " in line, "of 20 in 40 it is 35% to 65%"


def test_progress_has_the_currency_of_the_cost(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    with ConsoleReporter(every_s=0, prices=Prices(prompt=1, sampled=1, currency="EUR")) as reporter:
        tally.cost = 48.32
        reporter.tally(tally)
        reporter.episodes(1, 8)
    assert ", cost 48.32 EUR" in capsys.readouterr().err


def test_progress_has_the_rate_and_the_pass_rate_so_far(capsys: pytest.CaptureFixture[str]) -> None:
    counted, other = Tally(), Tally()
    with ConsoleReporter(every_s=0) as reporter:
        reporter.tally(counted)
        for i, passed in enumerate((True, True, False), start=1):
            counted.add(tried(f"t{i}", passed))
            reporter.tally(counted)
            reporter.episodes(i, 8)
        reporter.tally(other)  # of the next version in one evaluation
        other.add(tree(span("attempt", passed=False)))
        reporter.tally(other)
        reporter.episodes(1, 8)
        values = {"tokens_per_s": 7.0, "seconds_left": 1.0, "loss": 0.25}
        reporter.training("step", {"step": 1, "steps": 4, **values})
        reporter.training("saved", {"directory": "v0001"})
        reporter.servers(0, 2)
    lines = capsys.readouterr().err.splitlines()
    rate = r"first try of ended episodes 67% \(21% to 94%, 3 tasks\)"
    assert re.match(rf"r3agent   3 of 8 episodes, \S+/s, \S+ left, {rate}, .* tokens", lines[2])
    assert "first try of ended episodes 0% (0% to 79%, 1 task)" in lines[3]
    assert lines[4:] == [
        "r3agent   1 of 4 steps, loss 0.25, 7 tokens/s",
        "r3agent directory v0001",
        "r3agent loading the weights, and comparing their fingerprint",
        "r3agent   0 of 2 servers",
    ]


def test_progress_on_a_terminal_is_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with ConsoleReporter() as reporter:
        reporter.stage("collecting")
        reporter.episodes(1, 4)
        reporter.episodes(3, 4)
    output = capsys.readouterr()
    assert output.out == ""
    assert "3/4" in output.err
    assert "0:00:0" in output.err


def test_json_of_a_failure_is_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--run", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"config": str(tmp_path / "r3.toml")}
    assert main(["init", "--run", str(tmp_path), "--json"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "exists" in output.err


def test_feedback_may_begin_with_a_hyphen() -> None:
    call = parse(["label", "runs/x", "3f2a", "--passed", "--feedback", "-5 points"])
    assert call.arguments.arguments["feedback"] == "-5 points"
