"""One input to rows as they are stored: checked against the pinned columns, cast, derived, filtered, and written into shards."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refit.casting import BAD_COLUMN, BAD_VALUE, KEPT, evaluation_sql, explain, hashed_columns
from refit.config import Job
from refit.errors import JobError, RefusedError, SchemaMismatchError, SourceError
from refit.hashing import hash_rows
from refit.inference import text_schema
from refit.layout import DatasetLayout
from refit.records import Column, SourceRecord
from refit.rejects import Misfits, Rejects
from refit.schema import KEY_HASH, arrow_schema, field_of
from refit.shards import ShardWriter
from refit.sources import identity
from refit.sources.inputs import BATCH_ROWS, Batches, DoubtfulError, Input, Reject, Text, first_line

_FEW_ROWS = 10  # so few may be bad rows, whatever their share
_CHANGED_TYPE_SHARE = 0.5  # where more than half of a column's rows do not fit, the column has changed and not its rows


@dataclass(frozen=True)
class Step:
    """What reading an input needs to know."""

    connection: duckdb.DuckDBPyConnection
    job: Job
    home: DatasetLayout
    columns: tuple[Column, ...]
    stored: tuple[Column, ...]
    forgotten: np.ndarray
    tell: Callable[[int, int], None]


def read_input(step: Step, found: Input, opened: Text | Batches, rejects: Rejects) -> SourceRecord:
    """Read one input into shards and rejects.

    Raises:
        RefusedError: nothing of it can be read.
        DoubtfulError: it was read quickly, and is not what it seemed to be.
        SchemaMismatchError: a required column is missing, or a column as a whole is of another type.
        JobError: an SQL expression of the job is wrong.
    """
    notes = _fit_columns(step.job, step.columns, found, opened)
    rows = _Rows(step, found, opened)
    misfits = rejects.misfits(found.name)
    writer = ShardWriter(step.home, arrow_schema(step.stored))
    try:
        for kept in rows.read(misfits):
            writer.write(kept)
            step.tell(rows.num_read, len(misfits))
        _check_types(step.job, step.columns, found, misfits, rows.num_read)
        num_rejected = rejects.write(found.name, rows.faults) + misfits.finish(opened.locate if isinstance(opened, Text) else None)
        shards = writer.finish()
    finally:
        writer.close()
        misfits.close()
    num_read = rows.num_read + num_rejected - len(misfits)
    return SourceRecord(
        name=found.name,
        digest=found.digest,
        listed_by=identity(found.source),
        num_read=num_read,
        num_kept=rows.num_kept,
        num_rejected=num_rejected,
        num_filtered=num_read - rows.num_kept - num_rejected,
        shards=shards,
        watermark=found.bounds[1] if found.bounds else None,
        notes=notes,
    )


class _Rows:
    """The rows of one input on their way through DuckDB."""

    def __init__(self, step: Step, found: Input, opened: Text | Batches) -> None:
        self._step = step
        self._found = found
        self._opened = opened
        self._schema = arrow_schema(step.stored)
        self._hashed = hashed_columns(step.job, step.columns).values()
        self.num_read = 0
        self.num_kept = 0
        self.faults: list[Reject] = []

    def read(self, misfits: Misfits) -> Iterator[pa.Table]:
        """Rows to keep, as they are stored; those that do not fit go to ``misfits``."""
        for batch in self._evaluate():
            is_bad = pc.is_valid(batch[BAD_COLUMN])
            num_bad = is_bad.true_count
            if num_bad:
                at = np.flatnonzero(is_bad.to_numpy(zero_copy_only=False))
                misfits.add((at + self.num_read).tolist(), batch[BAD_COLUMN].take(at), batch[BAD_VALUE].take(at))
            self.num_read += len(batch)
            kept = self._kept(batch, is_bad if num_bad else None)
            self.num_kept += len(kept)
            yield _store(self._step.job, kept, self._schema)

    def _kept(self, batch: pa.RecordBatch, is_bad: pa.Array | None) -> pa.Table:
        wanted = batch[KEPT] if is_bad is None else pc.and_(batch[KEPT], pc.invert(is_bad))
        kept = batch if wanted.true_count == len(wanted) else batch.filter(wanted)
        hashes = hash_rows([kept[name] for name in self._hashed])
        table = pa.Table.from_batches([kept]).append_column(KEY_HASH, pa.array(hashes))
        if not len(self._step.forgotten):
            return table
        return table.filter(pa.array(~np.isin(hashes, self._step.forgotten)))

    def _evaluate(self) -> Iterator[pa.RecordBatch]:
        if isinstance(self._opened, Text):
            yield from self._evaluate_text(self._opened)
        else:
            yield from self._evaluate_batches(self._opened)
            self.faults = list(self._opened.rejects)

    def _evaluate_text(self, text: Text) -> Iterator[pa.RecordBatch]:
        step = self._step
        with step.connection.cursor() as connection:
            scan = text.raw.scan if text.raw else text.scan
            with ThreadPoolExecutor(1) as pool:
                counting = pool.submit(text.count_rows)  # meanwhile
                try:
                    relation = connection.sql(evaluation_sql(step.job, step.columns, text_schema(text), scan, text.raw))
                    yield from relation.to_arrow_reader(BATCH_ROWS)
                    self.faults = text.faults(connection)
                except (duckdb.Error, pa.ArrowException, OSError) as error:
                    raise (self._explain(error) if text.is_proved else DoubtfulError) from error
                expected = counting.result()
        if self.num_read != expected:
            raise self._disagreement(expected) if text.is_proved else DoubtfulError

    def _evaluate_batches(self, batches: Batches) -> Iterator[pa.RecordBatch]:
        step, source = self._step, _Source(batches.read(), step_columns := self._step.columns, self._found)
        first = next(source, None)
        if first is None:
            return
        reader = pa.RecordBatchReader.from_batches(first.schema, source.all(first))
        with step.connection.cursor() as connection:
            try:
                connection.register("_source", reader)
                relation = connection.sql(evaluation_sql(step.job, step_columns, first.schema))
                yield from relation.to_arrow_reader(BATCH_ROWS)
            except (duckdb.Error, pa.ArrowException, OSError) as error:
                raise source.failure or self._explain(error) from error

    def _disagreement(self, expected: int | None) -> SourceError:
        return SourceError(
            "its rows are not read as they were counted: this is a fault of refit's.",
            where=self._found.name,
            expected=f"{expected:,} rows",
            received=f"{self.num_read:,}",
            remedy="Leave the input out, and report it.",
        )

    def _explain(self, error: Exception) -> Exception:
        told = explain(self._step.job, self._step.columns, error)
        if told is not None:
            return told
        if first_line(error).startswith("IO Error"):
            return OSError(first_line(error))  # which may pass
        return RefusedError(
            f"the file cannot be read as {self._found.source.kind}: {first_line(error)}",
            where=self._found.name,
            remedy="Mend the file or the source's options.",
        )


class _Source:
    """Arrow batches on their way into DuckDB: the wanted columns, tensors as bytes; keeps the error that DuckDB would tell as its own."""

    def __init__(self, batches: Iterator[pa.RecordBatch], columns: tuple[Column, ...], found: Input) -> None:
        self._batches = batches
        self._columns = columns
        self._found = found
        self._schema: pa.Schema | None = None
        self.failure: Exception | None = None

    def all(self, first: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        yield first
        while (batch := next(self, None)) is not None:
            yield batch

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self

    def __next__(self) -> pa.RecordBatch:
        try:
            return self._plain(next(self._batches))
        except StopIteration:
            raise
        except Exception as error:
            self.failure = error
            raise

    def _plain(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The wanted columns only, all batches of one schema.

        Raises:
            SourceError: a column is missing, or changes its type from one batch to the next.
        """
        names, where = batch.schema.names, self._found.name
        check_names(names, where)
        wanted = [column for column in self._columns if column.name in names]
        if self._schema is not None and {c.name for c in wanted} != set(self._schema.names):
            lost = sorted(set(self._schema.names) - set(names))
            raise SourceError(f"the columns {', '.join(lost)} are missing.", where=where, received=", ".join(names))
        plain = pa.RecordBatch.from_arrays([_storage(batch.column(c.name), c) for c in wanted], names=[c.name for c in wanted])
        if self._schema is not None and plain.schema != self._schema:
            changed = [f.name for f, now in zip(self._schema, plain.schema, strict=True) if f.type != now.type]
            raise SourceError(f"the columns {', '.join(changed)} change their type from one batch to the next.", where=where)
        self._schema = plain.schema
        return plain


