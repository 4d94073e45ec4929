"""Refusals of training, with the number and the remedy, and without leaving a version behind."""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from r3agent.errors import ConfigError, TrainingError
from r3agent.records.trajectory import Trajectory
from r3agent.store.registry import PolicyCard
from r3agent.train import PolicyStart
from tests.train import recorded
from tests.train.versions import OUTCOMES, run

Record = Callable[..., list[Trajectory]]


def made(directory: Path) -> list[str]:
    """Versions and what is left of them; the lock that their makers hold is always there."""
    return sorted(path.name for path in directory.iterdir() if path.suffix != ".lock")


@pytest.fixture(scope="module")
def trained(
    base: Path, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PolicyCard, Path]:
    """An adapter of the base policy, v0001, and its directory, which tests copy."""
    directory = tmp_path_factory.mktemp("trained") / "v0001"
    trajectories = recorded.record(recorded.load(base), tokenizer, OUTCOMES)
    start = PolicyStart(version="v0000", name="tiny", model=str(base))
    return run(trajectories, start, directory, epochs=1), directory


@pytest.fixture
def adapter_start(trained: tuple[PolicyCard, Path], tmp_path: Path) -> PolicyStart:
    """The trained adapter as the start of another training, copied to `tmp_path / "v0001"`."""
    card, directory = trained
    return PolicyStart.of(card, Path(shutil.copytree(directory, tmp_path / "v0001")))


def test_another_policys_rows_are_refused(
    start: PolicyStart, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    other = recorded.record(recorded.tiny_model(tokenizer, seed=7).eval(), tokenizer, OUTCOMES)
    with pytest.raises(TrainingError, match=r"mean \|logprob gap\| = \d.* limit 0.1: .*other weights.*max_mismatch"):
        run(other, start, tmp_path / "v0001")
    assert made(tmp_path) == []
    card = run(other, start, tmp_path / "v0001", max_mismatch=1e6, min_ess=0)
    assert card.metrics["mismatch"]["gap"]["mean"] > 1
    assert card.metrics["forced"] == []
    forced = run(other, start, tmp_path / "v0002", version="v0002", min_ess=0, force=True)
    (reason,) = forced.metrics["forced"]
    assert reason.startswith("mean |logprob gap| = ")


def test_rows_of_an_older_version_have_the_ess_floor_alone(
    start: PolicyStart, tokenizer: PreTrainedTokenizerFast, record: Record, tmp_path: Path
) -> None:
    old = recorded.record(recorded.tiny_model(tokenizer, seed=7).eval(), tokenizer, OUTCOMES, policy_version="v0003")
    own = [t.model_copy(update={"trajectory_id": f"own{i}"}) for i, t in enumerate(record(OUTCOMES))]
    at = start.model_copy(update={"version": "v0004"})
    own = [
        t.model_copy(update={"spans": tuple(s.model_copy(update={"policy_version": "v0004"}) for s in t.spans)})
        for t in own
    ]
    with pytest.raises(
        TrainingError, match=r"size = 0\.\d+ of the tokens .* 1.000 for its own, limit 0.9: .*v0004.*min_ess"
    ):
        run([*old, *own], at, tmp_path / "v0005", version="v0005", min_ess=0.9)
    card = run([*old, *own], at, tmp_path / "v0005", version="v0005", min_ess=0)
    assert card.metrics["mismatch"]["gap"]["max"] < 1e-4
    with pytest.raises(TrainingError, match="stale 8"):
        run(old, at, tmp_path / "v0006", version="v0006", max_staleness=0)


def test_only_the_same_training_resumes(record: Record, start: PolicyStart, tmp_path: Path) -> None:
    trajectories, kept = record(OUTCOMES), tmp_path / "v0001.checkpoints"
    with pytest.raises(ConfigError, match=r"v0001.checkpoints: no checkpoint of v0001; train without --resume"):
        run(trajectories, start, tmp_path / "v0001", resume=True)

    def stop(stage: str, values: Mapping[str, Any]) -> None:
        if values.get("step") == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(trajectories, start, tmp_path / "v0001", save_steps=1, progress=stop)
    assert made(tmp_path) == ["v0001.checkpoints"]
    for others, values in ((trajectories, {"learning_rate": 1e-4}), (trajectories[:2], {})):
        with pytest.raises(ConfigError, match=r"checkpoint-2 is of other rows or other settings.*r3agent loop --anew"):
            run(others, start, tmp_path / "v0001", resume=True, **values)
    assert kept.exists()
    run(trajectories, start, tmp_path / "v0001", resume=True, micro_batch_tokens=100)
    assert made(tmp_path) == ["v0001"]


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        (2, "step 2 of 4: the loss is not finite; lower train.learning_rate = 1e+38"),
        (8, "the trained weights give logprobs that are not finite; lower learning_rate"),
    ],
)
def test_training_that_diverges_ends_and_leaves_nothing(
    record: Record, start: PolicyStart, tmp_path: Path, batch_size: int, message: str
) -> None:
    steps: list[int] = []

    def count(stage: str, values: Mapping[str, Any]) -> None:
        steps.extend([values["step"]] if stage == "step" else [])

    overflowing: dict[str, Any] = {"method": "full", "learning_rate": 1e38, "epochs": 1, "batch_size": batch_size}
    with pytest.raises(TrainingError, match=re.escape(message)):
        run(record(OUTCOMES), start, tmp_path / "v0001", **overflowing, save_steps=1, progress=count)
    assert made(tmp_path) == []
    assert steps == [1]


