"""Import of logs: each format as its own library or documentation has it."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage, message_to_dict
from openai.types.chat import ChatCompletion

from r3agent import ConfigError, Trajectory, branch, load
from r3agent.cli.main import main
from r3agent.data import forget, import_logs
from r3agent.testing import ScriptedPolicy
from r3agent.train import TrainConfig, build_rows

ASKED = {"role": "user", "content": "Weather in Rome?"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
CALLED = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "Rome"}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALLED]}
SEEN = {"role": "tool", "tool_call_id": "c1", "content": "sun"}
ANSWER = {"role": "assistant", "content": "Sunny."}


def written(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def completion(content: str, **more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    choices = [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}]
    body = {"id": "x", "created": 1, "model": "gpt", "object": "chat.completion", "choices": choices, "usage": usage}
    return ChatCompletion.model_validate({**body, **more}).model_dump(mode="json")


def shape(trajectory: Trajectory) -> tuple[Any, ...]:
    return (
        [message["role"] for message in trajectory.task.messages],
        [(span.text, len(span.tool_calls), span.capability) for span in trajectory.spans],
        trajectory.passed,
    )


STEPS = (["user"], [("", 1, "trainable-retokenised"), ("Sunny.", 0, "trainable-retokenised")], True)


def test_import_reads_plain_chats(tmp_path: Path) -> None:
    earlier = [{"role": "system", "content": "Be brief."}, ASKED, ANSWER]
    rows = [
        {"messages": [ASKED, CALLING, SEEN, ANSWER], "tools": [TOOL], "passed": True, "user": "anna", "id": "1"},
        {"messages": [*earlier, {"role": "user", "content": "And Oslo?"}, ANSWER], "score": 0.25, "feedback": "wrong"},
        {"messages": [ASKED, ANSWER], "metadata": {"outcome": "failed", "team": "a", "split": "test"}},
        {"messages": [ASKED, ANSWER], "id": "open"},
        {"messages": [ASKED]},
        {"messages": [ASKED, ANSWER], "passed": "perhaps"},
        {"text": "no chat"},
    ]
    report = import_logs([written(tmp_path / "chats.jsonl", *rows)], tmp_path / "store")
    assert (report.episodes, report.kinds, report.unlabelled) == (4, {"chat": 4}, 1)
    assert [why.partition(":")[2].partition(": ")[2] for why in report.left_out] == [
        "its messages have no answer after the last question",
        "outcome 'perhaps': neither true or false nor a number",
        "none of the formats has such a row: text",
    ]
    tools, scored, failed, open_ = load(tmp_path / "store")
    assert shape(tools) == STEPS
    assert tools.metadata["user"] == "anna"
    assert tools.spans[1].request == (SEEN,)
    assert shape(scored)[0] == ["system", "user", "assistant", "user"]
    assert scored.spans[0].verdict is not None
    assert (scored.passed, scored.spans[0].verdict.score, scored.spans[0].verdict.feedback) == (False, 0.25, "wrong")
    assert (failed.passed, failed.metadata["team"], open_.passed) == (False, "a", None)
    assert failed.metadata["log_metadata"] == {"split": "test"}  # of the log's, and no split of a run
    assert "split" not in failed.metadata
    again = import_logs([tmp_path / "chats.jsonl"], tmp_path / "store")
    assert (again.episodes, again.stored_before) == (0, 4)
    assert len(load(tmp_path / "store")) == 4
    assert len(forget(tmp_path / "store", where="user=anna").episodes) == 1


def test_import_reads_chat_completions(tmp_path: Path) -> None:
    request = {"model": "gpt", "messages": [ASKED], "temperature": 0.2, "tools": [TOOL], "user": "anna"}
    pair = {"request": request, "response": completion("Rain."), "passed": False}
    stored = {**completion("Sunny.", id="y"), "messages": [ASKED], "metadata": {"success": "true", "shop": "b"}}
    put_in = {"custom_id": "7", "method": "POST", "url": "/v1/chat/completions", "body": request}
    put_out = {
        "id": "r",
        "custom_id": "7",
        "response": {"status_code": 200, "body": completion("Snow.")},
        "error": None,
    }
    thought = completion("Hm.", id="z")
    thought["usage"]["completion_tokens_details"] = {"reasoning_tokens": 9}
    files = [
        written(tmp_path / "log.jsonl", pair, stored, {"request": request, "response": thought}),
        written(tmp_path / "out.jsonl", put_out),
        written(tmp_path / "in.jsonl", put_in),
    ]
    report = import_logs(files, tmp_path / "store")
    assert (report.episodes, report.kinds, report.left_out) == (4, {"openai": 4}, ())
    found = {t.spans[0].text: t for t in load(tmp_path / "store")}
    rain = found["Rain."].spans[0]
    assert (rain.model, rain.finish_reason, rain.prompt_tokens, rain.completion_tokens) == ("gpt", "stop", 5, 2)
    assert rain.sampling == {"temperature": 0.2}
    assert (found["Rain."].passed, found["Sunny."].passed, found["Snow."].passed) == (False, True, None)
    assert (found["Rain."].metadata["user"], found["Sunny."].metadata["shop"]) == ("anna", "b")
    assert found["Hm."].spans[0].capability == "eval-only"


def observation(id_: str, start: str, asked: Any, answered: Any) -> dict[str, Any]:
    common = {"id": id_, "traceId": "t1", "startTime": start, "model": "gpt", "modelParameters": {"temperature": 0.5}}
    usage = {"input": 9, "output": 3, "total": 12}
    return {**common, "type": "GENERATION", "input": asked, "output": answered, "usageDetails": usage}


def test_import_reads_traces_of_langfuse(tmp_path: Path) -> None:
    second = observation("o2", "2026-01-01T00:00:02Z", {"messages": [ASKED, CALLING, SEEN], "tools": [TOOL]}, ANSWER)
    first = observation("o1", "2026-01-01T00:00:01Z", {"messages": [ASKED], "tools": [TOOL]}, CALLING)
    tool = {"id": "o3", "traceId": "t1", "type": "TOOL", "input": {}, "output": "sun"}
    score = {"id": "s", "traceId": "t1", "name": "helpful", "value": 0.8, "dataType": "NUMERIC", "comment": "nice"}
    about = {"id": "t1", "userId": "anna", "sessionId": "s1", "metadata": {"shop": "b"}}
    download = tmp_path / "trace-t1.json"
    download.write_text(
        json.dumps({"trace": about, "observations": [second, tool, first], "scores": [score]}, indent=2)
    )
    report = import_logs([download], tmp_path / "store", pass_at=0.5)
    assert (report.kinds, report.left_out) == ({"langfuse": 1}, ())
    (found,) = load(tmp_path / "store")
    assert shape(found) == STEPS
    assert found.spans[1].request == (SEEN,)
    assert {key: found.metadata[key] for key in ("user", "session", "shop")} == {
        "user": "anna",
        "session": "s1",
        "shop": "b",
    }
    assert found.spans[0].sampling == {"temperature": 0.5}
    of_api = tmp_path / "api.json"
    of_api.write_text(json.dumps({"data": [{**about, "observations": [first, second], "scores": [score]}]}))
    assert import_logs([of_api], tmp_path / "store", pass_at=0.5).stored_before == 1


def test_import_reads_tables_of_langfuse(tmp_path: Path) -> None:
    """Rows as of an export to a blob storage: snake case, and JSON as text."""
    row = {
        "id": "o1", "trace_id": "t2", "type": "GENERATION", "start_time": "2026-01-01 00:00:01.0", "user_id": "bert",
        "provided_model_name": "gpt", "model_parameters": '{"temperature": 1}', "input": json.dumps([ASKED]),
        "output": json.dumps(ANSWER), "usage_details": {"input": 4, "output": 2},
    }  # fmt: skip
    scores = [
        {"trace_id": "t2", "name": "helpful", "value": 0.0, "data_type": "CATEGORICAL", "string_value": "yes"},
        {"trace_id": "t2", "name": "tone", "value": 0.0, "data_type": "NUMERIC"},
    ]
    files = [written(tmp_path / "scores.jsonl", *scores), written(tmp_path / "observations_v2.jsonl", row)]
    with pytest.raises(ConfigError, match="the scores helpful, tone; name one of them with --outcome"):
        import_logs(files, tmp_path / "store")
    import_logs(files, tmp_path / "store", outcome="helpful")
    (found,) = load(tmp_path / "store")
    assert (found.passed, found.metadata["user"], found.spans[0].prompt_tokens) == (True, "bert", 4)


def test_import_takes_the_newest_score_of_langfuse(tmp_path: Path) -> None:
    """Scores in the forms of version 3 and 2 of the API, which begin with the newest."""
    common = {"name": "ok", "dataType": "BOOLEAN"}
    traces = [observation(f"o{n}", "2026-01-01T00:00:01Z", [ASKED], ANSWER) | {"traceId": f"t{n}"} for n in (1, 2, 3)]
    scores = [
        {**common, "value": True, "timestamp": "2026-01-03T00:00:00Z", "subject": {"kind": "trace", "id": "t1"}},
        {**common, "value": 0, "stringValue": "False", "timestamp": "2026-01-02T00:00:00Z", "traceId": "t1"},
        {**common, "value": True, "subject": {"kind": "observation", "id": "o2", "traceId": "t2"}},
        {**common, "value": True, "subject": {"kind": "session", "id": "s1"}},
    ]
    failed = observation("o4", "2026-01-01T00:00:02Z", [ASKED], "rate limit") | {"traceId": "t3", "level": "ERROR"}
    report = import_logs([written(tmp_path / "rows.jsonl", *scores, *traces, failed)], tmp_path / "store")
    assert {t.metadata["log_id"]: (t.passed, len(t.spans)) for t in load(tmp_path / "store")} == {
        "t1": (True, 1),
        "t2": (True, 1),
        "t3": (None, 1),
    }
    assert [why.partition(": ")[2] for why in report.left_out] == [
        "none of the formats has such a row: name, dataType, value, subject",
        "the call failed",
    ]


@pytest.mark.parametrize("dump", [dumpd, message_to_dict], ids=["dumpd", "message_to_dict"])
def test_import_reads_runs_of_langsmith(tmp_path: Path, dump: Any) -> None:
    asked = HumanMessage("Weather in Rome?")
    calling = AIMessage("", tool_calls=[{"name": "look", "args": {"at": "Rome"}, "id": "c1"}])
    seen, answer = ToolMessage("sun", tool_call_id="c1"), AIMessage("Sunny.")

    def run(id_: str, start: str, messages: list[Any], reply: Any) -> dict[str, Any]:
        extra = {
            "invocation_params": {"model": "gpt", "temperature": 0.5, "tools": [TOOL]},
            "metadata": {"user": "anna"},
        }
        generations = [[{"text": reply.content, "message": dump(reply), "type": "ChatGeneration"}]]
        return {
            "id": id_, "trace_id": "root", "parent_run_id": "root", "run_type": "llm", "start_time": start,
            "inputs": {"messages": [[*map(dump, messages)]]}, "outputs": {"generations": generations}, "extra": extra,
        }  # fmt: skip

    root = {"id": "root", "trace_id": "root", "run_type": "chain", "inputs": {}, "outputs": {}, "extra": {}}
    runs = [
        {"run_id": "r2", "key": "correct", "score": 1, "comment": "yes"},
        run("r2", "2026-01-01T00:00:02", [asked, calling, seen], answer),
        root,
        run("r1", "2026-01-01T00:00:01", [asked], calling),
    ]
    report = import_logs([written(tmp_path / "runs.jsonl", *runs)], tmp_path / "store", version="v0000")
    assert (report.kinds, report.left_out) == ({"langsmith": 1}, ())
    (found,) = load(tmp_path / "store")
    assert shape(found) == STEPS
    assert (found.metadata["user"], found.spans[0].policy_version) == ("anna", "v0000")
    assert json.loads(found.spans[0].tool_calls[0]["function"]["arguments"]) == {"at": "Rome"}


def test_import_reads_tables_of_langsmith(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    row = {
        "id": "r", "trace_id": "r", "run_type": "llm", "start_time": "2026-01-01T00:00:01",
        "inputs": json.dumps({"messages": [ASKED]}), "outputs": json.dumps({"choices": [{"message": ANSWER}]}),
        "extra": json.dumps({"metadata": {"ls_model_name": "gpt"}}),
        "feedback_stats": '{"correct": {"n": 2, "avg": 0.5}}',
    }  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "runs.parquet")
    import_logs([tmp_path / "runs.parquet"], tmp_path / "store")
    (found,) = load(tmp_path / "store")
    assert (found.passed, found.spans[0].model, found.answer and found.answer.text) == (False, "gpt", "Sunny.")


def test_imported_answers_train_only_as_retokenised(tmp_path: Path) -> None:
    rows = [
        {"messages": [ASKED, {"role": "assistant", "content": text}], "passed": text == "Sunny."}
        for text in ("Sunny.", "Rain.")
    ]
    import_logs([written(tmp_path / "chats.jsonl", *rows)], tmp_path / "store", version="v0000")
    config = TrainConfig.model_validate({"recipe": "paper", "credit": {"attempt": "success"}, "retokenise": "allow"})
    made, report = build_rows(
        load(tmp_path / "store"), config=config, version="v0000", retokenise=lambda trajectory, span: ([1], [2])
    )
    assert (len(made), report.retokenised) == (2, 2)


def test_imported_failure_can_be_branched_off(tmp_path: Path) -> None:
    chat = [ASKED, {"role": "assistant", "content": "Rain."}]
    import_logs([written(tmp_path / "chats.jsonl", {"messages": chat, "passed": False})], tmp_path / "store")
    policy = ScriptedPolicy({"reflect": ["Look.", "Guess."], "retry": ["Sunny.", "Rain."]})
    options: dict[str, Any] = {"policy": policy, "verifier": lambda task, answer: answer == "Sunny.", "reflections": 2}
    report = asyncio.run(branch(load(tmp_path / "store"), out=tmp_path / "branches", **options))
    assert report.summary.groups_with_variance == 1
    (found,) = load(tmp_path / "branches")
    assert [span.capability for span in found.spans if span.label == "reflect"] == ["trainable-exact"] * 2


def test_import_verb_reports_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chats = written(tmp_path / "chats.jsonl", {"messages": [ASKED, ANSWER]}, {"messages": [ASKED]})
    assert main(["data", "import", str(chats), "--out", str(tmp_path / "store")]) == 0
    text = capsys.readouterr().out
    assert "1 episode imported into" in text
    assert "1 have no outcome" in text
    assert "rows left out: 1" in text
    assert (
        main(["data", "import", str(written(tmp_path / "none.jsonl", {"a": 1})), "--out", str(tmp_path / "new")]) == 2
    )
    assert "no conversation was found: " in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert main(["data", "import", str(tmp_path / "absent.jsonl"), "--out", str(tmp_path / "new")]) == 2
    assert "there is no such file" in capsys.readouterr().err


def test_import_of_a_file_that_is_not_json_stores_nothing(tmp_path: Path) -> None:
    logs = written(tmp_path / "chats.jsonl", {"messages": [ASKED, ANSWER], "passed": True})
    logs.write_text(logs.read_text() + "\nno json\n")
    with pytest.raises(ConfigError, match=r"chats\.jsonl:2: not JSON: .*; mend it or remove it; nothing was imported"):
        import_logs([logs], tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_import_reads_arrays_of_any_packing(tmp_path: Path) -> None:
    rows = [{"messages": [ASKED, {"role": "assistant", "content": f"é{n}"}], "passed": not n % 2} for n in range(9)]
    text = json.dumps(rows, indent=1, ensure_ascii=False)
    packed = {"a.json": text.encode("utf-16"), "b.json.gz": gzip.compress(text.encode()), "c.json": text.encode()}
    for name, content in packed.items():
        (tmp_path / name).write_bytes(content)
        report = import_logs([tmp_path / name], tmp_path / f"store-{name}")
        assert (report.episodes, report.kinds, report.left_out) == (9, {"chat": 9}, ())
        assert [t.spans[0].text for t in load(tmp_path / f"store-{name}")] == [f"é{n}" for n in range(9)]
    (tmp_path / "d.json.gz").write_bytes(packed["b.json.gz"][:-20])
    with pytest.raises(ConfigError, match=r"d\.json\.gz: .*; nothing was imported"):
        import_logs([tmp_path / "d.json.gz"], tmp_path / "store-d")
    (tmp_path / "e.jsonl").write_bytes(json.dumps(rows[0]).encode() + b'\n{"caf\xe9": 1}')
    with pytest.raises(ConfigError, match=r"e\.jsonl:2 is not UTF-8 \(byte 0xe9\); .*; nothing was imported"):
        import_logs([tmp_path / "e.jsonl"], tmp_path / "store-d")
    assert not (tmp_path / "store-d").exists()


def test_import_keeps_few_rows_in_memory(tmp_path: Path) -> None:
    """Rows of 30 MB that take 90 MB in memory, calls and scores apart."""
    filler = "x" * 30_000
    with (tmp_path / "observations.jsonl").open("w") as file:
        for n in range(1000):
            row = observation(f"o{n}", "2026-01-01T00:00:01Z", [ASKED], {"role": "assistant", "content": filler})
            file.write(json.dumps({**row, "traceId": f"t{n}"}) + "\n")
    scores = [{"traceId": f"t{n}", "name": "ok", "value": n % 2, "dataType": "BOOLEAN"} for n in range(1000)]
    files = [tmp_path / "observations.jsonl", written(tmp_path / "scores.jsonl", *scores)]
    program = """
import sys
from pathlib import Path
from r3agent.data import import_logs

def peak_kib():  # that of `getrusage` may be the parent's
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1])

before = peak_kib()
report = import_logs(sys.argv[2:], sys.argv[1])
print(report.episodes, report.unlabelled, peak_kib() - before)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "store"), *map(str, files)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    assert said[:2] == ["1000", "0"]
    assert int(said[2]) < 45_000  # KiB
