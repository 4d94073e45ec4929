from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r3agent.errors import ArgumentError, BusyError, ConfigError, RecordError, SchemaVersionError
from r3agent.store.history import Event, record_event
from r3agent.store.registry import FingerprintSequence, PolicyCard, Registry, create_version, write_card


def card(version: str, *, parent: str | None = "v0000", kind: str = "lora") -> PolicyCard:
    return PolicyCard(version=version, name="tiny", kind=kind, base_model="org/tiny", parent=parent)


def with_versions(run_dir: Path, n: int) -> Registry:
    """A base and `n` adapters, each trained from the one before."""
    registry = Registry(run_dir)
    registry.add_base("tiny", "org/tiny")
    for i in range(1, n + 1):
        publish(registry, card(f"v{i:04d}", parent=f"v{i - 1:04d}"))
    return registry


def publish(registry: Registry, card: PolicyCard) -> Path:
    with create_version(registry.version_dir(card.version)) as directory:
        write_card(directory, card)
    return registry.version_dir(card.version)


def test_base_is_added_once(tmp_path: Path):
    registry = Registry(tmp_path)
    assert registry.versions() == []
    first = registry.add_base("tiny", "org/tiny")
    assert registry.add_base("tiny", "org/tiny") == first == registry.card("v0000")
    assert (first.kind, first.served_name, registry.next_version()) == ("base", "tiny", "v0001")


@pytest.mark.parametrize("other", [("tiny", "org/other"), ("other", "org/tiny")])
def test_run_keeps_its_base(tmp_path: Path, other: tuple[str, str]):
    registry = with_versions(tmp_path, 0)
    with pytest.raises(ConfigError, match=r"belongs to 'tiny' from org/tiny; use another run"):
        registry.add_base(*other)


def test_base_directory_is_the_same_by_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    registry = Registry(tmp_path / "run")
    registry.add_base("tiny", "model")
    assert registry.add_base("tiny", str(tmp_path / "model")).base_model == str(tmp_path / "model")


def test_only_directories_with_a_card_are_versions(tmp_path: Path):
    registry = with_versions(tmp_path, 1)
    (registry.policies_dir / "v0002.partial").mkdir()
    registry.version_dir("v0003").mkdir()
    assert registry.versions() == ["v0000", "v0001"]
    assert registry.next_version() == "v0004"
    with pytest.raises(ConfigError, match=r"'v0003': .* has v0000, v0001"):
        registry.card("v0003")


def test_versions_are_ordered_by_number(tmp_path: Path):
    registry = with_versions(tmp_path, 0)
    for version in ("v10000", "v9999"):
        publish(registry, card(version))
    assert registry.versions() == ["v0000", "v9999", "v10000"]
    assert registry.next_version() == "v10001"


def test_a_version_appears_whole(tmp_path: Path):
    target = with_versions(tmp_path, 0).version_dir("v0001")
    with create_version(target) as directory:
        (directory / "adapter").mkdir()
        write_card(directory, card("v0001"))
        assert not target.exists()
    assert sorted(p.name for p in target.iterdir()) == ["adapter", "card.json"]
    assert not directory.exists()


def test_a_version_that_fails_leaves_nothing(tmp_path: Path):
    def interrupted() -> None:
        with create_version(tmp_path / "v0001") as directory:
            (directory / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.glob("v*")) == []


def test_a_directory_without_a_card_is_no_version(tmp_path: Path):
    with (
        pytest.raises(RuntimeError, match="v0001 has no card: `write_card`"),
        create_version(tmp_path / "v0001") as directory,
    ):
        (directory / "adapter").mkdir()
    assert list(tmp_path.glob("v*")) == []


@pytest.mark.parametrize("other", ["v0001", "v0002"])
def test_versions_grow_one_at_a_time(tmp_path: Path, other: str):
    registry = with_versions(tmp_path, 0)
    with create_version(registry.version_dir("v0001")) as directory:
        write_card(directory, card("v0001"))
        with pytest.raises(BusyError, match=r"held by pid \d+ on .+ \(making v0001\): one at a time"):
            publish(registry, card(other))
        assert directory.is_dir()
    assert registry.versions() == ["v0000", "v0001"]
    if other != "v0001":
        publish(registry, card(other))
        assert registry.versions() == ["v0000", "v0001", other]


def test_remains_of_a_killed_process_are_replaced(tmp_path: Path):
    registry = with_versions(tmp_path, 0)
    remains = registry.policies_dir / "v0001.partial"
    remains.mkdir()
    (remains / "half").touch()
    publish(registry, card("v0001"))
    assert [p.name for p in sorted(registry.policies_dir.glob("v*"))] == ["v0000", "v0001"]
    assert [p.name for p in registry.version_dir("v0001").iterdir()] == ["card.json"]


def test_versions_are_immutable(tmp_path: Path):
    registry = with_versions(tmp_path, 1)
    with pytest.raises(ConfigError, match="v0001 exists, and policy versions are immutable"):
        publish(registry, card("v0001"))


