"""Exceptions of r3agent.

    R3Error
    |-- ConfigError            a setting, a file or a combination that cannot work; found before any work starts
    |   `-- ArgumentError      ... which is a field of a record or an argument; also a `ValueError`
    |-- BusyError              another process is doing this, on the same run
    |-- RecordError            a record cannot be read or stored
    |   `-- SchemaVersionError ... because another version of r3agent wrote it
    |-- PolicyError            the endpoint did not give a generation
    |   |-- EndpointError      timed out, or failing on its side; worth trying again later
    |   |   `-- UnreachableError ... because nothing accepts a connection there
    |   |-- RequestError       the endpoint refused this request
    |   |   |-- AccessError    ... and will refuse all others: wrong key, wrong model, wrong URL
    |   |   `-- ConversationError ... because of its text
    |   |       |-- ContextLengthError ... which is longer than the context
    |   |       `-- ContentFilterError ... which the endpoint's content filter refuses
    |   |-- ProtocolError      the endpoint's response is not an OpenAI response
    |   `-- StepLimitError     a try asked for more model calls than it may make
    |       `-- BudgetError    ... because a budget of its episode is spent
    |-- AgentError             an application's agent raised, or its program failed; says nothing about the model
    |-- EpisodeTimeoutError    an episode of a collection took longer than its time limit
    |-- VerifierError          the verifier raised, or returned an invalid value; says nothing about the model
    |-- TrainingError          training failed, or the rows cannot be trained on
    |-- DeployError            the weights did not reach the server; the live pointer did not move
    `-- HubError               the Hugging Face Hub refused an upload, or it broke off

Messages name the value, the limit and the remedy. `TrainingInterrupted` is a `KeyboardInterrupt`, not an `R3Error`.
"""

from __future__ import annotations

from typing import ClassVar


class R3Error(Exception):
    """Base class of all errors that r3agent raises on purpose."""

    exit_code = 1
    """Exit code of the command line: 1 for a failure, 2 for wrong usage, configuration or training rows."""


class ConfigError(R3Error):
    """A setting, a file or a combination that cannot work; raised before any work starts."""

    exit_code = 2


class ArgumentError(ConfigError, ValueError):
    """A record's field or a function's argument that does not fit; a `ValueError` too, as pydantic's own error is."""


class BusyError(R3Error):
    """Another process is doing this, on the same run."""


class EpisodeTimeoutError(R3Error):
    """An episode of a collection took longer than its time limit."""


class RecordError(R3Error):
    """A record cannot be read or stored."""


class SchemaVersionError(RecordError):
    """A record has a schema version that this version of r3agent cannot read."""


class PolicyError(R3Error, RuntimeError):
    """The endpoint did not give a generation.

    It is raised after all retries. It is a `RuntimeError`, so LangGraph's default `RetryPolicy` does not retry it, not
    even in the application's own nodes.
    """


class EndpointError(PolicyError):
    """The endpoint is unreachable, timed out or failed on its side; worth trying again later."""


class UnreachableError(EndpointError):
    """Nothing accepts a connection at the endpoint's address."""


class RequestError(PolicyError):
    """The endpoint refused this request.

    Args:
        status: HTTP status of the refusal.
        refusal: the server's full message, with the names of the fields that it refuses.
        param: the field to which the server attributes it.
    """

    def __init__(self, message: str = "", *, status: int = 400, refusal: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.refusal, self.param = status, refusal, param


class AccessError(RequestError):
    """The endpoint will refuse every request: wrong key, wrong model, wrong URL."""


class ConversationError(RequestError):
    """The endpoint refused this conversation because of its text.

    If the policy's own tries and reflections caused it, the graph records a failed try instead of an error.
    """

    finish_reason: ClassVar[str]
    """Finish reason of that try."""
    remedy: ClassVar[str]


class ContextLengthError(ConversationError):
    """The conversation, with the completion asked for, is longer than the context."""

    finish_reason = "context_overflow"
    remedy = "shorten the conversation or lower sampling.max_tokens"


class ContentFilterError(ConversationError):
    """The endpoint's content filter refused the conversation."""

    finish_reason = "content_refused"
    remedy = "the endpoint's content filter refuses this conversation"


class ProtocolError(PolicyError):
    """The endpoint's response is not an OpenAI response."""


class StepLimitError(PolicyError):
    """A try asked for more model calls than it may make; the call was not sent."""


class BudgetError(StepLimitError):
    """A budget of the episode is spent: the call was not sent, or the try was ended; says nothing about the model."""


class AgentError(R3Error):
    """An application's agent raised, or its program failed; says nothing about the model."""


class VerifierError(R3Error):
    """The verifier raised, or returned an invalid value; says nothing about the model."""


class TrainingError(R3Error):
    """Training failed, or its rows cannot be trained on."""

    exit_code = 2


class DeployError(R3Error):
    """The weights did not reach the server; the live pointer did not move."""


class HubError(R3Error):
    """The Hugging Face Hub refused an upload, or it broke off."""


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by a signal, and left a checkpoint, its argument, from which `resume` continues."""