def test_text_only_rows_are_trained_on_when_allowed(record: Record, start: PolicyStart, tmp_path: Path) -> None:
    text_only = {"capability": "trainable-retokenised", "token_ids": None, "logprobs": None, "prompt_token_ids": None}
    with pytest.raises(TrainingError, match="retokenise_refused 8"):
        run(record(OUTCOMES, **text_only), start, tmp_path / "v0001")
    card = run(record(OUTCOMES, **text_only), start, tmp_path / "v0001", retokenise="allow")
    assert card.metrics["rows"]["retokenised"] == 8
    mismatch = card.metrics["mismatch"]
    assert mismatch == {"gap": None, "labels": {}, "ess": None, "noise_ess": None, "surprise": None, "scored": 0}


def test_an_adapter_of_another_base_model_is_refused(
    record: Record,
    start: PolicyStart,
    adapter_start: PolicyStart,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    wide = recorded.tiny_model(tokenizer, width=48)
    for name in ("other", "tiny"):  # by its name, and by the shape of its weights
        directory = recorded.save(wide, tokenizer, tmp_path / "elsewhere" / name)
        other = adapter_start.model_copy(update={"model": str(directory)})
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
    record: Record,
    adapter_start: PolicyStart,
    tmp_path: Path,
    update: dict[str, Any],
    values: dict[str, Any],
    message: str,
) -> None:
    after = adapter_start.model_copy(update=update)
    with pytest.raises(ConfigError, match=message):
        run(record(OUTCOMES), after, tmp_path / "v0002", **values)
    assert made(tmp_path) == ["v0001"]


@pytest.mark.parametrize("n_bytes", [0, 4, 200, -1])
def test_weights_that_are_cut_short_are_named(record: Record, start: PolicyStart, tmp_path: Path, n_bytes: int) -> None:
    trajectories = record(OUTCOMES)
    broken = Path(shutil.copytree(start.model, tmp_path / "copy" / "tiny"))
    cut(broken / "model.safetensors", n_bytes)
    (tmp_path / "policies").mkdir()
    with pytest.raises(ConfigError, match=rf"(?s)model '{broken}' cannot be loaded: .*copy or download it again"):
        run(trajectories, start.model_copy(update={"model": str(broken)}), tmp_path / "policies" / "v0001")
    assert made(tmp_path / "policies") == []


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_adapter_that_is_cut_short_is_named(
    record: Record, adapter_start: PolicyStart, tmp_path: Path, method: str
) -> None:
    trajectories = record(OUTCOMES)
    adapter = tmp_path / "v0001" / "adapter"
    whole = (adapter / "adapter_model.safetensors").read_bytes()
    for n_bytes in (0, 4, 200, -1):
        cut(adapter / "adapter_model.safetensors", n_bytes)
        with pytest.raises(ConfigError, match=rf"{adapter}: .*the adapter is cut short, train the version again"):
            run(trajectories, adapter_start, tmp_path / "v0002", method=method)
        (adapter / "adapter_model.safetensors").write_bytes(whole)
    (adapter / "adapter_config.json").write_text('{"r": ')
    with pytest.raises(ConfigError, match=rf"{adapter}: not a LoRA adapter"):
        run(trajectories, adapter_start, tmp_path / "v0002", method=method)
    assert made(tmp_path) == ["v0001"]


def cut(path: Path, n_bytes: int) -> None:
    """Keep the first bytes of a file, or with -1 all but the last."""
    path.write_bytes(path.read_bytes()[:n_bytes])


def test_versions_are_immutable_and_directories_must_be_writable(
    record: Record, start: PolicyStart, tmp_path: Path
) -> None:
    (tmp_path / "v0001").mkdir()
    with pytest.raises(ConfigError, match=r"v0001 exists.*next version"):
        run(record(OUTCOMES), start, tmp_path / "v0001")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot write to .*/file/.*File exists.*; what is there is in the way"):
        run(record(OUTCOMES), start, tmp_path / "file" / "v0002")


@pytest.mark.parametrize(
    ("method", "message"), [("full", "full.partial: Error while serializing"), ("lora", r"lora.partial: \[Errno 27\]")]
)
def test_a_full_disk_is_named_and_leaves_no_version(
    record: Record, start: PolicyStart, tmp_path: Path, method: str, message: str
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(stage: str, values: Mapping[str, Any]) -> None:
        if values.get("step") == values.get("steps", 0):
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))

    try:
        with pytest.raises(ConfigError, match=rf"{message}.*free space"):
            run(record(OUTCOMES), start, tmp_path / method, method=method, epochs=1, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert made(tmp_path) == []


# ---- what it loads ----


def test_importing_train_loads_nothing_of_the_extra_and_names_it() -> None:
    code = """
import sys
import r3agent.train
print([m for m in ("torch", "trl", "transformers", "peft") if m in sys.modules])
sys.modules["trl"] = None
from r3agent.errors import ConfigError
try:
    from r3agent.train import train
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, refusal = done.stdout.splitlines()
    assert loaded == "[]"
    assert "pip install 'r3agent[train]'" in refusal
