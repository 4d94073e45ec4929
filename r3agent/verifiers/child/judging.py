"""The tests' side of a code verdict: run them against references to the answer's definitions, and make the verdict.

What fails because of the tests themselves is no verdict: their set-up, an import, a file, a syntax error, an exit, and
tests that pass without using the answer.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import json
import linecache
import os
import re
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

from r3agent.verifiers.child.references import TestSide, Unfit
from r3agent.verifiers.child.wire import HungUp

TESTS = "<tests>"
FOR_PYTEST = "test_answer.py"
_ACROSS = re.compile(
    r"\b(?:redirect_std(?:out|err)|capsys|capfd|monkeypatch|mock\.patch|patch\.object"
    r"|(?<=import )patch|asyncio\.run|run_until_complete)\b|\bsys\.std(?:out|in|err) *=(?!=)"
)
"""Ways to record or replace something of the answer, or to run its coroutines."""
SOLUTION = "solution"
"""Module under which tests may import the answer."""


def run_tests(side: TestSide, *, setup: str, tests: str, entry_point: str | None, ready: Callable[[], Any]) -> None:
    """Run every test until one fails.

    Args:
        ready: called when the set-up has run, before the answer does.

    Raises:
        Unfit: the tests cannot run, or pass without using the answer.
        BaseException: a test failed, so the answer is wrong.
    """
    module = ModuleType(TESTS)
    space = vars(module)
    try:
        exec(compile(setup, "<setup>", "exec"), space)
    except BaseException as error:
        raise Unfit(f"setup: {_explained(error)}") from None
    ready()
    side.value(side.ask("run"))
    if across := _ACROSS.search(tests):
        raise Unfit(f"they use {across[0].strip(' (=')}, which does not reach the answer in its own process")
    known = {*space, *dir(builtins)}
    under_test = _used(entry_point or "") - known
    space.update(side.definitions(sorted((under_test | _used(tests)) - known)))
    if missing := sorted(under_test - set(space)):
        raise NameError(f"the answer defines no {missing[0]!r}")
    _offer(side)
    if entry_point:
        tests += f"\ncheck({entry_point})\n"
    imports_pytest = any(_imports(node, "pytest") for node in ast.walk(ast.parse(tests)))
    if imports_pytest and importlib.util.find_spec("pytest"):
        _run_pytest(tests, space)
    else:
        _run_plainly(tests, space)
    if not side.is_used:
        raise Unfit("they pass without using the answer, so every answer would pass")


def _used(source: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


def _imports(node: ast.AST, name: str) -> bool:
    modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    return any(module.partition(".")[0] == name for module in modules)


def _offer(side: TestSide) -> None:
    """Let tests import the answer's definitions from a module."""
    solution: Any = ModuleType(SOLUTION)

    def find(name: str) -> Any:
        found = {} if name.startswith("__") else side.definitions([name])
        if not found:
            missing: Any = AttributeError(f"the answer defines no {name!r}")
            missing.of_answer = True
            raise missing
        return found[name]

    solution.__getattr__ = find
    sys.modules[SOLUTION] = solution


def _run_plainly(tests: str, space: dict[str, Any]) -> None:
    """Run the source, then the test functions, classes and cases that it defines."""
    if "unittest" in tests:
        import unittest

        unittest.main = lambda *_, **__: None  # type: ignore[assignment,misc]  # it would exit
    before = dict(space)
    exec(compile(tests, TESTS, "exec"), space)
    own = [value for name, value in space.items() if name not in before or before[name] is not value]
    for value in own:
        name = getattr(value, "__name__", "")
        if isinstance(value, type) and name.startswith("Test") and not hasattr(value, "assertEqual"):
            for method in [name for name in dir(value) if name.startswith("test_")]:
                instance = value()
                getattr(instance, "setup_method", lambda: None)()
                _call(getattr(instance, method))
        elif callable(value) and name.startswith("test_"):
            _call(value)
    if "unittest" in sys.modules:
        _run_cases(own)


def _call(test: Any) -> None:
    import inspect  # imported here, like others: most tests do not need it

    if inspect.iscoroutinefunction(test):
        raise Unfit(f"{test.__name__} is async, which is not supported")
    try:
        inspect.signature(test).bind()
    except TypeError as error:
        raise Unfit(f"{test.__name__}: {error}; fixtures need pytest") from None
    test()


