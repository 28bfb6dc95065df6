"""The snapshots of a data set as they lie on disk, those whose rows were forgotten in part included, and the lock of their writers.

A snapshot is found by its id, also by the one that it had before rows of it were forgotten. Whoever changes something holds the
data set's lock, as an ingest does.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pyarrow.parquet as pq

from refit.config import digest, nearest
from refit.errors import AlreadyRunningError, CorruptRecordError, DataError, UnknownNameError
from refit.layout import DatasetLayout, Layout
from refit.records import Record, SnapshotRecord
from refit.schema import KEY_HASH
from refit.sources.inputs import BATCH_ROWS, first_line

WAIT_SECONDS = 30.0
_ID_CHARACTERS = 16
_log = logging.getLogger(__name__)


def find_dataset(layout: Layout, name: str) -> DatasetLayout:
    """The paths of a data set that is there.

    Raises:
        UnknownNameError: it is not.
    """
    known = layout.datasets()
    if name not in known:
        told = nearest(name, known) or " There is none yet: the first run of a job makes one."
        raise UnknownNameError(f'there is no data set "{name}".{told}', where=str(layout.datasets_dir))
    return layout.dataset(name)


@contextlib.contextmanager
def hold_lock(home: DatasetLayout, wait_seconds: float) -> Iterator[None]:
    """Hold the data set's lock.

    Raises:
        AlreadyRunningError: another process holds it for all that time.
    """
    lock = filelock.FileLock(home.lock)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        _log.warning("another process is writing into %s: waiting for it, %g seconds at most", home.root, wait_seconds)
        try:
            lock.acquire(timeout=wait_seconds)
        except filelock.Timeout as error:
            raise AlreadyRunningError(
                f"another process has been writing into the data set for {wait_seconds:g} seconds: an ingest, or one of these commands.",
                where=str(home.lock),
                remedy="Wait for it to end, then give the command again; nothing was changed.",
            ) from error
    try:
        yield
    finally:
        lock.release()


def completed_files(folder: Path) -> list[Path]:
    """Files that were completed, sorted; those whose name begins with a dot are not."""
    return sorted(path for path in folder.glob("*") if not path.name.startswith(".") and path.is_file()) if folder.is_dir() else []


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- snapshots


class Forgotten(Record):
    """When rows of a snapshot were erased, how many, and by whom."""

    at: datetime
    num_rows: int
    by: str


class Tombstone(Record):
    """Stands in the place of a snapshot's record whose rows were erased in part; ``now`` is the snapshot without them."""

    id: str
    forgotten: Forgotten
    now: str


@dataclass(frozen=True)
class Shelf:
    """What the folder of snapshots holds, by id."""

    snapshots: dict[str, SnapshotRecord]
    tombstones: dict[str, Tombstone]
    unreadable: dict[str, CorruptRecordError]

    def resolve(self, snapshot: str) -> str:
        """Where the tombstones lead."""
        passed: set[str] = set()
        while snapshot in self.tombstones and snapshot not in passed:
            passed.add(snapshot)
            snapshot = self.tombstones[snapshot].now
        return snapshot

    def lineage(self, head: str | None) -> list[str]:
        """Ids from the newest back; ends where a parent is not there, cannot be read, or was passed already."""
        ids: dict[str, None] = {}
        while head is not None and (head := self.resolve(head)) in self.snapshots and head not in ids:
            ids[head] = None
            head = self.snapshots[head].parent
        return list(ids)

    def times(self, home: DatasetLayout) -> dict[str, float]:
        """When each snapshot's record was written: seconds since 1970, by id."""
        return {snapshot: home.snapshot(snapshot).stat().st_mtime for snapshot in self.snapshots}


def read_shelf(home: DatasetLayout) -> Shelf:
    """All that the folder of snapshots holds; what cannot be read stands apart."""
    shelf = Shelf({}, {}, {})
    for path in completed_files(home.snapshots_dir):
        try:
            record = _read_record(path)
        except CorruptRecordError as error:
            shelf.unreadable[path.stem] = error
            continue
        except FileNotFoundError:
            continue  # removed since the folder was listed
        if isinstance(record, Tombstone):
            shelf.tombstones[path.stem] = record
        else:
            shelf.snapshots[path.stem] = record
    return shelf


