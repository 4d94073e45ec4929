from __future__ import annotations

from hypothesis import settings

settings.register_profile("r3agent", deadline=None)  # how long a busy machine takes says nothing of the code
settings.load_profile("r3agent")
