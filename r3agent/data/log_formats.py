"""Readers of logs: plain chats, OpenAI's chat completions, and exports of Langfuse and LangSmith.

plain       `{"messages": [...], "passed": true, "metadata": {...}}`, the last messages being the answer
OpenAI      a request and its response, in one row or as input and output of a batch, joined by `custom_id`
Langfuse    a trace with its observations and scores, as downloaded or from the API; or rows of observations and scores
LangSmith   rows of runs, and of feedback
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from r3agent._util.messages import shorten
from r3agent.data.conversations import Call, Conversation, as_messages, conversation_calls, parsed
from r3agent.data.log_calls import body_of, first_of, langfuse_call, langsmith_call, openai_calls
from r3agent.data.spool import Spool
from r3agent.errors import ConfigError
from r3agent.records.trajectory import Verdict

OUTCOMES = ("passed", "outcome", "success", "score", "reward")
"""Names of the outcome of a row, of which the first that it has counts."""

WORDS = {
    **dict.fromkeys(("true", "yes", "passed", "pass", "success", "correct", "1"), True),
    **dict.fromkeys(("false", "no", "failed", "fail", "failure", "incorrect", "0"), False),
}


GIVEN = ("updatedAt", "updated_at", "modified_at", "timestamp", "createdAt", "created_at")
"""Names of the time of a score."""


READERS: Mapping[str, Callable[[dict[str, Any]], Call]] = {"langfuse": langfuse_call, "langsmith": langsmith_call}


class Score(NamedTuple):
    """Outcome that a log has apart from the calls."""

    name: str
    value: Any
    comment: str | None
    given_at: str = ""
    """Time in ISO 8601; exports of an API begin with the newest."""


class Logs:
    """Rows of logs, put together to conversations.

    Args:
        outcome: name of the outcome or score; default: the first of `OUTCOMES` in a row, or the only score there is.
        pass_at: smallest number that passes.
        spool: place of the rows.
    """

    def __init__(self, outcome: str | None, pass_at: float, spool: Spool) -> None:
        self.outcome = outcome
        self.pass_at = pass_at
        self.left_out: list[str] = []
        """Rows that became no conversation, with the reason."""
        self._spool = spool
        """Rows until all are read: those that stand alone, requests by their id, the trace of each run of LangSmith,
        and calls, notes and scores by trace."""
        self._scores: dict[str, None] = {}
        """Names of the scores."""

    def add(self, where: str, value: Any) -> None:
        """Add a row of a file, or what it has several of."""
        if isinstance(value, list):
            for number, inner in enumerate(value, start=1):
                self.add(f"{where} row {number}", inner)
        elif not isinstance(value, dict):
            self.left_out.append(f"{where}: {shorten(value)} is no object")
        elif "observations" in value and ("trace" in value or "id" in value):
            self._add_trace(where, value)
        elif "run_type" in value:
            self._add_run(where, value)
        elif "run_id" in value and "key" in value:
            run = str(value.get("trace_id") or value["run_id"])
            given = value.get("score") if value.get("score") is not None else value.get("value")
            self._add_score("langsmith", run, value["key"], given, value)
        elif (trace := first_of(value, "traceId", "trace_id") or _scored_trace(value)) is not None:
            self._add_observation(where, str(trace), value)
        elif isinstance(value.get("data"), list):  # a page of an API
            self.add(where, value["data"])
        elif "custom_id" in value and "body" in value and "response" not in value:
            self._spool.put("request", str(value["custom_id"]), value["body"])
        else:
            self._spool.add("alone", where, value)

    def conversations(self) -> Iterable[Conversation]:
        """Yield what the rows are.

        Raises:
            ConfigError: there are several scores, and no name of one is given.
        """
        names = sorted(self._scores)
        if self.outcome is None and len(names) > 1:
            raise ConfigError(f"outcome: the logs have the scores {', '.join(names)}; name one of them with --outcome")
        wanted = self.outcome or (names[0] if names else None)
        for where, row in self._spool.items("alone"):
            try:
                yield from self._of_row(row)
            except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
                self.left_out.append(f"{where}: {_why(error)}")
        for kind, read in READERS.items():
            for id_, score in self._spool.items(f"score of {kind}"):  # feedback may be on a run of the trace
                trace = self._spool.last("trace", id_)
                self._spool.add(f"outcome of {kind}", id_ if trace is None else trace, score)
            for trace in self._spool.keys(f"call of {kind}"):
                yield from self._of_trace(kind, trace, read, wanted)

    def _of_trace(
        self, kind: str, trace: str, read: Callable[[dict[str, Any]], Call], wanted: str | None
    ) -> Iterable[Conversation]:
        rows: list[tuple[str, dict[str, Any]]] = [*self._spool.values(f"call of {kind}", trace)]
        calls: list[Call] = []
        for where, row in sorted(rows, key=lambda row: _began(row[1])):
            try:
                calls.append(read(row))
            except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
                self.left_out.append(f"{where}: {_why(error)}")
        about: dict[str, Any] = {}
        for noted in self._spool.values(f"note of {kind}", trace):
            about |= noted
        scores = [Score(*score) for score in self._spool.values(f"outcome of {kind}", trace)]
        scores = sorted((s for s in scores if s.name == wanted), key=lambda score: score.given_at)  # the last counts
        try:
            verdict = self._verdict(scores[-1].value, scores[-1].comment) if scores else None
        except ValueError as error:
            self.left_out.append(f"{kind} trace {trace}: {error}")
            return
        if calls:
            metadata = {**about, **({} if wanted is None or not scores else {"outcome": wanted})}
            yield Conversation(kind, trace, calls, verdict, metadata, _began(rows[0][1]) or None)

    # ---- rows that are a conversation each ----

    def _of_row(self, row: dict[str, Any]) -> Iterable[Conversation]:
        response = body_of(next((row[key] for key in ("response", "completion", "output") if key in row), row))
        row_id = str(row.get("id") or row.get("custom_id") or sha256(orjson.dumps(row, default=str)).hexdigest()[:16])
        metadata = dict(parsed(row.get("metadata")) or {})
        verdict = self._row_verdict(row, metadata)
        if isinstance(response, Mapping) and "choices" in response:
            request = (
                row.get("request") or row.get("body") or self._spool.last("request", str(row.get("custom_id"))) or row
            )
            request = body_of(request)
            metadata |= {"user": request["user"]} if request.get("user") else {}
            calls = openai_calls(request, response)
            for number, call in enumerate(calls):
                name = row_id if len(calls) == 1 else f"{row_id}/{number}"
                yield Conversation("openai", name, [call], verdict if len(calls) == 1 else None, metadata)
            return
        if "messages" not in row:
            raise ValueError(f"none of the formats has such a row: {', '.join(list(row)[:6])}")
        calls = conversation_calls(
            as_messages(row["messages"]), tools=row.get("tools") or [], model=row.get("model") or ""
        )
        if not calls:
            raise ValueError("its messages have no answer after the last question")
        metadata |= {"user": row["user"]} if row.get("user") else {}
        yield Conversation("chat", row_id, calls, verdict, metadata)

    def _row_verdict(self, row: dict[str, Any], metadata: dict[str, Any]) -> Verdict | None:
        for name in OUTCOMES if self.outcome is None else (self.outcome,):
            for place in (row, metadata):
                if (value := place.get(name)) is not None:
                    return self._verdict(value, row.get("feedback"))
        return None

    def _verdict(self, value: Any, feedback: Any) -> Verdict:
        if isinstance(value, str):
            value = WORDS.get(value.strip().lower(), value)
        if isinstance(value, bool):
            return Verdict(passed=value, score=float(value), feedback=feedback)
        if not isinstance(value, int | float):
            raise ValueError(f"outcome {shorten(value)}: neither true or false nor a number")
        passed = value >= self.pass_at
        return Verdict(passed=passed, score=value if 0 <= value <= 1 else float(passed), feedback=feedback)

    # ---- Langfuse ----

    def _add_trace(self, where: str, value: dict[str, Any]) -> None:
        trace: dict[str, Any] = value.get("trace") or value
        id_ = str(trace["id"])
        observations: list[Any] = parsed(value["observations"]) or []
        for number, observation in enumerate(observations, start=1):
            if isinstance(observation, dict):
                self._add_observation(f"{where} observation {number}", id_, observation)
        self._note("langfuse", id_, trace)
        for score in value.get("scores") or trace.get("scores") or ():
            self._add_observation(where, id_, score)

    def _add_observation(self, where: str, trace: str, value: dict[str, Any]) -> None:
        kind = str(value.get("type") or "").upper()
        if kind == "GENERATION":
            self._spool.add("call of langfuse", trace, [where, value])
            self._note("langfuse", trace, value)
        elif "name" in value and ("value" in value or "stringValue" in value or "string_value" in value):
            text = first_of(value, "stringValue", "string_value")
            is_text = str(first_of(value, "dataType", "data_type")).upper() == "CATEGORICAL"
            given = text if is_text or value.get("value") is None else value["value"]
            self._add_score("langfuse", trace, value["name"], given, value)

    def _note(self, kind: str, trace: str, value: Mapping[str, Any]) -> None:
        """Note the user, session and metadata of a trace."""
        about: dict[str, Any] = {}
        names = {"user": ("userId", "user_id"), "session": ("sessionId", "session_id"), "tags": ("tags",)}
        about |= {name: found for name, keys in names.items() if (found := first_of(value, *keys))}
        if isinstance(metadata := parsed(value.get("metadata")), dict):
            about |= metadata
        if about:
            self._spool.add(f"note of {kind}", trace, about)

    # ---- LangSmith ----

    def _add_run(self, where: str, value: dict[str, Any]) -> None:
        trace = str(value.get("trace_id") or value.get("id"))
        self._spool.put("trace", str(value.get("id")), trace)
        extra = parsed(value.get("extra"))
        about = {**value, "metadata": extra.get("metadata") if isinstance(extra, dict) else None}
        self._note("langsmith", trace, {key: about.get(key) for key in ("tags", "metadata")})
        for name, found in (parsed(value.get("feedback_stats")) or {}).items():
            if isinstance(found, dict) and found.get("avg") is not None:
                self._add_score("langsmith", trace, name, found["avg"], {})
        if value["run_type"] == "llm":
            self._spool.add("call of langsmith", trace, [where, value])

    def _add_score(self, kind: str, trace: str, name: Any, value: Any, row: Mapping[str, Any]) -> None:
        score = Score(str(name), value, row.get("comment"), _time(row, *GIVEN))
        self._scores[score.name] = None
        self._spool.add(f"score of {kind}", trace, [*score])


def _scored_trace(score: Mapping[str, Any]) -> Any:
    """Return the trace of a score in the form of version 3 of Langfuse's API; `None` for any other row."""
    subject = score.get("subject")
    if not isinstance(subject, Mapping):
        return None
    return subject.get("id") if subject.get("kind") == "trace" else subject.get("traceId")


def _began(row: Mapping[str, Any]) -> str:
    return _time(row, "startTime", "start_time", "dotted_order")


def _time(row: Mapping[str, Any], *names: str) -> str:
    found = first_of(row, *names)
    return found.isoformat() if hasattr(found, "isoformat") else str(found or "")


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}: not as such logs are"
