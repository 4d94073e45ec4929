from __future__ import annotations

from tests.support.chatting import endpoint as endpoint
