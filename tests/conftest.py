from __future__ import annotations

import os

from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here needs a hub

settings.register_profile("r3agent", deadline=None)  # how long a busy machine takes says nothing of the code
settings.load_profile("r3agent")
