"""Checkpoints that are not whole: passed over, and never half taken for whole."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from transformers import PreTrainedTokenizerFast

from r3agent.errors import ConfigError
from r3agent.records.trajectory import Trajectory
from r3agent.store.registry import PolicyCard
from r3agent.train import PolicyStart, TrainConfig
from r3agent.train.checkpoints import MANIFEST_FILE, SECONDS_FILE, Checkpoints
from r3agent.train.row import Row
from tests.train import recorded
from tests.train.versions import OUTCOMES, run

Record = Callable[..., list[Trajectory]]
STEPS = 4


def stop_at(step: int) -> Callable[[str, Mapping[str, Any]], None]:
    def stop(stage: str, values: Mapping[str, Any]) -> None:
        if values.get("step") == step:
            raise KeyboardInterrupt

    return stop


@pytest.fixture(scope="module")
def interrupted(base: Path, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a training that stopped in its last step, with the checkpoints of the two steps before."""
    directory = tmp_path_factory.mktemp("interrupted")
    trajectories = recorded.record(recorded.load(base), tokenizer, OUTCOMES)
    start = PolicyStart(version="v0000", name="tiny", model=str(base))
    kept = directory / "v0001.checkpoints"
    for step in (3, 4):
        with pytest.raises(KeyboardInterrupt):
            run(trajectories, start, directory / "v0001", save_steps=1, resume=step > 3, progress=stop_at(step))
        shutil.copytree(kept, directory / "kept", dirs_exist_ok=True)
    shutil.rmtree(kept)
    (directory / "kept").rename(kept)
    assert sorted(path.name for path in kept.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    return directory


@pytest.fixture(scope="module")
def whole(base: Path, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> PolicyCard:
    """The same training without an interruption."""
    trajectories = recorded.record(recorded.load(base), tokenizer, OUTCOMES)
    start = PolicyStart(version="v0000", name="tiny", model=str(base))
    return run(trajectories, start, tmp_path_factory.mktemp("whole") / "v0001")


def test_bind_takes_an_integer_temperature_for_its_float(tmp_path: Path) -> None:
    """Earlier releases hashed the temperature of rows as it was given."""
    tokens: Any = {"prompt_ids_P": [1], "completion_ids_T": [2], "logprobs_T": [-0.5], "truncated": False}
    place: Any = {"group_id": "g", "trajectory_id": "t", "span_id": "s", "label": "reflect", "policy_version": "v0000"}
    row = Row(**place, **tokens, temperature=1, reward=1.0, advantage=0.5)
    given: Any = {"config": TrainConfig(recipe="paper"), "start": PolicyStart(version="v0000", name="tiny", model="m")}
    earlier = Checkpoints(tmp_path / "v0001")
    earlier.bind([row], **given, processes=PartialState(), resume=False)
    earlier.begin()
    (earlier.directory / "checkpoint-1").mkdir()
    earlier.seal(1)
    found = Checkpoints(tmp_path / "v0001")
    found.bind([row._replace(temperature=1.0)], **given, processes=PartialState(), resume=True)
    assert found.last == earlier.directory / "checkpoint-1"
    with pytest.raises(ConfigError, match="other rows"):
        found.bind([row._replace(temperature=0.5)], **given, processes=PartialState(), resume=True)


def test_seconds_include_those_up_to_the_checkpoint(tmp_path: Path) -> None:
    given: Any = {"config": TrainConfig(), "start": PolicyStart(version="v0000", name="tiny", model="m")}
    given |= {"rows": [], "processes": PartialState()}
    first = Checkpoints(tmp_path / "v0001")
    first.bind(**given, resume=False)
    first.begin()
    last = first.directory / "checkpoint-1"
    last.mkdir()
    first.seal(1)
    assert 0 <= float((last / SECONDS_FILE).read_text()) < 60
    (last / SECONDS_FILE).write_text("3000.5")
    (last / MANIFEST_FILE).write_text("{}")
    resumed = Checkpoints(tmp_path / "v0001")
    resumed.bind(**given, resume=True)
    assert 3000.5 <= resumed.seconds() < 3060
    resumed.seal(1)
    assert 3000.5 <= float((last / SECONDS_FILE).read_text()) < 3060


def missing(checkpoint: Path) -> None:
    (checkpoint / "optimizer.pt").unlink()


def empty(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def cut(name: str) -> Callable[[Path], None]:
    def cut_off(checkpoint: Path) -> None:
        (checkpoint / name).write_bytes((checkpoint / name).read_bytes()[:-20])

    return cut_off


def zero_bytes(checkpoint: Path) -> None:
    (checkpoint / "adapter_model.safetensors").write_bytes(b"")


def flipped(checkpoint: Path) -> None:
    path = checkpoint / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 0xFF  # a valid file with another weight
    path.write_bytes(content)


def not_json(checkpoint: Path) -> None:
    (checkpoint / "r3agent_manifest.json").write_text("[1, 2")


DAMAGES = [
    missing,
    empty,
    *map(cut, ("adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json")),
    zero_bytes,
    flipped,
    not_json,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_resume_passes_over_a_damaged_checkpoint(
    record: Record,
    start: PolicyStart,
    interrupted: Path,
    whole: PolicyCard,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
) -> None:
    kept = Path(shutil.copytree(interrupted / "v0001.checkpoints", tmp_path / "v0001.checkpoints"))
    damage(kept / "checkpoint-3")
    steps: list[int] = []
    card = run(
        record(OUTCOMES),
        start,
        tmp_path / "v0001",
        resume=True,
        progress=lambda stage, values: steps.append(values["step"]) if stage == "step" else None,
    )
    assert steps == [3, 4]
    assert "checkpoint-3 is passed over" in caplog.text
    assert card.fingerprint == whole.fingerprint
    assert not kept.exists()


def test_resume_starts_anew_without_a_whole_checkpoint(
    record: Record,
    start: PolicyStart,
    interrupted: Path,
    whole: PolicyCard,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept = Path(shutil.copytree(interrupted / "v0001.checkpoints", tmp_path / "v0001.checkpoints"))
    empty(kept / "checkpoint-3")
    missing(kept / "checkpoint-2")
    card = run(record(OUTCOMES), start, tmp_path / "v0001", resume=True)
    assert "no whole checkpoint: training starts anew" in caplog.text
    assert card.fingerprint == whole.fingerprint


def test_a_full_disk_keeps_the_checkpoint_before(record: Record, start: PolicyStart, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = tmp_path / "v0001.checkpoints"

    def fill(stage: str, values: Mapping[str, Any]) -> None:
        if values.get("step") == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))

    try:
        with pytest.raises(ConfigError, match=r"cannot write to .*checkpoint-3: .*free space.*--resume") as failed:
            run(record(OUTCOMES), start, tmp_path / "v0001", method="full", save_steps=1, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(failed.value)
    assert [path.name for path in kept.glob("checkpoint-*")] == ["checkpoint-2"]
    card = run(record(OUTCOMES), start, tmp_path / "v0001", method="full", resume=True)
    assert card.metrics["steps"] == STEPS
