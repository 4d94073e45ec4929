"""Lineage: the episodes that a version and its ancestors were trained on, forgotten ones included."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from r3agent import ConfigError
from r3agent.cli.main import main
from r3agent.data import forget, lineage
from r3agent.store.registry import PolicyCard, Registry, create_version, write_card
from r3agent.train import TrainConfig, build_rows
from r3agent.train.lineage import write_rows

from .stores import collected


def trained(run: Path) -> list[str]:
    """Make a run of three versions: of the first's parent the episodes a and b, of the second's c."""
    run.mkdir(exist_ok=True)
    (run / "r3.toml").touch()
    episodes = collected(run / "trajectories", "a", "b", "c")
    registry = Registry(run)
    registry.add_base("m", "base")
    for number, chosen in enumerate([episodes[:2], episodes[2:]], start=1):
        version = f"v000{number}"
        rows, _ = build_rows(chosen, config=TrainConfig(recipe="paper"), version="v0000")
        with create_version(registry.version_dir(version)) as folder:
            write_rows(folder, rows)
            write_card(
                folder,
                PolicyCard(version=version, name="m", kind="lora", base_model="base", parent=f"v000{number - 1}"),
            )
    return [t.trajectory_id for t in episodes]


def test_lineage_has_the_episodes_of_all_ancestors(tmp_path: Path) -> None:
    a, b, c = trained(tmp_path)
    found = lineage(tmp_path, "v0002", by="user")
    assert [(v.version, v.parent, v.episodes) for v in found.versions] == [
        ("v0002", "v0001", (c,)),
        ("v0001", "v0000", tuple(sorted((a, b)))),
        ("v0000", None, None),
    ]
    assert found.versions[0].labels == {"reflect": 2}
    assert (found.episodes, found.by, found.forgotten) == (3, {"a": 1, "b": 1, "c": 1}, ())
    assert lineage(tmp_path, "v0001").episodes == 2
    with pytest.raises(ConfigError, match=r"has the key 'usr'; did you mean 'user'\?"):
        lineage(tmp_path, "v0002", by="usr")
    with pytest.raises(ConfigError, match="v0003"):
        lineage(tmp_path, "v0003")


def test_lineage_tells_of_forgotten_episodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, *_ = trained(tmp_path)
    assert forget(tmp_path, where="user=a").trained == {"v0001": (a,)}
    found = lineage(tmp_path, "v0002", by="user")
    assert found.forgotten == (a,)
    assert (found.episodes, found.by) == (3, {"b": 1, "c": 1, "unknown": 1})
    assert main(["lineage", "v0002", "--run", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"v0001 +from v0000 +2 episodes +2 of 4 rows kept: 2 reflect\n", text)
    assert "v0002 and its ancestors were trained on 3 episodes" in text
    assert f"1 of them was forgotten since, and the weights were not changed: {a}" in text
    assert main(["lineage", "v0002", "--run", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["versions"][1]["forgotten"] == [a]
    assert main(["lineage", "v0001", "--run", str(tmp_path)]) == 0
    assert f"\n  {a}  forgotten\n" in capsys.readouterr().out


def test_lineage_of_no_run_suggests_one(tmp_path: Path) -> None:
    trained(tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"mime' is no run, it has no r3.toml; did you mean 'mine'\?"):
        lineage(tmp_path / "mime", "v0001")
