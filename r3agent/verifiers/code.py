"""Judge Python code by unit tests.

The answer is the last ```python block of the reply that defines a name which the tests use, with the earlier blocks
that define names which it uses itself; without such a block the last one, and without any the whole reply. So examples
of use and printed output may follow, and a program may be in parts. `task.info` has tests in one of three forms:

- `{"tests": SOURCE}`: asserts, functions `test_*`, classes `Test*`, `unittest` cases, or all of them; if they import
  pytest, it runs them.
- `{"test": SOURCE, "entry_point": NAME}` as in HumanEval: `SOURCE` defines `check(candidate)`. The name may be an
  expression, such as `Solution().add`.
- `{"test_list": [ASSERT, ...]}` as in MBPP.

`setup` (MBPP: `test_setup_code`, `test_imports`) runs before the tests, in their process. Names that the tests use, but
that neither they, `setup` nor Python define, come from the answer; so do imports from `solution`.

Both may import the standard library and `packages`. Tests that cannot run are an error and no verdict: if they have a
syntax error, import what is not there, need a file or the network, fail in `setup`, or pass without using the answer.

Answer and tests run in two sandboxes, and only plain data passes from the answer to the tests. So an answer cannot end
the tests, patch them, print a verdict, return an object that equals everything, or read the expected values. It can
still cheat where any test by examples can be cheated: return expected values that it guesses; change in place a list or
dict argument that a test compares with later; define a helper that the tests use but do not define (put helpers into
`setup`); and control comparison, iteration and methods among objects of its own classes.

Limitations: tests can pass plain values, dates, NumPy's arrays and functions, but not objects of their own classes; an
object of the answer never equals a plain value, and `x in` it uses its iterator; the two share no files; the answer's
output is ignored; tests that record it, patch something, or run coroutines are an error, as `async` tests are.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from r3agent._util.messages import shorten
from r3agent.errors import ConfigError, VerifierError
from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers.fences import blocks_or_all
from r3agent.verifiers.sandbox import (
    IMAGE,
    LAYERS,
    Layer,
    Limits,
    Outcome,
    Packages,
    engine_command,
    find_packages,
    run_dialogue,
    run_python,
)
from r3agent.verifiers.text import tagged_or_all

LANGUAGES = r"i?py(?:thon)?[\d.]*"

_CHILD = Path(__file__).parent / "child"

_MODULES = {"judging": ("wire", "references", "judging"), "answering": ("wire", "answering")}

_ASSERTS = re.compile("assert|test")
"""Start of a name that is a test, or asserts: `test_it`, `assertEqual`, `assert_allclose`."""

Runner: TypeAlias = Literal["sandbox", "container"]

_THREADS = "import os; os.environ.update(OPENBLAS_NUM_THREADS='1', OMP_NUM_THREADS='1', MKL_NUM_THREADS='1')"
"""NumPy's libraries start a thread for each core otherwise, which takes memory and may be over `processes`."""

_PROGRAM = (
    _THREADS
    + """
import sys, types
for name, source in {modules!r}.items():
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), vars(module))
module.main(**{arguments!r})
"""
)


