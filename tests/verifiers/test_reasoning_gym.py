from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r3agent.records.trajectory import Task, Verdict
from r3agent.tasks import find_tasks
from r3agent.verifiers.reasoning_gym import ReasoningGym

pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed: it needs a C compiler")

judged = ReasoningGym()

EVALUATING = ["binary_matrix", "n_queens", "spiral_matrix", "string_insertion"]
PARSING = ["countdown", "intermediate_integration", "polynomial_multiplication", "simple_integration"]


@pytest.fixture(scope="module")
def problem() -> Callable[[str], Task]:
    made: dict[str, Task] = {}

    def problem(name: str) -> Task:
        if name not in made:
            (made[name],) = find_tasks(f"reasoning-gym:{name}", 1)
        return made[name]

    return problem


def answer_of(task: Task) -> str:
    return task.info["entry"]["answer"]


def test_the_tag_counts_and_without_one_the_whole_reply(problem: Callable[[str], Task]) -> None:
    task = problem("chain_sum")
    right = answer_of(task)
    for reply in (f"<answer>{right}</answer>", f"hm <answer>1</answer> no <answer> {right}\n</answer>!", f" {right}\n"):
        assert judged(task, reply) == Verdict(passed=True, score=1.0)
    for reply in ("", f"<answer>{right}</answer> or <answer>-1</answer>", f"<answer>{right}", "-1"):
        assert not judged(task, reply).passed


def test_a_score_below_one_is_kept(problem: Callable[[str], Task]) -> None:
    task = problem("string_insertion")
    listed = str(list(answer_of(task)))  # which the scorer pays a tenth for, by way of eval
    assert judged(task, listed) == Verdict(passed=False, score=0.1, feedback="scores 0.10")


def test_a_task_without_a_known_answer_is_scored(problem: Callable[[str], Task]) -> None:
    task = problem("graph_color")
    puzzle = task.info["entry"]["metadata"]["puzzle"]
    assert task.gold is None
    assert judged(task, "{}").score < 1
    assert not judged(task, str(dict.fromkeys(puzzle["vertices"], 1)).replace("'", '"')).passed


def hostile(trace: Path) -> list[str]:
    code = f"open({str(trace)!r}, 'w')"
    return [
        code,
        f"[{code}]",
        f"x + {code}",
        f"(lambda: {code})()",
        f"[{code} for x in [1]]",
        f"__import__('pathlib').Path({str(trace)!r}).touch()",
        f"f'{{{code}}}'",
        f"sympify({code!r})",
        f"S({code!r})",
        f"exp({code!r})",
        f"x.func({code!r})",
        "().__class__.__base__.__subclasses__()",
        "().__class__",
        "x.__class__",
        "Symbol",
        "print",
        "exit()",
        "quit",
        "x:=1",
        "`id`",
        "${x}",
        "{x}",
        "x!",
        "9!!!!",
        "x; 1",
        "x\\\n1",
        "lambda: 1",
        "1 if 1 else 2",
        "x, y",
        "x[0]",
        "'a'*9",
        "³",
        "٣",
        "x\u00a0+1",
        "ｅｘｅｃ(x)",
        "\0",
        "\ud800",
        "",
    ]


