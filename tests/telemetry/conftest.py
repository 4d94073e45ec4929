from __future__ import annotations

from tests.support.exported import exported as exported
