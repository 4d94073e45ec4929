"""`r3agent inspect`: every token with its label, its credit and its logprob."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from r3agent.cli.main import main
from r3agent.records.trajectory import EpisodeError, Span, Trajectory
from r3agent.store.labels import label
from r3agent.store.models import BUNDLED_DIR
from r3agent.store.shards import TrajectoryWriter
from r3agent.train import TrainConfig, build_rows
from r3agent.train.row import WITHOUT_SIBLINGS
from tests.support.trees import span, tree

tokenizers = pytest.importorskip("tokenizers", reason="token texts need the train extra")


def recorded(label: Any, parent: Span | None, text: str, passed: bool | None = None, **fields: Any) -> Span:
    """A span as the bundled policy would have sampled it."""
    ids = tokenizers.Tokenizer.from_file(str(BUNDLED_DIR / "tokenizer.json")).encode(f"{text} <|end|>").ids
    exact = {"token_ids": ids, "logprobs": [-0.5 - i for i in range(len(ids))], "prompt_token_ids": [1]}
    exact |= {"capability": "trainable-exact", "policy_version": "v0000"}
    return span(label, parent, passed, **{"text": text, **exact, **fields})


def episode(number: int, **fields: Any) -> Trajectory:
    attempt = recorded("attempt", None, "<answer> 1 + 2 </answer>", False, span_id=f"a{number}")
    good, bad = (recorded("reflect", attempt, f"Start with {n} + 2", span_id=f"r{n}{number}") for n in (3, 4))
    right = recorded("retry", good, "<answer> 3 * 2 </answer>", True, span_id=f"y{number}")
    wrong, blind = (recorded("retry", above, "6", False, span_id=f"{above.span_id}n") for above in (bad, attempt))
    grown = tree(attempt, good, bad, right, wrong, blind)
    return grown.model_copy(update={"trajectory_id": f"{number}episode", **fields})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    store(tmp_path / "run", episode(1), episode(2))
    return tmp_path / "run"


def store(run: Path, *episodes: Trajectory) -> None:
    with TrajectoryWriter(run / "trajectories") as writer:
        for trajectory in episodes:
            writer.append(trajectory)


def inspect(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = main(["inspect", *map(str, argv)])
    said = capsys.readouterr()
    return code, said.out, said.err


def spans_of(capsys: pytest.CaptureFixture[str], *argv: object) -> list[dict[str, Any]]:
    code, out, _ = inspect(capsys, *argv, "--json")
    assert code == 0
    return json.loads(out)["spans"]


def test_every_token_has_its_id_text_and_logprob(run, capsys):
    by_id = {s.span_id: s for s in episode(1).spans}
    for shown in spans_of(capsys, run, "1episode"):
        known = by_id[shown["span_id"]]
        assert [t["id"] for t in shown["tokens"]] == list(known.token_ids)
        assert [t["logprob"] for t in shown["tokens"]] == list(known.logprobs)
        assert "".join(t["text"] for t in shown["tokens"]) == f"{known.text} <|end|>"


@pytest.mark.parametrize(
    "train",
    [
        {},
        {"credit": {"reflect": "lift", "attempt": "success"}, "credit_weights": {"reflect": 2.0}},
        {"scale_rewards": "none", "distill": 0.5},
    ],
    ids=str,
)
def test_credit_is_the_advantage_that_training_gives(train, run, capsys):
    store(run, episode(3).model_copy(update={"error": EpisodeError(kind="VerifierError", message="boom")}))
    rows, _ = build_rows([episode(1), episode(2)], config=TrainConfig.model_validate(train), version="v0000")
    own = [row for row in rows if row.trajectory_id == "1episode"]
    flags = [f"--set=train.{key}={toml(value)}" for key, value in train.items()]
    shown = spans_of(capsys, run, "1e", *flags)
    assert by_kind(shown, "credit") == {r.span_id: r.advantage for r in own if r.label not in WITHOUT_SIBLINGS}
    for kind in WITHOUT_SIBLINGS:
        assert by_kind(shown, kind) == {r.span_id: r.advantage for r in own if r.label == kind}


def by_kind(shown, kind):
    return {s["span_id"]: s[kind] for s in shown if s[kind] is not None}


def toml(value: object) -> str:
    return (
        f"{{{', '.join(f'{k} = {v!r}' for k, v in value.items())}}}" if isinstance(value, dict) else json.dumps(value)
    )


def test_a_run_lists_only_what_there_is(tmp_path, capsys):
    passed = tree(recorded("attempt", None, "6", True)).model_copy(update={"trajectory_id": "passed"})
    empty = tree().model_copy(update={"trajectory_id": "empty"})
    store(tmp_path, passed, empty)
    _, out, _ = inspect(capsys, tmp_path)
    assert "  first try                100.0%" in out
    assert "e.g." not in out  # nothing failed, and what has no try cannot be labelled


def test_a_span_without_credit_says_why(run, capsys):
    shown = spans_of(capsys, run, "1episode", "--set", "train.credit.retry=success")
    assert [(s["label"], s["no_credit"]) for s in shown] == [
        ("attempt", "not credited"),
        ("reflect", None),
        ("reflect", None),
        ("retry", "retry_alone"),
        ("retry", "retry_alone"),
        ("blind_retry", "not credited"),
    ]
    assert [s["reward"] for s in shown] == [0, 1, 0, 1, 0, 0]


def test_what_follows_a_try_that_a_label_calls_right(run, capsys):
    label(run, "1episode", span_id="attempt", passed=True)
    shown = spans_of(capsys, run, "1episode", "--set", "train.credit.retry=success")
    assert [s["no_credit"] for s in shown] == ["not credited", *["after_success"] * 4, "not credited"]
    assert [s["reward"] for s in shown] == [1, None, None, None, None, None]


def test_steps_of_a_try_have_its_credit_and_their_row(tmp_path, capsys):
    """A try of three steps, of which the last is asked anew, with a call of another model between."""

    def played(number: int, passed: bool) -> Trajectory:
        ids = [5, 6, 7]
        call = recorded("attempt", None, "3 * 2", span_id=f"a{number}", prompt_token_ids=ids)
        other = span("attempt", call, text="left", purpose="router", standalone=True, token_ids=[9], logprobs=[-1])
        whole = [*ids, *call.token_ids, 8]
        more = recorded("attempt", other, "4 + 2", prompt_token_ids=whole, standalone=True, span_id=f"b{number}")
        end = recorded("attempt", more, "6", passed, prompt_token_ids=ids, span_id=f"c{number}")
        return tree(call, other, more, end).changed(trajectory_id=f"{number}played")

    store(tmp_path, played(1, True), played(2, False))
    flags = ("--set", "train.credit.attempt=success", "--set", "train.scale_rewards=none")
    shown = spans_of(capsys, tmp_path, "1played", *flags)
    assert [(s["span_id"], s["credit"], s["row"], s["apart"], s["no_credit"]) for s in shown if not s["purpose"]] == [
        ("a1", 0.5, 0, None, None),
        ("b1", 0.5, 0, None, None),
        ("c1", 0.5, 1, "history_rewritten", None),
    ]
    assert [(s["credit"], s["no_credit"], s["reward"]) for s in shown if s["purpose"]] == [(None, "not_the_policy", 1)]
    assert {s["try_id"] for s in shown} == {"a1"}
    assert "".join(t["text"] for t in shown[2]["tokens"]) == "4 + 2 <|end|>"
    _, out, _ = inspect(capsys, tmp_path, "1played", *flags)
    assert "\nattempt credit +0.50 and imitated +1.00, reward 1.00 [" in out
    assert "\nattempt step of a1 (router) no credit: not_the_policy, reward 1.00 [" in out
    apart = "a row of its own: history_rewritten ["
    assert f"\nattempt step of a1 ✓ credit +0.50 and imitated +1.00, reward 1.00, {apart}" in out
    failed = played(3, False)
    error = EpisodeError(kind="AgentError", message="boom")
    last = failed.spans[-1].model_copy(update={"verdict": None, "error": error})
    store(tmp_path, failed.changed(spans=(*failed.spans[:-1], last)))
    _, out, _ = inspect(capsys, tmp_path)
    lines = [line.split() for line in out.splitlines()]
    assert ["first", "try", "50.0%"] in [line[:3] for line in lines]
    assert ["steps", "in", "a", "try", "4.0"] in lines
    assert ["error", "in", "a", "try:", "AgentError", "1", "try"] in lines
    [shown, *_] = spans_of(capsys, tmp_path, "3played", *flags)
    assert shown["no_credit"] == "errored"


def test_the_runs_own_settings_count(run, capsys):
    (run / "r3.toml").write_text('[train]\nscale_rewards = "none"\ncredit_weights = {reflect = 3}\n')
    assert [s["credit"] for s in spans_of(capsys, run, "1episode")] == [None, 1.5, -1.5, None, None, None]


def test_the_conversation_as_text_is_plain_when_no_one_watches(run, capsys):
    code, out, _ = inspect(capsys, run, "1episode", "--set", "train.scale_rewards=none")
    assert code == 0
    assert "\x1b" not in out
    legend = "in brackets after each token: its logprob when it was sampled"
    assert out.splitlines()[:2] == ["trajectory 1episode, credit as trained from v0000", legend]
    assert "  reflect credit +0.50, reward 1.00 [v0000, trainable-exact]\n    Start[-0.50] with[-1.50] 3[-2.50]" in out
    assert "reflect credit -0.50, reward 0.00" in out
    assert "retry ✓ imitated +1.00, reward 1.00" in out
    assert "retry ✗ no credit, reward 0.00" in out


def test_on_a_terminal_colour_is_the_sign_of_credit(run, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    _, out, _ = inspect(capsys, run, "1episode")
    red, green = "\x1b[31m", "\x1b[32m"
    [good] = [line for line in out.splitlines() if "reward 1.00" in line and "reflect" in line]
    [bad] = [line for line in out.splitlines() if "reward 0.00" in line and "reflect" in line]
    assert (green in good, red in good) == (True, False)
    assert (green in bad, red in bad) == (False, True)


def test_thinking_that_was_handed_over_is_shown(run, capsys):
    thinking = span("attempt", passed=False, text="it is 5", reasoning="2 and 2\x1b[2J")
    store(run, tree(thinking).model_copy(update={"trajectory_id": "thinker"}))
    _, out, _ = inspect(capsys, run, "thinker")
    assert "(thinking: 2 and 2\N{REPLACEMENT CHARACTER}[2J) it is 5" in out
    assert [s["reasoning"] for s in spans_of(capsys, run, "thinker")] == ["2 and 2\x1b[2J"]
    assert {s["reasoning"] for s in spans_of(capsys, run, "1episode")} == {None}


def test_text_that_would_command_a_terminal_is_not_passed_on(run, capsys):
    hostile = span("attempt", passed=False, text="\x1b[2J\x07gone")
    store(run, tree(hostile).model_copy(update={"trajectory_id": "hostile"}))
    _, out, _ = inspect(capsys, run, "hostile")
    assert "gone" in out
    assert not {"\x1b", "\x07"} & set(out)


@pytest.mark.parametrize(
    ("base_model", "says"),
    [("/no/such/model", "no tokenizer.json of it on this machine"), ("gpt-none", "on this machine")],
)
def test_without_the_tokenizer_the_ids_are_shown_and_the_reason(base_model, says, run, capsys):
    flag = f"--set=policy.base_model={base_model}"
    code, out, _ = inspect(capsys, run, "1episode", flag)
    assert code == 0
    assert f"no token texts: {base_model}" in out
    assert says in out
    assert "Start with 3 + 2" in out
    assert {t["text"] for s in spans_of(capsys, run, "1episode", flag) for t in s["tokens"]} == {None}


def test_the_tokenizer_of_another_model_is_not_believed(run, capsys):
    other = tree(span("attempt", text="quite another text", passed=True, token_ids=[8, 9], logprobs=[-1, -1]))
    store(run, other.model_copy(update={"trajectory_id": "other"}))
    _, out, _ = inspect(capsys, run, "other")
    assert "they are not the recorded text; set policy.base_model" in out
    assert "8[-1.00] 9[-1.00] = quite another text" in out


def test_both_ways_of_naming_the_run_are_the_same(run, capsys):
    named = inspect(capsys, run, "1episode")
    assert inspect(capsys, "1episode", "--run", run) == inspect(capsys, "--run", run, "1episode") == named
    assert inspect(capsys, run) == inspect(capsys, "--run", run)
    assert named[0] == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["9"], "trajectory '9': not among the 2"),
        (["1episode", "2episode"], "one trajectory at a time"),
        (["1episode", "--set", "train.credit.retry=lift"], "what fits retry is 'success' or 'score'"),
    ],
)
def test_what_cannot_be_shown_exits_2(words, says, run, capsys):
    code, out, err = inspect(capsys, run, *words)
    assert (code, out) == (2, "")
    assert says in err


def test_an_id_may_be_shortened_as_long_as_it_is_one(run, capsys):
    store(run, episode(1).model_copy(update={"trajectory_id": "1epilogue"}))
    assert inspect(capsys, run, "1epis")[0] == 0
    code, _, err = inspect(capsys, run, "1ep")
    assert code == 2
    assert "begins the ids of 2" in err
