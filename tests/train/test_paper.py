"""The paper's protocol: settings of its scale load, are planned at its models' shapes, and train a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2Config

from benchmarks.paper.report import reflections
from benchmarks.paper.settings import settings_of, words_of
from r3agent.cli.main import main
from r3agent.records.trajectory import SOURCE, SPLIT, Trajectory
from r3agent.run.config import load_config
from r3agent.store.registry import Registry
from r3agent.store.shards import TrajectoryWriter

FOLDER = Path(__file__).parents[2] / "benchmarks" / "paper"
PAPER = FOLDER / "paper.toml"
SCALES = sorted(file.stem for kind in ("calling", "countdown") for file in FOLDER.glob(f"*-{kind}.toml"))
HERE = ("bundled", "smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-0.5b-letters")
"""Settings for this machine."""
SMALL = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12}
LARGE = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
SHAPES: dict[str, dict[str, Any]] = {
    "1.5b": {**SMALL, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "7b": {**LARGE, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
}
"""Shapes of Qwen2 and Qwen2.5, by size."""
PARAMETERS = {"1.5b": 1.54e9, "7b": 7.62e9}

Record = Callable[..., list[Trajectory]]


def made(file: str, model: Path, record: Record, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run by these settings, as `benchmarks.paper` makes it, with recorded failures of a tiny model."""
    rows = [{"nums": [i, 2, 3], "target": i + 5, "id": i} for i in range(1, 40)]
    tool = {"name": "add", "description": "", "parameters": {"a": {"type": "int"}}}
    asked = {"tools": json.dumps([tool]), "answers": json.dumps([{"name": "add", "arguments": {"a": 1}}])}
    calls = [{"id": row["id"], "query": f"{row['id']}?", **asked} for row in rows]
    tasks = folder / "tasks.json"
    tasks.write_text(json.dumps(calls if file.endswith("calling") else rows))
    source = f"{'xlam' if file.endswith('calling') else 'countdown'}:{tasks}"
    settings = settings_of([PAPER, FOLDER / f"{file}.toml"], task__source=source, policy__base_model=str(model))
    run = folder / "run"
    assert main(["init", "--run", str(run), *words_of(settings)]) == 0
    Registry(run).add_base(settings["policy.model"], str(model))  # a run with versions needs no server to train
    Registry(run).set_live("v0000")
    with TrajectoryWriter(run / "trajectories") as writer:
        for trajectory in record([[1, 0], [0, 1, 1], [1, 0, 0]]):
            writer.append(trajectory.changed(metadata={SOURCE: source, SPLIT: "train"}))
    capsys.readouterr()
    return run


@pytest.mark.parametrize("file", SCALES)
def test_settings_of_the_papers_scale_are_the_papers(file: str) -> None:
    config = load_config(None, settings_of([PAPER, FOLDER / f"{file}.toml"]))
    train = config.train
    assert (train.beta, train.learning_rate, train.batch_size) == (0.001, 5e-7, 256)
    assert (train.lr_scheduler, train.warmup_ratio, train.credit) == ("cosine", 0.03, {"reflect": "retry_success"})
    assert config.loop.rounds * config.branch.n * config.collect.reflections <= 1750 * train.batch_size  # type: ignore
    assert config.eval.n >= 300
    assert config.eval.controls == ("generic", "donor")
    assert len(config.eval.forgetting) == 2


@pytest.mark.parametrize("file", SCALES)
def test_training_at_the_papers_scale_is_planned(
    file: str, record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = file.split("-")[1]
    Qwen2Config(**SHAPES[size]).save_pretrained(tmp_path / "qwen")
    run = made(file, tmp_path / "qwen", record, tmp_path, capsys)
    assert main(["train", "--run", str(run), "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["parameters"] == plan["trained_parameters"] == pytest.approx(PARAMETERS[size], rel=0.01)
    assert plan["memory_gib"] == pytest.approx(16 * PARAMETERS[size] / 2**30, rel=0.01)
    assert (plan["rows"], plan["steps"]) == (8, 1)


@pytest.mark.parametrize("file", ["qwen2-1.5b-calling", "qwen2.5-7b-countdown"])
def test_tiny_model_is_trained_by_the_papers_settings(
    file: str, base: Path, record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(file, base, record, tmp_path, capsys)
    assert main(["train", "--run", str(run), "--set=train.epochs=2", "--json"]) == 0
    card = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (card["kind"], card["metrics"]["steps"], card["metrics"]["rows"]["rows"]) == ("full", 2, 8)
    assert (card["settings"]["dtype"], card["settings"]["learning_rate"]) == ("bfloat16", 5e-7)


@pytest.mark.parametrize("file", HERE)
def test_settings_of_this_machine_load(file: str) -> None:
    config = load_config(None, settings_of([FOLDER / f"{file}.toml"]))
    assert config.eval.n >= 300
    assert config.loop.rounds >= 2
    assert len(config.eval.forgetting) == 2


@pytest.mark.parametrize("file", HERE[1:])
def test_settings_of_this_machine_fit_vllms_cpu_build(file: str) -> None:
    config = load_config(None, settings_of([FOLDER / f"{file}.toml"]))
    options = config.serve.options
    assert config.train.method == "lora"  # full weights of a tied model would be updated in part
    assert "--no-enable-chunked-prefill" in options  # a request with a seed would end the server
    assert "--no-enable-lora" not in options  # r3agent decides by the rank
    assert int(options[options.index("--max-model-len") + 1]) <= 2048  # one batch


def test_reflections_are_shown_by_the_hash_of_the_task(record: Record) -> None:
    before, after = record([[0], [1], [0]]), record([[1], [1], [1]])
    found = reflections(before, after)
    assert [entry["before"]["passed"] for entry in found].count(True) == 1
    assert all(entry["after"] == {"reflection": "`Start with 1 + 2`", "passed": True} for entry in found)
    assert reflections(before[::-1], after) == found
    assert reflections(before, record([[1]], first=[1])) == []


def test_warm_up_imitates_on_top_of_any_settings() -> None:
    for file in HERE:
        config = load_config(None, settings_of([FOLDER / f"{file}.toml", FOLDER / "warm-up.toml"]))
        assert (config.train.recipe, config.train.credit, config.train.imitate) == ("sft", {}, 1.0)
        alone = load_config(None, settings_of([FOLDER / f"{file}.toml"]))
        assert config.train.learning_rate == alone.train.learning_rate
