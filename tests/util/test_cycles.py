from __future__ import annotations

import gc

from r3agent._util.cycles import THRESHOLDS, rare_garbage_collection


def test_rare_garbage_collection_freezes_what_exists() -> None:
    before = gc.get_threshold()
    gc.unfreeze()
    try:
        with rare_garbage_collection():
            assert gc.get_freeze_count() > 0
            assert gc.get_threshold() == THRESHOLDS
        assert (gc.get_freeze_count(), gc.get_threshold()) == (0, before)
    finally:
        gc.freeze()


def test_rare_garbage_collection_leaves_frozen_objects_frozen() -> None:
    gc.freeze()
    with rare_garbage_collection():
        assert gc.get_threshold() == THRESHOLDS
    assert gc.get_freeze_count() > 0
