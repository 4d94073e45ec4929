"""Tables and conclusions of `benchmarks/signal_map.py`, from the stored outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal, TypeAlias, TypedDict, get_args

from r3agent.evaluate import Difference, Rate
from r3agent.evaluate.statistics import difference, rate

Retry: TypeAlias = Literal["after reflection", "blind retry", "oracle hint"]
RETRIES: tuple[Retry, ...] = get_args(Retry)

TRIES = 8
FLOOR = 30
"""Failed tasks that are retried if no try of the cell passed."""
SHOTS = 3
"""Solved problems before each of reasoning-gym: without any, the models of 135M and 270M hardly find the form of an
answer."""
REFLECTION_TEMPERATURE = 1.0
"""That of training, whose rows must be sampled at it."""

ENOUGH_MIXED = 0.2
"""Share of mixed failures from which a source is named."""
ENOUGH_FAILURES = 10
"""Failures of a source below which its share of mixed ones decides nothing."""
ENOUGH_GAIN = 10.0
"""Points by which the right answer must raise a retry of a model that can use a hint."""


class Cell(TypedDict):
    """Outcomes of one model on one source."""

    passes: list[list[bool]]
    """Outcomes of the tries of each task."""
    retries: list[dict[Retry, float | None]]
    """Outcomes of the retries of each failed task that was retried; `None` for a retry that was not made."""
    errors: int
    """Episodes with an error, which are left out."""
    seconds: int


Cells: TypeAlias = Mapping[str, Cell]
"""Cells of one model by source."""


def legend(engine: str, temperature: float) -> str:
    """Explain the tables of cells that an engine served, with tries of a temperature."""
    return (
        f"First try: share of {TRIES} tries of each of n tasks that passed; its interval accounts for the tasks. The "
        f"retries are those of the failed tasks, whose first try of the {TRIES} failed: the share of them that passes "
        "in one retry after the model's own reflection, without a reflection, and after an oracle hint, the right "
        f"answer in place of the reflection. On a source where no try passed, only {FLOOR} of them are retried. Mixed "
        f"is the share of the failed tasks that one of the {TRIES} tries solves: the others teach nothing by their own "
        f"tries. A question of reasoning-gym follows {SHOTS} solved ones; the others follow none. Sampled with "
        f"the engine `{engine}`, in the number type that suits the processor, tries at temperature {temperature:g}, "
        f"reflections at {REFLECTION_TEMPERATURE:g}."
    )


def first_try(cell: Cell) -> Rate:
    passes = cell["passes"]
    return rate([fmean(tries) for tries in passes], sum(map(len, passes)))


def mixed_rate(cell: Cell) -> Rate | None:
    """Return the share of failed tasks that a later try passes; `None` if no task failed."""
    return _rate([float(any(tries)) for tries in cell["passes"] if not tries[0]])


def retry_rate(cell: Cell, retry: Retry) -> Rate | None:
    return _rate([value for outcomes in cell["retries"] if (value := outcomes[retry]) is not None])


def gain(cells: Cells, retry: Retry) -> Difference | None:
    """Compare a retry with the blind one, on all failures of all sources that have both."""
    pairs = ((outcomes[retry], outcomes["blind retry"]) for cell in cells.values() for outcomes in cell["retries"])
    differences = [made - blind for made, blind in pairs if made is not None and blind is not None]
    return difference(differences) if differences else None


def table(cells: Cells) -> list[str]:
    """Render a model's cells as Markdown."""
    head = ("source", "n", "first try, %", "failed", *(f"{retry}, %" for retry in RETRIES), "mixed, %")
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for source, cell in cells.items():
        failed = sum(not tries[0] for tries in cell["passes"])
        retries = [_text(retry_rate(cell, retry)) for retry in RETRIES]
        texts = [f"`{source}`", f"{len(cell['passes'])}", _text(first_try(cell)), f"{failed}", *retries]
        lines.append(f"| {' | '.join([*texts, _text(mixed_rate(cell))])} |")
    return lines


def conclusion(model: str, cells: Cells) -> str:
    """Say where a model's failures are mixed, and whether it can use a hint."""
    found = {source: share for source, cell in cells.items() if (share := mixed_rate(cell)) is not None}
    shares = {source: share.rate for source, share in found.items() if share.n_tasks >= ENOUGH_FAILURES}
    enough = sorted((s for s in shares if shares[s] >= ENOUGH_MIXED), key=lambda s: -shares[s])
    named = ", ".join(f"`{source}` ({100 * shares[source]:.0f})" for source in enough) or "none"
    texts = [
        f"`{model}`: {len(shares)} of {len(cells)} sources have at least {ENOUGH_FAILURES} failures; at least "
        f"{100 * ENOUGH_MIXED:.0f} % of them are mixed in {len(enough)}: {named}."
    ]
    hint, own = gain(cells, "oracle hint"), gain(cells, "after reflection")
    if hint is not None and own is not None:
        texts.append(
            f"Against a blind retry, an oracle hint gains {_points(hint)} points, over {hint.n_tasks} failures; its "
            f"own reflection {_points(own)}, over {own.n_tasks}."
        )
        texts.append(
            {
                True: "It can use a hint.",
                False: f"Below {ENOUGH_GAIN:.0f} points it cannot use a hint, and is not to be trained on reflections.",
                None: f"Undecided: {ENOUGH_GAIN:.0f} points, from which a model can use a hint, are in the interval.",
            }[can_use(hint)]
        )
    return " ".join(texts)


def can_use(hint: Difference) -> bool | None:
    """Compare the gain of a hint with the limit; `None` if its interval contains the limit."""
    return None if hint.low <= ENOUGH_GAIN <= hint.high else hint.points > ENOUGH_GAIN


def section(
    models: Mapping[str, Cells], sources: Sequence[str], *, engine: str, temperature: float
) -> tuple[str, dict[str, Any]]:
    """Render the cells of all models as Markdown, and return the figures as data.

    Args:
        sources: sources of a whole map; those without a cell are named as missing.
        engine: engine that served all of them.
        temperature: that of the tries.
    """
    parts, data = [legend(engine, temperature)], dict[str, Any]()
    for model, cells in models.items():
        parts += [f"### {model}", conclusion(model, cells)]
        if missing := [f"`{source}`" for source in sources if source not in cells]:
            parts.append(f"Not measured: {', '.join(missing)}.")
        if errors := sum(cell["errors"] for cell in cells.values()):
            parts.append(f"{errors} episodes ended with an error and are left out.")
        parts.append("\n".join(table(cells)))
        data[model] = _data(cells)
    return "\n\n".join(parts), data


def _data(cells: Cells) -> dict[str, Any]:
    hint = gain(cells, "oracle hint")
    return {
        "can_use_hint": None if hint is None else can_use(hint),
        "gains": {retry: _dump(gain(cells, retry)) for retry in RETRIES if retry != "blind retry"},
        "sources": {
            source: {
                "first try": _dump(first_try(cell)),
                **{retry: _dump(retry_rate(cell, retry)) for retry in RETRIES},
                "mixed": _dump(mixed_rate(cell)),
            }
            for source, cell in cells.items()
        },
    }


def _dump(figure: Rate | Difference | None) -> dict[str, Any] | None:
    return None if figure is None else {name: round(value, 4) for name, value in figure}


def _rate(values: Sequence[float]) -> Rate | None:
    return rate(values, len(values)) if values else None


def _text(share: Rate | None) -> str:
    return "" if share is None else f"{100 * share.rate:.0f} [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def _points(change: Difference) -> str:
    return f"{change.points:.0f} [{change.low:.0f}, {change.high:.0f}]"
