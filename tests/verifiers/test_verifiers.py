from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from r3agent.errors import ConfigError, VerifierError
from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers import VERIFIERS, Answer, find_verifier, judge
from r3agent.verifiers.interface import takes_environment, verdict_of
from tests.support.trees import TASK, span

SPAN = span("attempt", text="4")


async def verdict(verifier: Any) -> Verdict:
    (only,) = await judge(verifier, TASK, [SPAN])
    return only


async def verdict_on(text: str, verifier: Any) -> Verdict:
    (only,) = await judge(verifier, TASK, [span("attempt", text=text)])
    return only


@pytest.mark.parametrize(
    ("judgement", "expected"),
    [
        (True, Verdict(passed=True, score=1)),
        (False, Verdict(passed=False, score=0)),
        (1, Verdict(passed=True, score=1)),
        (0, Verdict(passed=False, score=0)),
        (1.0, Verdict(passed=True, score=1)),
        (0.99, Verdict(passed=False, score=0.99)),
        (Verdict(passed=True, score=0.5, feedback="half"), Verdict(passed=True, score=0.5, feedback="half")),
    ],
)
async def test_a_judgement_becomes_a_verdict(judgement: Any, expected: Verdict) -> None:
    async def check(task: Task, answer: str) -> Any:
        return judgement

    assert await verdict(lambda task, answer: judgement) == expected
    assert await verdict(check) == expected


@pytest.mark.parametrize(
    ("library", "make", "score"),
    [
        ("numpy", lambda np: np.bool_(True), 1.0),
        ("numpy", lambda np: np.float32(0.25), 0.25),
        ("numpy", lambda np: np.float64(0.5), 0.5),
        ("numpy", lambda np: np.int64(1), 1.0),
        ("numpy", lambda np: np.array(0.5), 0.5),
        ("numpy", lambda np: Verdict(passed=np.bool_(False), score=np.float32(0.25)), 0.25),
        ("torch", lambda torch: torch.tensor(True), 1.0),
        ("torch", lambda torch: torch.tensor([0.5]).mean(), 0.5),
    ],
)
async def test_judgement_may_be_a_scalar_of_an_array_library(library: str, make: Any, score: float) -> None:
    judgement = make(pytest.importorskip(library))
    assert await verdict(lambda task, answer: judgement) == Verdict(passed=score == 1, score=score)
    assert verdict_of(judgement).model_dump_json() == Verdict(passed=score == 1, score=score).model_dump_json()


@pytest.mark.parametrize(
    "make",
    [lambda np: np.float32("nan"), lambda np: np.float64(1.5), lambda np: np.array([1, 0]), lambda np: np.str_("x")],
)
async def test_judgement_that_is_no_score_is_named_as_returned(make: Any) -> None:
    judgement = make(pytest.importorskip("numpy"))
    with pytest.raises(VerifierError, match=r"TypeError: returned .*(nan|1\.5|array|'x').*; return True, "):
        await verdict(lambda task, answer: judgement)


async def test_verdict_out_of_range_is_explained_on_one_line() -> None:
    with pytest.raises(
        VerifierError, match=r"ArgumentError: Verdict.score = 7: Input should be less than or equal to 1"
    ):
        await verdict(lambda task, answer: Verdict(passed=True, score=7))


@pytest.mark.parametrize("is_async", [False, True])
async def test_verifier_that_changes_what_it_gets_changes_nothing_else(is_async: bool) -> None:
    call: Any = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    task = Task.model_validate({"messages": [{"role": "user", "content": "?"}], "info": {"left": [1, 2]}})
    spans = [span("attempt", text="", tool_calls=(call,)) for _ in range(3)]
    records = [record.model_dump_json() for record in (task, *spans)]

    def spoil(task: Task, answer: Answer) -> bool:
        task.messages[0]["content"] = "!"
        answer.tool_calls[0]["function"].clear()
        return task.info["left"].pop() == 2

    async def spoil_async(task: Task, answer: Answer) -> bool:
        await asyncio.sleep(0)
        return spoil(task, answer)

    verdicts = await judge(spoil_async if is_async else spoil, task, spans)
    assert [one and one.passed for one in verdicts] == [True] * 3
    assert [record.model_dump_json() for record in (task, *spans)] == records


@pytest.mark.parametrize("judgement", [1.01, -0.01, 2, float("nan"), float("inf"), None, "yes", (True, 1.0), {}])
async def test_anything_else_is_an_error_that_names_verifier_and_task(judgement: Any) -> None:
    def check(task: Task, answer: str) -> Any:
        return judgement

    with pytest.raises(VerifierError, match=r"check failed on task 't': TypeError: returned .* a score from 0 to 1"):
        await verdict(check)


@pytest.mark.parametrize("failure", [KeyError("target"), StopIteration(), AssertionError("no")])
async def test_what_a_verifier_raises_is_an_error_that_names_verifier_and_task(failure: Exception) -> None:
    def check(task: Task, answer: str) -> bool:
        raise failure

    async def check_async(task: Task, answer: str) -> bool:
        raise failure

    with pytest.raises(VerifierError, match=rf"check failed on task 't': {type(failure).__name__}") as error:
        await verdict(check)
    assert error.value.__cause__ is failure
    with pytest.raises(VerifierError, match="check_async failed on task 't'"):
        await verdict(check_async)


