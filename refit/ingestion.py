"""Raw inputs to a snapshot: typed Parquet shards named by content, and a record of what was read, kept and rejected.

A text value that does not fit its column's type sends its row to the rejects file and never stops the others. The job's
SQL is evaluated by a DuckDB connection of its own, which reaches neither files nor network nor Python's variables.
"""

import contextlib
import hashlib
import itertools
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import filelock
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from refit.config import Job, digest
from refit.errors import DataError, JobError, SchemaMismatchError, SourceError
from refit.layout import DatasetLayout, Layout
from refit.records import Column, ShardRecord, SnapshotRecord, SourceRecord, write_atomically
from refit.schema import KEY_HASH, SQL_TYPES, arrow_schema, column_of, column_type, field_of
from refit.sources import BATCH_ROWS, Input, Reject, first_line, identifier, literal, read_batches, read_columns

ROW_GROUP_ROWS = 16_384
SHARD_ROWS = 1 << 20
KEY_HASH_NAME = "md5-64/1"
_COMPRESSION = "lz4"
_KEPT, _BAD_COLUMN, _BAD_VALUE = "_kept", "_bad_column", "_bad_value"
_REJECTS = pa.schema([(n, pa.string()) for n in ("file", "column", "reason", "value")] + [("line", pa.int64()), ("row", pa.int64())])
_log = logging.getLogger(__name__)


def ingest(job: Job, layout: Layout, inputs: list[Input]) -> SnapshotRecord:
    """Bring the data set up to date with its inputs and return the snapshot; the same one when nothing is new.

    Args:
        job: its ``data`` and, where there is no key, its target (which the hash of a row leaves out).
        layout: where the data set lies.
        inputs: from ``sources.list_inputs``.

    Raises:
        DataError: too many rows were rejected, or no row is left.
        SchemaMismatchError: a pinned column is missing or of another kind.
        JobError: an SQL expression of the job is wrong.
    """
    home = layout.dataset(job.dataset)
    for folder in (home.shards_dir, home.snapshots_dir, home.rejects_dir):
        folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(home.lock):
        parent = _usable_parent(job, home)
        known = {source.name: source for source in parent.sources} if parent else {}
        new = [found for found in inputs if known.get(found.name) is None or known[found.name].digest != found.digest]
        columns = _source_columns(job, parent, new)
        read = _read_inputs(job, home, columns, new) if new else _Read()
        records = {**known, **read.records}
        sources = tuple(records[found.name] for found in inputs)
        return _commit(job, home, parent, read.columns or (parent.columns if parent else ()), sources)


def read_head(home: DatasetLayout) -> SnapshotRecord | None:
    """The newest snapshot of a data set, or None."""
    try:
        return SnapshotRecord.read(home.snapshot(home.head.read_text().strip()))
    except FileNotFoundError:
        return None


def reading_digest(job: Job) -> str:
    """Digest of what decides how a source's row becomes a stored row; another one begins the data set anew."""
    hashed = {"key": job.data.key} if job.data.key else {"all_but": job.target.column}
    return digest({"columns": job.data.columns, "derive": job.data.derive, "where": job.data.where, "hash": KEY_HASH_NAME, **hashed})


def _usable_parent(job: Job, home: DatasetLayout) -> SnapshotRecord | None:
    head = read_head(home)
    return head if head is not None and head.reading == reading_digest(job) else None


def _source_columns(job: Job, parent: SnapshotRecord | None, new: list[Input]) -> tuple[Column, ...]:
    """Columns to read: pinned by the parent snapshot, else inferred over all inputs."""
    if parent is None:
        return _allowed(read_columns(new, dict(job.data.columns)))
    pinned = tuple(column for column in parent.columns if column.name not in job.data.derive)
    if new:
        found = {column.name: column for column in read_columns(new, {})}
        missing = [c.name for c in pinned if c.name not in found]
        reshaped = [c.name for c in pinned if c.name in found and (c.shape, c.dtype) != (found[c.name].shape, found[c.name].dtype)]
        if missing or reshaped:
            what = [f"missing: {', '.join(missing)}"] * bool(missing) + [f"of another shape: {', '.join(reshaped)}"] * bool(reshaped)
            raise SchemaMismatchError(
                f"new inputs do not have the columns that the data set began with ({'; '.join(what)}).",
                where=", ".join(found_input.name for found_input in new[:3]),
                expected=", ".join(c.name for c in pinned),
                received=", ".join(found),
                remedy="Mend the inputs, or begin another data set with data.name.",
            )
    return pinned