def _read_record(path: Path) -> SnapshotRecord | Tombstone:
    try:
        is_tombstone = "forgotten" in json.loads(path.read_bytes())
    except (ValueError, TypeError):
        is_tombstone = False
    return Tombstone.read(path) if is_tombstone else SnapshotRecord.read(path)


def read_snapshot(home: DatasetLayout, snapshot: str) -> SnapshotRecord:
    """A snapshot, or where rows of it were forgotten since, the one that took its place.

    Raises:
        UnknownNameError: it is not there (any more).
        CorruptRecordError: its record cannot be read.
    """
    shelf = read_shelf(home)
    found = shelf.resolve(snapshot)
    if found in shelf.snapshots:
        return shelf.snapshots[found]
    if found in shelf.unreadable:
        raise shelf.unreadable[found]
    if found != snapshot:
        told = f'rows of snapshot "{snapshot}" were forgotten; it went on as "{found}", which is not there any more.'
        raise UnknownNameError(told, where=str(home.snapshots_dir), remedy="Run the job again to make a new snapshot.")
    known = nearest(snapshot, [*shelf.snapshots, *shelf.tombstones])
    raise UnknownNameError(f'there is no snapshot "{snapshot}".{known}', where=str(home.snapshots_dir))


def read_head_id(home: DatasetLayout) -> str | None:
    """What HEAD says is the newest snapshot, be it there or not; None where there is no HEAD."""
    try:
        return home.head.read_text(errors="replace").strip()
    except FileNotFoundError:
        return None


def find_newest(home: DatasetLayout, shelf: Shelf) -> str:
    """The newest snapshot.

    Raises:
        CorruptRecordError: what it is cannot be told.
        DataError: there is none.
    """
    head = read_head_id(home)
    if head in shelf.snapshots:
        return str(head)
    if head is None and not shelf.snapshots and not shelf.unreadable:
        raise DataError("the data set has no snapshot yet.", where=str(home.root), remedy="Run its job; an ingest that failed made none.")
    raise CorruptRecordError(
        "HEAD does not name a snapshot that can be read.",
        where=str(home.head),
        received=repr(head),
        remedy="refit data verify tells all faults; nothing was changed.",
    )


def snapshot_id(content: Mapping[str, Any]) -> str:
    """The id that belongs to a record's content: the beginning of the digest of all but ``id``, ``parent`` and texts for people."""
    told = {name: value for name, value in content.items() if name not in ("id", "parent")}
    told["sources"] = [_without_words(source) for source in told.get("sources", ())]
    return digest(told)[:_ID_CHARACTERS]


def _without_words(source: Mapping[str, Any]) -> dict[str, Any]:
    """An input without the texts for people, which another version may word in another way."""
    kept = {name: value for name, value in source.items() if name != "notes"}
    return {**kept, "refused": bool(source["refused"])} if "refused" in source else kept


# ---- rows that must not come back


def read_forgotten(home: DatasetLayout) -> np.ndarray:
    """Hashes of rows that must not come back: uint64, sorted.

    Raises:
        CorruptRecordError: the list is damaged.
    """
    try:
        hashes = np.load(home.forgotten, allow_pickle=False)
    except FileNotFoundError:
        return np.empty(0, np.uint64)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged_list(home, first_line(error)) from error
    if hashes.dtype != np.uint64 or hashes.ndim != 1 or not (hashes[:-1] < hashes[1:]).all():
        raise _damaged_list(home, f"{hashes.dtype} of shape {list(hashes.shape)}")
    return np.asarray(hashes)


def _damaged_list(home: DatasetLayout, received: str) -> CorruptRecordError:
    return CorruptRecordError(
        "the list of forgotten rows cannot be read.",
        where=str(home.forgotten),
        expected="hashes (uint64), ascending",
        received=received,
        remedy="Restore the file from a copy; without it forgotten rows come back.",
    )


def count_forgotten(file: pq.ParquetFile, forgotten: np.ndarray) -> int:
    """How many rows of a shard have one of these hashes."""
    return sum(int(np.isin(batch[KEY_HASH].to_numpy(), forgotten).sum()) for batch in file.iter_batches(BATCH_ROWS, columns=[KEY_HASH]))
