"""Small tables as shards on disk, and jobs over them: what the tests of batches and of the fit need, without an ingest."""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refit.batches import RowsSource, open_side, plan_batches
from refit.config import Job, parse_job
from refit.layout import Layout
from refit.records import SIDES, BatchesRecord, ShardRecord, Side, SnapshotRecord, SourceRecord, write_array
from refit.schema import KEY_HASH, column_of, field_of
from refit.shards import write_drops
from refit.splits import read_rows


def stored(**columns: Any) -> pa.Table:
    """A table as a shard holds it; arrays of more than one dimension become tensor columns."""
    fields, arrays = [], []
    for name, values in columns.items():
        if isinstance(values, np.ndarray) and values.ndim > 1:
            tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))
            field = field_of(column_of(pa.field(name, tensor.type)))
            content = pa.py_buffer(np.ascontiguousarray(values).tobytes())
            arrays.append(pa.Array.from_buffers(field.type, len(values), [None, content]))
        else:
            array = pa.array(values)
            field = field_of(column_of(pa.field(name, array.type)))
            arrays.append(array.cast(field.type))
        fields.append(field)
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def snapshot_of(table: pa.Table, shards: Sequence[ShardRecord] = ()) -> SnapshotRecord:
    """The record of a data set that holds this table."""
    columns = tuple(column_of(field) for field in table.schema)
    sources = (SourceRecord(name="small", digest="0", num_read=len(table), num_kept=len(table), shards=tuple(shards)),)
    return SnapshotRecord(id="0" * 16, dataset="small", key=(), key_hash="md5-64/1", columns=columns, sources=sources)


def job_of(column: str, /, **more: Any) -> Job:
    """A job over a table in memory; ``more`` by dotted key with ``__`` for the dot."""
    base = {"name": "small", "data": {"sources": [{"kind": "csv", "path": "none.csv"}]}, "target": {"column": column}}
    return parse_job(base, {name.replace("__", "."): value for name, value in more.items()})


@dataclass(frozen=True)
class Small:
    """A table on disk, divided, and the plan of its batches."""

    layout: Layout
    snapshot: SnapshotRecord
    sides: np.ndarray
    plan: BatchesRecord

    def open(self, side: Literal[Side, "pool"] = "train") -> RowsSource:
        """One side as the plan's engine reads it."""
        return open_side(self.snapshot, self.plan, self.layout, self.sides, side)

    def shards(self) -> list[Path]:
        """The files, in order."""
        return [self.layout.dataset("small").shard(shard.digest) for shard in self.snapshot.shards]


def write_shards(layout: Layout, table: pa.Table, *, shard_rows: int, group_rows: int, dropped: Sequence[int] = ()) -> SnapshotRecord:
    """Write a table as shards, with a hash a row; the rows ``dropped`` (numbers in the table) do not count."""
    home, shards = layout.dataset("small"), []
    home.shards_dir.mkdir(parents=True, exist_ok=True)
    keys = np.random.default_rng(0).integers(0, 2**64, len(table), dtype=np.uint64)
    whole = table.append_column(pa.field(KEY_HASH, pa.uint64(), nullable=False), [keys])
    for first in range(0, len(table), shard_rows):
        part = whole.slice(first, shard_rows)
        aside = home.shards_dir / "aside"
        pq.write_table(part, aside, row_group_size=group_rows)
        digest = hashlib.sha256(aside.read_bytes()).hexdigest()
        aside.rename(home.shard(digest))
        inside = np.array([row - first for row in dropped if first <= row < first + len(part)], np.uint32)
        drops = write_drops(home, inside) if len(inside) else None
        size = home.shard(digest).stat().st_size
        shards.append(ShardRecord(digest=digest, num_rows=len(part), num_bytes=size, dropped=drops, num_dropped=len(inside)))
    return snapshot_of(table, shards)


def keep(
    folder: Path,
    job: Job,
    table: pa.Table,
    sides: np.ndarray | None = None,
    *,
    shard_rows: int = 1 << 20,
    group_rows: int = 1 << 14,
    dropped: Sequence[int] = (),
) -> Small:
    """Write a table and plan its batches; by default all rows are the train split. ``sides`` are of the rows that count."""
    layout = Layout(folder)
    snapshot = write_shards(layout, table, shard_rows=shard_rows, group_rows=group_rows, dropped=dropped)
    sides = np.zeros(snapshot.num_rows, np.uint8) if sides is None else np.asarray(sides, np.uint8)
    run = layout.run("small", "run")
    write_array(run.sides, sides)
    read = partial(read_rows, snapshot, layout, run, draw="pool" if job.split.resplit_each_epoch else "split")
    return Small(layout, snapshot, sides, plan_batches(job, snapshot, layout, sides, read))


def plan_of(job: Job, table: pa.Table) -> BatchesRecord:
    """The plan with the whole table as train split."""
    with tempfile.TemporaryDirectory() as folder:
        return keep(Path(folder), job, table).plan


def packed(job: Job, train: pa.Table, other: pa.Table, side: Side = "validation") -> tuple[BatchesRecord, RowsSource, RowsSource]:
    """The plan of a train split, and both sides packed by it."""
    sides = np.repeat([0, SIDES.index(side)], [len(train), len(other)])
    with tempfile.TemporaryDirectory() as folder:
        small = keep(Path(folder), job, pa.concat_tables([train, other]), sides)
        return small.plan, small.open("train"), small.open(side)
