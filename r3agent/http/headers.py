"""Headers of gateways as settings: values may come from the environment, and are in no file and no message."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

from r3agent.errors import ConfigError

HEADER_NAME = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
"""Header name as in RFC 9110."""

VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
"""Environment variable in a value: `$NAME` or `${NAME}`."""

SECRET = re.compile(r"(?i)auth|key|token|secret|passw|pwd|cookie|credential|signature|^(?:sig|code)$")
"""Names of headers, and of parameters of a URL, with secret values."""


def parse_headers(lines: Iterable[str], *, setting: str) -> dict[str, str]:
    """Parse lines `Name: value`.

    Raises:
        ConfigError: a line has no name before a colon.
    """
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not colon or not HEADER_NAME.fullmatch(name):
            raise ConfigError(f"{setting}: a line has no header's name before the colon; write Name: value")
        headers[name] = value
    return headers


def check_stored(headers: Mapping[str, str], *, setting: str) -> None:
    """Check that no secret is written to a file.

    Raises:
        ConfigError: the value of a header with a secret is not in the environment.
    """
    for name, value in headers.items():
        if SECRET.search(name) and not VARIABLE.search(value):
            raise ConfigError(
                f"{setting}.{name}: its value would be written to a file; put it into an environment variable, and "
                f'write {name} = "$THAT_VARIABLE"'
            )


def fill_in(headers: Mapping[str, str], *, setting: str) -> dict[str, str]:
    """Replace `$NAME` and `${NAME}` by the values of environment variables.

    Raises:
        ConfigError: a variable is not set.
    """

    def value_of(match: re.Match[str]) -> str:
        variable = match[1] or match[2]
        if not (value := os.environ.get(variable, "").strip()):
            raise ConfigError(f"{setting}: the environment variable {variable} is not set; export it")
        return value

    return {name: VARIABLE.sub(value_of, value) for name, value in headers.items()}


def has_key(headers: Mapping[str, str] | None) -> bool:
    """Return True if a header other than Authorization has the key, as `api-key` of Azure."""
    return any(re.search("(?i)api-?key|authorization", name) for name in headers or ())
