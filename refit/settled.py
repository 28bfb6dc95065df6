"""What splits of a data set have settled for those that follow: which rows are where, and where time is cut.

It lies beside the snapshots, in one file for each kind of split, and only grows, so that it holds whichever snapshot comes next
(docs/decisions/0010-split-lineage.md). Splits by hash, group and column need none of it.
"""

import contextlib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import filelock
import numpy as np

from refit.assignments import SIDE_CODES, UNASSIGNED, Cuts, Hashes, Mask, Sides, chunks, find_places, sorted_once
from refit.config import Job, digest
from refit.errors import CorruptRecordError
from refit.layout import DatasetLayout
from refit.records import SIDES, Side, SnapshotRecord, opened_atomically
from refit.sources.inputs import first_line

_NAME_CHARACTERS = 16


@dataclass(frozen=True)
class Settled:
    """What is settled.

    Attributes:
        keys: key hashes of rows that were on a side: uint64 ``[rows]``, ascending. By time those of validation stand under train.
        cuts: where time was cut last.
    """

    keys: Mapping[Side, Hashes]
    cuts: Cuts | None = None

    def sides_of(self, keys: Hashes) -> Sides:
        """Where the rows with these keys are settled: uint8 ``[rows]``, ``UNASSIGNED`` where they are not."""
        sides = np.full(len(keys), UNASSIGNED, dtype=np.uint8)
        for side, known in self.keys.items():
            sides[is_among(keys, known)] = SIDE_CODES[side]
        return sides

    def add(self, side: Side, keys: Hashes) -> Hashes:
        """The keys of a side with those that are new to it; the array given is sorted in place."""
        known, new = self.keys[side], sorted_once(keys)
        new = new[~is_among(new, known)] if len(known) else new
        return known if not len(new) else new if not len(known) else sorted_once(np.concatenate([known, new]))


def is_among(keys: Hashes, known: Hashes) -> Mask:
    """Whether each key is among those that are known, which ascend: bool ``[keys]``."""
    found = np.zeros(len(keys), dtype=bool)
    for rows in chunks(len(keys)) if len(known) else ():
        places = find_places(known, keys[rows])
        np.minimum(places, len(known) - 1, out=places)
        found[rows] = known[places] == keys[rows]
    return found


def settled_name(snapshot: SnapshotRecord, job: Job) -> str:
    """Name of what decides that two splits share what is settled: how rows are told apart, and the rule.

    Shares belong to the rule where rows are spread evenly; windows do not, since cuts only move forward.
    """
    split = job.split
    key = {"key": snapshot.key} if snapshot.key else {"all_but": job.target.column}
    even = {"stratify": split.stratify or job.target.column, "validation": split.validation, "test": split.test}
    rule = even if split.by == "stratified" else {"time": job.data.time}
    return digest({"by": split.by, "hash": snapshot.key_hash, **key, **rule})[:_NAME_CHARACTERS]


@contextlib.contextmanager
def settling(home: DatasetLayout) -> Iterator[None]:
    """Be the only one that settles rows of the data set."""
    home.splits_dir.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(home.splits_lock):
        for leftover in home.splits_dir.glob(".*"):  # of one that was killed
            leftover.unlink(missing_ok=True)
        yield


def read_settled(home: DatasetLayout, name: str) -> Settled:
    """What is settled; nothing where there was no such split before.

    Raises:
        CorruptRecordError: the file is damaged.
    """
    path = home.settled(name)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            cuts = Cuts(*arrays["cuts"].tolist()) if "cuts" in arrays else None
            return Settled({side: arrays[side] for side in SIDES}, cuts)
    except FileNotFoundError:
        return Settled({side: np.empty(0, np.uint64) for side in SIDES})
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise CorruptRecordError(
            "what earlier splits have settled cannot be read.",
            where=str(path),
            expected="sorted key hashes of train, validation and test",
            received=first_line(error),
            remedy="Restore the file from a copy. If it is removed, rows are divided anew: some that were trained on will be tested on.",
        ) from error


def write_settled(home: DatasetLayout, name: str, settled: Settled) -> None:
    """Keep what is settled, whole or not at all."""
    arrays: dict[str, Any] = {str(side): keys for side, keys in settled.keys.items()}
    if settled.cuts is not None:
        arrays["cuts"] = np.array([settled.cuts.validation, settled.cuts.test], dtype=np.int64)
    with opened_atomically(home.settled(name)) as file:
        np.savez(file, **arrays)