def _allowed(columns: tuple[Column, ...]) -> tuple[Column, ...]:
    reserved = [column.name for column in columns if column.name.startswith("_")]
    if reserved:
        raise SchemaMismatchError(
            f'the columns {", ".join(reserved)} begin with "_", which is kept for refit.', remedy="Rename them in the source."
        )
    return columns


# ---- reading


@dataclass
class _Read:
    """What one ingest has read so far."""

    records: dict[str, SourceRecord] = field(default_factory=dict)
    columns: tuple[Column, ...] = ()
    num_read: int = 0
    num_rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


def _read_inputs(job: Job, home: DatasetLayout, columns: tuple[Column, ...], new: list[Input]) -> _Read:
    read = _Read()
    with _aside(home.rejects_dir, "rejects") as path:
        with pq.ParquetWriter(path, _REJECTS, compression="zstd") as rejects:
            for found in new:
                read.records[found.name] = _read_input(job, home, columns, found, read, rejects)
                _log.info("ingest: %s: %s", found.name, _counted(read.records[found.name]))
        _check_rejected(job, read)
        if read.num_rejected:
            path.rename(home.rejects_dir / f"{digest(sorted(found.digest for found in new))[:16]}.parquet")
    return read


def _counted(record: SourceRecord) -> str:
    return f"{record.num_read:,} rows read, {record.num_kept:,} kept, {record.num_rejected:,} rejected, {record.num_filtered:,} filtered"


def _read_input(
    job: Job, home: DatasetLayout, columns: tuple[Column, ...], found: Input, read: _Read, rejects: pq.ParquetWriter
) -> SourceRecord:
    num_read = num_kept = num_rejected = 0
    faults: list[Reject] = []
    shards = _ShardWriter(home)
    with contextlib.closing(shards):
        for batch in _evaluate(job, columns, _plain(read_batches(found, faults), columns, found)):
            is_bad = pc.is_valid(batch[_BAD_COLUMN])
            bad = batch.filter(is_bad)
            kept = batch.filter(pc.and_(pc.invert(is_bad), batch[_KEPT]))
            shards.schema = shards.schema or _stored_schema(job, columns, kept.schema)
            shards.write(_stored(kept, shards.schema, job))
            _write_rejects(rejects, found, bad, num_read, is_bad, read)
            num_read, num_kept, num_rejected = num_read + len(batch), num_kept + len(kept), num_rejected + len(bad)
        _write_faults(rejects, found, faults, read)
        lines = len({fault.line for fault in faults})
        read.num_read, read.num_rejected = read.num_read + num_read + lines, read.num_rejected + num_rejected + lines
        written = shards.finish()
    if shards.schema is not None:
        read.columns = tuple(column_of(f) for f in shards.schema if f.name != KEY_HASH)
    return SourceRecord(
        name=found.name,
        digest=found.digest,
        num_read=num_read + lines,
        num_kept=num_kept,
        num_rejected=num_rejected + lines,
        num_filtered=num_read - num_kept - num_rejected,
        shards=written,
    )


def _plain(batches: Iterator[pa.RecordBatch], columns: tuple[Column, ...], found: Input) -> Iterator[pa.RecordBatch]:
    """Batches with the wanted columns only, tensors as fixed-size binaries; all of one schema.

    Raises:
        SourceError: a column is missing, stands twice, or changes its type from one batch to the next.
    """
    schema: pa.Schema | None = None
    for batch in batches:
        _check_names(batch.schema.names, found.name)
        missing = [column.name for column in columns if column.name not in batch.schema.names]
        if missing:
            raise SourceError(f"the columns {', '.join(missing)} are missing.", where=found.name, received=", ".join(batch.schema.names))
        arrays = [_storage(batch.column(column.name), column) for column in columns]
        plain = pa.RecordBatch.from_arrays(arrays, names=[column.name for column in columns])
        if schema is not None and plain.schema != schema:
            changed = [f.name for f, now in zip(schema, plain.schema, strict=True) if f.type != now.type]
            raise SourceError(f"the columns {', '.join(changed)} change their type from one batch to the next.", where=found.name)
        schema = plain.schema
        yield plain


def _check_names(names: list[str], where: str) -> None:
    folded = [name.casefold() for name in names]  # DuckDB does not tell capitals from small letters
    twice = sorted({name for name, plain in zip(names, folded, strict=True) if folded.count(plain) > 1})
    if twice:
        listing = ", ".join(map(repr, twice))
        raise SourceError(f"the columns {listing} have one name.", where=where, remedy="Rename them; capitals do not tell columns apart.")


