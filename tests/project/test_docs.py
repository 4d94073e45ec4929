"""Check the pages of docs/: their Python runs, their commands parse, messages are real, settings complete."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from pathlib import Path
from typing import Any

import pytest
from langchain_openai import ChatOpenAI

from r3agent._util.aio import run_sync
from r3agent.cli.main import VERBS, parse
from r3agent.run.config import Config
from r3agent.testing import ScriptedEndpoint
from tests.project.test_surface import SURFACE
from tests.support.printed import blocks, commands, scripts
from tests.support.provoked import PROVOKED, matches

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {path.stem: path.read_text() for path in sorted(DOCS.glob("*.md"))}


def loaded_hooks() -> Any:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = loaded_hooks()


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if scripts(page)])
def test_python_prints_what_the_page_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": name}
    with ScriptedEndpoint("It is 42.", model="my-model") as endpoint:
        for number, (code, expected) in enumerate(scripts(PAGES[name]), start=1):
            code = code.replace("http://127.0.0.1:8000/v1", endpoint.url)
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                exec(compile(code, f"{name}.md, block {number}", "exec", dont_inherit=True), names)
            assert said.getvalue() == expected
        if "policy" in names and hasattr(names["policy"], "close"):
            names["policy"].close()
        if isinstance(model := names.get("model"), ChatOpenAI):
            model.root_client.close()
            run_sync(model.root_async_client.close())


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if commands(page)])
def test_commands_parse_as_printed(name: str) -> None:
    for words in commands(PAGES[name]):
        assert parse(words).verb in VERBS


MESSAGES = [" ".join(message.split()) for message in blocks(PAGES["faq"], "message")]


def test_every_message_of_the_faq_is_provoked() -> None:
    assert len(MESSAGES) >= 20
    unproven = [message for message in MESSAGES if sum(matches(message, start) for start in PROVOKED) != 1]
    assert not unproven, f"tests/support/provoked.py has no such message, or more than one: {unproven}"
    assert len(PROVOKED) == len(MESSAGES)


@pytest.mark.parametrize("start", PROVOKED)
def test_message_of_the_faq_is_real(start: str, tmp_path: Path) -> None:
    [message] = [message for message in MESSAGES if matches(message, start)]
    try:
        PROVOKED[start](tmp_path)
    except Exception as error:
        said = str(error)
    else:
        said = "no error"
    assert matches(said, message, whole=True), f"\n{said}\nis not\n{message}"


def test_configure_has_every_setting_with_its_explanation() -> None:
    page = HOOKS.on_page_markdown(PAGES["configure"])
    for section, field in Config.model_fields.items():
        kind: Any = field.annotation
        [table] = [part for part in page.split("\n## ") if part.startswith(f"`[{section}]`")]
        rows = {row.split("|")[1].strip(): row for row in table.splitlines() if row.startswith("| `")}
        assert list(rows) == [f"`{name}`" for name in kind.model_fields]
        for name, setting in kind.model_fields.items():
            assert setting.description, f"{section}.{name} has no docstring"
            assert " ".join(setting.description.split()).replace("|", r"\|") in rows[f"`{name}`"]


def test_limits_and_choices_of_settings_are_shown() -> None:
    page = HOOKS.on_page_markdown(PAGES["configure"]).replace("\N{NO-BREAK SPACE}", " ")
    assert "| `alpha` | a number, > 0, < 1 | `0.05` | Largest probability that a loop" in page
    assert "| `method` | `lora`, `full` | `lora` |" in page
    assert "| `save_steps` | a whole number or nothing, ≥ 1 | nothing |" in page
    assert '| `{reflect = "retry_success"}` |' in page


def test_every_public_name_is_in_the_reference() -> None:
    page = HOOKS.on_page_markdown(PAGES["api"])
    for module, names in SURFACE.items():
        [part] = [part for part in page.split("\n## ") if part.startswith(f"{module}\n")]
        missing = [name for name in names if f'heading: "{name}"' not in part]
        assert not missing, module


def test_every_directive_of_a_page_is_known() -> None:
    for name, page in PAGES.items():
        assert "<!--" not in HOOKS.on_page_markdown(page), name


def headings(page: str) -> set[str]:
    """The end of a link to one, as Markdown's `toc` makes it."""
    text = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    return {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in re.findall(r"^#+ (.+)$", text, re.M)
    }


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_a_page_and_a_heading(name: str) -> None:
    filled = {other: HOOKS.on_page_markdown(page) for other, page in PAGES.items()}
    for page, heading in re.findall(r"\]\(([\w/]*)(?:\.md)?(?:#([\w-]+))?\)", filled[name]):
        page = page or name
        if page == "CONTRIBUTING":
            continue
        assert page in filled
        assert not heading or heading in headings(filled[page]), f"{page}.md has no heading for #{heading}"


@pytest.mark.parametrize("name", [*PAGES, "README"])
def test_paths_of_the_repository_exist(name: str) -> None:
    page = PAGES.get(name) or (DOCS.parent / "README.md").read_text()
    paths = set(re.findall(r"`([\w./-]+(?:/|\.(?:py|md|toml|json|txt)))`", page))
    elsewhere = {
        "r3.toml",
        "index/",
        "runs/mine/r3.toml",
        "site/",
        "card.json",
        "metrics.json",
        "provenance.json",
        "policy_card.json",
        "generation_config.json",
    }
    assert not [path for path in paths - elsewhere if not (DOCS.parent / path).exists()]


def test_every_page_is_in_the_navigation() -> None:
    navigation = (DOCS.parent / "mkdocs.yml").read_text()
    assert all(f" {name}.md\n" in navigation for name in PAGES)