def hangs(task: Task, answer: str) -> bool:
    return threading.Event().wait()


async def hangs_async(task: Task, answer: str) -> bool:
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue


def hangs_later(task: Task, answer: str) -> Any:
    return hangs_async(task, answer)


def exits(task: Task, answer: str) -> bool:
    raise SystemExit(2)


@pytest.mark.parametrize("verifier", [hangs, hangs_async, hangs_later])
async def test_verifier_that_hangs_is_an_error(verifier: Any) -> None:
    named = rf"{verifier.__name__} gave no verdict on task 't' within verify_timeout_s = 0\.2; .* raise"
    with pytest.raises(VerifierError, match=named):
        await judge(verifier, TASK, [SPAN], timeout_s=0.2)


async def test_verifiers_that_hang_leave_threads_for_others() -> None:
    judging = [judge(hangs, TASK, [SPAN], timeout_s=0.2) for _ in range(100)]
    assert all(isinstance(e, VerifierError) for e in await asyncio.gather(*judging, return_exceptions=True))
    assert (await judge(lambda task, answer: True, TASK, [SPAN], timeout_s=60))[0]


async def test_verifier_that_exits_is_an_error() -> None:
    with pytest.raises(VerifierError, match="exits failed on task 't': SystemExit"):
        await judge(exits, TASK, [SPAN])


async def test_wrong_signature_is_an_error_of_the_verifier() -> None:
    async def check(task: Task) -> bool:
        return True

    with pytest.raises(VerifierError, match="check failed on task 't': TypeError"):
        await verdict(check)


class Check:
    def __call__(self, task: Task, answer: str) -> bool:
        return answer == "4"


class AsyncCheck:
    async def __call__(self, task: Task, answer: str) -> bool:
        return answer == "4"


async def equals(expected: str, task: Task, answer: str) -> bool:
    return answer == expected


@pytest.mark.parametrize(
    "verifier",
    [Check(), AsyncCheck(), partial(equals, "4"), lambda task, answer: equals("4", task, answer)],
    ids=["object", "async object", "partial of async", "lambda that returns an awaitable"],
)
async def test_any_callable_will_do(verifier: Any) -> None:
    passed, failed = await judge(verifier, TASK, [SPAN, span("retry", text="5")])
    assert (passed.passed, failed.passed) == (True, False)


class InWorld:
    def __call__(self, task: Task, answer: str, environment: Any = None) -> bool:
        return environment == "won"


@pytest.mark.parametrize(
    ("verifier", "takes", "requires"),
    [
        (lambda task, answer: answer == "4", False, False),
        (lambda task, answer, strict=True: strict is True, False, False),
        (lambda task, answer, *, environment=None: environment is None, False, False),
        (lambda task, answer, environment=None: environment == "won", True, False),
        (lambda task, answer, board: board == "won", True, True),
        (partial(lambda task, answer, board, goal: board == goal, goal="won"), True, True),
        (InWorld(), True, False),
        (partial(InWorld()), True, False),
    ],
)
async def test_verifier_gets_the_environment_that_it_takes(verifier: Any, takes: bool, requires: bool) -> None:
    assert (takes_environment(verifier), takes_environment(verifier, required=True)) == (takes, requires)
    passed = [(await judge(verifier, TASK, [SPAN], environment=world))[0].passed for world in ("won", "lost")]
    assert passed == [True, not takes]


class Broken:
    def __call__(self, task: Task, answer: str) -> bool:
        raise RuntimeError("no")


async def test_an_object_without_a_name_is_named_by_its_class() -> None:
    with pytest.raises(VerifierError, match="Broken failed on task 't': RuntimeError: no"):
        await verdict(Broken())


async def test_sync_verifier_does_not_run_on_the_event_loop_thread() -> None:
    threads: list[int] = []

    def check(task: Task, answer: str) -> bool:
        threads.append(threading.get_ident())
        return True

    await verdict(check)
    assert threads
    assert threading.get_ident() not in threads


async def test_async_verdicts_are_asked_for_all_at_once() -> None:
    barrier = asyncio.Barrier(3)

    async def check(task: Task, answer: str) -> bool:
        await barrier.wait()
        return True

    async with asyncio.timeout(30):
        assert len(await judge(check, TASK, [SPAN] * 3)) == 3


async def test_verifier_sees_the_tool_calls_of_the_answer() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    asked = span("attempt", text="", tool_calls=(call,))
    (found,) = await judge(lambda task, answer: answer == "" and answer.tool_calls == (call,), TASK, [asked])
    assert found.passed


