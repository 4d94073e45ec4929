"""Variants of a gold answer with one difference, for `bfcl_agreement.py`."""

from __future__ import annotations

import copy
import random
import string
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from r3agent.records.trajectory import Task

Calls: TypeAlias = list[tuple[str, dict[str, Any]]]
Mutation: TypeAlias = Callable[[Calls, Task, random.Random], Calls | None]
"""Function that changes a copy of the calls, or returns `None` if there is nothing to change."""


def mutated(gold: Calls, task: Task, rng: random.Random, n: int) -> Iterator[tuple[str, Calls]]:
    """Yield `n` mutations with their names, without repeating one while others are left."""
    made = 0
    while made < n:
        before = made
        for mutate in rng.sample(MUTATIONS, len(MUTATIONS)):
            calls = mutate(copy.deepcopy(gold), task, rng)
            if calls is not None and made < n:
                made += 1
                yield mutate.__name__, calls
        if made == before:
            return


def _offered(task: Task) -> list[str]:
    return [tool["function"]["name"] for tool in task.tools] or [*task.info["functions"]]


def _value(calls: Calls, rng: random.Random, *kinds: type) -> tuple[dict[str, Any], str] | None:
    """Choose an argument of one of the types; return its dict and key."""
    places = [(args, key) for _, args in calls for key, value in args.items() if type(value) in kinds]
    return rng.choice(places) if places else None


def _changed(calls: Calls, rng: random.Random, kinds: tuple[type, ...], change: Callable[[Any], Any]) -> Calls | None:
    if (place := _value(calls, rng, *kinds)) is None:
        return None
    args, key = place
    args[key] = change(args[key])
    return calls


ANY = (str, int, float, bool, list, dict)


def wrong_name(calls: Calls, task: Task, rng: random.Random) -> Calls | None:
    if not calls:
        return None
    i = rng.randrange(len(calls))
    name, args = calls[i]
    others = [*_offered(task), name.upper(), f"{name}s", name.replace(".", "_"), name.replace("_", "."), "f"]
    calls[i] = (rng.choice(others), args)
    return calls


def missing(calls: Calls, task: Task, rng: random.Random) -> Calls | None:
    if (place := _value(calls, rng, *ANY)) is None:
        return None
    del place[0][place[1]]
    return calls


def extra(calls: Calls, task: Task, rng: random.Random) -> Calls | None:
    if not calls:
        return None
    name, args = rng.choice(calls)
    types = task.info["functions"][name].get("types", {})
    left = [key for key in types if key not in args]
    args[rng.choice([*left, "extra", name.replace(".", "_")])] = rng.choice(["", 1, "x", True, None, [], {}])
    return calls


def other_accepted(calls: Calls, task: Task, rng: random.Random) -> Calls | None:
    """Use another accepted value, as written in the data."""
    if not calls:
        return None
    i = rng.randrange(len(calls))
    accepts = task.info["calls"][i]["accepts"] if task.info["calls"] else {}
    places = [(key, value) for key, values in accepts.items() for value in values]
    if not places:
        return None
    key, value = rng.choice(places)
    calls[i][1][key] = copy.deepcopy(value)
    return calls


def wrong_type(calls: Calls, task: Task, rng: random.Random) -> Calls | None:
    changes: list[Callable[[Any], Any]] = [str, lambda v: [v], lambda v: {"value": v}, lambda v: None, bool]
    return _changed(calls, rng, ANY, rng.choice(changes))


def text_for_number(calls: Calls, task: Task, rng: random.Random) -> Calls | None:
    return _changed(calls, rng, (int, float, bool), str)


def number_for_text(calls: Calls, task: Task, rng: random.Random) -> Calls | None:
    return _changed(calls, rng, (str,), lambda text: int(text) if text.isdecimal() and text.isascii() else len(text))


def int_for_float(calls: Calls, task: Task, rng: random.Random) -> Calls | None:
    return _changed(calls, rng, (float,), int)


def float_for_int(calls: Calls, task: Task, rng: random.Random) -> Calls | None:
    return _changed(calls, rng, (int,), float)


def other_number(calls: Calls, task: Task, rng: random.Random) -> Calls | None:
    return _changed(calls, rng, (int, float), lambda value: value + rng.choice([1, -1, 0.5, 10**20, 1e-9]))


def huge_number(calls: Calls, task: Task, rng: random.Random) -> Calls | None:
    return _changed(calls, rng, (int, float), lambda value: 10**400)


def boolean_for_number(calls: Calls, task: Task, rng: random.Random) -> Calls | None:
    return _changed(calls, rng, (int, float), bool)


