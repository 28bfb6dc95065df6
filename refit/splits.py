"""Train, validation and test: which row is on which side, for ever.

How rows are divided stands in ``refit.sides``, by rules in ``refit.assignments``; here is what a run keeps of it, and the only way to
the rows of a side. Appending data, renaming or reordering files moves no row of a split by hash or group, and no row that a split by
class has assigned; by time, no row that was trained on is ever tested on.
"""

import contextlib
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, overload

import numpy as np
import pyarrow as pa

from refit.assignments import NO_FOLD, SIDE_CODES, TRAIN, VALIDATION, Cuts, Hashes, Sides
from refit.config import Job
from refit.errors import DataError
from refit.layout import Layout, RunLayout
from refit.records import CutsRecord, Side, SnapshotRecord, SplitRecord, write_array
from refit.schema import arrow_schema
from refit.settled import is_among, settled_name, settling, write_settled
from refit.shards import read_shard
from refit.sides import Division, Stored, divide, divide_folds
from refit.wording import counted

Draw = Literal["split", "pool"] | int
LEARNED: tuple[Side, ...] = ("train", "validation")  # of validation rows a fit learns when to stop
_SETTLING = ("stratified", "time")
_REMEDY = "Add rows, or give that side a larger share."
_REMEDIES = {
    "group": "Add rows of more groups, or give that side a larger share.",
    "time": "Give that side a longer window. Cuts only move forward: where a row with a wrong date has moved them too far, mend it, and "
    "remove the data set's folder splits.",
    "column": "See which values stand for that side (split.values).",
}


@dataclass(frozen=True)
class Rows:
    """Raw columns of one side in snapshot order. That they name their side keeps statistics away from the test split."""

    side: Side
    table: pa.Table


@dataclass(frozen=True)
class TrainRows(Rows):
    """Rows that may be learned from. Only ``read_rows`` makes them: who takes them cannot be given others."""

    side: Literal["train"]


def split_rows(snapshot: SnapshotRecord, job: Job, layout: Layout, run: RunLayout) -> SplitRecord:
    """Put every row of a snapshot on a side and write sides, membership and folds into the run's folder.

    Writes ``sides.npy`` (uint8 in snapshot order: 0 train, 1 validation, 2 test, 3 none), ``{side}.keys.npy`` (uint64 key hashes,
    sorted), and with ``k_fold`` ``folds.npy`` (uint8; 255: in no fold). What later splits must know is kept with the data set.

    Raises:
        JobError: ``split.where`` cannot be evaluated, or ``data.time`` is missing.
        DataError: a side or a fold is empty, or the data cannot be divided so; nothing was written.
        SourceError: a shard is missing or damaged.
        CorruptRecordError: what earlier splits have settled cannot be read.
    """
    stored = Stored(snapshot, job, layout)
    keys = stored.read_keys()
    with settling(stored.home) if job.split.by in _SETTLING else contextlib.nullcontext():
        division = divide(stored, keys)
        _check_sides(division, job.split.by)
        folds, num_in_folds = divide_folds(stored, keys, division.sides) if job.split.k_fold else (None, ())
        _write_membership(run, keys, division.sides)
        if division.settled is not None:
            write_settled(stored.home, settled_name(snapshot, job), division.settled)
    write_array(run.sides, division.sides)
    if folds is not None:
        write_array(run.folds, folds)
    return SplitRecord(
        by=job.split.by,
        num_rows=division.num_rows,
        digest=hashlib.sha256(division.sides.data).hexdigest(),
        left_out=division.left_out,
        cuts=_cuts_record(division.cuts),
        folds=num_in_folds,
        learns_from="pool" if job.split.k_fold or job.split.resplit_each_epoch else "train",
    )


def _check_sides(division: Division, by: str) -> None:
    """See that no side is empty.

    Raises:
        DataError: one is.
    """
    counts = division.num_rows
    empty = [side for side, count in counts.items() if not count]
    if empty:
        left = "".join(f", {count:,} left out ({reason})" for reason, count in division.left_out.items())
        cuts = _cuts_record(division.cuts)
        told = f"; validation after {cuts.validation_after}, test after {cuts.test_after}" if cuts else ""
        raise DataError(
            f"no row is left for {' and '.join(empty)}.",
            where="split",
            received=f"{counted(len(division.sides), 'row')}: "
            + ", ".join(f"{count:,} {side}" for side, count in counts.items())
            + left
            + told,
            remedy=_REMEDIES.get(by, _REMEDY),
        )


def _cuts_record(cuts: Cuts | None) -> CutsRecord | None:
    return None if cuts is None else CutsRecord(validation_after=_moment(cuts.validation), test_after=_moment(cuts.test))


def _moment(microseconds: int) -> datetime:
    """As Python's calendar can tell it: years 1 to 9999."""
    try:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC) if microseconds > 0 else datetime.min.replace(tzinfo=UTC)


# ---- membership: who was trained on


