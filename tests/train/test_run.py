"""Training from trajectories to a policy version."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from r3agent.errors import ConfigError, TrainingError
from r3agent.registry import PolicyCard
from r3agent.train import PolicyStart, TrainConfig, build_rows, train
from r3agent.trajectory import Trajectory
from tests.train import recorded

Record = Callable[..., list[Trajectory]]
OUTCOMES = [[1, 0], [0, 1, 1], [1, 0, 0]]


def settings(**values: Any) -> TrainConfig:
    fast = {"learning_rate": 1e-2, "lora_r": 4, "lora_alpha": 8, "epochs": 4}
    return TrainConfig.model_validate({**fast, **values})


def run(
    trajectories: list[Trajectory], start: PolicyStart, out_dir: Path, *, version: str = "v0001", **values: Any
) -> PolicyCard:
    return train(trajectories, start=start, version=version, out_dir=out_dir, config=settings(**values))


def trained(start: PolicyStart, out_dir: Path) -> Any:
    """The version as someone else would load it."""
    if (out_dir / "model").exists():
        return recorded.load(out_dir / "model")
    return PeftModel.from_pretrained(recorded.load(start.model), out_dir / "adapter").eval()


# ---- what training does ----


@pytest.mark.parametrize("method", ["lora", "full"])
def test_rewarded_siblings_become_likelier_than_the_others(
    record: Record, start: PolicyStart, tmp_path: Path, method: str
) -> None:
    trajectories = record([[1, 0], [0, 1]])
    run(trajectories, start, tmp_path / "v0001", method=method, batch_size=4, micro_batch_size=4)
    model = trained(start, tmp_path / "v0001")
    rows, _ = build_rows(trajectories, config=TrainConfig(), version="v0000")
    for row in rows:
        change = sum(recorded.logprobs(model, row.prompt_ids_P, row.completion_ids_T)) - sum(row.logprobs_T or ())
        assert change * row.advantage > 0


def test_an_adapter_goes_on_from_itself(
    record: Record, start: PolicyStart, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    first = run(record(OUTCOMES), start, tmp_path / "v0001")
    then = PolicyStart.of(first, tmp_path / "v0001")
    sampled = recorded.record(trained(start, tmp_path / "v0001"), tokenizer, OUTCOMES, policy_version="v0001")
    second = run(sampled, then, tmp_path / "v0002", version="v0002")
    assert (second.parent, second.base_model, second.kind) == ("v0001", start.model, "lora")
    assert second.metrics["mismatch"]["max"] < 1e-4
    assert second.metrics["mismatch"]["ess"] == pytest.approx(1.0, abs=1e-4)


def test_full_weights_go_on_from_an_adapter_and_from_full_weights(
    record: Record, start: PolicyStart, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    card = run(record(OUTCOMES), start, tmp_path / "v0001")
    for version in ("v0002", "v0003"):
        parent = PolicyStart.of(card, tmp_path / card.version)
        model = trained(start, tmp_path / card.version)
        sampled = recorded.record(model, tokenizer, OUTCOMES, policy_version=card.version)
        card = run(sampled, parent, tmp_path / version, version=version, method="full")
        assert card.metrics["mismatch"]["max"] < 1e-4
    assert AutoTokenizer.from_pretrained(tmp_path / "v0003" / "model").chat_template == tokenizer.chat_template


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_accumulating_single_rows_equals_one_batch(
    record: Record, start: PolicyStart, tmp_path: Path, loss_type: str
) -> None:
    weights = []
    for micro_batch_size in (1, 3, 8):
        out_dir = tmp_path / str(micro_batch_size)
        values = {"method": "full", "loss_type": loss_type, "batch_size": 8, "learning_rate": 1e-3, "epochs": 1}
        run(record(OUTCOMES), start, out_dir, micro_batch_size=micro_batch_size, **values)
        weights.append(load_file(out_dir / "model" / "model.safetensors"))
    before = load_file(Path(start.model) / "model.safetensors")
    for other in weights[1:]:
        for name, tensor in weights[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=2e-4)
    assert max((weights[0][name] - tensor).abs().max() for name, tensor in before.items()) > 1e-3


@pytest.fixture(scope="module")
def default(base: Path, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> PolicyCard:
    """What the other settings are compared with."""
    start = PolicyStart(version="v0000", name="tiny", model=str(base))
    trajectories = recorded.record(recorded.load(base), tokenizer, OUTCOMES)
    return run(trajectories, start, tmp_path_factory.mktemp("run") / "v0001", batch_size=4, micro_batch_size=4)


def test_the_same_seed_learns_the_same(record: Record, start: PolicyStart, default: PolicyCard, tmp_path: Path) -> None:
    again = run(record(OUTCOMES), start, tmp_path / "v0001", batch_size=4, micro_batch_size=4)
    assert again.canary == default.canary


@pytest.mark.parametrize(
    "values",
    [
        {"seed": 1},
        {"learning_rate": 2e-2},
        {"lr_scheduler": "constant"},
        {"lr_scheduler": "linear"},
        {"warmup_ratio": 0.9},
        {"weight_decay": 0.5},
        {"max_grad_norm": 1e-9},
        {"beta": 1.0},
        {"epochs": 2},
        {"batch_size": 8},
        {"epsilon_low": 0.01},
        {"epsilon_high": 0.01},
        {"scale_rewards": "none"},
        {"loss_type": "dapo"},
        {"lora_r": 2},
        {"lora_alpha": 4},
        {"lora_dropout": 0.5},
        {"lora_target_modules": ("q_proj",)},
    ],
    ids=str,
)
def test_every_setting_changes_what_is_learnt(
    record: Record, start: PolicyStart, default: PolicyCard, tmp_path: Path, values: dict[str, Any]
) -> None:
    other = run(record(OUTCOMES), start, tmp_path / "v0001", **{"batch_size": 4, "micro_batch_size": 4, **values})
    assert other.canary != default.canary


@pytest.mark.parametrize(
    "values",
    [{"gradient_checkpointing": True}, {"share_prompt": False}, {"dtype": "bfloat16"}],
    ids=lambda values: next(iter(values)),
)
def test_ways_to_compute_do_not_change_what_is_learnt(
    record: Record, start: PolicyStart, default: PolicyCard, tmp_path: Path, values: dict[str, Any]
) -> None:
    other = run(record(OUTCOMES), start, tmp_path / "v0001", batch_size=4, micro_batch_size=4, **values)
    tolerance = 0.5 if "dtype" in values else 1e-2
    for ours, theirs in zip(default.canary, other.canary, strict=True):
        assert theirs.logprobs_T == pytest.approx(ours.logprobs_T, abs=tolerance)


# ---- what it writes ----


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_card_tells_how_to_recognise_the_weights(
    record: Record, start: PolicyStart, tmp_path: Path, method: str
) -> None:
    card = run(record(OUTCOMES), start, tmp_path / "v0001", method=method)
    assert PolicyCard.model_validate_json((tmp_path / "v0001" / "card.json").read_text()) == card
    assert (card.version, card.name, card.kind, card.parent) == ("v0001", "tiny", method, "v0000")
    assert card.settings["learning_rate"] == 1e-2
    assert card.metrics["rows"]["rows"] == 8
    assert card.metrics["steps"] == 4
    assert {"loss", "grad_norm", "kl", "entropy"} <= card.metrics["train"].keys()
    assert len(card.canary) == 3
    old, new = recorded.load(start.model), trained(start, tmp_path / "v0001")
    for sequence in card.canary:
        ids = sequence.token_ids_T
        assert sequence.logprobs_T == pytest.approx([0.0, *recorded.logprobs(new, ids[:1], ids[1:])], abs=1e-4)
        assert sequence.parent_logprobs_T == pytest.approx([0.0, *recorded.logprobs(old, ids[:1], ids[1:])], abs=1e-4)
        assert sequence.logprobs_T != pytest.approx(sequence.parent_logprobs_T, abs=1e-2)


def test_progress_is_told_in_order_and_nothing_is_printed(
    record: Record, start: PolicyStart, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[str, Mapping[str, Any]]] = []
    train(
        record(OUTCOMES),
        start=start,
        version="v0001",
        out_dir=tmp_path / "v0001",
        config=settings(),
        progress=lambda stage, values: told.append((stage, values)),
    )
    assert [stage for stage, _ in told] == ["rows", "mismatch", "step", "step", "step", "step", "saved"]
    assert (told[2][1]["step"], told[2][1]["steps"]) == (1, 4)
    json.dumps(told)
    assert capfd.readouterr().out == ""


def test_a_failure_half_way_leaves_no_version(record: Record, start: PolicyStart, tmp_path: Path) -> None:
    def interrupt(stage: str, values: Mapping[str, Any]) -> None:
        if stage == "step":
            raise KeyboardInterrupt

    def attempt() -> None:
        train(record(OUTCOMES), start=start, version="v0001", out_dir=tmp_path / "v0001", progress=interrupt)

    with pytest.raises(KeyboardInterrupt):
        attempt()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_trainings_remains_are_cleared(record: Record, start: PolicyStart, tmp_path: Path) -> None:
    remains = tmp_path / "v0001.partial"
    remains.mkdir()
    (remains / "half").touch()
    run(record(OUTCOMES), start, tmp_path / "v0001")
    assert [path.name for path in tmp_path.iterdir()] == ["v0001"]
    assert not (tmp_path / "v0001" / "half").exists()


def test_a_tokenizer_without_padding_will_do(
    record: Record, start: PolicyStart, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>")
    directory = recorded.save(recorded.load(start.model), bare, tmp_path / "tiny")
    card = run(record(OUTCOMES), start.model_copy(update={"model": str(directory)}), tmp_path / "v0001")
    assert card.metrics["mismatch"]["max"] < 1e-4


# ---- what it refuses ----


def test_another_policys_rows_are_refused(
    start: PolicyStart, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    other = recorded.record(recorded.tiny_model(tokenizer, seed=7).eval(), tokenizer, OUTCOMES)
    with pytest.raises(TrainingError, match=r"mean \|logprob gap\| = \d.* limit 0.1: .*other weights.*max_mismatch"):
        run(other, start, tmp_path / "v0001")
    assert list(tmp_path.iterdir()) == []
    card = run(other, start, tmp_path / "v0001", max_mismatch=1e6, min_ess=0)
    assert card.metrics["mismatch"]["mean"] > 1


def test_rows_of_an_older_version_are_held_to_the_ess_floor_not_to_the_mismatch(
    start: PolicyStart, tokenizer: PreTrainedTokenizerFast, record: Record, tmp_path: Path
) -> None:
    old = recorded.record(recorded.tiny_model(tokenizer, seed=7).eval(), tokenizer, OUTCOMES, policy_version="v0003")
    own = [t.model_copy(update={"trajectory_id": f"own{i}"}) for i, t in enumerate(record(OUTCOMES))]
    at = start.model_copy(update={"version": "v0004"})
    own = [
        t.model_copy(update={"spans": tuple(s.model_copy(update={"policy_version": "v0004"}) for s in t.spans)})
        for t in own
    ]
    with pytest.raises(TrainingError, match=r"effective sample size = 0\.\d+ of the rows, limit 0.9: .*v0004.*min_ess"):
        run([*old, *own], at, tmp_path / "v0005", version="v0005", min_ess=0.9)
    card = run([*old, *own], at, tmp_path / "v0005", version="v0005", min_ess=0)
    assert card.metrics["mismatch"]["max"] < 1e-4
    with pytest.raises(TrainingError, match="stale 8"):
        run(old, at, tmp_path / "v0006", version="v0006", max_staleness=0)


def test_weights_that_are_not_finite_do_not_become_a_version(
    record: Record, start: PolicyStart, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="not finite; lower learning_rate"):
        run(record(OUTCOMES), start, tmp_path / "v0001", method="full", learning_rate=1e30)
    assert list(tmp_path.iterdir()) == []


def test_text_only_rows_are_trained_on_when_allowed(record: Record, start: PolicyStart, tmp_path: Path) -> None:
    text_only = {"capability": "trainable-retokenised", "token_ids": None, "logprobs": None, "prompt_token_ids": None}
    with pytest.raises(TrainingError, match="retokenise_refused 8"):
        run(record(OUTCOMES, **text_only), start, tmp_path / "v0001")
    card = run(record(OUTCOMES, **text_only), start, tmp_path / "v0001", retokenise="allow")
    assert card.metrics["rows"]["retokenised"] == 8
    assert card.metrics["mismatch"] == {"tokens": 0, "mean": None, "p99": None, "max": None, "ess": None}


def test_an_adapter_of_another_base_model_is_refused(
    record: Record, start: PolicyStart, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    card = run(record(OUTCOMES), start, tmp_path / "v0001")
    wide = recorded.tiny_model(tokenizer, width=48)
    for name in ("other", "tiny"):  # by its name, and by the shape of its weights
        directory = recorded.save(wide, tokenizer, tmp_path / "elsewhere" / name)
        other = PolicyStart.of(card, tmp_path / "v0001").model_copy(update={"model": str(directory)})
        with pytest.raises(ConfigError, match=rf"adapter of {start.model}, not of {directory}: .*base model"):
            run(record(OUTCOMES), other, tmp_path / "v0002")


@pytest.mark.parametrize(
    ("update", "values", "message"),
    [
        ({}, {"lora_r": 8}, r"lora_r = 8, but the adapter of v0001 has 4.*set lora_r = 4"),
        ({}, {"lora_target_modules": ("q_proj",)}, r"lora_target_modules = .*goes on from itself"),
        ({"adapter": Path("nowhere")}, {}, r"nowhere: not a LoRA adapter"),
        ({"model": "/no/such/model", "adapter": None}, {}, r"model '/no/such/model' cannot be loaded"),
        (
            {"adapter": None},
            {"lora_target_modules": ("no_proj",)},
            r"target_modules = \('no_proj',\) does not fit",
        ),
    ],
)
def test_settings_that_do_not_fit_the_start_are_refused(
    record: Record, start: PolicyStart, tmp_path: Path, update: dict[str, Any], values: dict[str, Any], message: str
) -> None:
    card = run(record(OUTCOMES), start, tmp_path / "v0001", epochs=1)
    after = PolicyStart.of(card, tmp_path / "v0001").model_copy(update=update)
    with pytest.raises(ConfigError, match=message):
        run(record(OUTCOMES), after, tmp_path / "v0002", **values)
    assert [path.name for path in tmp_path.iterdir()] == ["v0001"]


def test_versions_are_immutable_and_directories_must_be_writable(
    record: Record, start: PolicyStart, tmp_path: Path
) -> None:
    (tmp_path / "v0001").mkdir()
    with pytest.raises(ConfigError, match=r"v0001 exists.*next version"):
        run(record(OUTCOMES), start, tmp_path / "v0001")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot write to .*file/v0002\.partial"):
        run(record(OUTCOMES), start, tmp_path / "file" / "v0002")


# ---- what it loads ----


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_train_loads_neither_torch_nor_trl() -> None:
    loaded = (
        "import sys, r3agent.train; print([m for m in ('torch', 'trl', 'transformers', 'peft') if m in sys.modules])"
    )
    assert python(loaded) == "[]"


def test_without_the_extra_the_install_command_is_named() -> None:
    code = """
import sys
sys.modules["trl"] = None
from r3agent.errors import ConfigError
try:
    from r3agent.train import train
except ConfigError as error:
    print(error)
"""
    assert "pip install 'r3agent[train]'" in python(code)