@pytest.mark.parametrize(
    ("fields", "answer", "thinking"),
    [
        ({"text": "4"}, "4", ""),
        ({"text": "<think>\n2 + 2\n</think>\n\n4"}, "4", "2 + 2"),
        ({"text": "2 + 2</think>4"}, "4", "2 + 2"),  # the template opened it in the prompt
        ({"text": "<think>it may be 4"}, "", "it may be 4"),  # cut off
        ({"text": "4", "reasoning": "2 + 2"}, "4", "2 + 2"),
        ({"text": "", "reasoning": "it may be 4"}, "", "it may be 4"),
        ({"text": "write <think>x</think>"}, "write <think>x</think>", ""),  # spoken of, not thought
    ],
)
async def test_verifier_judges_what_follows_the_thinking(fields: dict[str, Any], answer: str, thinking: str) -> None:
    seen: list[tuple[str, str]] = []

    def check(task: Task, answer: Answer) -> bool:
        seen.append((str(answer), answer.thinking))
        return False

    await judge(check, TASK, [span("attempt", **fields)])
    assert seen == [(answer, thinking)]


async def test_exact_compares_stripped_text_and_needs_an_expectation() -> None:
    four = TASK.model_copy(update={"info": {"answer": 4}})
    verdicts = await judge(find_verifier("exact"), four, [span("attempt", text=text) for text in (" 4\n", "4.0", "")])
    assert [v.passed for v in verdicts] == [True, False, False]
    with pytest.raises(
        VerifierError, match=r"exact failed on task 't': KeyError: .*no 'answer', .* task\.params\.answer"
    ):
        await judge(find_verifier("exact"), TASK, [SPAN])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's directory, current, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


NEEDED: dict[str, dict[str, Any]] = {"llm_judge": {"base_url": "http://127.0.0.1:1/v1", "model": "judge"}}
"""Settings without which a verifier is not made."""


@pytest.mark.parametrize("name", sorted(VERIFIERS))
def test_shipped_verifier_is_found_by_name(name: str) -> None:
    assert callable(find_verifier(name, **NEEDED.get(name, {})))


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_a_verifier_without_what_it_needs_says_so(name: str) -> None:
    with pytest.raises(ConfigError, match=r"missing: task\.verifier_params\.base_url, task\.verifier_params\.model"):
        find_verifier(name)


async def test_own_verifier_is_found_in_the_current_directory(project: Path) -> None:
    (project / "my_checks.py").write_text("def is_four(task, answer):\n    return answer == '4'\n")
    assert (await verdict(find_verifier("my_checks:is_four"))).passed


OWN = """
def within(task, answer, *, tolerance):
    return abs(float(answer) - 4) <= tolerance

class Within:
    def __init__(self, tolerance):
        self.tolerance = float(tolerance)

    def __call__(self, task, answer):
        return within(task, answer, tolerance=self.tolerance)
"""


@pytest.mark.parametrize("name", ["within", "Within"])
async def test_settings_are_keyword_arguments_of_a_function_or_a_class(project: Path, name: str) -> None:
    (project / "own_checks.py").write_text(OWN)
    assert not (await verdict_on("4.3", find_verifier(f"own_checks:{name}", tolerance=0.1))).passed
    assert (await verdict_on("4.3", find_verifier(f"own_checks:{name}", tolerance=0.5))).passed
    with pytest.raises(ConfigError, match=r"unknown key 'task\.verifier_params\.tolerence'; did you mean"):
        find_verifier(f"own_checks:{name}", tolerence=1)


def test_a_class_that_refuses_its_settings_is_named(project: Path) -> None:
    (project / "own_checks.py").write_text(OWN)
    with pytest.raises(ConfigError, match=r"'own_checks:Within' with .*could not convert string to float: 'wide'"):
        find_verifier("own_checks:Within", tolerance="wide")


async def test_a_package_brings_a_verifier_by_entry_point(project: Path) -> None:
    (project / "own_checks.py").write_text(OWN)
    info = project / "own-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: own\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[r3agent.verifiers]\nwithin = own_checks:within\n")
    sys.path.insert(0, str(project))
    assert (await verdict_on("4.3", find_verifier("within", tolerance=0.5))).passed


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "contdown",
            r"'contdown' is unknown; did you mean 'countdown'\? use one of \[.*'exact'.*\] or your own as module:call",
        ),
        ("", "'' is unknown"),
        (
            "no_such_module:check",
            "importing 'no_such_module' failed: ModuleNotFoundError.*; looked in /.* and on sys.path",
        ),
        ("lacking_checks:check", "importing 'lacking_checks' failed: .*'no_such_package'$"),
        ("bad_checks:missing", "'bad_checks' has no 'missing'"),
        ("bad_checks:LIMIT", "is a int; it must be a callable"),
        ("bad_checks:", "'bad_checks' has no ''"),
        (":check", "':check'"),
        ("torn_checks:check", "importing 'torn_checks' failed: SyntaxError"),
    ],
)
def test_what_is_not_a_verifier_is_refused_by_name(project: Path, name: str, says: str) -> None:
    (project / "bad_checks.py").write_text("LIMIT = 3\n")
    (project / "lacking_checks.py").write_text("import no_such_package\n")
    (project / "torn_checks.py").write_text("def check(\n")
    with pytest.raises(ConfigError, match=says):
        find_verifier(name)
