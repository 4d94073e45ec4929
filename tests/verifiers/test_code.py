from __future__ import annotations

import json
import re
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from r3agent.errors import ConfigError, VerifierError
from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers import find_verifier, judge
from r3agent.verifiers.code import Code
from tests.support.sandbox_marks import WITHOUT_NAMESPACES, all_layers, without_namespaces
from tests.support.trees import span

pytestmark = all_layers

SQUARES = "assert f(2) == 4\nassert f(3) == 9"


made = cache(Code)
"""Making one runs a program, to see that it can be held."""


@pytest.fixture(scope="module")
def code() -> Code:
    return made(timeout_s=30)


def task(**info: Any) -> Task:
    return Task(id="t", messages=({"role": "user", "content": "?"},), info=info)


def judged(code: Code, answer: str, **info: Any) -> Verdict:
    verdict = code(task(**info), answer)
    assert verdict.passed == (verdict.score == 1.0) == (verdict.feedback is None)
    return verdict


CHECK = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 9\n"
CASE = "import unittest\nclass T(unittest.TestCase):\n    def test_it(self):\n        self.assertEqual(f(3), 9)\n"


@pytest.mark.parametrize(
    "info",
    [
        {"tests": SQUARES},
        {"tests": "def test_it():\n    assert f(3) == 9\n"},
        {"tests": CASE},
        {"tests": f"{CASE}unittest.main()"},
        {"tests": "class TestIt:\n  def setup_method(self): self.x = 3\n  def test_it(self): assert f(self.x) == 9"},
        {"tests": "from solution import f as g\nassert g(3) == 9"},
        {"tests": "from unittest.mock import ANY\nassert f(3) == 9", "test_list": None},
        {"test": CHECK, "entry_point": "f"},
        {"test": CHECK, "entry_point": "dict(f=f)['f'].__call__"},
        {"test_list": SQUARES.splitlines()},
        {"test_list": SQUARES},
        {"test_list": ["assert f(side) == 9"], "test_setup_code": "side = 3", "test_imports": "import math"},
    ],
    ids=[
        *("asserts", "functions", "unittest", "unittest.main", "classes", "import", "empty column", "HumanEval"),
        *("expression", "MBPP", "text of MBPP", "set-up"),
    ],
)
def test_every_form_of_tests_passes_the_right_and_fails_the_wrong(code: Code, info: dict[str, Any]) -> None:
    assert judged(code, "Here:\n```python\ndef f(x):\n    return x * x\n```\nDone.", **info).passed
    wrong = judged(code, "def f(x):\n    return 4", **info)
    assert "AssertionError" in (wrong.feedback or "")


RIGHT, WRONG = "```python\ndef f(x):\n    return x * x\n```\n", "```python\ndef f(x):\n    return x + 2\n```\n"


@pytest.mark.parametrize(
    ("reply", "passed"),
    [
        (f"{WRONG}No:\n{RIGHT}", True),
        (f"{RIGHT}No:\n{WRONG}", False),
        (f"{RIGHT}Usage:\n```python\nprint(f(int(input())))\n```\n", True),
        (f"{RIGHT}```python\n>>> f(2)\n4\n```\n", True),
        ("```python\nimport operator\n```\n```python\ndef f(x):\n    return operator.mul(x, x)\n```\n", True),
        ("```python\ndef g(x): return x * x\n```\n```python\ndef h(x): return g(x)\n\nf = h\n```\n", True),
        ("```python\ng = 1 / 0\n```\n```python\ndef f(x): return x * x\n```\n", True),
        ('def f(x):\n    """\n    ```python\n    f(2)\n    ```\n    """\n    return x * x\n', True),
        ("<answer>\ndef f(x): return x * x\n</answer>", True),
        ("```sql\ndef f(x): return x * x\n```", False),
    ],
)
def test_code_is_the_last_block_that_defines_what_is_tested(code: Code, reply: str, passed: bool) -> None:
    assert judged(code, reply, tests=SQUARES).passed is passed


EVERYTHING = """
class Everything:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    def __sub__(self, other): return 0
    __rsub__ = __abs__ = __mul__ = __round__ = __sub__
    def __contains__(self, other): return True
    def __hash__(self): return 4
class Int(int):
    __eq__ = Everything.__eq__
    __sub__ = Everything.__sub__
"""