def _storage(values: pa.Array, column: Column) -> pa.Array:
    if pa.types.is_timestamp(values.type):
        return values.cast(pa.timestamp("us"), safe=False)  # UTC where there is a zone
    if pa.types.is_dictionary(values.type):
        return values.dictionary_decode()
    if column.shape is None or not isinstance(values, pa.FixedShapeTensorArray):
        return values
    if values.null_count:
        raise SourceError(f'{values.null_count} values of "{column.name}" are missing, a tensor column has none.', where="data.sources")
    content = np.ascontiguousarray(values.to_numpy_ndarray()).data
    return pa.Array.from_buffers(field_of(column).type, len(values), [None, pa.py_buffer(content)])


def _store(job: Job, rows: pa.Table, schema: pa.Schema) -> pa.Table:
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


def _check_types(job: Job, columns: tuple[Column, ...], found: Input, misfits: Misfits, num_read: int) -> None:
    """Raise where a column as a whole is of another type than it was.

    Raises:
        SchemaMismatchError: with a diff of expected and received.
    """
    limit = max(_CHANGED_TYPE_SHARE * num_read, job.data.max_rejected_fraction * num_read, _FEW_ROWS)
    changed = [c for c in columns if misfits.by_column[c.name] > limit]
    if changed:
        diff = [
            f'"{c.name}": expected {c.type}, received {misfits.examples[c.name]!r} and such ({misfits.by_column[c.name]:,} of {num_read:,})'
            for c in changed
        ]
        raise SchemaMismatchError(
            f"columns are of another type than the data set has them: {'; '.join(diff)}.",
            where=found.name,
            remedy="Mend the input, declare the types (data.columns), or begin another data set with data.name.",
        )