class Code:
    """Judge code by the tests in `task.info`.

    Args:
        timeout_s: limit for all tests of one answer.
        memory_mb: address space of each process.
        processes: number of the answer's processes, including threads.
        runner: `sandbox`, or `container`, which is recommended if docker or podman is on `PATH`.
        image: container image; it is not pulled.
        packages: installed packages that answer and tests may import, such as `["numpy"]`, with those that they
            require; of a container, packages that the image must have.
        layers: sandbox layers, as `r3agent/verifiers/sandbox/README.md` explains; fewer layers isolate less.
        command: command that starts Python in your own container, instead of the runner.

    Raises:
        ConfigError: a setting is invalid, or this machine lacks what the runner needs.
    """

    def __init__(
        self,
        *,
        timeout_s: float = 10.0,
        memory_mb: int = 512,
        processes: int = 8,
        runner: Runner = "sandbox",
        image: str = IMAGE,
        packages: Sequence[str] = (),
        layers: Sequence[Layer] = LAYERS,
        command: Sequence[str] = (),
    ) -> None:
        if runner not in get_args(Runner):
            raise ConfigError(f"{runner=}: the runners are {', '.join(get_args(Runner))}")
        if runner == "container" and command:
            raise ConfigError('runner = "container" and a command: give one of them')
        self.limits = Limits(wall_s=timeout_s, cpu_s=max(1, int(timeout_s)), memory_mb=memory_mb, processes=processes)
        if runner == "container":
            command = engine_command(image, self.limits)
        if isinstance(packages, str):
            raise ConfigError(f'packages = {packages!r}: give a list, packages = ["{packages}"]')
        self.packages = tuple(packages)
        visible = Packages(modules=self.packages) if command else find_packages(self.packages)
        self._runner: dict[str, Any] = {"layers": tuple(layers), "command": tuple(command), "packages": visible}
        self._try(runner, visible.modules)

    def _try(self, runner: Runner, modules: Sequence[str]) -> None:
        """Run Python, and import the packages within the limit of memory."""
        limits = replace(self.limits, wall_s=60.0, cpu_s=60) if modules else Limits(wall_s=60.0)
        for lines in ([], [f"import {module}" for module in modules])[: 1 + bool(modules)]:
            source = "\n".join([_THREADS, *lines, "print('ready')"])
            trial = run_python(source, limits=limits, **self._runner)
            if not trial.stdout.endswith(b"ready\n"):
                last = trial.stderr[-500:].decode(errors="replace")
                why = f"{trial.overrun or trial.exit_code} {last}"
                if not lines:
                    raise ConfigError(f"code: the {runner} cannot run Python here: {why}")
                raise ConfigError(
                    f"packages = {[*self.packages]}: they cannot be imported in the {runner} with memory_mb = "
                    f"{limits.memory_mb}: {why}"
                )

    def __call__(self, task: Task, answer: str) -> Verdict:
        tests = _tests(task)
        sources = [tagged_or_all(answer), *blocks_or_all(answer, LANGUAGES)]
        judged, tried = run_dialogue(
            _program("judging", **tests),
            _program("answering", sources=sources, wanted=_wanted(tests)),
            limits=self.limits,
            **self._runner,
        )
        return self._verdict(judged, tried)

    def _verdict(self, judged: Outcome, tried: Outcome) -> Verdict:
        if judged.overrun and not judged.stderr.startswith(b"\n"):
            raise ValueError(f"the tests cannot be run: setup: {self._limit(judged)}")
        for outcome in (tried, judged):
            if outcome.overrun and (outcome is judged or outcome.overrun != "wall"):
                return Verdict.failed(self._limit(outcome))
        try:
            report: dict[str, Any] = json.loads(judged.stderr)
        except ValueError:
            why = judged.stderr[-500:].decode(errors="replace")
            raise VerifierError(f"the tests ended with {judged.exit_code} and no verdict: {why}") from None
        if "unfit" in report:
            raise ValueError(f"the tests cannot be run: {self._explained(report['unfit'], is_answer=False)}")
        if report["passed"]:
            return Verdict(passed=True, score=1.0)
        why = self._explained(report["feedback"], is_answer=True)
        if report.get("hung_up"):
            if tried.wall_s >= self.limits.wall_s:  # it was killed just before its tests were
                return Verdict.failed(self._limit(tried))
            why = f"{why}, with exit code {tried.exit_code}: {tried.stderr[-200:].decode(errors='replace')}"
        elif why.startswith("MemoryError"):
            why = f"over memory_mb = {self.limits.memory_mb}: {why}"
        return Verdict.failed(why)

    def _explained(self, why: str, *, is_answer: bool) -> str:
        """Add to a failed import what can be imported, and the remedy if the tests need more."""
        missing = re.match(r"(?:setup: )?ModuleNotFoundError: No module named '(\w+)", why)
        if missing is None:
            return why
        importable = f"{why}; the {' and '.join(['standard library', *self.packages])} can be imported"
        more = json.dumps([*self.packages, missing[1]])
        return importable if is_answer else f"{importable}, and more with task.verifier_params.packages = {more}"

    def _limit(self, outcome: Outcome) -> str:
        match outcome.overrun:
            case "output":
                return f"over the limit of {self.limits.output_bytes} bytes of output"
            case "cpu":
                return f"over the limit of {self.limits.cpu_s} s of CPU, which timeout_s sets"
            case _:
                return f"over timeout_s = {self.limits.wall_s:g}"


