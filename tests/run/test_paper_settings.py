"""Settings of the paper's protocol: a result is filed under all that decides it, and a folder belongs to one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from benchmarks.paper.anew import ANEW, NOTE
from benchmarks.paper.commands import run_seed
from benchmarks.paper.settings import claim, decisive
from benchmarks.results import digest
from r3agent.errors import ConfigError
from r3agent.records.prompts import GENERIC_REFLECTION, PROMPTS
from r3agent.run.config import load_config
from r3agent.testing import ScriptedEndpoint

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write settings of the bundled policy on Countdown, and some more, as a file."""

    def written(name: str = "config.toml", **more: str) -> Path:
        sections = {"policy": 'base_model = "bundled"', "task": 'source = "countdown"', **more}
        (tmp_path / name).write_text("\n".join(f"[{section}]\n{text}" for section, text in sections.items()))
        return tmp_path / name

    return written


def test_decisive_are_settings_prompts_agent_and_weights(write: Write) -> None:
    general = {**PROMPTS["general"].model_dump(), "generic_reflection": GENERIC_REFLECTION}
    found = decisive([write()], None)
    assert found["settings"] == {"policy.base_model": "bundled", "task.source": "countdown"}
    assert (found["warm_up"], found["prompts"], found["agent"]) == (None, general, None)
    other = decisive([write(prompts='retry_prompt = "Again."')], None)
    assert other["prompts"] == {**general, "retry_prompt": "Again."}
    anew = decisive([write(agent=f'agent = "{ANEW}"')], None)
    assert anew == {**found, "settings": ANY, "agent": {"note": NOTE, "temperature": 0.4}}


@pytest.mark.parametrize(
    ("section", "text"),
    [("prompts", 'retry_prompt = "X"'), ("prompts", 'blind_retry_prompt = "X"'), ("collect", "max_attempts = 3")],
)
def test_anew_refuses_retries_that_it_cannot_recognise(section: str, text: str, write: Write) -> None:
    key, _, value = text.partition(" = ")
    with pytest.raises(ConfigError, match=f"{section}.{key} = {value.replace(chr(34), chr(39))}: "):
        decisive([write(agent=f'agent = "{ANEW}"', **{section: text})], None)


def test_decisive_keeps_a_warm_up_apart(write: Write) -> None:
    warm_up = write("warm-up.toml", train="batch_size = 32")
    with_it = [decisive([write(train=f"batch_size = {size}")], warm_up) for size in (32, 64)]
    without = [decisive([write(train="batch_size = 32")], None), decisive([write(), warm_up], None)]
    assert len({digest(settings) for settings in [*with_it, *without]}) == 3
    assert without[0] == without[1]  # the same settings, from one file or from two


def test_folder_is_claimed_once(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"seed": 0, "settings": {"train.batch_size": 32}, "warm_up": None}
    for _ in range(2):
        claim(tmp_path / "seed-0", settings)
    other = {**settings, "settings": {"train.batch_size": 64}, "warm_up": {"collect.n": 4}}
    expected = r'seed-0 belongs to other settings: settings train.batch_size = 32, not 64; warm_up = null, not {"coll'
    with pytest.raises(SystemExit, match=expected):
        claim(tmp_path / "seed-0", other)
    (tmp_path / "old" / "commands").mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"old has files, and no settings\.json of this benchmark; choose another"):
        claim(tmp_path / "old", settings)


def test_run_seed_draws_its_own_tasks_and_resumes(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = tmp_path / "seed-7", write()
    with ScriptedEndpoint(model="another") as endpoint:
        given: Any = {"warm_up": None, "url": endpoint.url, "launcher": ()}
        with pytest.raises(SystemExit, match="r3agent collect ended with exit code"):
            run_seed([config], 7, folder, **given)
    told = load_config(folder / "run" / "r3.toml", {})
    assert [told.task.seed, told.train.seed, told.sampling.seed, told.eval.seed] == [7] * 4
    for name in ("collect", "branch-1", "train-1", "deploy-1"):
        (folder / "commands" / f"{name}.json").write_text('{"seconds": 1, "report": {}}')
    capsys.readouterr()
    with pytest.raises(SystemExit, match="r3agent eval ended with exit code"):  # there is no v0001
        run_seed([config], 7, folder, **given)
    [asked] = capsys.readouterr().out.splitlines()
    assert asked == f"$ r3agent eval --run {folder / 'run'} --url {given['url']} --after v0001"


@pytest.mark.parametrize("change", ["seed", "settings", "warm-up"])
def test_run_seed_refuses_the_folder_of_another_run(change: str, write: Write, tmp_path: Path) -> None:
    config, given = write(), {"warm_up": None, "url": "", "launcher": ()}
    claim(tmp_path / "run", {"seed": 0, **decisive([config], None)})
    commands = tmp_path / "run" / "commands"
    commands.mkdir()
    (commands / "eval.json").write_text("{}")  # the last command has ended
    run_seed([config], 0, tmp_path / "run", **given)
    if change == "settings":
        config = write(eval="n = 3")
    given |= {"warm_up": write("warm-up.toml")} if change == "warm-up" else {}
    with pytest.raises(SystemExit, match=f"belongs to other settings: {change.replace('-', '_')}"):
        run_seed([config], 1 if change == "seed" else 0, tmp_path / "run", **given)
