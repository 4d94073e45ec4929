"""Every error r3agent raises on purpose.

    R3Error
    |-- ConfigError            a setting, a file or a combination that cannot work; found before any work starts
    |-- BusyError              another process is doing this, on the same run
    |-- RecordError            a record cannot be read or stored
    |   `-- SchemaVersionError ... because another version of r3agent wrote it
    |-- PolicyError            the endpoint did not give a generation
    |   |-- EndpointError      unreachable, timed out, or failing on its side; worth trying again later
    |   |-- RequestError       the endpoint refused this request, e.g. a prompt that is too long
    |   |   `-- AccessError    ... and will refuse every other: wrong key, wrong model, wrong URL
    |   `-- ProtocolError      the endpoint answered something that is not an OpenAI response
    |-- VerifierError          the verifier raised or returned nonsense; says nothing about the model
    |-- TrainingError          the rows cannot be trained on, and why
    `-- DeployError            the weights did not arrive; the live pointer did not move

Messages name the value, the limit and the remedy. `TrainingInterrupted` is no error but a `KeyboardInterrupt`.
"""

from __future__ import annotations


class R3Error(Exception):
    """The root: `except R3Error` catches whatever r3agent raises on purpose."""

    exit_code = 1
    """Exit code of the command line: 1 failed, 2 wrong usage, configuration or rows to train on."""


class ConfigError(R3Error):
    """A setting, a file or a combination that cannot work; raised before any work starts."""

    exit_code = 2


class BusyError(R3Error):
    """Another process is doing this, on the same run."""


class RecordError(R3Error):
    """A record cannot be read or stored."""


class SchemaVersionError(RecordError):
    """A record was written under a schema this version of r3agent does not read."""


class PolicyError(R3Error, RuntimeError):
    """The endpoint did not give a generation.

    Whatever is worth trying again has been tried again by then: as a `RuntimeError` it is left alone by LangGraph's
    default `RetryPolicy`, of the application's own nodes too.
    """


class EndpointError(PolicyError):
    """The endpoint is unreachable, timed out or failed on its side; worth trying again later."""


class RequestError(PolicyError):
    """The endpoint refused this request, e.g. a prompt that is too long.

    Args:
        refusal: the server's own words in full, with the names of the fields that it refuses.
    """

    def __init__(self, message: str = "", *, refusal: str = "") -> None:
        super().__init__(message)
        self.refusal = refusal


class AccessError(RequestError):
    """The endpoint will refuse every request: wrong key, wrong model, wrong URL."""


class ProtocolError(PolicyError):
    """The endpoint answered something that is not an OpenAI response."""


class VerifierError(R3Error):
    """The verifier raised or returned nonsense; says nothing about the model."""


class TrainingError(R3Error):
    """Training failed, or its rows cannot be trained on, and why."""

    exit_code = 2


class DeployError(R3Error):
    """The weights did not arrive at the server; the live pointer did not move."""


class TrainingInterrupted(KeyboardInterrupt):
    """Training stopped because it was asked to, with a checkpoint from which `resume` goes on."""