def _run_cases(values: list[Any]) -> None:
    import unittest

    class Result(unittest.TestResult):
        first: BaseException | None = None

        def addError(self, test: Any, err: Any) -> None:
            self.first = self.first or err[1]
            super().addError(test, err)

        def addFailure(self, test: Any, err: Any) -> None:
            self.first = self.first or err[1]
            super().addFailure(test, err)

        def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
            self.first = self.first or (err and err[1])
            super().addSubTest(test, subtest, err)

    cases = [v for v in values if isinstance(v, type) and issubclass(v, unittest.TestCase)]
    suite = unittest.TestSuite(map(unittest.defaultTestLoader.loadTestsFromTestCase, cases))
    result = Result()
    result.failfast = True
    suite.run(result)
    if result.first is not None:
        raise result.first
    if not result.wasSuccessful():
        raise AssertionError("a unittest case failed")


def _run_pytest(tests: str, space: dict[str, Any]) -> None:
    """Run the tests in pytest, where the answer's definitions are builtins."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    import pytest

    first: list[BaseException] = []

    class Plugin:
        def pytest_exception_interact(self, call: Any) -> None:
            error = call.excinfo.value
            first.append(error.__cause__ or error if isinstance(error, pytest.Collector.CollectError) else error)

    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for name in [name for name in space if not name.startswith("__")]:
        setattr(builtins, name, space[name])
    with TemporaryDirectory() as folder:
        path = Path(folder, FOR_PYTEST)
        path.write_text(tests)
        linecache.cache[str(path)] = (len(tests), None, tests.splitlines(keepends=True), str(path))
        options = ("-x", "-q", "--assert=plain", "--rootdir", folder, "-c", os.devnull, "-p", "no:cacheprovider")
        code = pytest.main([*options, str(path)], plugins=[Plugin()])
    if first and isinstance(first[0], pytest.FixtureLookupError):
        raise Unfit(f"there is no fixture {first[0].argname!r}")
    if first:
        raise first[0]
    if code != pytest.ExitCode.OK:
        raise Unfit(f"pytest ended with {code!r}")


def _is_of_tests(error: BaseException, *, is_used: bool) -> bool:
    """Return True if the tests would fail like this with any answer.

    Args:
        is_used: the tests have used something of the answer, so that it may be the cause.
    """
    if getattr(error, "of_answer", False) or isinstance(error, TimeoutError):
        return False
    if isinstance(error, ImportError):
        return error.name != SOLUTION
    return isinstance(error, (OSError, SyntaxError, SystemExit)) or not (is_used or isinstance(error, NameError))


def main(*, setup: str, tests: str, entry_point: str | None) -> NoReturn:
    verdict_fd = os.dup(2)
    side = TestSide()
    os.dup2(1, 2)
    linecache.cache[TESTS] = (len(tests), None, tests.splitlines(keepends=True), TESTS)
    try:
        run_tests(side, setup=setup, tests=tests, entry_point=entry_point, ready=lambda: os.write(verdict_fd, b"\n"))
        verdict: dict[str, Any] = {"passed": True}
    except Unfit as error:
        verdict = {"unfit": str(error)}
    except HungUp as error:
        verdict = {"passed": False, "feedback": str(error), "hung_up": True}
    except MemoryError:  # its memory is freed before the report is written
        verdict = {"passed": False, "feedback": "MemoryError"}
    except BaseException as error:
        why = _explained(error)
        verdict = {"unfit": why} if _is_of_tests(error, is_used=side.is_used) else {"passed": False, "feedback": why}
    os.write(verdict_fd, json.dumps(verdict).encode())
    os._exit(0)


def _explained(error: BaseException) -> str:
    """Render the error with the line of the tests that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.line for frame in frames if frame.filename.endswith((TESTS, FOR_PYTEST))]
    where = f" in: {lines[-1]}" if lines and lines[-1] else ""
    try:
        what = str(error)
    except BaseException as another:  # its text may come from the answer, or have more digits than Python prints
        what = f"no text of it, {type(another).__name__}"
    return f"{type(error).__name__}: {what}"[:500] + where[:500]
