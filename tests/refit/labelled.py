"""Rows with labels in a table, for the tests of what makes labels unsound."""

import duckdb
import numpy as np
import pyarrow as pa

from refit.config import parse_job
from refit.labels import check_labels
from refit.schema import KEY_HASH, column_of


def job_of(target="y", kind=None, data=None, **changes):
    tree = {
        "name": "job",
        "data": {"sources": [{"kind": "csv", "path": "none.csv"}]} | (data or {}),
        "target": {"column": target, "kind": kind},
    }
    return parse_job(tree | changes)


def stored(table):
    hashes = np.random.default_rng(7).permutation(np.arange(len(table), dtype=np.uint64) * 2654435761)
    return pa.table(table).append_column(KEY_HASH, pa.array(hashes)) if KEY_HASH not in table.column_names else table


def columns_of(table):
    return {field.name: column_of(field) for field in table.schema if field.name != KEY_HASH}


def run(check, job, table, *more):
    table = stored(pa.table(table))
    with duckdb.connect() as connection:
        connection.register("stored", table)
        records = {record.name: record for record in check(job, connection, "stored", columns_of(table), *more)}
        assert connection.sql("SELECT 1").fetchall() == [(1,)]
    return records


def alarms(table, **more):
    return {name: record.detail for name, record in run(check_labels, job_of(**more), table).items() if not record.ok}
