from __future__ import annotations

from typing import Any

import orjson
import pytest

from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task
from r3agent.tasks import default_verifier, find_tasks
from r3agent.tasks.reasoning_gym import SUFFIX
from r3agent.tasks.splits import split_of
from r3agent.verifiers.reasoning_gym import ReasoningGym, child

pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed: it needs a C compiler")

SPLITS = ("train", "gate", "test")


def ids(source: str, n: int, **settings: Any) -> list[str]:
    return [task.id for task in find_tasks(f"reasoning-gym:{source}", n, **settings)]


def test_every_generator_that_is_not_refused_makes_tasks_whose_gold_passes_after_storage() -> None:
    names, without_gold = child("names", cpu_s=60), set[str]()
    assert len(names) > 90
    for name in names:
        entry = child("entries", name, {}, 6, 1, cpu_s=60)["entries"][0]  # as the source does, but only one
        if entry["answer"] is None:
            without_gold.add(name)
            continue
        made = Task(id=name, messages=({"role": "user", "content": "?"},), info=_info(name, entry))
        stored = Task.model_validate(orjson.loads(made.model_dump_json()))
        assert ReasoningGym()(stored, f"So: <answer>{entry['answer']}</answer>").passed, name
        assert not ReasoningGym()(stored, "<answer>I do not know, sorry</answer>").passed, name
    assert without_gold == {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}


def _info(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    return {"generator": name, "params": {}, "entry": entry}


def test_a_seed_gives_the_same_problems_in_every_process_and_more_of_them_begin_alike() -> None:
    names = [
        "chain_sum",
        "list_functions",
        "ransom_note",
        "isomorphic_strings",
    ]  # but for the first they go through sets
    first = [ids(name, 3, seed=1) for name in names]
    child.close()
    assert [ids(name, 9, seed=1)[:3] for name in names] == first
    assert [ids(name, 3, seed=2) for name in names] != first


def test_neighbouring_seeds_do_not_share_problems() -> None:
    seeds = [set(ids("spell_backward", 20, seed=seed, split="all", min_word_len=8)) for seed in range(4)]
    assert len(set.union(*seeds)) > 70


def test_splits_are_disjoint_even_across_seeds() -> None:
    drawn = {split: set(ids("lcm", 25, seed=seed, split=split)) for seed, split in enumerate(SPLITS)}
    assert len(set.union(*drawn.values())) == 75
    assert all(split_of(task_id) == split for split, held in drawn.items() for task_id in held)


def test_params_are_the_generator_s_and_the_scorer_has_them_too() -> None:
    tasks = find_tasks("reasoning-gym:chain_sum", 5, min_terms=6, max_terms=6, min_digits=1, max_digits=1)
    for task in tasks:
        assert task.info["entry"]["metadata"]["num_terms"] == 6
        assert task.info["params"] == {"min_terms": 6, "max_terms": 6, "min_digits": 1, "max_digits": 1}


def test_prompt_is_the_question_and_a_suffix_that_does_not_make_another_problem() -> None:
    (asked,) = find_tasks("reasoning-gym:gcd", 1)
    (bare,) = find_tasks("reasoning-gym:gcd", 1, suffix="")
    assert asked.messages[0]["content"] == f"{bare.messages[0]['content']}\n\n{SUFFIX}"
    assert bare.messages[0]["content"] == bare.info["entry"]["question"]
    assert asked.id == bare.id
    assert bare.gold == {"role": "assistant", "content": f"<answer>{bare.info['entry']['answer']}</answer>"}


def test_shots_are_solved_training_problems_that_are_not_asked() -> None:
    few: dict[str, Any] = {"min_n": 1, "max_n": 12, "split": "all"}
    asked = find_tasks("reasoning-gym:count_bits", 50, shots=2, **few)
    again = find_tasks("reasoning-gym:count_bits", 50, seed=5, shots=2, **few)
    *turns, question = asked[0].messages
    assert all([*task.messages[:4]] == turns for task in (*asked, *again))
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    assert question["content"].endswith(SUFFIX)
    bare = {task.messages[0]["content"]: task for task in find_tasks("reasoning-gym:count_bits", 50, **few)}
    assert {turn["content"] for turn in turns[::2]} == bare.keys() - {task.messages[-1]["content"] for task in asked}
    for shot, answer in zip(turns[::2], turns[1::2], strict=True):
        shown = bare[shot["content"]]
        assert (split_of(shown.id), shown.gold) == ("train", answer)
    assert {task.id for task in asked} < {task.id for task in bare.values()}


@pytest.mark.parametrize(
    ("suffix", "form"),
    [
        (SUFFIX, "<answer>{}</answer>"),
        ("Think, then <answer>.", "<answer>{}</answer>"),
        ("Say a number.", "{}"),
        ("", "{}"),
    ],
)
def test_shots_are_tagged_if_the_suffix_asks_for_tags(suffix: str, form: str) -> None:
    few: dict[str, Any] = {"min_n": 1, "max_n": 12, "suffix": suffix}
    *turns, _ = find_tasks("reasoning-gym:count_bits", 1, shots=2, **few)[0].messages
    tasks = {task.messages[0]["content"]: task for task in find_tasks("reasoning-gym:count_bits", 50, **few)}
    for question, reply in zip(turns[::2], turns[1::2], strict=True):
        task = tasks[question["content"]]
        assert reply["content"] == form.format(task.info["entry"]["answer"])
        assert ReasoningGym()(task, reply["content"]).passed


def test_problems_that_are_all_shots_are_exhausted() -> None:
    with pytest.raises(ConfigError, match="no task in split 'train'"):
        find_tasks("reasoning-gym:count_bits", 5, split="train", min_n=5, max_n=6, shots=2)


def test_a_generator_with_few_problems_yields_them_all() -> None:
    few = [set(ids("count_bits", 50, seed=seed, split="all", min_n=1, max_n=4)) for seed in (0, 1)]
    assert few[0] == few[1]
    assert len(few[0]) == 4


def test_the_verifier_is_reasoning_gym_s() -> None:
    assert default_verifier("reasoning-gym:gcd") == "reasoning_gym"


@pytest.mark.parametrize(
    ("name", "n", "params", "says"),
    [
        ("chain_sums", 1, {}, r"chain_sums is refused: .*no such generator; use one of \['chain_sum'"),
        ("composite", 1, {}, "composite is refused: it only mixes others"),
        ("puzzle24", 1, {}, "puzzle24 is refused: its scorer does not look at which numbers were given"),
        ("coin_flip", 1, {}, "coin_flip is refused: .*so 0 always passes"),
        ("game_of_life_halting", 1, {}, "passes every answer that is not empty"),
        ("gcd", None, {}, "reasoning-gym:gcd is generated: say how many tasks with --n"),
        ("gcd", 1, {"shots": -1}, "shots=-1: "),
        ("count_bits", 1, {"min_n": 1, "max_n": 3, "shots": 9}, r"shots=9: .* has \d solved problems to show"),
        ("gcd", 1, {"size": 3}, r"\['size'\] cannot be set"),
        ("gcd", 1, {"max_numbr": 3}, "argument 'max_numbr'; its settings are .*max_numbers"),
        ("gcd", 1, {"min_value": 9, "max_value": 3}, "'max_value': 3}: max_value must be > min_value"),
        ("count_bits", 50, {"min_n": 1, "max_n": 1, "split": "gate"}, r"'max_n': 1\} holds no task in split 'gate'"),
    ],
)
def test_what_cannot_work_is_refused_by_name(name: str, n: int | None, params: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        find_tasks(f"reasoning-gym:{name}", n, **params)
