from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from r3agent.deploy.lock import deploy_lock
from r3agent.errors import ConfigError, DeployError

HOLD = """
import sys
from pathlib import Path
from r3agent.deploy.lock import deploy_lock
with deploy_lock(Path(sys.argv[1]), "deploying v0001"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_second_deploy_is_told_who_holds_the_lock_until_that_one_dies(tmp_path: Path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        told = rf"held by pid {holder.pid} on .+ \(deploying v0001\): one deploy at a time"
        with pytest.raises(DeployError, match=told), deploy_lock(tmp_path, "deploying v0002"):
            pytest.fail("two hold the lock")
        holder.kill()
        holder.wait()
        with deploy_lock(tmp_path, "deploying v0002"):
            pass


def test_lock_is_released_by_an_error(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), deploy_lock(tmp_path, "one"):
        _ = 1 / 0
    with deploy_lock(tmp_path, "two"), pytest.raises(DeployError, match=r"\(two\)"), deploy_lock(tmp_path, "three"):
        pytest.fail("two hold the lock")


def test_run_directory_must_exist(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"deploy\.lock: No such file"), deploy_lock(tmp_path / "no", "deploy"):
        pytest.fail("there is nothing to lock")
