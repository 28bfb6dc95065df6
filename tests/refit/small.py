"""Tables in memory as the shards hold them, and jobs over them: what the tests of the fit need, without files."""

from typing import Any

import numpy as np
import pyarrow as pa

from refit.batches import Packed, pack_rows, plan_batches
from refit.config import Job, parse_job
from refit.records import BatchesRecord, Side, SnapshotRecord
from refit.schema import column_of, field_of
from refit.splits import Rows


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


def snapshot_of(table: pa.Table) -> SnapshotRecord:
    """The record of a data set that holds this table."""
    columns = tuple(column_of(field) for field in table.schema)
    return SnapshotRecord(id="0" * 16, dataset="small", key=(), key_hash="md5-64/1", columns=columns, sources=())


def job_of(column: str, /, **more: Any) -> Job:
    """A job over a table in memory; ``more`` by dotted key with ``__`` for the dot."""
    base = {"name": "small", "data": {"sources": [{"kind": "csv", "path": "none.csv"}]}, "target": {"column": column}}
    return parse_job(base, {name.replace("__", "."): value for name, value in more.items()})


def plan_of(job: Job, table: pa.Table) -> BatchesRecord:
    """The plan with the whole table as train split."""
    return plan_batches(job, snapshot_of(table), Rows("train", table))


def packed(job: Job, train: pa.Table, other: pa.Table, side: Side = "validation") -> tuple[BatchesRecord, Packed, Packed]:
    """The plan of a train split, and both sides packed by it."""
    plan = plan_of(job, train)
    return plan, pack_rows(Rows("train", train), plan.features, plan.target), pack_rows(Rows(side, other), plan.features, plan.target)