def _write_membership(run: RunLayout, keys: Hashes, sides: Sides) -> None:
    """Write the sorted key hashes of each side.

    Raises:
        DataError: rows of the test split have the key of a row that is trained on.
    """
    listed = {side: np.sort(keys[sides == code]) for side, code in SIDE_CODES.items()}
    num_shared = sum(int(np.count_nonzero(is_among(listed["test"], listed[side]))) for side in ("train", "validation"))
    if num_shared:
        raise DataError(
            f"the keys of {counted(num_shared, 'test row')} stand on train or validation, too.",
            where="split",
            received=counted(len(listed["test"]), "test row"),
            remedy="Name the columns that tell rows apart (data.key), or divide by a column that is the same wherever they are.",
        )
    for side, hashes in listed.items():
        write_array(membership_path(run, side), hashes)


def membership_path(run: RunLayout, side: Side) -> Path:
    """Where the sorted key hashes of one side lie: uint64 ``[rows]``."""
    return run.split_dir / f"{side}.keys.npy"


def count_shared(test_of: RunLayout, *trained_in: RunLayout) -> int | None:
    """How many test rows of one run were seen in the training (train or validation split) of any of others; None: not recorded."""
    paths = [membership_path(run, side) for run in trained_in for side in LEARNED]
    known = [path for path in paths if path.exists()]
    if len(known) < len(LEARNED):
        return None
    test = np.load(membership_path(test_of, "test"))
    return int(np.count_nonzero(np.any([is_among(test, np.load(path)) for path in known], axis=0)))


# ---- the rows of a side


def read_sides(run: RunLayout, draw: Draw = "split") -> Sides:
    """Side of each row in snapshot order: 0 train, 1 validation, 2 test, 3 none.

    Args:
        run: its split is complete.
        draw: ``split``: as it was divided; ``pool``: validation rows are trained on, too; a number: that fold is validation, and the
            other folds are train. The test split is the same in all.

    Returns:
        uint8 ``[rows]``.
    """
    if draw == "split":
        return np.asarray(np.load(run.sides, allow_pickle=False))
    return pool_sides(run) if draw == "pool" else fold_sides(run, int(draw))


def pool_sides(run: RunLayout) -> Sides:
    """Sides with all rows of train and validation as train: uint8 ``[rows]``."""
    sides = read_sides(run)
    sides[sides == VALIDATION] = TRAIN
    return sides


def fold_sides(run: RunLayout, fold: int) -> Sides:
    """Sides with one fold (from 0) as validation and the others as train: uint8 ``[rows]``.

    Raises:
        FileNotFoundError: the split has no folds.
        ValueError: there is no such fold.
    """
    sides, is_fold = pool_sides(run), np.load(run.folds, allow_pickle=False) == fold
    if fold == NO_FOLD or not is_fold.any():
        raise ValueError(f"there is no fold {fold}")
    sides[is_fold] = VALIDATION
    return sides


@overload
def read_rows(
    snapshot: SnapshotRecord, layout: Layout, run: RunLayout, side: Literal["train"], columns: list[str], *, draw: Draw = "split"
) -> TrainRows: ...


@overload
def read_rows(
    snapshot: SnapshotRecord, layout: Layout, run: RunLayout, side: Side, columns: list[str], *, draw: Draw = "split"
) -> Rows: ...


def read_rows(snapshot: SnapshotRecord, layout: Layout, run: RunLayout, side: Side, columns: list[str], *, draw: Draw = "split") -> Rows:
    """Raw columns of one side, in snapshot order; of train as ``TrainRows``.

    Args:
        snapshot: the data.
        layout: where they lie.
        run: its split is complete.
        side: which rows.
        columns: which columns.
        draw: who is on which side, see ``read_sides``.

    Raises:
        SourceError: a shard is missing or damaged.
        DataError: the snapshot has other rows than were divided.
    """
    is_chosen = read_sides(run, draw) == SIDE_CODES[side]
    if len(is_chosen) != snapshot.num_rows:
        raise DataError(
            "the snapshot has other rows than were divided: some were forgotten since.",
            where=str(run.sides),
            expected=counted(len(is_chosen), "row"),
            received=counted(snapshot.num_rows, "row"),
            remedy="Run the job again: refit run FILE --fresh.",
        )
    table = _read_chosen(snapshot, layout, columns, is_chosen)
    return TrainRows("train", table) if side == "train" else Rows(side, table)


def _read_chosen(snapshot: SnapshotRecord, layout: Layout, columns: list[str], is_chosen: np.ndarray) -> pa.Table:
    home, start = layout.dataset(snapshot.dataset), 0
    tables = []
    for shard in snapshot.shards:
        table = read_shard(home, shard, columns)
        tables.append(table.filter(pa.array(is_chosen[start : start + len(table)])))
        start += len(table)
    schema = arrow_schema(snapshot.columns)
    wanted = pa.schema([schema.field(name) for name in columns])
    return (pa.concat_tables(tables).cast(wanted) if tables else wanted.empty_table()).combine_chunks()
