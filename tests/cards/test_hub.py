"""Uploads to a fake of the Hub's HTTP API."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from r3agent.cli.main import main
from tests.cards.fake_hub import FakeHub, serving

TOKEN = "hf_notatokenofanyone"
REPO = "someone/tiny-v0001"

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # huggingface_hub's, to its own HTTP client


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving(FakeHub(TOKEN)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # the other tests are offline
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # the fake has LFS alone
        yield hub


def push(run: Path, *words: str) -> int:
    return main(["export", "v0001", "--run", str(run), "--push", REPO, *words])


def test_push_makes_a_private_repository_and_updates_it(
    made: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(made, "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["url"] == f"{hub.url}/{REPO}/commit/{'c' * 40}"
    assert hub.private == {REPO: True}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "policy_card.json"} == hub.files.keys()
    assert [*hub.storage.values()] == [hub.files["adapter_model.safetensors"]]
    everything = b"".join(hub.files.values()).decode(errors="replace") + printed.out + printed.err
    assert TOKEN not in everything
    assert str(made.parent) not in everything
    hub.files["model.safetensors"] = b"of an earlier version"
    assert push(made) == 1
    assert "someone/tiny-v0001 cannot be used: it exists already; name another" in capsys.readouterr().err
    assert push(made, "--update") == 0
    assert "model.safetensors" not in hub.files
    hub.private[REPO] = False
    assert push(made, "--update") == 2
    assert f"{REPO} is public; add --public if everybody may read this version" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("route", "status", "says"),
    [
        ("create", 401, "cannot be used: HTTP 401: the Hub does not know this HF_TOKEN; make one"),
        ("create", 403, "cannot be used: HTTP 403: this HF_TOKEN may not write there; take one that may"),
        ("preupload", 403, "has none of the files: the upload broke off; --update uploads to it"),
        ("storage", 403, "has none of the files: the upload broke off"),
        ("commit", 413, "has none of the files: the upload broke off"),
        ("preupload", 0, "has none of the files: the upload broke off"),
    ],
)
def test_push_that_is_refused_says_what_to_do(
    made: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str], route: str, status: int, says: str
) -> None:
    hub.refuses[route] = status
    assert push(made) == 1
    printed = capsys.readouterr()
    assert f"r3agent export: {REPO} {says}" in printed.err
    assert TOKEN not in printed.err + printed.out
    assert not hub.files
    assert (route == "create") == (not hub.private)


def test_push_goes_on_where_an_upload_broke_off(made: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.refuses["commit"] = 413
    assert push(made) == 1
    assert "--update uploads to it" in capsys.readouterr().err
    assert (len(hub.uploads), hub.files) == (1, {})
    del hub.refuses["commit"]
    assert push(made, "--update") == 0
    assert len(hub.uploads) == 1  # the weights are there
    assert hub.files["adapter_model.safetensors"] == hub.storage[hub.uploads[0]]


def test_push_makes_no_repository_for_a_version_that_is_not_sound(
    made: Path, hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(made, tmp_path / "run"))
    (weights,) = run.glob("policies/v0001/adapter/*.safetensors")
    weights.write_bytes(b"changed")
    assert push(run) == 1
    assert "is not the file that was trained" in capsys.readouterr().err
    assert not hub.private


def test_push_needs_a_token_and_a_name(
    made: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "v0001", "--run", str(made), "--push", "a/b/c"]) == 2
    assert "name organisation/name" in capsys.readouterr().err
    assert main(["export", "v0001", "--run", str(made)]) == 2
    assert "name a new or empty one, or a repository with --push" in capsys.readouterr().err
    assert main(["export", "v0001", "out", "--public", "--run", str(made)]) == 2
    assert "--public is for --push" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert push(made) == 1
    assert "HTTP 401" in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN")
    assert push(made) == 2
    assert "HF_TOKEN is not set" in capsys.readouterr().err
