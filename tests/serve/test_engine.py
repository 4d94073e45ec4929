"""The engine generates the tokens that transformers generates, whatever shares the batch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import torch

from r3agent.errors import ConfigError
from r3agent.serve import Engine, load_model
from r3agent.serve.engine.lora import read_adapter
from r3agent.serve.engine.model import ServedModel, read_matching, replace_weights
from r3agent.serve.errors import APIError
from tests.serve import tiny
from tests.serve.tiny import PROMPTS, RunningRequest

TOLERANCE = 1e-4
"""Nats: float32 sums in another order."""


def assert_greedy(outcome: RunningRequest, model: Any, prompt: list[int], n_tokens: int) -> None:
    token_ids, logprobs = tiny.greedy(model, prompt, n_tokens)
    for sequence in outcome.wait().sequences:
        assert sequence.token_ids == token_ids
        assert sequence.logprobs == pytest.approx(logprobs, abs=TOLERANCE)


def test_a_ragged_batch_equals_generate(engine: Engine, checkpoint: Path) -> None:
    model = tiny.reference(checkpoint)
    lengths = [40, 7, 25, 90]  # sequences leave at different steps, and the others move to their slots
    outcomes = [
        RunningRequest(engine, prompt_token_ids=prompt, max_tokens=n, temperature=0)
        for prompt, n in zip(PROMPTS, lengths, strict=True)
    ]
    for outcome, prompt, n in zip(outcomes, PROMPTS, lengths, strict=True):
        assert_greedy(outcome, model, prompt, n)


def test_rows_that_join_later_change_nothing(engine: Engine, checkpoint: Path) -> None:
    model = tiny.reference(checkpoint)
    first = RunningRequest(engine, prompt_token_ids=PROMPTS[0], max_tokens=120, temperature=0)
    second = RunningRequest(engine, prompt_token_ids=PROMPTS[1], max_tokens=4, temperature=0)
    second.wait()
    third = RunningRequest(engine, prompt_token_ids=PROMPTS[2], max_tokens=30, temperature=0)
    assert_greedy(third, model, PROMPTS[2], 30)
    assert_greedy(first, model, PROMPTS[0], 120)


def test_completions_of_one_request_share_a_prefill(engine: Engine, checkpoint: Path) -> None:
    outcome = RunningRequest(engine, prompt_token_ids=PROMPTS[2], n=5, max_tokens=12, temperature=0)
    assert_greedy(outcome, tiny.reference(checkpoint), PROMPTS[2], 12)


def test_adapters_and_the_base_share_a_batch(
    engine: Engine, served: ServedModel, checkpoint: Path, adapters: dict[str, Path]
) -> None:
    loaded = [None, *(read_adapter(name, str(path), served.model) for name, path in adapters.items())]
    models = [tiny.reference(checkpoint), *(tiny.reference(checkpoint, path) for path in adapters.values())]
    for together in ([0, 1, 2, 1], [1, 1], [2], [0, 2], [0]):
        outcomes = [
            RunningRequest(
                engine, prompt_token_ids=PROMPTS[i], max_tokens=10, temperature=0, adapter=loaded[which], n=2
            )
            for i, which in enumerate(together)
        ]
        for i, (outcome, which) in enumerate(zip(outcomes, together, strict=True)):
            assert_greedy(outcome, models[which], PROMPTS[i], 10)


def test_prompt_logprobs_are_the_models_own(engine: Engine, checkpoint: Path) -> None:
    prompt = PROMPTS[2]
    with torch.no_grad():
        logits = tiny.reference(checkpoint)(torch.tensor([prompt])).logits[0, :-1]
    logprobs = logits.log_softmax(-1)
    scored = RunningRequest(engine, prompt_token_ids=prompt, max_tokens=1, prompt_logprobs=2).wait().scored_prompt
    assert scored is not None
    assert [token.token_id for token in scored] == prompt[1:]
    for token, expected in zip(scored, logprobs, strict=True):
        assert token.logprob == pytest.approx(expected[token.token_id].item(), abs=TOLERANCE)
        assert token.rank == 1 + int((expected > expected[token.token_id]).sum())
        assert [token_id for token_id, _ in token.top_logprobs] == expected.topk(2).indices.tolist()


@pytest.mark.parametrize("company", [0, 6])
def test_a_seeded_request_gives_the_same_tokens_in_any_company(engine: Engine, company: int) -> None:
    others = [RunningRequest(engine, prompt_token_ids=PROMPTS[i % 4], max_tokens=30) for i in range(company)]
    seeded = {"prompt_token_ids": PROMPTS[0], "max_tokens": 20, "seed": 7}
    together = RunningRequest(engine, **seeded, n=3).wait()
    for other in others:
        other.wait()
    alone = [RunningRequest(engine, **{**seeded, "seed": 7 + i}).wait().sequences[0].token_ids for i in range(3)]
    assert [sequence.token_ids for sequence in together.sequences] == alone
    assert len({tuple(ids) for ids in alone}) == 3


def test_the_cache_grows_with_what_it_holds(engine: Engine, checkpoint: Path) -> None:
    few = RunningRequest(engine, prompt_token_ids=PROMPTS[0], n=2, max_tokens=150, temperature=0, stream=True)
    assert few.streaming.wait(60)
    many = RunningRequest(engine, prompt_token_ids=PROMPTS[1], n=40, max_tokens=70, temperature=0)
    model = tiny.reference(checkpoint)
    assert_greedy(many, model, PROMPTS[1], 70)
    assert_greedy(few, model, PROMPTS[0], 150)


def test_a_turn_ends_with_any_of_its_tokens_which_is_not_shown(engine: Engine, checkpoint: Path) -> None:
    token_ids, _ = tiny.greedy(tiny.reference(checkpoint), PROMPTS[0], 8)
    for eos_token_id, stop_reason in ((token_ids[3], None), (None, token_ids[3])):
        ends = {"stop_token_ids": frozenset({token_ids[3]}), "eos_token_id": eos_token_id}
        sequence = RunningRequest(engine, prompt_token_ids=PROMPTS[0], temperature=0, **ends).wait().sequences[0]
        end = token_ids.index(token_ids[3]) + 1
        assert (sequence.token_ids, sequence.visible_token_ids) == (token_ids[:end], token_ids[: end - 1])
        assert (sequence.finish_reason, sequence.stop_reason) == ("stop", stop_reason)


def test_more_completions_than_the_batch_holds_all_come(served: ServedModel) -> None:
    engine = Engine(served, max_batch=4)
    engine.start()
    sequences = RunningRequest(engine, prompt_token_ids=PROMPTS[0], n=11, temperature=0).wait().sequences
    engine.close()
    assert len(sequences) == 11
    assert len({tuple(sequence.token_ids) for sequence in sequences}) == 1


def test_a_full_queue_refuses_and_goes_on(served: ServedModel) -> None:
    engine = Engine(served, max_batch=1, max_waiting=3)
    engine.start()
    engine.pause("keep").result(60)
    waiting = RunningRequest(engine, prompt_token_ids=PROMPTS[0], n=3)
    with pytest.raises(
        APIError, match=r"3 completions are waiting and 1 more were asked for, the limit is 3"
    ) as refusal:
        RunningRequest(engine, prompt_token_ids=PROMPTS[0])
    assert refusal.value.status is HTTPStatus.SERVICE_UNAVAILABLE
    engine.resume()
    waiting.wait()
    engine.close()


def test_too_little_memory_for_one_sequence_is_refused(served: ServedModel) -> None:
    with pytest.raises(ConfigError, match=r"kv_cache_gib = 1e-06 holds 2 tokens, fewer than max_model_len = 256"):
        Engine(served, kv_cache_gib=1e-6)


@pytest.mark.parametrize("limit", ["max_batch", "max_waiting", "threads"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_limit_that_cannot_work_is_refused(served: ServedModel, limit: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{limit} = {value}: must be at least 1"):
        Engine(served, **{limit: value})


def test_a_cancelled_request_leaves_the_batch(engine: Engine) -> None:
    endless = RunningRequest(engine, prompt_token_ids=PROMPTS[0], n=4, max_tokens=240, stream=True)
    assert endless.streaming.wait(60)
    engine.cancel(endless.request)
    RunningRequest(engine, prompt_token_ids=PROMPTS[1]).wait()
    assert engine.load == 0
    assert all(len(sequence.token_ids) < 240 for sequence in endless.request.sequences)


class TestPause:
    @pytest.fixture
    def endless(self, engine: Engine) -> RunningRequest:
        """A request under way."""
        outcome = RunningRequest(engine, prompt_token_ids=PROMPTS[0], max_tokens=240, stream=True, n=2)
        assert outcome.streaming.wait(60)
        return outcome

    def test_wait_lets_it_end_and_holds_the_next(self, engine: Engine, endless: RunningRequest) -> None:
        engine.pause("wait").result(60)
        assert [len(sequence.token_ids) for sequence in endless.wait().sequences] == [240, 240]
        held = RunningRequest(engine, prompt_token_ids=PROMPTS[1])
        assert engine.load == 1
        engine.resume()
        held.wait()

    def test_keep_freezes_it(self, engine: Engine, endless: RunningRequest) -> None:
        engine.pause("keep").result(60)
        so_far = [len(sequence.token_ids) for sequence in endless.request.sequences]
        with pytest.raises(APIError, match="2 completions are held by /pause"):
            engine.when_empty(lambda: None)
        assert [len(sequence.token_ids) for sequence in endless.request.sequences] == so_far
        engine.resume()
        assert [len(sequence.token_ids) for sequence in endless.wait().sequences] == [240, 240]

    def test_abort_ends_it_with_what_it_has(self, engine: Engine, endless: RunningRequest) -> None:
        engine.pause("abort").result(60)
        sequences = endless.wait().sequences
        assert {sequence.finish_reason for sequence in sequences} == {"abort"}
        for sequence in sequences:
            sent = [t for chunk in endless.chunks if chunk.index == sequence.index for t in chunk.token_ids]
            assert sent == sequence.token_ids
        engine.resume()


class TestErrors:
    @pytest.fixture
    def fragile(self, checkpoint: Path) -> Iterator[Engine]:
        """An engine whose model fails on token 99."""
        served = load_model(str(checkpoint))

        def fail(_module: Any, _args: Any, fields: dict[str, Any]) -> None:
            if (fields["input_ids"] == 99).any():
                raise RuntimeError("token 99")

        served.model.register_forward_pre_hook(fail, with_kwargs=True)
        engine = Engine(served)
        engine.start()
        yield engine
        engine.close()

    def test_a_failing_prefill_fails_its_requests_only(self, fragile: Engine) -> None:
        running = RunningRequest(fragile, prompt_token_ids=PROMPTS[0], max_tokens=60, temperature=0, stream=True)
        assert running.streaming.wait(60)
        with pytest.raises(APIError, match="RuntimeError: token 99") as error:
            RunningRequest(fragile, prompt_token_ids=[4, 99], n=2).wait()
        assert error.value.status is HTTPStatus.INTERNAL_SERVER_ERROR
        assert error.value.body()["error"]["type"] == "InternalServerError"
        running.wait()
        assert fragile.load == 0

    def test_broken_weights_are_named(self, checkpoint: Path) -> None:
        served = load_model(str(checkpoint))
        with torch.no_grad():
            served.model.lm_head.weight.fill_(torch.nan)
        engine = Engine(served)
        engine.start()
        with pytest.raises(APIError, match="the model's logits are not numbers"):
            RunningRequest(engine, prompt_token_ids=PROMPTS[0], n=3).wait()
        engine.close()

    def test_stopping_fails_what_is_under_way(self, served: ServedModel) -> None:
        engine = Engine(served)
        engine.start()
        outcome = RunningRequest(engine, prompt_token_ids=PROMPTS[0], max_tokens=200, n=8)
        engine.close()
        with pytest.raises(APIError, match="the server is stopping"):
            outcome.wait()
        with pytest.raises(APIError, match="the server is stopping"):
            RunningRequest(engine, prompt_token_ids=PROMPTS[0])


def test_what_waits_for_an_empty_batch_is_not_overtaken(engine: Engine) -> None:
    first = RunningRequest(engine, prompt_token_ids=PROMPTS[0], max_tokens=200, stream=True)
    assert first.streaming.wait(60)
    tokens_then: list[int] = []
    requests = [first.request]
    done = engine.when_empty(lambda: tokens_then.extend(len(r.sequences[0].token_ids) for r in requests))
    second = RunningRequest(engine, prompt_token_ids=PROMPTS[1])
    requests.append(second.request)
    done.result(60)
    assert tokens_then == [200, 0]
    second.wait()


def test_weights_are_reloaded_in_place(checkpoint: Path, other_checkpoint: Path) -> None:
    served = load_model(str(checkpoint))
    engine = Engine(served)
    engine.start()
    for path in (other_checkpoint, checkpoint):
        fresh = read_matching(served.model, str(path))
        engine.when_empty(partial(replace_weights, served.model, fresh)).result(60)
        assert_greedy(
            RunningRequest(engine, prompt_token_ids=PROMPTS[3], temperature=0), tiny.reference(path), PROMPTS[3], 8
        )
    engine.close()


def test_load_model_names_weights_that_are_only_pickled(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ConfigError, match="pickled files only: save them as safetensors"):
        load_model(str(tmp_path))