def check_names(names: Sequence[str], where: str) -> None:
    """See that no two columns have one name, and that names can be written.

    Raises:
        RefusedError: two have, or one holds control characters.
    """
    unreadable = [name for name in names if not name.isprintable() and not name.replace("\n", " ").replace("\t", " ").isprintable()]
    if unreadable:
        text = ", ".join(map(ascii, unreadable[:3]))
        raise RefusedError(f"names of columns hold control characters: {text}.", where=where, remedy="See that it is the file you mean.")
    folded = Counter(name.casefold() for name in names)  # DuckDB does not tell capitals from small letters
    twice = sorted({name for name in names if folded[name.casefold()] > 1})
    if twice:
        text = ", ".join(map(repr, twice))
        raise RefusedError(f"the columns {text} have one name.", where=where, remedy="Rename them; capitals do not tell columns apart.")


def _fit_columns(job: Job, columns: tuple[Column, ...], found: Input, opened: Text | Batches) -> tuple[str, ...]:
    """See that an input has the pinned columns; return notes on those that it has more.

    Raises:
        SchemaMismatchError: a required column is missing, or is of another shape.
    """
    given = {c.name: c for c in opened.columns} if isinstance(opened, Batches) else dict.fromkeys(opened.names)
    check_names(list(given), found.name)
    missing = [c.name for c in columns if c.name not in given and c.name not in job.data.optional]
    shapes = [(c, other) for c in columns if (other := given.get(c.name)) is not None and (c.shape, c.dtype) != (other.shape, other.dtype)]
    if missing or shapes:
        told = [f"missing: {', '.join(missing)}"] * bool(missing)
        told += [f'"{c.name}": expected {_shape(c)}, received {_shape(other)}' for c, other in shapes]
        raise SchemaMismatchError(
            f"the input does not have the columns that the data set began with ({'; '.join(told)}).",
            where=found.name,
            expected=", ".join(c.name for c in columns),
            received=", ".join(given),
            remedy="Mend the input, name columns that may be missing in data.optional, or begin another data set with data.name. "
            "A data set begins with the columns of all inputs of its first ingest.",
        )
    more = [name for name in given if name not in {c.name for c in columns}]
    return (f"{found.name}: columns that the data set does not have were ignored: {', '.join(more)}.",) if more else ()


def _shape(column: Column) -> str:
    return f"{column.dtype} {list(column.shape)}" if column.shape is not None else column.type
