"""Settings of the protocol: those of its files, what a result depends on, and the folder that belongs to them."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.paper import anew
from benchmarks.results import weights_of
from r3agent._util.files import write_atomically
from r3agent.run.config import Config, load_config
from r3agent.tasks import default_verifier
from r3agent.verifiers import KINDS

NAMED = 5
"""Number of differences that a message names."""


def settings_of(configs: Sequence[Path], **own: object) -> dict[str, Any]:
    """Return the settings of TOML files by dotted key; later files win.

    Args:
        own: further settings, with two underscores in place of the dot.
    """
    given = {
        f"{section}.{key}": value
        for config in configs
        for section, values in tomllib.loads(config.read_text()).items()
        for key, value in values.items()
    }
    return given | {key.replace("__", "."): value for key, value in own.items()}


def words_of(settings: Mapping[str, object]) -> list[str]:
    """Return settings as words of `r3agent init`."""
    return [f"--set={key}={inline(value)}" for key, value in settings.items()]


def inline(value: object) -> str:
    """Render a value as TOML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {inline(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(inline, value))}]"
    return json.dumps(value)


def decisive(configs: Sequence[Path], warm_up: Path | None) -> dict[str, Any]:
    """Return all that decides a result, besides the seed and the code.

    Raises:
        ConfigError: a setting is invalid, or does not suit the agent, or the base model is a directory that is not
            there.
    """
    settings = settings_of(configs)
    config = load_config(None, settings)
    for each in (config, load_config(None, settings_of([*configs, *([warm_up] if warm_up else [])]))):
        if each.agent.agent == anew.ANEW:
            anew.check(prompts_of(each), each.collect.max_attempts)
    return {
        "settings": settings,
        "warm_up": None if warm_up is None else settings_of([warm_up]),
        "prompts": prompts_of(config),
        "agent": anew.settings() if config.agent.agent == anew.ANEW else None,
        "weights": weights_of(config.policy.base_model),
    }


def prompts_of(config: Config) -> dict[str, str]:
    """Return the prompts and the text of the control, with their defaults filled in."""
    verifier = config.task.verifier or default_verifier(config.task.source)
    prompts = config.prompts.filled(KINDS.get(verifier, "general"))
    return {**prompts.model_dump(), "generic_reflection": config.eval.generic_reflection}


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write down which settings a folder belongs to, when it is first used.

    Raises:
        SystemExit: it belongs to others, or has files and does not say so.
    """
    file = folder / "settings.json"
    if not folder.is_dir() or not any(folder.iterdir()):
        write_atomically(file, json.dumps(settings))
    if not file.exists():
        sys.exit(f"{folder} has files, and no {file.name} of this benchmark; choose another folder with --out")
    if differing := list(_differences(json.loads(file.read_text()), settings)):
        more = "" if len(differing) <= NAMED else f" and {len(differing) - NAMED} more"
        sys.exit(
            f"{folder} belongs to other settings: {'; '.join(differing[:NAMED])}{more}; choose another folder with "
            "--out, or leave it out"
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Describe the settings that differ, those of a section each on its own."""
    for key in {**before, **now}:
        then, value = before.get(key), now.get(key)
        if isinstance(then, Mapping) and isinstance(value, Mapping):
            yield from (f"{key} {text}" for text in _differences(then, value))
        elif then != value:
            yield f"{key} = {json.dumps(then)}, not {json.dumps(value)}"