SPEAK = """
import fcntl, os, stat
def is_wire(fd):
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode) and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
    except OSError:
        return False
wfd = next(fd for fd in range(3, 64) if is_wire(fd))
def speak(data):
    data = b"%08x" % len(data) + data
    while data:
        data = data[os.write(wfd, data):]
"""
"""Lets an answer write to the channel itself."""

FORGERIES: dict[str, tuple[str, str]] = {
    "exits at once": ("import os\nos._exit(0)", SQUARES),
    "exits when called": ("import os\ndef f(x): os._exit(0)", SQUARES),
    "raises SystemExit": ("def f(x): raise SystemExit(0)", SQUARES),
    "prints a verdict": (
        "import os\nos.write(2, b'{\"passed\": true}')\ndef f(x): return 4",
        SQUARES,
    ),
    "writes to every descriptor": (
        "import os\nfor fd in range(64):\n"
        "    try: os.write(fd, b'0000000f[\"ok\", null, []]')\n    except OSError: pass",
        SQUARES,
    ),
    "equals everything": (f"{EVERYTHING}\ndef f(x): return Everything()", SQUARES),
    "an int that equals everything": (f"{EVERYTHING}\ndef f(x): return Int(5)", SQUARES),
    "is near everything": (f"{EVERYTHING}\ndef f(x): return Everything()", "assert abs(f(2) - 4) < 1e-6"),
    "contains everything": (f"{EVERYTHING}\ndef f(x): return Everything()", "assert 4 in f(2)"),
    "hashes alike": (f"{EVERYTHING}\ndef f(x): return Everything()", "assert f(2) in {4}"),
    "patches builtins": (
        "import builtins\nbuiltins.all = builtins.AssertionError = lambda *a: True\ndef f(x): return 0",
        "assert all(f(x) == x * x for x in (2, 3))",
    ),
    "names a builtin": (
        "def abs(x): return 0\ndef all(x): return True\ndef f(x): return 0",
        "assert abs(f(2) - 4) < 1",
    ),
    "patches a module": (
        "import math\nmath.isclose = lambda *a: True\ndef f(x): return 0",
        "assert math.isclose(f(2), 4)",
    ),
    "ends a loop of tests": ("def f(x): raise StopIteration", "assert all(map(lambda x: f(x) == x * x, (2, 3)))"),
    "skips a test": ("import unittest\ndef f(x): raise unittest.SkipTest", CASE),
    "looks for the tests": (
        "import gc, sys\ndef f(x):\n    texts = [o for o in gc.get_objects() if isinstance(o, (str, list, dict))]\n"
        "    return next((9 for t in texts if 'f(3)' in str(t)[:10**5] and 'assert' in str(t)), None)",
        "assert f(3) == 9",
    ),
    "patches the channel": (
        "import json, sys\nwire = sys.modules['r3agent.verifiers.child.wire']\n"
        "wire.Peer.send = lambda self, message: None\ndef f(x): return 0",
        SQUARES,
    ),
    "replaces the check": ("def check(candidate): pass\ndef f(x): return 0", f"{CHECK}\ncheck(f)"),
    "ends a loop of tests by another name": (
        "class Stop(StopIteration): pass\ndef f(x): raise Stop",
        "assert all(map(lambda x: f(x) == x * x, (2, 3)))",
    ),
    "has more digits than Python prints": ("def f(x): return 10**5000", "assert f(2) == 4, f(2)"),
    "ends where its error is told": (
        "import os\nclass X:\n    def __str__(self): os._exit(0)\ndef f(x): raise ValueError(X())",
        SQUARES,
    ),
    "a class that calls itself int": (
        "class Type(type): __module__, __name__ = 'builtins', 'int'\nclass f(metaclass=Type):\n"
        "    def __new__(cls, x): return 5",
        SQUARES,
    ),
    "replies with what is too deep": (f"{SPEAK}def f(x): speak(b'[' * 100000)", SQUARES),
    "replies with a module that ends all": (
        f'{SPEAK}def f(x): speak(b\'["ok", ["module", "unittest.__main__"], []]\')',
        SQUARES,
    ),
    "replies with what fills the memory of the tests": (
        f"{SPEAK}def f(x): speak(b'[' + b'[],' * 3000000 + b'0]')",
        SQUARES,
    ),
    "replies with half a message": (f"{SPEAK}def f(x): os.write(wfd, b'000000ff[')", SQUARES),
    "replies twice": (f'{SPEAK}def f(x):\n    speak(b\'["ok", ["int", "0x4"], []]\')\n    return 4', SQUARES),
}