def _storage(values: pa.Array, column: Column) -> pa.Array:
    if pa.types.is_timestamp(values.type):
        return values.cast(pa.timestamp("us"), safe=False)  # UTC where there is a zone
    if column.shape is None or not isinstance(values, pa.FixedShapeTensorArray):
        return values
    if values.null_count:
        raise SourceError(f'{values.null_count} values of "{column.name}" are missing, a tensor column has none.', where="data.sources")
    content = values.to_numpy_ndarray().tobytes()
    return pa.Array.from_buffers(field_of(column).type, len(values), [None, pa.py_buffer(content)])


def _stored(rows: pa.Table, schema: pa.Schema, job: Job) -> pa.Table:
    try:
        return rows.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        listing = ", ".join(f"{name}: {rows.schema.field(name).type}" for name in job.data.derive)
        raise JobError(
            f"a derived column cannot be stored: {first_line(error)}",
            where="data.derive",
            received=listing,
            expected="numbers, strings, booleans, dates or timestamps",
        ) from error


def _stored_schema(job: Job, columns: tuple[Column, ...], evaluated: pa.Schema) -> pa.Schema:
    derived = tuple(Column(name=name, type=str(field_of(column_of(evaluated.field(name))).type)) for name in job.data.derive)
    return arrow_schema((*columns, *derived))


# ---- evaluation


