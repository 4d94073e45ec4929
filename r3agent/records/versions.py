"""Names of policy versions: v0000 is the base, v0001 the first trained version, served as `NAME@v0001`."""

from __future__ import annotations

import re

BASE = "v0000"
PATTERN = r"v\d{4,}"


def version_name(number: int) -> str:
    """Format a version number: `v0007` for 7."""
    return f"v{number:04d}"


def is_version(text: str | None) -> bool:
    return re.fullmatch(PATTERN, text or "") is not None


def version_number(version: str) -> int:
    """Parse a version name: 7 for `v0007`."""
    return int(version[1:])


def version_distance(one: str | None, other: str) -> int | None:
    """Count the versions between two names; `None` if one of them is not a version."""
    if one == other:
        return 0
    return abs(version_number(one) - version_number(other)) if one and is_version(one) and is_version(other) else None


def served_version(name: str) -> str | None:
    """Parse the version of a served name: v0007 for `NAME@v0007`; `None` for a name without a version."""
    _, _, version = name.rpartition("@")
    return version if version != name and is_version(version) else None
