"""Starting and stopping the server as a process."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from r3agent.errors import ConfigError, EndpointError
from r3agent.serve import ServerProcess, serve


def test_a_key_is_asked_for_and_a_stop_is_clean(checkpoint: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with ServerProcess(checkpoint, name="other", api_key="sk-1", log_path=log) as server:
        root = server.base_url.removesuffix("/v1")
        for path, key, status in (
            ("/health", None, 200),
            ("/v1/models", None, 401),
            ("/v1/models", "Bearer sk-2", 401),
            ("/resume", None, 401),
            ("/v1/models", "Bearer sk-1", 200),
        ):
            headers = {"Authorization": key} if key else {}
            response = httpx.request("POST" if path == "/resume" else "GET", root + path, headers=headers)
            assert response.status_code == status
            if status == 401:
                assert response.json()["error"]["type"] == "AuthenticationError"
        assert response.json()["data"][0]["id"] == "other"
        process = psutil.Process(server.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, None)
    assert "sk-1" not in log.read_text()
    assert "Traceback" not in log.read_text()


def test_the_end_of_the_log_says_why_it_did_not_start(checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            EndpointError, match=rf"exit code 2; .*\n(.*\n)*r3agent serve: cannot listen on 127.0.0.1:{port}"
        ):
            ServerProcess(checkpoint, port=port).start()


@pytest.mark.parametrize("port", [99999, -1])
def test_a_port_that_does_not_exist_is_refused_before_the_model_is_loaded(port: int) -> None:
    with pytest.raises(ConfigError, match=f"--port {port}: must be 0 to 65535"):
        serve("no/such/model", port=port)


def test_a_host_that_is_not_this_machine_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:0: .*; pass another --host"):
        serve("no/such/model", host="192.0.2.1", port=0)


def test_a_log_that_cannot_be_written_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"log_path = .*/nothing/log: No such file or directory"):
        ServerProcess(checkpoint, log_path=tmp_path / "nothing" / "log").start()


def test_it_does_not_wait_for_ever(checkpoint: Path) -> None:
    server = ServerProcess(checkpoint, timeout_s=0.2)
    with pytest.raises(EndpointError, match=r"not healthy within timeout_s = 0\.2"):
        server.start()
    assert server.pid is None


def test_it_does_not_outlive_a_parent_that_was_killed(checkpoint: Path) -> None:
    code = (
        "import sys, time\n"
        "from r3agent.serve import ServerProcess\n"
        f"server = ServerProcess({str(checkpoint)!r})\n"
        "server.start()\n"
        "print('torch' in sys.modules, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "False\n"
        left = psutil.Process(parent.pid).children(recursive=True)
        assert len(left) == 2  # the guard and the server
        parent.kill()
        _, alive = psutil.wait_procs(left, 30)
        assert not alive


def test_the_command_says_in_the_run_where_it_serves(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "r3agent", "serve", str(checkpoint), "--port", "0", "--run", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name, url = process.stdout.readline().strip().removeprefix("serving ").split(" on ")
        assert httpx.get(f"{url}/models").json()["data"][0]["id"] == name == checkpoint.name
        [entry] = (tmp_path / "servers").glob("*.json")
        argv = ["--engine", "embedded", "--host", "127.0.0.1", "--run", str(tmp_path)]
        assert json.loads(entry.read_text()) == {"base_url": url, "pid": process.pid, "argv": argv}
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not entry.exists()
