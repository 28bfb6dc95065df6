"""Train, validation and test: which row is on which side, for ever.

A row's side is a function of its key's hash (or of its group's) and of the shares in the job: appending data, renaming or
reordering files moves no row.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from refit.casting import group_hash_sql, sealed_connection
from refit.config import SplitConfig
from refit.errors import DataError
from refit.layout import Layout, RunLayout
from refit.records import SIDES, Side, SnapshotRecord, SplitRecord, write_array
from refit.schema import KEY_HASH
from refit.shards import read_table

_SIDE_CODES: dict[Side, int] = {side: code for code, side in enumerate(SIDES)}


@dataclass(frozen=True)
class Rows:
    """Raw columns of one side in snapshot order. That they name their side keeps statistics away from the test split."""

    side: Side
    table: pa.Table


def assign_sides(hashes: np.ndarray, split: SplitConfig) -> np.ndarray:
    """Side of each row: 0 train, 1 validation, 2 test.

    Args:
        hashes: uint64 ``[rows]``, uniform over the whole range.
        split: the shares. The lowest hashes are the test split, the next the validation split.

    Returns:
        uint8 ``[rows]``.
    """
    sides = np.full(len(hashes), _SIDE_CODES["train"], dtype=np.uint8)
    sides[hashes < _threshold(split.test + split.validation)] = _SIDE_CODES["validation"]
    sides[hashes < _threshold(split.test)] = _SIDE_CODES["test"]
    return sides


def _threshold(share: float) -> np.uint64:
    return np.uint64(min(round(share * 2**64), 2**64 - 1))


def side_sql(split: SplitConfig, snapshot: SnapshotRecord) -> str:
    """SQL of each row's side, 0 train, 1 validation, 2 test: what ``assign_sides`` gives."""
    hashed = KEY_HASH if split.by == "hash" else group_hash_sql(snapshot.column(str(split.group)))
    test, validation = int(_threshold(split.test)), int(_threshold(split.test + split.validation))
    return f"CASE WHEN {hashed} < {test} THEN 2 WHEN {hashed} < {validation} THEN 1 ELSE 0 END"


def split_rows(snapshot: SnapshotRecord, split: SplitConfig, layout: Layout, run: RunLayout) -> SplitRecord:
    """Assign every row of a snapshot and write sides and membership into the run's folder.

    Writes ``sides.npy`` (uint8, snapshot order) and ``{side}.keys.npy`` (uint64 key hashes, sorted).

    Raises:
        DataError: a side is empty.
    """
    keys = _read_hashes(snapshot, layout)
    sides = assign_sides(keys if split.by == "hash" else _group_hashes(snapshot, str(split.group), layout), split)
    counts: dict[Side, int] = {side: int((sides == code).sum()) for side, code in _SIDE_CODES.items()}
    empty = [side for side, count in counts.items() if not count]
    if empty:
        raise DataError(
            f"no row is left for {' and '.join(empty)}.",
            where="split",
            received=f"{snapshot.num_rows} rows: " + ", ".join(f"{count} {side}" for side, count in counts.items()),
            remedy="Add rows, or give that side a larger share.",
        )
    write_array(run.split_dir / "sides.npy", sides)
    for side, code in _SIDE_CODES.items():
        write_array(membership_path(run, side), np.sort(keys[sides == code]))
    return SplitRecord(by=split.by, num_rows=counts, digest=hashlib.sha256(sides.tobytes()).hexdigest())


def membership_path(run: RunLayout, side: Side) -> Path:
    """Where the sorted key hashes of one side lie: uint64 ``[rows]``."""
    return run.split_dir / f"{side}.keys.npy"


def count_shared(test_of: RunLayout, trained_in: RunLayout) -> int | None:
    """How many test rows of one run were seen in the training (train or validation split) of another; None: not recorded."""
    paths = [membership_path(trained_in, "train"), membership_path(trained_in, "validation")]
    if not all(path.exists() for path in paths):
        return None
    test = np.load(membership_path(test_of, "test"))
    return int(sum(np.isin(test, np.load(path)).sum() for path in paths))


def read_rows(snapshot: SnapshotRecord, layout: Layout, run: RunLayout, side: Side, columns: list[str]) -> Rows:
    """Raw columns of one side, in snapshot order.

    Raises:
        SourceError: a shard is missing or damaged.
    """
    sides = np.load(run.split_dir / "sides.npy")
    table = read_table(snapshot, layout, columns)
    return Rows(side, table.filter(pa.array(sides == _SIDE_CODES[side])).combine_chunks())


def _read_hashes(snapshot: SnapshotRecord, layout: Layout) -> np.ndarray:
    return np.asarray(read_table(snapshot, layout, [KEY_HASH])[KEY_HASH].to_numpy())


def _group_hashes(snapshot: SnapshotRecord, group: str, layout: Layout) -> np.ndarray:
    column = next((c for c in snapshot.columns if c.name == group), None)
    if column is None:
        raise DataError(f'the group column "{group}" is no column of the data.', where="split.group")
    with sealed_connection() as connection:
        connection.register("_rows", read_table(snapshot, layout, [group]))
        hashed = connection.sql(f"SELECT {group_hash_sql(column)} AS hash FROM _rows").to_arrow_table()  # noqa: S608
    return np.asarray(hashed["hash"].to_numpy())
