"""Faults of the upstream of a gateway: the client gets a whole answer or an error, and so does the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import r3agent
from r3agent.gateway.server import Gateway
from r3agent.testing import FAULTS, ScriptedEndpoint

TEXT = "an answer of five words"
ASK: Any = {"model": "scripted", "messages": [{"role": "user", "content": "?"}]}
PASS = {"wrong_type", "no_usage", "fewer_choices", "miscounted", "length", "content_filter"}
"""Faults whose answer reaches the client."""
UNFIT = {"miscounted", "content_filter"}
"""Faults whose answer is no sample to train on."""


def ask(gateway: Gateway, *, stream: bool) -> str | None:
    """Return the text of an answer; `None` if the client found that there is none."""
    client = openai.OpenAI(base_url=gateway.url_of("e"), api_key="k", max_retries=0)
    try:
        if not stream:
            return client.chat.completions.create(**ASK).choices[0].message.content
        chunks: Any = list(client.chat.completions.create(**ASK, stream=True))
        choices = [choice for chunk in chunks for choice in chunk.choices]
        is_whole = any(choice.finish_reason for choice in choices)
        return "".join(choice.delta.content or "" for choice in choices) if is_whole else None
    except (openai.APIError, httpx.RequestError, ValueError):
        return None
    except (AttributeError, TypeError, IndexError):  # the SDK returned what is no completion
        return None


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", sorted(FAULTS.keys() - {"trickle"}))  # which is only slow, byte by byte
def test_fault_of_the_upstream_is_an_error_or_a_whole_answer(name: str, stream: bool, tmp_path: Path) -> None:
    fault = FAULTS[name]
    timeout_s = 0.5 if fault.kind == "hang" else 60
    with (
        ScriptedEndpoint(TEXT, faults=[fault] * 3) as endpoint,
        Gateway(endpoint.url, out=tmp_path, timeout_s=timeout_s) as gateway,
    ):
        text = ask(gateway, stream=stream)
    assert text == (TEXT if name in PASS else None)
    [episode] = r3agent.load(tmp_path)
    if name in PASS:
        [span] = episode.spans
        assert (span.text, span.capability == "trainable-exact") == (TEXT, name not in UNFIT)
    else:
        assert all(span.capability == "eval-only" for span in episode.spans)
        assert episode.error is not None or episode.spans
