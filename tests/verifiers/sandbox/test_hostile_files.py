"""Files and environment that can be reached from the sandbox."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from r3agent.verifiers.sandbox import Layer
from tests.verifiers.sandbox.hostile import ATTEMPT, each_set, run, said


@each_set
def test_environment_and_descriptors_are_empty(layers: tuple[Layer, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R3AGENT_SECRET", "hush")
    with open(__file__) as held:
        os.set_inheritable(held.fileno(), True)
        source = """
import os
print(sorted(os.environ))
def is_open(fd):
    try:
        os.fstat(fd)
        return True
    except OSError:
        return False
print([fd for fd in range(4096) if is_open(fd)])
"""
        assert said(run(source, layers)).splitlines() == ["['HOME', 'LANG', 'PATH', 'TMPDIR']", "[0, 1, 2]"]


@each_set
def test_files_of_others_are_neither_read_nor_written(layers: tuple[Layer, ...], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush")
    os.chmod(tmp_path, 0o777)
    before = secret.stat()
    source = f"""
import os
secret, folder = {str(secret)!r}, {str(tmp_path)!r}
attempt(lambda: open(secret).read())
attempt(lambda: open(secret, "a").write("x"))
attempt(lambda: open(folder + "/new", "w"))
attempt(lambda: open("/etc/passwd").read())
attempt(lambda: open("/etc/new", "w"))
attempt(lambda: open(os.__file__, "a"))
attempt(lambda: os.listdir(folder))
attempt(lambda: os.chmod(secret, 0o666) or "chmod")
attempt(lambda: os.utime(secret, (1, 1)) or "utime")
attempt(lambda: os.truncate(secret, 0) or "truncate")
attempt(lambda: os.unlink(secret) or "unlink")
attempt(lambda: os.rename(secret, "mine") or "rename")
attempt(lambda: os.link(secret, "mine") or "link")
os.symlink(secret, "way")
attempt(lambda: open("way").read())
attempt(lambda: os.chroot(".") or "chroot")
attempt(lambda: os.listdir("/root"))
"""
    assert said(run(ATTEMPT + source, layers)) == ""
    after = secret.stat()
    assert (after.st_mode, after.st_mtime_ns, secret.read_text()) == (before.st_mode, before.st_mtime_ns, "hush")
    assert os.listdir(tmp_path) == ["secret"]


@each_set
def test_its_own_directory_can_be_written_and_is_gone_afterwards(layers: tuple[Layer, ...]) -> None:
    source = "import os, tempfile\nname = tempfile.mkdtemp('r3mine')\nopen(name + '/a', 'w').write('x')\nprint(name)"
    assert not os.path.exists(said(run(source, layers)))


@each_set
def test_a_directory_that_is_deep_and_closed_is_gone_afterwards(layers: tuple[Layer, ...]) -> None:
    source = """
import os
os.mkdir("shut", 0)
os.symlink("/", "way")
for _ in range(1000):
    os.mkdir("deep")
    os.chdir("deep")
open("file", "w").close()
print("down")
"""
    before = set(Path(tempfile.gettempdir()).glob("r3agent-sandbox-*"))
    assert said(run(source, layers)) == "down"
    assert set(Path(tempfile.gettempdir()).glob("r3agent-sandbox-*")) <= before
    assert Path(__file__).exists()


@each_set
def test_no_other_program_is_started(layers: tuple[Layer, ...]) -> None:
    source = """
import os
open("own", "w").write("#!/bin/sh\\necho started\\n")
os.open("own", os.O_RDONLY)
for path in ("/bin/sh", "/bin/echo", "/usr/bin/env", "./own", "/lib64/ld-linux-x86-64.so.2"):
    try:
        os.execv(path, [path, "-c", "echo started"])
    except OSError:
        pass
print("none")
"""
    assert said(run(source, layers)) == "none"
