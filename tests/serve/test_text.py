from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from r3agent.serve.engine.text import Detokenizer, TextStream


def byte_tokenizer() -> Any:
    """One token for each byte: characters are split between tokens."""
    bytes_to_ids = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(bytes_to_ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


TOKENIZER = byte_tokenizer()


def feed(text: str, stop: list[str]) -> tuple[str, str | None, str]:
    """The text of a stream, the stop string it met, and what was shown of it step by step."""
    stream = TextStream(TOKENIZER, stop)
    shown, found = "", None
    for token_id in TOKENIZER(text)["input_ids"]:
        found = stream.append(token_id)
        if found is not None:
            break
        shown += stream.take_new_text()
    stream.finish(stopped=found is not None)
    return stream.text, found, shown + stream.take_new_text()


@given(st.text(max_size=30))
def test_what_is_shown_is_the_text(text: str) -> None:
    assert feed(text, []) == (text, None, text)


@given(st.text("ab€", max_size=20), st.lists(st.text("ab€", min_size=1, max_size=3), max_size=3))
def test_text_ends_before_the_first_complete_stop_string(text: str, stop: list[str]) -> None:
    kept, found, shown = feed(text, stop)
    assert shown == kept
    ends = [text.find(s) + len(s) for s in stop if s in text]
    if not ends:
        assert (kept, found) == (text, None)
    else:
        assert found in stop
        assert text.startswith(kept + found)
        assert len(kept + found) == min(ends)


def test_text_ends_with_an_incomplete_character_as_decoded() -> None:
    token_ids = TOKENIZER("a€")["input_ids"][:-1]
    stream = TextStream(TOKENIZER, [])
    for token_id in token_ids:
        stream.append(token_id)
    stream.finish(stopped=False)
    assert stream.take_new_text() == stream.text == Detokenizer(TOKENIZER).text(token_ids) == "a�"


def test_single_tokens_have_text_and_bytes() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    token_id = TOKENIZER("a")["input_ids"][0]
    assert [detokenizer.token(token_id) for _ in range(2)] == [("a", [97])] * 2
