"""Clients of other APIs, through a gateway: their own SDKs understand it, and the calls are recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

import r3agent
from r3agent.gateway.server import Gateway
from r3agent.testing import SERVER_ERROR, ScriptedEndpoint

USER: Any = {"role": "user", "content": "?"}


def test_messages_api_is_answered_and_recorded(tmp_path: Path) -> None:
    with ScriptedEndpoint("the answer is 42") as endpoint, Gateway(endpoint.url, out=tmp_path) as gateway:
        url = gateway.url_of("e").removesuffix("/v1")
        with anthropic.Anthropic(base_url=url, api_key="a-key", max_retries=0) as client:
            ask: Any = {"model": "scripted", "max_tokens": 100, "messages": [USER]}
            block: Any = client.messages.create(**ask).content[0]
            assert block.text == "the answer is 42"
            with client.messages.stream(**ask) as stream:
                assert "".join(stream.text_stream) == "the answer is 42"
            assert client.messages.count_tokens(model="scripted", messages=[USER]).input_tokens > 0
            with pytest.raises(anthropic.NotFoundError, match="does not exist"):
                client.messages.create(**{**ask, "model": "none"})
            with pytest.raises(anthropic.BadRequestError, match="messages"):
                client.messages.create(**{**ask, "messages": [{"role": "user", "content": [{"type": "no"}]}]})
    assert endpoint.received[0].authorization == "Bearer a-key"
    [found] = r3agent.load(tmp_path)
    assert [(span.text, span.capability) for span in found.spans] == [("the answer is 42", "trainable-exact")] * 2


def test_responses_api_is_answered_and_recorded(tmp_path: Path) -> None:
    with (
        ScriptedEndpoint("the answer is 42", faults=[None, None, None, SERVER_ERROR, SERVER_ERROR]) as endpoint,
        Gateway(endpoint.url, out=tmp_path) as gateway,
        openai.OpenAI(base_url=gateway.url_of("e"), api_key="a-key", max_retries=0) as client,
    ):
        first = client.responses.create(model="scripted", input="?")
        assert first.output_text == "the answer is 42"
        second = client.responses.create(model="scripted", input="sure?", previous_response_id=first.id)
        assert second.output_text == "the answer is 42"
        events = list(client.responses.create(model="scripted", input="?", stream=True))
        assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
        with pytest.raises(openai.InternalServerError, match="out of memory"):
            client.responses.create(model="scripted", input="?")
    [found] = r3agent.load(tmp_path)
    assert [span.capability for span in found.spans] == ["trainable-exact"] * 3
    assert found.spans[1].parent_id == found.spans[0].span_id
