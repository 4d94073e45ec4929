from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from r3agent._util.lock import file_lock
from r3agent.errors import BusyError, ConfigError

HOLD = """
import sys
from pathlib import Path
from r3agent._util.lock import file_lock
with file_lock(Path(sys.argv[1]), "deploying v0001"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_file_lock_names_its_holder_until_that_one_dies(tmp_path: Path):
    path = tmp_path / "deploy.lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        told = rf"held by pid {holder.pid} on .+ \(deploying v0001\): one at a time"
        with pytest.raises(BusyError, match=told), file_lock(path, "deploying v0002"):
            pytest.fail("two hold the lock")
        holder.kill()
        holder.wait()
        with file_lock(path, "deploying v0002"):
            pass


def test_lock_is_released_by_an_error(tmp_path: Path):
    path = tmp_path / "lock"
    with pytest.raises(ZeroDivisionError), file_lock(path, "one"):
        _ = 1 / 0
    with file_lock(path, "two"), pytest.raises(BusyError, match=r"\(two\)"), file_lock(path, "three"):
        pytest.fail("two hold the lock")


def test_the_place_must_be_writable(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot write to .*lock"), file_lock(tmp_path / "file" / "lock", "deploy"):
        pytest.fail("there is nothing to lock")