def test_unreadable_card_names_its_path(tmp_path: Path):
    registry = with_versions(tmp_path, 1)
    path = registry.version_dir("v0001") / "card.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(RecordError, match=str(path)):
        registry.card("v0001")


def test_card_of_another_schema_is_refused(tmp_path: Path):
    registry = with_versions(tmp_path, 1)
    path = registry.version_dir("v0001") / "card.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 2}))
    with pytest.raises(SchemaVersionError, match=r"card\.json: schema_version = 2: this r3agent reads version 1"):
        registry.card("v0001")


def test_renamed_version_is_refused(tmp_path: Path):
    registry = with_versions(tmp_path, 1)
    registry.version_dir("v0001").rename(registry.version_dir("v0002"))
    with pytest.raises(RecordError, match="is the card of v0001"):
        registry.card("v0002")


def test_served_names():
    assert card("v0003").served_name == "tiny@v0003"
    assert card("v0003", kind="full").served_name == "tiny"


@pytest.mark.parametrize("parent", ["v0002", "v0003"])
def test_parent_is_earlier(parent: str):
    with pytest.raises(ArgumentError, match="a parent is an earlier version"):
        card("v0002", parent=parent)


@pytest.mark.parametrize(("logprobs", "parent"), [((0.0,), None), ((0.0, -1.0), (0.0, -1.0, -2.0))])
def test_fingerprint_aligns(logprobs: tuple[float, ...], parent: tuple[float, ...] | None):
    with pytest.raises(ArgumentError, match="must align one to one"):
        FingerprintSequence(token_ids_T=(1, 2), logprobs_T=logprobs, parent_logprobs_T=parent)


def test_nothing_is_live_at_first(tmp_path: Path):
    registry = with_versions(tmp_path, 1)
    assert (registry.live, registry.previous) == (None, None)
    with pytest.raises(ConfigError, match="nothing is live"):
        registry.rollback_target()


def test_torn_pointer_is_named(tmp_path: Path):
    registry = with_versions(tmp_path, 1)
    registry.set_live("v0001")
    (tmp_path / "live.json").write_text('{"version": "v0')
    with pytest.raises(RecordError, match=r"live\.json"):
        _ = registry.live


def test_pointer_that_cannot_be_written_stays(tmp_path: Path):
    registry = with_versions(tmp_path, 1)
    registry.set_live("v0000")
    (tmp_path / ".live.json.partial").mkdir()
    with pytest.raises(
        ConfigError, match=r"cannot write to .*live\.json: .*Is a directory.*; what is there is in the way"
    ):
        registry.set_live("v0001")
    assert registry.live == "v0000"


def test_rollback_walks_back_and_never_forth(tmp_path: Path):
    registry = with_versions(tmp_path, 3)
    registry.set_live("v0001")
    registry.set_live("v0003")
    assert registry.rollback_target() == "v0001"
    registry.set_live("v0001")
    assert registry.previous == "v0003"
    assert registry.rollback_target() == "v0000"
    registry.set_live("v0000")
    with pytest.raises(ConfigError, match="v0000 is live and nothing came before"):
        registry.rollback_target()
    record_event(registry.policies_dir, Event(event="rolled_back", version="v0000", other="v0001", by="gate"))
    with pytest.raises(ConfigError, match="because the gate rolled v0001 back, and nothing came before"):
        registry.rollback_target()


def test_rollback_to_a_version(tmp_path: Path):
    registry = with_versions(tmp_path, 3)
    registry.set_live("v0002")
    assert registry.rollback_target("v0000") == "v0000"
    for to in ("v0002", "v0003"):
        with pytest.raises(ConfigError, match=f"{to} is not older than v0002"):
            registry.rollback_target(to)
    with pytest.raises(ConfigError, match="'v0009'"):
        registry.rollback_target("v0009")


@settings(max_examples=25)
@given(moves=st.lists(st.sampled_from(["v0000", "v0001", "v0002"]), min_size=1, max_size=6))
def test_previous_is_the_last_other_version(tmp_path_factory: pytest.TempPathFactory, moves: list[str]):
    registry = with_versions(tmp_path_factory.mktemp("run"), 2)
    for version in moves:
        registry.set_live(version)
    assert registry.live == moves[-1]
    assert registry.previous == next((v for v in reversed(moves) if v != moves[-1]), None)
    assert Registry(registry.run_dir).live == registry.live


def test_card_keeps_its_fingerprint_under_the_key_canary(tmp_path: Path):
    sequence = FingerprintSequence(token_ids_T=(1, 2), logprobs_T=(0.0, -1.0))
    card = PolicyCard(version="v0001", name="tiny", kind="lora", base_model="base", fingerprint=(sequence,))
    write_card(tmp_path, card)
    on_disk = json.loads((tmp_path / "card.json").read_text())
    assert on_disk["canary"] == [sequence.model_dump(mode="json")]
    assert "fingerprint" not in on_disk
    assert PolicyCard.model_validate(on_disk) == card
    with pytest.deprecated_call(match=r"removed in 0\.3"):
        assert card.canary == (sequence,)
