"""Tracking services, which `make extras` installs into a directory of their own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

REPORTERS = Path(os.environ.get("R3AGENT_REPORTERS", f"{sys.prefix}/reporters"))

needs_services = pytest.mark.skipif(
    not (REPORTERS / "trackio").is_dir(), reason=f"TensorBoard, W&B and Trackio are not in {REPORTERS}: make extras"
)
