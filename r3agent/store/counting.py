"""Counts of stored records for a summary, by the index."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from r3agent.records.summary import Tally
from r3agent.store.entry import Entry, counts_of
from r3agent.store.index import EntryReader
from r3agent.store.labels import label_files, with_labels
from r3agent.store.reading import records
from r3agent.store.shards import store_at


def count(tally: Tally, directory: str | Path, counted: Iterable[Entry]) -> None:
    """Add records to a tally, with their labels; those that no label can be on are not read."""
    by_id = {entry.trajectory_id: entry for entry in counted}
    labels = label_files(store_at(directory)).items()
    labelled = {label.trajectory_id for path, kind in labels for label in records([path], kind)}
    read = {id_: entry for id_, entry in by_id.items() if id_ in labelled or (labelled and entry.parent_id)}
    read |= {entry.parent_id: by_id[entry.parent_id] for entry in read.values() if entry.parent_id in by_id}
    reader = EntryReader()
    in_order = (reader.read(entry) for id_, entry in by_id.items() if id_ in read)
    counts = {t.trajectory_id: counts_of(t) for t in with_labels(directory, in_order)}
    for id_, entry in by_id.items():
        tally.add_counts(counts.get(id_, entry.counts), id_, entry.parent_id, task_id=entry.task_id)
