"""Names of policy versions: v0000 is the base, v0001 the first trained version, served as `NAME@v0001`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import inf

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


def version_age(sampled: str | None, version: str, lineage: Sequence[str] | None = None) -> float | None:
    """Count the generations from the version that sampled to `version`, e.g. 1 from its parent.

    Args:
        lineage: `version` and its ancestors, newest first; `None` if they are unknown: all older numbers.

    Returns:
        The count, infinity for a version that `version` does not descend from; `None` if one name is not a version.
    """
    if sampled == version:
        return 0
    if not sampled or not is_version(sampled) or not is_version(version):
        return None
    if lineage is not None:
        return lineage.index(sampled) if sampled in lineage else inf
    return n if (n := version_number(version) - version_number(sampled)) > 0 else inf


def served_version(name: str) -> str | None:
    """Parse the version of a served name: v0007 for `NAME@v0007`; `None` for a name without a version."""
    _, _, version = name.rpartition("@")
    return version if version != name and is_version(version) else None


def base_name(name: str) -> str:
    """Remove the version from a served name: NAME for `NAME@v0007`."""
    return name.rpartition("@")[0] if served_version(name) else name
