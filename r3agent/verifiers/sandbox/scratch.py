"""Temporary directory on disk for a program without namespaces, removed after the program has ended."""

from __future__ import annotations

import os
from itertools import count
from tempfile import mkdtemp


def make() -> tuple[str, str]:
    """Create a directory and a subdirectory for the program; return both."""
    outer = mkdtemp(prefix="r3agent-sandbox-")
    inner = os.path.join(outer, "own")
    os.mkdir(inner, 0o700)
    return outer, inner


def remove(outer: str) -> None:
    """Remove a directory tree.

    It may be deeper than `shutil.rmtree` can descend, and without permissions for its owner. So every directory gets
    permissions, and is moved to the top before it is listed.
    """
    names, left = (os.path.join(outer, str(n)) for n in count()), [os.path.join(outer, "own")]
    while left:
        place = left.pop()
        os.chmod(place, 0o700)
        with os.scandir(place) as found:
            entries = list(found)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                os.chmod(entry.path, 0o700)
                left.append(next(names))
                os.rename(entry.path, left[-1])
            else:
                os.unlink(entry.path)
        os.rmdir(place)
    os.rmdir(outer)
