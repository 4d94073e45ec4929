from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r3agent.verifiers.worker import MAX_PROCESSES, StartError, Worker

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def builtins() -> Iterator[Worker]:
    worker = Worker("builtins")
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def system() -> Iterator[Worker]:
    worker = Worker("os")
    yield worker
    worker.close()


@given(value=json_values)
@settings(max_examples=50)
def test_what_goes_in_comes_out(builtins: Worker, value: object) -> None:
    assert builtins("max", [value], cpu_s=10) == value


def test_text_that_is_no_unicode_survives(builtins: Worker) -> None:
    assert builtins("str", "a\ud800\n\u2028", cpu_s=10) == "a\ud800\n\u2028"


def test_what_never_ends_is_ended_and_the_next_call_works(builtins: Worker) -> None:
    with pytest.raises(TimeoutError, match=r"took more than 0\.3 s"):
        builtins("pow", 9, 10**9, cpu_s=0.3)
    assert builtins("pow", 2, 10, cpu_s=10) == 1024


@pytest.mark.parametrize(
    ("function", "argument", "says"),
    [
        ("int", "x", "ValueError: invalid literal for int"),
        ("bytearray", 8 * 2**30, "MemoryError"),
        ("complex", 1, "TypeError: Object of type complex is not JSON serializable"),
        ("no_such", 1, "AttributeError: .*no_such"),
    ],
)
def test_what_it_raises_is_told(builtins: Worker, function: str, argument: object, says: str) -> None:
    with pytest.raises(RuntimeError, match=says):
        builtins(function, argument, cpu_s=10)


def test_a_process_that_dies_is_told_from_one_that_is_slow(system: Worker) -> None:
    with pytest.raises(RuntimeError, match="the process of os ended with 3"):
        system("_exit", 3, cpu_s=10)
    with pytest.raises(RuntimeError, match="the process of no_such_module ended with 1"):
        Worker("no_such_module")("f", cpu_s=10)


def test_it_can_be_started_before_it_is_asked() -> None:
    worker = Worker("builtins")
    worker.start()
    assert worker("max", [1, 2], cpu_s=10) == 2
    worker.close()
    with pytest.raises(RuntimeError, match="the process of no_such_module ended with 1 before it was asked"):
        Worker("no_such_module").start()


def test_what_is_printed_does_not_get_into_the_replies(builtins: Worker) -> None:
    assert builtins("print", '{"value": 7}', cpu_s=10) is None
    assert builtins("len", "abc", cpu_s=10) == 3


def test_secrets_do_not_get_in_and_hashes_are_the_same(system: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    system.close()
    assert system("getenv", "OPENAI_API_KEY", cpu_s=10) is None
    assert system("getenv", "PYTHONHASHSEED", cpu_s=10) == "0"


def test_threads_share_a_few_processes(system: Worker) -> None:
    together = threading.Barrier(8)

    def ask(_: int) -> int:
        together.wait()
        return system("getpid", cpu_s=10)

    with ThreadPoolExecutor(8) as pool:
        assert 1 <= len(set(pool.map(ask, range(8)))) <= MAX_PROCESSES


def test_a_call_has_a_limit_by_the_clock() -> None:
    worker = Worker("time", name="the clock's process")
    with pytest.raises(TimeoutError, match=r"took more than 0\.3 s"):
        worker("sleep", 60, wall_s=0.3)
    assert worker("sleep", 0, wall_s=30) is None
    worker.close()


def test_a_process_that_died_idle_is_replaced(system: Worker) -> None:
    pid = system("getpid", cpu_s=10)
    process = psutil.Process(pid)
    process.kill()
    process.wait(30)
    assert system("getpid", cpu_s=10) != pid


def test_a_setup_that_fails_is_reported() -> None:
    with pytest.raises(StartError, match=r"the process of math did not start: ValueError"):
        Worker("math", setup=("sqrt", -1)).start()


def test_closing_ends_a_call_under_way() -> None:
    worker = Worker("time", name="the clock's process")
    worker.start()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(worker, "sleep", 600, wall_s=600)
        while not call.done():
            worker.close()
            time.sleep(0.05)
        with pytest.raises(RuntimeError, match="the clock's process ended with -9"):
            call.result(30)


def test_closing_ends_a_process_that_is_being_started(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker("time", name="the clock's process")
    spawned: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def close_meanwhile(*args: Any, **kwargs: Any) -> subprocess.Popen[str]:
        spawned.append(popen(*args, **kwargs))
        worker.close()
        return spawned[-1]

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", close_meanwhile)
        with pytest.raises(RuntimeError, match="the clock's process was closed while it started"):
            worker("sleep", 5, wall_s=60)
    assert spawned[0].poll() is not None
    assert worker("sleep", 0, wall_s=30) is None
    worker.close()


def test_an_interrupted_start_leaves_no_process_and_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker("time", setup=("sleep", 60))
    spawned: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def interrupt() -> str:
        raise KeyboardInterrupt

    def interrupt_reading(*args: Any, **kwargs: Any) -> subprocess.Popen[str]:
        process: Any = popen(*args, **kwargs)
        process.stdout = SimpleNamespace(readline=interrupt, close=process.stdout.close)
        spawned.append(process)
        return process

    monkeypatch.setattr(subprocess, "Popen", interrupt_reading)
    with pytest.raises(KeyboardInterrupt):
        worker.start()
    assert spawned[0].poll() is not None
    assert all(thread.finished.is_set() for thread in threading.enumerate() if isinstance(thread, threading.Timer))


def test_an_argument_that_is_no_json_is_the_callers_error(system: Worker) -> None:
    pid = system("getpid", cpu_s=10)
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(ValueError, match="Circular reference"):
        system("fspath", circle, cpu_s=10)
    assert system("getpid", cpu_s=10) == pid


def test_a_trusted_process_has_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    worker = Worker("os", is_trusted=True)
    assert worker("getenv", "OPENAI_API_KEY", wall_s=60) == "sk-secret"
    assert worker("getenv", "PYTHONHASHSEED", wall_s=60) is None
    worker.close()