@pytest.mark.parametrize("name", EVALUATING + PARSING)
def test_code_is_never_run(problem: Callable[[str], Task], name: str, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    for reply in hostile(trace):
        assert not judged(problem(name), reply).passed, reply
        assert not judged(problem(name), f"<answer>{reply}</answer>").passed, reply
    assert not trace.exists()


@pytest.mark.parametrize("name", PARSING)
@pytest.mark.parametrize(
    "code", ["x.y", "exec(x)", "S('x')", "x[0]", "x!", "x=1", "x_1", "foo", "1e9", "٣", "x,y", "x^2"]
)
def test_what_is_no_plain_expression_does_not_get_to_sympy(
    problem: Callable[[str], Task], name: str, code: str
) -> None:
    assert judged(problem(name), code).feedback == "not an expression of the kind that is asked for"


@pytest.mark.parametrize("name", EVALUATING)
@pytest.mark.parametrize("code", ["x", "print", "[x]", "[].append(1)", "1+1", "[1][0]", "{*[1]}", "f'1'", "(" * 300])
def test_what_is_no_literal_does_not_get_to_eval(problem: Callable[[str], Task], name: str, code: str) -> None:
    assert judged(problem(name), code).feedback == "neither the answer nor a Python list"


@pytest.mark.parametrize("expression", ["2**3", "2* *3", "7//2", "7/ /2"])
def test_countdown_has_four_operators_here_too(problem: Callable[[str], Task], expression: str) -> None:
    assert judged(problem("countdown"), expression).feedback == "not an expression of the kind that is asked for"


def test_an_equivalent_expression_passes(problem: Callable[[str], Task]) -> None:
    task = problem("polynomial_multiplication")
    assert judged(task, f"0 + ({answer_of(task)})").passed
    integral = problem("simple_integration")
    assert judged(integral, answer_of(integral).replace("C", "7")).passed


@pytest.mark.parametrize(("name", "answer"), [("complex_arithmetic", "nan"), ("complex_arithmetic", "nan+NaNj")])
def test_not_a_number_is_wrong(problem: Callable[[str], Task], name: str, answer: str) -> None:
    assert judged(problem(name), answer).feedback == "nan is not a number"


def test_not_a_number_is_not_sorted(problem: Callable[[str], Task]) -> None:
    task = problem("number_sorting")
    length = len(task.info["entry"]["metadata"]["original_numbers"])
    assert not judged(task, f"[{', '.join(['NaN'] * length)}]").passed


def test_a_score_above_one_is_no_pass() -> None:
    tasks = find_tasks("reasoning-gym:spell_backward", 40, seed=3)
    task = next(task for task in tasks if len(answer_of(task)) == 9)  # nine ninths are more than 1
    verdict = judged(task, f"{answer_of(task)}, I think")
    assert not verdict.passed
    assert verdict.score < 1


def test_an_answer_that_takes_too_long_fails(problem: Callable[[str], Task]) -> None:
    verdict = ReasoningGym(cpu_s=1)(problem("polynomial_multiplication"), "9**9**9**9")
    assert verdict == Verdict(passed=False, score=0.0, feedback="scoring the answer took more than 1 s")
    assert judged(problem("polynomial_multiplication"), answer_of(problem("polynomial_multiplication"))).passed


def test_an_answer_that_is_too_long_fails_unread(problem: Callable[[str], Task]) -> None:
    verdict = judged(problem("chain_sum"), "1" * 10**6)
    assert verdict.feedback == "1000000 characters; an answer has at most 10000"


@pytest.mark.parametrize("name", ["boxnet", "game_of_life", "prime_factorization", "cryptarithm"])
@given(text=st.text() | st.text("0123456789,.[]{}\"'=: eE-x×", max_size=40))
@settings(max_examples=40)
def test_an_answer_that_the_scorer_stumbles_over_is_wrong_not_an_error(
    problem: Callable[[str], Task], name: str, text: str
) -> None:
    if text.strip() != str(answer_of(problem(name))).strip():
        assert 0 <= judged(problem(name), text).score <= 1


def test_an_entry_that_the_scorer_does_not_understand_is_an_error() -> None:
    task = Task(
        id="t",
        messages=({"role": "user", "content": "?"},),
        info={"generator": "boxnet", "params": {}, "entry": {"question": "?", "answer": "{}", "metadata": {}}},
    )
    with pytest.raises(RuntimeError, match="KeyError: 'initial_state'"):
        judged(task, "{}")


def test_every_scorer_that_evaluates_answers_is_known() -> None:
    """A new release may bring another; it then belongs into a table of `gym.py`, or here with what it evaluates."""
    package = importlib.util.find_spec("reasoning_gym")
    assert package is not None
    assert package.origin is not None
    calls = re.compile(r"(?<![\w.])(?:eval|exec|sympify|pickle\.loads)\(|(?<!def )\bparse_expr\(")
    root = Path(package.origin).parent
    evaluating = {path.stem for path in root.rglob("*.py") if calls.search(path.read_text())}
    their_own_problems = {
        "basic_arithmetic",
        "bitwise_arithmetic",
        "codeio",
        "generators_00_49",
        "generators_50_99",
        "number_sorting",
        "propositional_logic",  # whose parse_expr is its own
        "puzzle24",  # refused
    }
    assert evaluating == {*EVALUATING, *PARSING, *their_own_problems}
