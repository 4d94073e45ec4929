from __future__ import annotations

import os
import signal

from hypothesis import settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for what runs in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here needs a hub

settings.register_profile("r3agent", deadline=None)  # how long a busy machine takes says nothing of the code
settings.load_profile("r3agent")