def number_for_boolean(calls: Calls, task: Task, rng: random.Random) -> Calls | None:
    return _changed(calls, rng, (bool,), rng.choice([int, float, lambda value: not value]))


def _retouched(text: str, rng: random.Random) -> str:
    """Change case, spaces, punctuation or quotes, significant ones too."""
    place = rng.randrange(len(text) + 1)
    return rng.choice(
        [
            text.upper(),
            text.swapcase(),
            f" {text} ",
            text.replace(" ", ""),
            text.replace(" ", "_"),
            text.replace(",", ""),
            text.replace("'", '"'),
            text[:place] + rng.choice(" ,./-_*^") + text[place:],
            text[:place] + rng.choice("'\"\n\t;:!?()%ßéİ") + text[place:],
            text[:place] + rng.choice(string.ascii_letters) + text[place:],
            text[:place],
            text.translate({ord("/"): "-", ord("-"): "/"}),
            "",
        ]
    )


def text_variant(calls: Calls, task: Task, rng: random.Random) -> Calls | None:
    return _changed(calls, rng, (str,), lambda text: _retouched(text, rng))


def _varied(value: Any, rng: random.Random) -> Any:
    """Change one leaf of a value."""
    match value:
        case bool():
            return rng.choice([not value, int(value), str(value)])
        case int():
            return rng.choice([float(value), value + 1, str(value), bool(value)])
        case float():
            return rng.choice([int(value), value + 1, str(value)])
        case str():
            return rng.choice([_retouched(value, rng), len(value), None])
        case [*items]:
            return _varied_list(items, rng)
        case {**items}:
            return _varied_dict(items, rng)
        case _:
            return 0


def _varied_list(items: list[Any], rng: random.Random) -> list[Any]:
    change = rng.choice(["item", "item", "drop", "twice", "reverse", "empty", "other"])
    i = rng.randrange(len(items)) if items else 0
    if change == "item" and items:
        items[i] = _varied(items[i], rng)
    elif change == "drop":
        del items[i : i + 1]
    elif change == "twice":
        items[i:i] = items[i : i + 1]
    elif change == "reverse":
        items.reverse()
    elif change == "empty":
        items.clear()
    else:
        items.append(rng.choice([None, "x", 1, 1.5, {}, []]))
    return items


def _varied_dict(items: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    change = rng.choice(["value", "value", "drop", "extra", "reverse", "empty"])
    key = rng.choice([*items]) if items else ""
    if change == "value" and items:
        items[key] = _varied(items[key], rng)
    elif change == "drop":
        items.pop(key, None)
    elif change == "extra":
        items["extra"] = 1
    elif change == "reverse":
        items = dict(reversed(items.items()))
    else:
        items = {}
    return items


def nested(calls: Calls, task: Task, rng: random.Random) -> Calls | None:
    """Change a value inside a list or dict."""
    return _changed(calls, rng, (list, dict), lambda value: _varied(value, rng))


def tuples(calls: Calls, task: Task, rng: random.Random) -> Calls | None:
    return _changed(calls, rng, (list,), tuple)


def order_of_calls(calls: Calls, task: Task, rng: random.Random) -> Calls | None:
    return rng.sample(calls, len(calls)) if len(calls) > 1 else None


def order_of_arguments(calls: Calls, task: Task, rng: random.Random) -> Calls | None:
    return [(name, dict(reversed(args.items()))) for name, args in calls] if calls else None


def call_less(calls: Calls, task: Task, rng: random.Random) -> Calls | None:
    if calls:
        calls.pop(rng.randrange(len(calls)))
    return calls


def call_twice(calls: Calls, task: Task, rng: random.Random) -> Calls | None:
    """Repeat one call, sometimes in place of another."""
    if not calls:
        return None
    calls.append(copy.deepcopy(rng.choice(calls)))
    return calls[1:] if rng.random() < 0.5 else calls


def call_more(calls: Calls, task: Task, rng: random.Random) -> Calls | None:
    """Add a call, of an offered function or of another."""
    calls.append((rng.choice([*_offered(task), "f"]), {}))
    return calls


MUTATIONS: list[Mutation] = [
    wrong_name,
    missing,
    extra,
    other_accepted,
    wrong_type,
    text_for_number,
    number_for_text,
    int_for_float,
    float_for_int,
    other_number,
    huge_number,
    boolean_for_number,
    number_for_boolean,
    text_variant,
    nested,
    tuples,
    order_of_calls,
    order_of_arguments,
    call_less,
    call_twice,
    call_more,
]
