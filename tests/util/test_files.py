"""A file is whole or not there, and a disk's error is a `ConfigError`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r3agent._util.files import decode, disk_errors, write_atomically
from r3agent.errors import ConfigError


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))  # with NUL, UTF-16 may look like UTF-32
def test_decode_drops_a_byte_order_mark(text: str) -> None:
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        assert decode(text.encode(encoding), "f") == text
    assert decode(text.encode("utf-16-le"), "f", encoding="utf-16-le") == text


def test_decode_names_the_line_and_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"f:2 is not UTF-8 \(byte 0xf6\); save it as UTF-8"):
        decode(b"a\n\xf6", "f")
    with pytest.raises(ConfigError, match="f: encoding 'latin-33' is unknown to Python"):
        decode(b"a", "f", encoding="latin-33")


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomically(path, "one")
    write_atomically(path, "two")
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


@given(st.text(st.characters(exclude_characters="\r", codec="utf-8")))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("files") / "file"
    write_atomically(path, text)
    assert path.read_text() == text


def test_what_cannot_be_begun_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    (tmp_path / ".file.partial").mkdir()
    with pytest.raises(ConfigError, match=rf"cannot write to {path}: .*; what is there is in the way"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_what_cannot_be_put_in_place_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(ConfigError, match="cannot write to"):
        write_atomically(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    code = f"""
import resource
from pathlib import Path
from r3agent.errors import ConfigError
from r3agent._util.files import write_atomically
path = Path({str(tmp_path)!r}) / "file"
write_atomically(path, "old")
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
try:
    write_atomically(path, "new" * 3000)
except ConfigError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "free space or choose another directory" in said
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_parent_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot write to .*file/below"):
        write_atomically(tmp_path / "file" / "below", "text")


def test_only_the_errors_that_are_named_are_taken_for_the_disks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write to .*: cut short"), disk_errors(tmp_path, EOFError):
        raise EOFError("cut short")
    with pytest.raises(EOFError), disk_errors(tmp_path):
        raise EOFError("cut short")