def sealed_connection() -> duckdb.DuckDBPyConnection:
    """A DuckDB connection for a job's SQL: no files, no network, no Python variables, no way to change that."""
    connection = duckdb.connect()
    for setting in (
        "TimeZone = 'UTC'",
        "python_enable_replacements = false",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")
    return connection


def _evaluate(job: Job, columns: tuple[Column, ...], batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Cast, derive, hash and mark rows; yields tables with the stored columns and the three marks."""
    first = next(batches, None)
    if first is None:
        return
    _check_derived(job, columns)
    schema, source = first.schema, _Source(first, batches)
    reader = pa.RecordBatchReader.from_batches(schema, source.read())
    num_rows = 0
    with sealed_connection() as connection:
        connection.register("_source", reader)
        try:
            relation = connection.sql(evaluation_sql(job, columns, schema))
            for batch in relation.to_arrow_reader(BATCH_ROWS):
                num_rows += len(batch)
                yield pa.Table.from_batches([batch])
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise source.failure or _sql_error(job, columns, schema, error) from error
    if num_rows != source.num_rows:
        raise JobError(
            "an expression changes the number of rows.",
            where="data.derive",
            expected=f"{source.num_rows:,} rows",
            received=f"{num_rows:,}",
            remedy="An expression gives one value for each row: no unnest.",
        )


class _Source:
    """Batches on their way through DuckDB: counts them, and keeps the error that DuckDB would report as its own."""

    def __init__(self, first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> None:
        self._first = first
        self._rest = rest
        self.num_rows = 0
        self.failure: Exception | None = None

    def read(self) -> Iterator[pa.RecordBatch]:
        try:
            for batch in itertools.chain([self._first], self._rest):
                self.num_rows += len(batch)
                yield batch
        except Exception as error:
            self.failure = error
            raise


def _check_derived(job: Job, columns: tuple[Column, ...]) -> None:
    known = {column.name.casefold(): column.name for column in columns}
    taken = [name for name in job.data.derive if name.casefold() in known]
    if taken:
        raise JobError(
            f"{', '.join(map(repr, taken))} is a column of the source already.", where="data.derive", remedy="Take another name."
        )


def evaluation_sql(job: Job, columns: tuple[Column, ...], received: pa.Schema) -> str:
    """The query from ``_source`` to stored rows and their marks."""
    casts = {c.name: _cast(c, received.field(c.name)) for c in columns}
    failing = [(name, cast) for name, cast in casts.items() if cast != identifier(name)]
    bad = "".join(f" WHEN {identifier(name)} IS NOT NULL AND {cast} IS NULL THEN {literal(name)}" for name, cast in failing)
    value = "".join(
        f" WHEN {identifier(name)} IS NOT NULL AND {cast} IS NULL THEN CAST({identifier(name)} AS VARCHAR)" for name, cast in failing
    )
    typed = ", ".join(f"{cast} AS {identifier(name)}" for name, cast in casts.items())
    marks = ", ".join(f"CASE WHEN false THEN '' {cases} END AS {mark}" for mark, cases in ((_BAD_COLUMN, bad), (_BAD_VALUE, value)))
    derived = "".join(f", ({expression}\n) AS {identifier(name)}" for name, expression in job.data.derive.items())
    kept = f"coalesce(CAST(({job.data.where}\n) AS BOOLEAN), false)" if job.data.where else "true"
    return (
        f"SELECT *, {key_hash_sql(job, columns)} AS {KEY_HASH}, {kept} AS {_KEPT} FROM "  # noqa: S608 -- sealed connection
        f"(SELECT *{derived} FROM (SELECT {typed}, {marks} FROM _source))"
    )


def _cast(column: Column, received: pa.Field) -> str:
    stored = field_of(column).type
    if column.shape is not None or received.type == stored:
        return identifier(column.name)
    name, kind = identifier(column.name), column_type(stored)
    cast = f"TRY_CAST({name} AS {SQL_TYPES[kind]})"
    if pa.types.is_integer(stored) and not pa.types.is_integer(received.type):  # DuckDB would round 1.5 to 2
        return f"CASE WHEN regexp_full_match(trim(CAST({name} AS VARCHAR)), '[+-]?[0-9]+([.]0*)?') THEN {cast} END"
    if kind == "timestamp" and not pa.types.is_timestamp(received.type):  # DuckDB would drop the offset of 10:00+02:00
        return f"CAST(TRY_CAST({name} AS TIMESTAMPTZ) AS TIMESTAMP)"
    return cast


def key_hash_sql(job: Job, columns: tuple[Column, ...]) -> str:
    """SQL of ``md5-64/1``: the lower 64 bits of the MD5 of length-prefixed canonical values.

    The values are those of the key in its order, or of all source columns but the target in order of their names. A value
    is its text in DuckDB (floats: the shortest that reads back as float64, with -0.0 as 0.0; tensors: the hex MD5 of their bytes),
    prefixed by its length in bytes and a colon; a missing value is ``-``.
    """
    known = {column.name: column for column in columns}
    names = job.data.key or sorted(name for name in known if name != job.target.column)
    missing = [name for name in names if name not in known]
    if missing:
        raise JobError(
            f"the key names {', '.join(missing)}, which is no column of the source.", where="data.key", received=", ".join(known)
        )
    return column_hash_sql([known[name] for name in names])


def column_hash_sql(columns: list[Column]) -> str:
    """SQL of ``md5-64/1`` over columns in the given order."""
    return f"md5_number_lower({' || '.join(_canonical(column) for column in columns)})"


def _canonical(column: Column) -> str:
    name, stored = identifier(column.name), field_of(column).type
    text = f"md5({name})" if column.shape is not None else f"CAST({name} AS VARCHAR)"
    if pa.types.is_floating(stored):
        text = f"CAST({name}::DOUBLE + 0.0 AS VARCHAR)"
    return f"coalesce(strlen({text}) || ':' || {text}, '-')"


def _sql_error(job: Job, columns: tuple[Column, ...], schema: pa.Schema, error: Exception) -> JobError | DataError:
    """Say which of the job's expressions is at fault by trying them one by one over no rows."""
    for name, expression in [*((f"derive.{n}", e) for n, e in job.data.derive.items()), ("where", job.data.where or "true")]:
        fault = check_expression(job, columns, schema, name, expression)
        if fault:
            return JobError(
                f"the SQL cannot be evaluated: {fault}", where=f"data.{name}", received=expression, remedy="Mend the expression."
            )
    return DataError(f"the rows cannot be evaluated: {first_line(error)}", where="data")


def check_expression(job: Job, columns: tuple[Column, ...], schema: pa.Schema, name: str, expression: str) -> str | None:
    """Bind one expression over an empty table of the source's columns; return the fault or None."""
    data = job.data.model_copy(update={"derive": {"_probe": expression}, "where": None})
    if name == "where":
        data = job.data.model_copy(update={"where": expression})
    with sealed_connection() as connection:
        connection.register("_source", schema.empty_table())
        try:
            connection.sql(evaluation_sql(job.model_copy(update={"data": data}), columns, schema)).fetchall()
        except duckdb.Error as error:
            return first_line(error)
    return None


# ---- rejects


def _write_rejects(rejects: pq.ParquetWriter, found: Input, bad: pa.Table, before: int, is_bad: pa.ChunkedArray, read: _Read) -> None:
    if not len(bad):
        return
    rows = [before + int(index.as_py()) for index in pc.indices_nonzero(is_bad)]
    names = bad[_BAD_COLUMN].to_pylist()
    read.reasons.update(f'"{name}" does not fit its type' for name in names)
    rejects.write_table(
        pa.Table.from_pydict(
            {
                "file": [found.name] * len(bad),
                "column": names,
                "reason": ["does not fit the column's type"] * len(bad),
                "value": bad[_BAD_VALUE].cast(pa.string()),
                "line": [None] * len(bad),
                "row": rows,
            },
            schema=_REJECTS,
        )
    )


def _write_faults(rejects: pq.ParquetWriter, found: Input, faults: list[Reject], read: _Read) -> None:
    if faults:
        read.reasons.update(fault.reason for fault in {fault.line: fault for fault in faults}.values())
        rows = [{"file": found.name, "column": f.column, "reason": f.reason, "value": f.text, "line": f.line, "row": None} for f in faults]
        rejects.write_table(pa.Table.from_pylist(rows, schema=_REJECTS))


def _check_rejected(job: Job, read: _Read) -> None:
    limit = job.data.max_rejected_fraction
    if read.num_rejected > limit * read.num_read:
        reasons = "; ".join(f"{reason} ({count:,})" for reason, count in read.reasons.most_common(5))
        raise DataError(
            f"{read.num_rejected:,} of {read.num_read:,} rows cannot be used: {reasons}.",
            expected=f"at most {limit:.2%}",
            remedy="Mend the source, declare the columns' types (data.columns), or raise data.max_rejected_fraction.",
        )


# ---- writing


@contextlib.contextmanager
def _aside(folder: Path, name: str) -> Iterator[Path]:
    """A temporary path in ``folder`` that is gone afterwards unless it was renamed."""
    handle, path = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
    os.close(handle)
    try:
        yield Path(path)
    finally:
        Path(path).unlink(missing_ok=True)


class _ShardWriter:
    """Writes tables into shards of at most ``SHARD_ROWS`` rows or so, and names each by the digest of its bytes."""

    def __init__(self, home: DatasetLayout) -> None:
        self._home = home
        self._done: list[ShardRecord] = []
        self._writer: pq.ParquetWriter | None = None
        self._path: Path | None = None
        self._rows = 0
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self.schema: pa.Schema | None = None

    def write(self, table: pa.Table) -> None:
        """Append rows; they reach the disk in full row groups."""
        self._pending.append(table)
        self._pending_rows += len(table)
        if self._pending_rows >= ROW_GROUP_ROWS:
            self._flush(whole_groups=True)

    def finish(self) -> tuple[ShardRecord, ...]:
        """Write what is left and return the shards."""
        self._flush(whole_groups=False)
        self._end_shard()
        return tuple(self._done)

    def close(self) -> None:
        """Give up an unfinished shard."""
        if self._writer is not None:
            self._writer.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _flush(self, *, whole_groups: bool) -> None:
        if not self._pending_rows:
            return
        rows = pa.concat_tables(self._pending)
        full = len(rows) - len(rows) % ROW_GROUP_ROWS if whole_groups else len(rows)
        self._pending, self._pending_rows = [rows.slice(full)], len(rows) - full
        self._open().write_table(rows.slice(0, full), row_group_size=ROW_GROUP_ROWS)
        self._rows += full
        if self._rows >= SHARD_ROWS:
            self._end_shard()

    def _open(self) -> pq.ParquetWriter:
        if self._writer is None:
            handle, path = tempfile.mkstemp(dir=self._home.shards_dir, prefix=".shard.")
            os.close(handle)
            self._path = Path(path)
            strings = [f.name for f in self.schema or () if pa.types.is_string(f.type)]
            self._writer = pq.ParquetWriter(path, self.schema, compression=_COMPRESSION, use_dictionary=strings)
        return self._writer

    def _end_shard(self) -> None:
        if self._writer is None or self._path is None:
            return
        self._writer.close()
        with self._path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        self._path.chmod(0o644)
        final = self._home.shard(content)
        self._done.append(ShardRecord(digest=content, num_rows=self._rows, num_bytes=self._path.stat().st_size))
        self._path.rename(final)
        self._writer, self._path, self._rows = None, None, 0


def _commit(
    job: Job, home: DatasetLayout, parent: SnapshotRecord | None, columns: tuple[Column, ...], sources: tuple[SourceRecord, ...]
) -> SnapshotRecord:
    if not sum(source.num_kept for source in sources):
        raise DataError(
            "no row is left.", where=", ".join(s.name for s in sources[:3]), remedy="See that the sources hold rows, and data.where."
        )
    content = {
        "dataset": job.dataset,
        "key": job.data.key,
        "key_hash": KEY_HASH_NAME,
        "reading": reading_digest(job),
        "columns": [column.model_dump(mode="json") for column in columns],
        "sources": [source.model_dump(mode="json") for source in sources],
    }
    snapshot = digest(content)[:16]
    if parent is not None and parent.id == snapshot:
        return parent
    record = SnapshotRecord.model_validate({**content, "id": snapshot, "parent": parent.id if parent else None})
    record.write(home.snapshot(snapshot))
    write_atomically(home.head, f"{snapshot}\n".encode())
    return record