def _tests(task: Task) -> dict[str, Any]:
    """Return the arguments of `judging.main`.

    Raises:
        ValueError: there are no tests, or they are not Python.
    """
    info = {key: value for key, value in task.info.items() if value is not None}
    setup = "\n".join(_source(info, key) for key in ("test_imports", "test_setup_code", "setup") if key in info)
    key = next((key for key in ("tests", "test_list", "test") if key in info), None)
    if key is None or (key == "test" and "entry_point" not in info):
        raise ValueError(f"info has {sorted(info)}: give tests, test_list, or test and entry_point")
    tests = _source(info, key)
    entry_point = str(info["entry_point"]).strip() if key == "test" else None
    _parsed("setup", setup)
    nodes = list(ast.walk(_parsed(key, tests)))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    names = [node.name for node in functions]
    if entry_point is not None:
        if "check" not in names:
            raise ValueError("test defines no check(candidate)")
        if not any(function.args.args or function.args.vararg for function in functions if function.name == "check"):
            raise ValueError("test defines check without an argument; it is called as check(candidate)")
        body = _parsed("entry_point", entry_point).body
        if len(body) != 1 or not isinstance(getattr(body[0], "value", None), (ast.Name, ast.Attribute)):
            raise ValueError(f"entry_point = {entry_point!r}: give the name of a function")
    if any(isinstance(node, ast.Assert) and isinstance(node.test, ast.Tuple) and node.test.elts for node in nodes):
        raise ValueError("an assert is of a tuple, as in assert (f(1) == 2, 'message'), which is always true")
    if not any(isinstance(node, (ast.Assert, ast.Raise)) or _ASSERTS.match(_name(node)) for node in nodes):
        raise ValueError("the tests have no assert and no test_ function: every answer would pass")
    return {"setup": setup, "tests": tests, "entry_point": entry_point}


def _name(node: ast.AST) -> str:
    """Return the name that a node uses or defines, or an empty string."""
    return str(next((getattr(node, field) for field in ("name", "id", "attr") if hasattr(node, field)), ""))


def _source(info: dict[str, Any], key: str) -> str:
    """Return the source in a field, which is a text or a list of texts."""
    value = info[key]
    texts = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{key} is {shorten(value)}: give Python source, or a list of it")
    return "\n".join(texts)


def _parsed(key: str, source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{key} is not Python: {type(error).__name__}: {error}") from None


def _wanted(tests: dict[str, Any]) -> list[str]:
    """Return the names that the tests use, and do not define."""
    nodes = [node for source in tests.values() if source for node in ast.walk(ast.parse(source))]
    names = [node for node in nodes if isinstance(node, ast.Name)]
    imported = [alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    stored = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    return sorted({*(node.id for node in names), *imported} - stored - {*dir(builtins)})


def _program(side: str, **arguments: Any) -> str:
    sources = {f"r3agent.verifiers.child.{name}": (_CHILD / f"{name}.py").read_text() for name in _MODULES[side]}
    return _PROGRAM.format(modules=sources, arguments=arguments)
