"""Rows of a database: the ``sql`` source, whole or, with an incremental column, what has come since.

PostgreSQL streams through ADBC (``COPY`` in binary form) as Arrow. SQLite is read with Python's own module, because a SQLite
column holds values of any type: ADBC's driver takes a column's type from the first rows and fails when a later row differs.
Nothing is ever written: the query stands in a subquery, SQLite is opened read-only, PostgreSQL in a read-only transaction.

No text that leaves these modules holds a password: not a name, not an error, not the cause of an error.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refit.config import SqlSource, digest
from refit.records import SourceRecord
from refit.schema import column_of
from refit.sources.inputs import Batches, Input, Reject
from refit.sources.queries import Bounds, Database, database_label, find_address, query_fault, shown_query, statement

_NAME_CHARACTERS = 60
_SELECT = re.compile(r"(\s|--[^\n]*(\n|$)|/\*.*?\*/|\()*(select|with|values|table)\b", re.IGNORECASE | re.DOTALL)


def identity(source: SqlSource) -> str:
    """What the source is called; another query, column or database is another source. Holds no secret."""
    words = " ".join(statement(source).split())
    if len(words) > _NAME_CHARACTERS:
        words = f"{words[:_NAME_CHARACTERS].rstrip()}… #{digest(words)[:8]}"
    by = f" by {source.incremental}" if source.incremental else ""
    return f"sql: {words} @ {database_label(source.database)}{by}"


def list_inputs(source: SqlSource, known: Mapping[str, SourceRecord], _seen: object) -> list[Input]:
    """The whole result of the query, or, with ``incremental``, what was read already and the range of rows above it.

    The digest of a whole result covers the query and every value in the order in which the query gives the rows. ``known`` are
    the inputs whose rows the data set holds, by name, oldest first.

    Returns:
        One input; with ``incremental`` those of ``known`` and at most one more, which ``bounds`` delimits.

    Raises:
        SourceError: there is no such database, the query cannot be run, or rows have no value in the incremental column.
        ConnectionError: the server cannot be reached at the moment.
    """
    if not _SELECT.match(source.query):
        raise query_fault(
            source, "the query is not a SELECT.", received=shown_query(source), remedy="Only SELECT statements are run; nothing is written."
        )
    name = identity(source)
    with _connect(source) as database, database.faults():
        if source.incremental is None:
            return [Input(name, _digest_rows(database, source), source)]
        read = [record for record in known.values() if record.listed_by == name and record.watermark is not None]
        listed = [Input(record.name, record.digest, source) for record in read]
        return [*listed, *_rows_above(database, source, source.incremental, read[-1].watermark if read else None)]


@contextlib.contextmanager
def open_input(found: Input, _spool: object) -> Iterator[Batches]:
    """Rows as Arrow: whole numbers, floats, text, dates, times without zone in UTC. A result without rows gives no batch.

    Text that is no valid UTF-8 (SQLite does not check) is a rejected row.

    Raises:
        SourceError: the query cannot be run, or a column holds bytes.
        ConnectionError: the server cannot be reached, or was lost while it was read.
    """
    if not isinstance(found.source, SqlSource):
        raise TypeError(type(found.source))
    rejects: list[Reject] = []
    with _connect(found.source) as database:
        with database.faults():
            schema = database.schema(found.bounds)
        columns = tuple(column_of(column) for column in schema)
        yield Batches(columns, lambda: _read(database, schema, found.bounds, rejects), rejects)


def _read(database: Database, schema: pa.Schema, bounds: Bounds | None, rejects: list[Reject]) -> Iterator[pa.RecordBatch]:
    with database.faults():
        yield from database.read(schema, bounds, rejects)


def _rows_above(database: Database, source: SqlSource, column: str, low: str | None) -> list[Input]:
    high, num_missing = database.extent(column, low)
    if num_missing:
        raise query_fault(
            source,
            f'{num_missing:,} rows have no value in "{column}", so they would never be read.',
            remedy=f"Add WHERE {column} IS NOT NULL to the query, or choose a column that every row has.",
        )
    if high is None:
        return []
    span = f"up to {high}" if low is None else f"above {low} up to {high}"
    content = digest(["sql", statement(source), column, low, high])
    return [Input(f"{identity(source)}, {span}", content, source, bounds=(low, high))]


def _connect(source: SqlSource) -> AbstractContextManager[Database]:
    """Only one engine is imported: who reads SQLite needs no driver of PostgreSQL."""
    address = find_address(source)
    if isinstance(address, Path):
        from refit.sources.sqlite import open_sqlite

        return open_sqlite(source, address)
    from refit.sources.postgresql import open_postgresql

    return open_postgresql(source, address)


# ---- the content's digest


def _digest_rows(database: Database, source: SqlSource) -> str:
    schema = database.schema(None)
    described = digest(["sql", statement(source), [[column.name, str(column.type)] for column in schema]])
    return digest([described, digest_batches(database.read(schema, None, []))])


def digest_batches(batches: Iterable[pa.RecordBatch]) -> str:
    """SHA-256 of all values in their order, however the rows are cut into batches.

    Takes columns of numbers, truth values, text, dates and times. Missing values, lengths and values run through hashes of
    their own, column by column, so that no batch leaves a mark; what lies in memory under a missing value does not count.
    """
    hashes: dict[tuple[int, int], Any] = {}
    for batch in batches:
        for position, column in enumerate(batch.columns):
            for part, content in enumerate(_parts(column)):
                hashes.setdefault((position, part), hashlib.sha256()).update(content)
    return digest([[*key, value.hexdigest()] for key, value in sorted(hashes.items())])


def _parts(column: pa.Array) -> Iterator[memoryview | pa.Buffer]:
    yield _fixed_width(column.is_valid())
    if not pa.types.is_string(column.type):
        yield _fixed_width(column)
        return
    text = column.fill_null("")
    yield _fixed_width(pc.binary_length(text))
    if len(text):
        _, offsets, content = text.buffers()
        ends = np.frombuffer(offsets, np.int32)[text.offset : text.offset + len(text) + 1]
        yield content[int(ends[0]) : int(ends[-1])] if content is not None else pa.py_buffer(b"")


def _fixed_width(column: pa.Array) -> memoryview:
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    elif pa.types.is_temporal(column.type):
        column = column.view(pa.int32() if column.type.bit_width == 32 else pa.int64())
    return np.ascontiguousarray(column.fill_null(0).to_numpy(zero_copy_only=False)).view(np.uint8).data
