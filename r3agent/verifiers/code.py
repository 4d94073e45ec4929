"""Judge Python code by unit tests.

The answer is the last ```python block of the reply, or the whole reply. `task.info` has tests in one of three forms:

- `{"tests": SOURCE}`: asserts, functions `test_*`, `unittest` cases, or all of them.
- `{"test": SOURCE, "entry_point": NAME}` as in HumanEval: `SOURCE` defines `check(candidate)`.
- `{"test_list": [ASSERT, ...]}` as in MBPP.

`setup` (MBPP: `test_setup_code`, `test_imports`) runs before the tests, in their process. Names that the tests use, but
that neither they, `setup` nor Python define, come from the answer.

Answer and tests run in two sandboxes, and only plain data passes from the answer to the tests. So an answer cannot end
the tests, patch them, print a verdict, return an object that equals everything, or read the expected values. It can
still cheat where any test by examples can be cheated: return expected values that it guesses; change in place a list or
dict argument that a test compares with later; define a helper that the tests use but do not define (put helpers into
`setup`); and control comparison, iteration and methods among objects of its own classes.

Limitations: tests can pass plain values and functions, but not objects of their own classes; an object of the answer
never equals a plain value, and `x in` it uses its iterator; the answer's output is ignored; `async` tests do not run.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from r3agent.errors import ConfigError, VerifierError
from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers.sandbox import IMAGE, LAYERS, Layer, Limits, Outcome, engine_command, run_dialogue, run_python
from r3agent.verifiers.text import block_or_all

_CHILD = Path(__file__).parent / "child"

Runner: TypeAlias = Literal["sandbox", "container"]

_PROGRAM = """
import sys, types
for name, source in {modules!r}.items():
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), vars(module))
module.main(**{arguments!r})
"""


class Code:
    """Judge code by the tests in `task.info`.

    Args:
        timeout_s: limit for all tests of one answer.
        memory_mb: address space of each process.
        processes: number of the answer's processes, including threads.
        runner: `sandbox`, or `container`, which is recommended if docker or podman is on `PATH`.
        image: container image; it is not pulled.
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
        self._runner: dict[str, Any] = {"layers": tuple(layers), "command": tuple(command)}
        trial = run_python("print('ready')", limits=Limits(wall_s=60.0), **self._runner)
        if trial.stdout != b"ready\n":
            last = trial.stderr[-500:].decode(errors="replace")
            raise ConfigError(f"code: the {runner} cannot run Python here: {trial.overrun or trial.exit_code} {last}")

    def __call__(self, task: Task, answer: str) -> Verdict:
        tests = _tests(task)
        source = code_of(answer)
        judged, tried = run_dialogue(
            _program("judging", **tests), _program("answering", source=source), limits=self.limits, **self._runner
        )
        return self._verdict(judged, tried)

    def _verdict(self, judged: Outcome, tried: Outcome) -> Verdict:
        for outcome in (tried, judged):
            if outcome.overrun and (outcome is judged or outcome.overrun != "wall"):
                return Verdict.failed(self._limit(outcome))
        try:
            report: dict[str, Any] = json.loads(judged.stderr)
        except ValueError:
            why = judged.stderr[-500:].decode(errors="replace")
            raise VerifierError(f"the tests ended with {judged.exit_code} and no verdict: {why}") from None
        if "unfit" in report:
            raise ValueError(f"the tests cannot be run: {report['unfit']}")
        if report["passed"]:
            return Verdict(passed=True, score=1.0)
        why = report["feedback"]
        if report.get("hung_up"):
            if tried.wall_s >= self.limits.wall_s:  # it was killed just before its tests were
                return Verdict.failed(self._limit(tried))
            why = f"{why}, with exit code {tried.exit_code}: {tried.stderr[-200:].decode(errors='replace')}"
        elif why.startswith("MemoryError"):
            why = f"over memory_mb = {self.limits.memory_mb}: {why}"
        return Verdict.failed(why)

    def _limit(self, outcome: Outcome) -> str:
        match outcome.overrun:
            case "output":
                return f"over the limit of {self.limits.output_bytes} bytes of output"
            case "cpu":
                return f"over the limit of {self.limits.cpu_s} s of CPU, which timeout_s sets"
            case _:
                return f"over timeout_s = {self.limits.wall_s:g}"


def code_of(reply: str) -> str:
    """Return the last Python block of a reply, or the whole reply if there is none."""
    return block_or_all(reply, "python", "python3", "py")


def _tests(task: Task) -> dict[str, str | None]:
    """Return the arguments of `judging.main`.

    Raises:
        ValueError: there are no tests, or they are not Python.
    """
    info = task.info
    setup = "\n".join([*info.get("test_imports", ()), str(info.get("setup") or info.get("test_setup_code") or "")])
    entry_point = None
    if "tests" in info:
        tests = str(info["tests"])
    elif "test_list" in info:
        tests = "\n".join(map(str, info["test_list"]))
    elif "test" in info and "entry_point" in info:
        tests, entry_point = str(info["test"]), str(info["entry_point"])
    else:
        raise ValueError(f"info has {sorted(info)}: give tests, test_list, or test and entry_point")
    ast.parse(setup)
    nodes = list(ast.walk(ast.parse(tests)))
    names = [node.name for node in nodes if isinstance(node, ast.FunctionDef)]
    if entry_point and "check" not in names:
        raise ValueError("test defines no check(candidate)")
    if not any(isinstance(node, ast.Assert) for node in nodes) and not any(n.startswith("test_") for n in names):
        raise ValueError("the tests have no assert and no test_ function: every answer would pass")
    return {"setup": setup, "tests": tests, "entry_point": entry_point}


def _program(side: str, **arguments: str | None) -> str:
    sources = {f"r3agent.verifiers.child.{name}": (_CHILD / f"{name}.py").read_text() for name in ("wire", side)}
    return _PROGRAM.format(modules=sources, arguments=arguments)
