"""Forgetting: take episodes out of every file of a run directory or a store, and leave a receipt.

The stores of a run are that of the training episodes and those of its evaluations and gates. In each, shards, labels,
copies that a repair left, and journals of gateways that were killed are rewritten; so are the lists of what versions
were trained on, the sequences of tokens on their cards, and the examples of comparisons. Reports, which have the text
of episodes, are removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

from r3agent._util.checked import checked
from r3agent._util.lock import file_lock
from r3agent._util.messages import nearest
from r3agent.data.receipts import FOLDER, Receipt, Rewritten, receipts, utc_now, write_receipt
from r3agent.data.rewriting import COPY, alone, no_collection, take_lines
from r3agent.data.selection import Selection, parsed, shown_keys
from r3agent.errors import BusyError, ConfigError
from r3agent.evaluate.comparison import forget_examples
from r3agent.records.branching import DONOR
from r3agent.store.provenance import EPISODES_FILE
from r3agent.store.reading import LABELS, lines_of
from r3agent.store.registry import MAX_PROMPT, Registry, write_card
from r3agent.store.shards import CONFIG_FILE, OTHER_STORES, REPORT_FILE, STORES, shards
from r3agent.train.lineage import ROWS_FILE


@checked
def forget(
    directory: str | Path,
    *,
    episodes: Sequence[str] = (),
    where: str | None = None,
    pattern: str | None = None,
    dry_run: bool = False,
) -> Receipt:
    """Take episodes out of a run directory or store, with everything that branched off them.

    One of `episodes`, `where` and `pattern` says which. A file that a process writes is left alone, and nothing of it
    is lost: end that process first. Weights that were trained on an episode stay; the receipt names their versions.

    Args:
        episodes: ids, beginnings of ids, or names under which a gateway recorded episodes.
        where: `KEY=VALUE` of the metadata; dots lead to keys within values, and an item of a list is a value too.
        pattern: regular expression that is searched in every text of an episode and of its labels.
        dry_run: report what would be taken out, and change nothing.

    Raises:
        ConfigError: there is no such directory or episode, no episode has such a key, or a file cannot be written.
        BusyError: the run is collecting, or a process writes a file that has some of it.
    """
    selection = Selection.of(tuple(episodes), where, pattern)
    root = _root(Path(directory))
    if dry_run:
        return _receipt(root, selection)
    with no_collection(root), file_lock(root / FOLDER / ".lock", "forget"):
        for left in [left for store in _stores(root) for left in store.rglob(f"{COPY}*")]:
            left.unlink()  # by a process that was killed
        for unfinished in [receipt for receipt in receipts(root) if receipt.finished_at is None]:
            _finish(root, unfinished, _Kept(unfinished))
        receipt = _receipt(root, selection)
        keeps = _Kept(receipt, selection)
        if not (touched := _touched(root, keeps)):
            return receipt
        for path in touched:
            with alone(path):
                pass  # raises before the first is changed
        receipt = _finish(root, receipt, keeps)
        if late := _touched(root, keeps):
            raise BusyError(f"{late[0]}: more was written while it was forgotten; end that process, and forget again")
    return receipt


class _Kept:
    """Predicate of the lines that stay.

    Args:
        receipt: ids that are forgotten, and hashes of lines that are no records.
        selection: the request, for what was written meanwhile; `None` if another process has begun the receipt.
    """

    def __init__(self, receipt: Receipt, selection: Selection | None = None) -> None:
        self.ids = {*receipt.episodes}
        self.parts = {*receipt.parts}
        self.selection = selection

    def __call__(self, content: bytes) -> bool:
        line = parsed(content)
        if line is not None and (ids := _ids(line)):
            is_selected = self.selection is not None and self.selection.matches(line)
            return not is_selected and self.ids.isdisjoint(ids)
        return _digest(content) not in self.parts and not any(id_.encode() in content for id_ in self.ids)

    def of_rows(self, content: bytes) -> bool:
        """Return True for a line of the rows or episodes of a version that stays."""
        return _trajectory_of(content) not in self.ids


def _digest(content: bytes) -> str:
    return sha256(content.strip()).hexdigest()


def _ids(line: dict[str, Any]) -> list[str]:
    """Return the ids of the episode, of the one that it branched off, and of the one that it took a reflection from."""
    metadata = line.get("metadata")
    donor = metadata.get(DONOR) if isinstance(metadata, dict) else None
    return [id_ for id_ in (line.get("trajectory_id"), line.get("parent_id"), donor) if isinstance(id_, str)]


def _root(directory: Path) -> Path:
    """Return the run directory that a store belongs to, or the store.

    Raises:
        ConfigError: there is no such directory.
    """
    if directory.name == "trajectories" and (directory.parent / CONFIG_FILE).is_file():
        return directory.parent
    if not (directory / CONFIG_FILE).is_file():
        shards(directory)  # raises if there is none
    return directory


def _stores(root: Path) -> list[Path]:
    found = [path for pattern in (*STORES, *OTHER_STORES) for path in sorted(root.glob(pattern)) if path.is_dir()]
    return found or [root]


def _files(root: Path) -> Iterator[Path]:
    """Yield the files that can have text of episodes. Labels come first, so that none is of an unknown episode."""
    for store in _stores(root):
        for pattern in (f"{LABELS}/*.jsonl*", "gateway-*.journal", "*.bak*"):
            yield from (path for path in sorted(store.glob(pattern)) if not path.name.startswith("."))
        yield from shards(store)


def _receipt(root: Path, selection: Selection) -> Receipt:
    """Find the episodes, and the versions that were trained on them."""
    found, parts, keys = set[str](), set[str](), set[str]()
    named: dict[str, set[str]] = {given: set() for given in selection.episodes}
    branches: dict[str, list[str]] = {}
    for path in _files(root):
        for content in lines_of(path):
            line = parsed(content)
            if line is None or not (ids := _ids(line)):
                parts |= {_digest(content)} if content.strip() and selection.in_text(content) else set[str]()
                continue
            if len(ids) > 1:
                branches[ids[0]] = ids[1:]
            keys.update(selection.keys(line))
            if selection.matches(line):
                found.add(ids[0])
            for given in filter(partial(selection.names, line), named):
                named[given].add(ids[0])
    if selection.where is not None and not parts and selection.where[0] not in keys:
        _check_forgotten(root, selection, keys)
    for given, ids in named.items():
        whole = ids & {given} or ids
        if len(whole) != 1:
            what = "not an episode" if not ids else f"the beginning of {len(ids)} ids, so give more of it;"
            raise ConfigError(f"episode {given!r}: {what} of {root}; r3agent inspect lists them")
        found |= whole
    while more := {id_ for id_, above in branches.items() if id_ not in found and not found.isdisjoint(above)}:
        found |= more
    return Receipt(
        selected_by=selection.kind,
        selection_sha256=selection.digest,
        episodes=tuple(sorted(found)),
        parts=tuple(sorted(parts)),
        trained=_trained(root, found),
    )


def _check_forgotten(root: Path, selection: Selection, keys: Iterable[str]) -> None:
    """Check that a key that no episode has is that of episodes that were forgotten.

    Raises:
        ConfigError: it is not, so it may be misspelt.
    """
    if selection.where is not None and all(receipt.selected_by != selection.kind for receipt in receipts(root)):
        key, own = selection.where[0], shown_keys(key for key in keys if "." not in key)
        known = f"known are {', '.join(own)}" if own else "no episode has any"
        raise ConfigError(f"where: no episode of {root} has the key {key!r}; {nearest(key, sorted(keys))}{known}")


def _trained(root: Path, ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
    ids, trained = {*ids}, dict[str, tuple[str, ...]]()
    for path in sorted(root.glob(f"policies/v*/{ROWS_FILE}")):
        if both := ids & {_trajectory_of(line) for line in lines_of(path)}:
            trained[path.parent.name] = tuple(sorted(both))
    return trained


def _trajectory_of(line: bytes) -> str:
    return str(orjson.loads(line)[0]) if line.strip() else ""


def _touched(root: Path, keeps: _Kept) -> list[Path]:
    """Find the files from which lines are taken."""
    return [path for path in _files(root) if not all(map(keeps, lines_of(path)))]


def _finish(root: Path, receipt: Receipt, keeps: _Kept) -> Receipt:
    """Take the episodes of a receipt out of every file."""

    def begin(file: Rewritten) -> None:
        nonlocal receipt
        receipt = receipt.with_file(file)
        write_receipt(root, receipt)

    write_receipt(root, receipt)
    for folder in (root, *_stores(root)):
        for name in (REPORT_FILE, f".{REPORT_FILE}.partial"):
            (folder / name).unlink(missing_ok=True)
    _forget_fingerprints(root, receipt)  # the shards have the tokens to look for
    for path in _touched(root, keeps):
        take_lines(path, keeps, begin)
    for version in receipt.trained:
        folder = root / "policies" / version
        for path in filter(Path.exists, (folder / ROWS_FILE, folder / EPISODES_FILE)):
            take_lines(path, keeps.of_rows, begin)
    forget_examples(root, keeps.ids)
    receipt = receipt.model_copy(update={"finished_at": utc_now()})
    write_receipt(root, receipt)
    return receipt


def _forget_fingerprints(root: Path, receipt: Receipt) -> None:
    """Take sequences with the tokens of an episode off the cards of the versions that were trained on it.

    Where the tokens of its prompts were not recorded, every sequence may be its own.
    """
    ids = {id_ for trained in receipt.trained.values() for id_ in trained}
    prompts: dict[str, set[tuple[int, ...]]] = {id_: set() for id_ in ids}
    for path in _files(root) if ids else ():
        for line in filter(None, map(parsed, lines_of(path))):
            for span in line.get("spans", ()) if line.get("trajectory_id") in ids else ():
                prompts[line["trajectory_id"]].add(tuple(span.get("prompt_token_ids") or ())[-MAX_PROMPT:])
    registry = Registry(root)
    for version, trained in receipt.trained.items():
        card = registry.card(version)
        begins = {prompt for id_ in trained for prompt in prompts[id_]}
        kept = [f for f in card.fingerprint if not any(f.token_ids_T[: len(prompt)] == prompt for prompt in begins)]
        if len(kept) < len(card.fingerprint):
            write_card(registry.version_dir(version), card.model_copy(update={"fingerprint": tuple(kept)}))
