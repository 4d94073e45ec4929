"""The doctor's report of the conversations that an endpoint takes."""

from __future__ import annotations

import pytest

from r3agent.doctor import diagnose
from r3agent.doctor.conversations import NAME
from r3agent.doctor.records import Check
from r3agent.testing import ScriptedEndpoint
from tests.support.strict import STRICT


async def check_on(endpoint: ScriptedEndpoint) -> Check:
    return next(check for check in (await diagnose(endpoint.url)).checks if check.name == NAME)


@pytest.mark.parametrize(
    ("strict", "refused", "taken"),
    [
        ("mistral", ["an empty answer", "a user after a tool"], "in order"),
        ("anthropic", ["an empty answer", "a user after a tool"], "in order"),
        ("template", ["a system message", "two user messages", "a user after a tool"], "in words"),
    ],
)
async def test_conversations_that_a_server_refuses_are_named(strict: str, refused: list[str], taken: str) -> None:
    with ScriptedEndpoint("hi", validate=STRICT[strict]) as endpoint:
        check = await check_on(endpoint)
    assert check.status == "no"
    assert check.detail.count(": 400 ") == len(refused)
    assert all(name in check.detail for name in refused)
    assert check.detail.startswith(f"takes a failed try with calls {taken}; refuses ")
    assert "in another form" in (check.remedy or "")


async def test_conversations_are_all_taken_or_none_with_tools() -> None:
    with ScriptedEndpoint("hi") as endpoint:
        assert (await check_on(endpoint)).status == "yes"
    with ScriptedEndpoint(
        "hi", validate=lambda body: "one turn only" if len(body["messages"]) > 1 else None
    ) as endpoint:
        check = await check_on(endpoint)
    assert (check.status, "in text" in (check.remedy or "")) == ("no", True)