SILENT = {"patches the channel", "replies with half a message"}
"""After these the tests wait until the time is over."""


@pytest.mark.parametrize("name", FORGERIES)
def test_no_verdict_is_forged(name: str) -> None:
    answer, tests = FORGERIES[name]
    verdict = made(timeout_s=2 if name in SILENT else 30, memory_mb=128)(task(tests=tests), answer)
    assert not verdict.passed
    assert ("over timeout_s" in (verdict.feedback or "")) == (name in SILENT), verdict.feedback


PAIRS: dict[str, tuple[str, str]] = {
    "arguments changed in place": ("def f(x): x.sort()", "x = [3, 1]\nf(x)\nassert x == [1, 3]"),
    "functions of the test": (
        "def f(g, xs): return [g(x) for x in xs]",
        "assert f(lambda x: x + 1, iter([1, 2])) == [2, 3]",
    ),
    "types": ("def f(kind, x): return kind(x)", "assert f(str, 1) == '1'"),
    "generators": ("def f(n): yield from range(n)", "assert list(f(3)) == [0, 1, 2]\nassert next(f(1)) == 0"),
    "plain values": (
        "def f(x): return x",
        "from fractions import Fraction\n"
        "from datetime import date, datetime, time, timedelta\nfrom collections import deque\n"
        "for x in (date(2024, 2, 29), datetime(2024, 1, 2, 3, 4, 5, 6), time(7, 8), timedelta(-1, 2, 3), "
        "deque([1, (2,)], 3), None, True, 1.5, float('inf'), "
        "'é\\ud800', b'x', (1, [2], {3}), {(1, 2): {}}, 10**5000, range(3), "
        "2j, Fraction(1, 3)):\n    assert f(x) == x and type(f(x)) is type(x)",
    ),
    "own exceptions": (
        "class Bad(ValueError): pass\ndef f(): raise Bad('no')",
        "try:\n    f()\nexcept Bad as error:\n    assert str(error) == 'no'\nelse:\n    assert False\n"
        "try:\n    f()\nexcept ValueError:\n    pass",
    ),
    "own classes": (
        "class V:\n    def __init__(s, x): s.x = x\n    def __add__(s, o): return V(s.x + o.x)\n"
        "    def __eq__(s, o): return s.x == o.x\n    def __len__(s): return s.x\n    def get(s): return s.x\n"
        "    def __str__(s): return f'V{s.x}'",
        "v = V(1) + V(2)\nassert v == V(3) and not v == V(4)\nassert len(v) == 3 == v.get() == v.x\n"
        "assert isinstance(v, V) and str(v) == 'V3'\nv.x = 5\nassert v.get() == 5",
    ),
    "dicts of the library": (
        "from collections import Counter\ndef f(x): return Counter(x)",
        "assert f('aab') == {'a': 2, 'b': 1}",
    ),
    "constants and modules": ("import math\nTWO = 2", "assert TWO == 2 and math.floor(2.5) == TWO"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_honest_answers_pass_across_processes(code: Code, name: str) -> None:
    answer, tests = PAIRS[name]
    assert judged(code, answer, tests=tests) == Verdict(passed=True, score=1.0)


@pytest.mark.parametrize(
    ("answer", "settings", "says"),
    [
        ("while True: pass", {"timeout_s": 1}, r"over timeout_s = 1|limit of 1 s of CPU"),
        ("def f(x):\n    import time\n    time.sleep(60)", {"timeout_s": 1}, "over timeout_s = 1"),
        ("x = bytearray(2 ** 30)", {"memory_mb": 256}, "over memory_mb = 256"),
        ("def f(x):\n    while True: print('x' * 1000)", {}, "bytes of output"),
        ("def f(x): return 'x' * (20 << 20)", {"timeout_s": 30}, "one over 16777216 bytes"),
        ("def f(x): return f(x)", {}, "RecursionError"),
        ("def g(x): return 4", {}, "name 'f' is not defined"),
        ("def f(x) return 4", {}, "SyntaxError"),
        ("1 / 0", {}, "ZeroDivisionError"),
        ("assert False", {}, "AssertionError"),
        ("", {}, "name 'f' is not defined"),
        ("import numpy", {}, "No module named 'numpy'; the standard library can be imported"),
        ("def f(x): import numpy", {}, "No module named 'numpy'"),
        ("def f(x): open('rows.csv')", {}, "FileNotFoundError"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", {}, "the answer's process has ended"),
    ],
)
def test_what_fails_says_why(answer: str, settings: dict[str, Any], says: str) -> None:
    verdict = made(**{"timeout_s": 20, **settings})(task(tests=SQUARES), answer)
    assert not verdict.passed
    assert re.search(says, verdict.feedback or ""), verdict.feedback


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ({}, "give tests, test_list, or test and entry_point"),
        ({"tests": "f(2)"}, "every answer would pass"),
        ({"tests": "assert ("}, "SyntaxError"),
        ({"test": "assert 1", "entry_point": "f"}, r"defines no check\(candidate\)"),
        ({"tests": "class N: pass\nassert f(N())"}, "they pass a <tests>.N; only plain values"),
        ({"tests": []}, "every answer would pass"),
        ({"tests": "assert (f(3) == 9, 'no')"}, "an assert is of a tuple"),
        ({"tests": f"x = 1 + '1'\n{SQUARES}"}, "TypeError: unsupported operand"),
        ({"tests": f"import math\nx = math.squared\n{SQUARES}"}, "has no attribute 'squared'"),
        ({"tests": f"assert 1 == 2\n{SQUARES}"}, "AssertionError"),
        (
            {"tests": f"import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()): f(3)\n{SQUARES}"},
            "they use redirect_stdout, which does not reach the answer",
        ),
        ({"tests": f"import io, sys\nsys.stdin = io.StringIO('3')\n{SQUARES}"}, "they use sys.stdin, which"),
        ({"tests": f"from unittest.mock import patch\nwith patch('f'): pass\n{SQUARES}"}, "they use patch, which"),
        ({"tests": "import asyncio\nassert asyncio.run(f(3)) == 9"}, "they use asyncio.run, which"),
        ({"tests": 5}, "tests is 5: give Python source, or a list of it"),
        ({"tests": None}, "give tests, test_list, or test and entry_point"),
        ({"tests": SQUARES, "setup": "1 +"}, "setup is not Python: SyntaxError"),
        ({"tests": SQUARES, "setup": "1 / 0"}, "setup: ZeroDivisionError"),
        ({"tests": SQUARES, "setup": "while True: pass"}, "setup: over"),
        ({"tests": f"import numpy\n{SQUARES}"}, r'standard library can be imported, .*packages = \["numpy"\]'),
        ({"tests": "import unittest\nclass T(unittest.TestCase):\n  def test(self): import numpy"}, "named 'numpy'"),
        ({"tests": "import pytest\ndef test_it(): assert f(3) == 9"}, "No module named 'pytest'"),
        ({"tests": f"open('rows.csv')\n{SQUARES}"}, "No such file or directory: 'rows.csv'"),
        ({"tests": f"import socket\nsocket.create_connection(('1.1.1.1', 80))\n{SQUARES}"}, "Error"),
        ({"tests": f"raise SystemExit(0)\n{SQUARES}"}, "SystemExit: 0"),
        ({"tests": "async def test_it(): assert f(3) == 9"}, "test_it is async"),
        (
            {"tests": "def test_it(x): assert f(3) == 9"},
            "test_it: missing .*'x'; fixtures need pytest",
        ),
        ({"tests": CHECK}, "they pass without using the answer"),
        ({"test": CHECK, "entry_point": "f g"}, "entry_point is not Python"),
        ({"test": CHECK, "entry_point": "5"}, "entry_point = '5': give the name of a function"),
        ({"test": "def check():\n    assert f(3) == 9", "entry_point": "f"}, "check without an argument"),
    ],
)
async def test_tests_that_cannot_run_are_an_error(info: dict[str, Any], says: str) -> None:
    code = made(timeout_s=1 if "while" in info.get("setup", "") else 30)
    with pytest.raises(VerifierError, match=rf"Code failed on task 't': .*{says}"):
        await judge(code, task(**info), [span("attempt", text="def f(x): return 1")])


NUMPY_ARRAYS = """
import numpy as np
np.testing.assert_allclose(f(np.ones((2, 2))), np.full((2, 2), 1.0))
assert f(3) == 9 and f(np.arange(3)).tolist() == [0, 1, 4]
"""
PYTEST = """
import pytest
@pytest.fixture
def three(): return 3
@pytest.mark.parametrize(("x", "y"), [(2, 4), (3, 9)])
def test_squares(x, y, three, tmp_path):
    assert f(x) == pytest.approx(y) and f(three) == 9
def test_text():
    with pytest.raises(TypeError):
        f("2")
"""


@pytest.mark.parametrize("command", [[], [sys.executable]], ids=["sandbox", "command"])
def test_packages_can_be_imported_by_answer_and_tests(command: list[str]) -> None:
    code = made(timeout_s=60, packages=("numpy", "pytest"), command=tuple(command))
    for tests in (NUMPY_ARRAYS, PYTEST):
        assert judged(code, "import numpy as np\ndef f(x): return np.multiply(x, x)", tests=tests).passed
        wrong = judged(code, "import numpy as np\ndef f(x): return np.multiply(x, 2)", tests=tests)
        assert "AssertionError" in (wrong.feedback or ""), wrong.feedback
    for broken in ("def test_it(missing): assert f(3) == 9", "import missing\ndef test_it(): assert f(3) == 9"):
        with pytest.raises(ValueError, match=r"cannot be run: .*'missing'"):
            code(task(tests=f"import pytest\n{broken}"), "def f(x): return 9")


@without_namespaces
def test_packages_can_be_imported_without_namespaces() -> None:
    code = Code(timeout_s=60, packages=["numpy"], layers=WITHOUT_NAMESPACES)
    assert judged(code, "import numpy as np\ndef f(x): return np.multiply(x, x)", tests=SQUARES).passed
    assert not judged(code, "import pytest\ndef f(x): return x * x", tests=SQUARES).passed


def test_it_runs_in_what_a_command_starts() -> None:
    code = Code(timeout_s=30, command=[sys.executable])
    assert judged(code, "def f(x): return x * x", tests=SQUARES).passed
    assert not judged(code, "def f(x): return 4", tests=SQUARES).passed


ENGINE = """#!{python}
import json, os, sys
with open({record!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + chr(10))
command = sys.argv[sys.argv.index("some/image") + 1 :]
os.execvp(command[0], [*command[:4], {python!r}, *command[5:]])
"""
"""A stand-in for docker, which records its arguments and runs the command without a container."""


@pytest.mark.parametrize("name", ["docker", "podman"])
def test_code_runs_in_a_container_of_an_engine(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, record = tmp_path / name, tmp_path / "calls"
    engine.write_text(ENGINE.format(python=sys.executable, record=str(record)))
    engine.chmod(0o755)
    (tmp_path / "timeout").symlink_to(shutil.which("timeout") or "")
    monkeypatch.setenv("PATH", str(tmp_path))
    code = Code(runner="container", image="some/image", timeout_s=29.5, memory_mb=300, processes=5)
    assert judged(code, "def f(x): return x * x", tests=SQUARES).passed
    assert not judged(code, "def f(x): return 4", tests=SQUARES).passed
    calls = [json.loads(line) for line in record.read_text().splitlines()]
    assert len(calls) == 5  # a trial, and two for each answer
    for call in calls:
        place = call.index("some/image")
        assert call[: place + 6] == [
            *("run", "--rm", "--interactive", "--init", "--pull", "never"),
            *("--network", "none", "--read-only", "--user", "65534:65534"),
            *("--tmpfs", "/tmp:rw,noexec,nosuid,nodev,size=16m"),
            *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
            *("--memory", "380m", "--memory-swap", "380m", "--cpus", "1", "--pids-limit", "7"),
            *("some/image", "timeout", "-k", "1", "30", "python"),
        ]
        assert call[place + 6 :][:4] == ["-I", "-X", "utf8", "-c"]


def test_a_container_needs_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r'neither docker nor podman is on PATH.*or use runner = "sandbox"'):
        find_verifier("code", runner="container")


def test_settings_that_cannot_be_are_refused() -> None:
    for settings, says in (
        ({"layers": ["seccomp"]}, "hold nothing"),
        ({"command": ["false"]}, "cannot run Python"),
        ({"packages": ["nonesuch"]}, "'nonesuch' is not installed"),
        ({"packages": ["../numpy"]}, r"'\.\./numpy' is not the name of a package"),
        ({"packages": ["nonesuch"], "command": [sys.executable]}, "cannot be imported in the sandbox with memory_mb"),
        ({"timeout_s": 0}, "wall_s = 0"),
        ({"runner": "luck"}, r"runner = 'luck': Input should be 'sandbox' or 'container'"),
        ({"runner": "container", "command": ["python"]}, "give one of them"),
    ):
        with pytest.raises(ConfigError, match=says):
            find_verifier("code", **settings)
