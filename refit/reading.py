"""One input to rows as they are stored: checked against the pinned columns, cast, derived, filtered, and written into shards."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refit.casting import BAD_COLUMN, BAD_VALUE, KEPT, evaluation_sql, explain, hashed_columns
from refit.config import Job
from refit.errors import JobError, RefusedError, SchemaMismatchError, SourceError
from refit.feeding import Feed
from refit.hashing import hash_rows
from refit.inference import text_schema
from refit.layout import DatasetLayout
from refit.parallel import ordered_map
from refit.records import Column, SourceRecord
from refit.rejects import Misfits, Rejects
from refit.schema import KEY_HASH, arrow_schema, field_of
from refit.shards import ShardWriter
from refit.sources import identity
from refit.sources.inputs import BATCH_ROWS, Batches, Input, Lines, Place, Reject, Text, first_line
from refit.text_casts import cast_rows

_FEW_CUTS = 1_000
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


def read_input(step: Step, found: Input, opened: Text | Lines | Batches, rejects: Rejects) -> SourceRecord:
    """Read one input into shards and rejects.

    Raises:
        RefusedError: nothing of it can be read.
        DoubtfulError: its lines are not its rows.
        SchemaMismatchError: a required column is missing, or a column as a whole is of another type.
        JobError: an SQL expression of the job is wrong.
    """
    notes = _fit_columns(step.job, step.columns, found, opened)
    rows = _StoredRows(step, found, opened)
    misfits = rejects.misfits(found.name)
    writer = ShardWriter(step.home, arrow_schema(step.stored))
    try:
        for kept in rows.read(misfits):
            writer.write(kept)
            step.tell(rows.num_read, len(misfits))
        _check_types(step.job, step.columns, found, misfits, rows.num_read)
        num_rejected = rejects.write(found.name, rows.faults) + misfits.finish(rows.locate)
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


@dataclass(frozen=True)
class _Part:
    """Some rows of an input: how many, those that are stored, and those that do not fit (which, in which column, its text, where)."""

    num_rows: int
    stored: pa.Table
    bad: np.ndarray
    bad_columns: pa.Array
    bad_values: pa.Array
    num_lines: int = 0
    places: Sequence[Place] = ()


class InputRows:
    """The rows of one input on their way: cast, derived and judged.

    Attributes:
        num_read: rows so far, without ``faults``.
        num_kept: those of them that were given out.
        faults: what could not be read as a row; complete when ``read`` has ended.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        job: Job,
        columns: tuple[Column, ...],
        schema: pa.Schema,
        found: Input,
        opened: Text | Lines | Batches,
        *,
        carried: tuple[Column, ...] = (),
    ) -> None:
        """Begin.

        Args:
            connection: a sealed one, which may read the input.
            job: its SQL and its key.
            columns: source columns as they are pinned.
            schema: of the rows that come out.
            found: the input.
            opened: likewise.
            carried: further columns of ``Batches``, which go along as they are.
        """
        self._connection = connection
        self._job = job
        self._columns = columns
        self._schema = schema
        self._found = found
        self._opened = opened
        self._carried = carried
        self.num_read = 0
        self.num_kept = 0
        self.faults: list[Reject] = []
        self._is_plain = isinstance(opened, Lines) and not (job.data.derive or job.data.select or job.data.where)

    @property
    def locate(self) -> Callable[[Sequence[int]], Iterator[Place]] | None:
        """Tells where rows that do not fit stand, where that is not known at once or never."""
        return None if self._is_plain or isinstance(self._opened, Batches) else self._opened.locate

    def read(self, misfits: Misfits) -> Iterator[pa.Table]:
        """Rows to keep; those that do not fit go to ``misfits``."""
        line = self._opened.num_lines if isinstance(self._opened, Lines) else 0
        for part in self._parts():
            if len(part.bad):
                places = [Place(place.line + line, place.text) for place in part.places]
                misfits.add((part.bad + self.num_read).tolist(), part.bad_columns, part.bad_values, places)
            self.num_read += part.num_rows
            self.num_kept += len(part.stored)
            line += part.num_lines
            yield part.stored

    def _parts(self) -> Iterator[_Part]:
        opened = self._opened
        if isinstance(opened, Text):
            yield from map(self._judged, self._evaluate_text(opened))
        elif isinstance(opened, Batches):
            yield from map(self._judged, self._evaluate_batches(opened))
            self.faults = list(opened.rejects)
        elif self._is_plain:
            yield from ordered_map(lambda piece: self._cast(opened, piece), opened.read())
        else:
            yield from map(self._judged, self._evaluate_lines(opened))

    def _cast(self, lines: Lines, piece: bytearray) -> _Part:
        """Rows of a text without the job's SQL: nothing is done to them but casts."""
        parsed = lines.parse(piece)
        judged = cast_rows(parsed.rows, lines.clean, self._columns, self._job.data.key, self._connection)
        places = lines.find(parsed, judged.bad) if len(judged.bad) else ()
        stored = self._made(judged.table, judged.bad)
        return _Part(len(parsed.rows), stored, judged.bad, judged.bad_columns, judged.bad_values, len(parsed.ends), places)

    def _judged(self, batch: pa.RecordBatch) -> _Part:
        """Evaluated rows with their marks."""
        is_bad = pc.is_valid(batch[BAD_COLUMN])
        bad = np.flatnonzero(is_bad.to_numpy(zero_copy_only=False)) if is_bad.true_count else np.empty(0, np.int64)
        wanted = pc.and_(batch[KEPT], pc.invert(is_bad)) if len(bad) else batch[KEPT]
        kept = batch if wanted.true_count == len(wanted) else batch.filter(wanted)
        return _Part(len(batch), self._made(kept), bad, batch[BAD_COLUMN].take(bad), batch[BAD_VALUE].take(bad))

    def _made(self, rows: pa.RecordBatch, bad: np.ndarray | None = None) -> pa.Table:
        """Rows as they come out, but for the bad ones."""
        made = _store(self._job, pa.Table.from_batches([rows]), self._schema)
        return made if bad is None else without_rows(made, bad)

    def _evaluate_text(self, text: Text) -> Iterator[pa.RecordBatch]:
        scan = text.raw.scan if text.raw else text.scan
        with self._connection.cursor() as connection:
            yield from self._evaluated(connection, evaluation_sql(self._job, self._columns, text_schema(text), scan, text.raw))
            self.faults = text.faults(connection)
        if self.num_read != text.count_rows():
            raise self._disagreement(text.count_rows())

    def _evaluate_lines(self, lines: Lines) -> Iterator[pa.RecordBatch]:
        with self._connection.cursor() as connection, Feed(lines.values(), text_schema(lines)) as feed:
            connection.register("_source", feed.reader())
            yield from self._evaluated(connection, evaluation_sql(self._job, self._columns, text_schema(lines)))

    def _evaluate_batches(self, batches: Batches) -> Iterator[pa.RecordBatch]:
        source = WantedColumns(batches.read(), (*self._columns, *self._carried), self._found, self._job.data.optional)
        first = next(source, None)
        if first is None:
            return
        carried = [column.name for column in self._carried]
        with self._connection.cursor() as connection, Feed(chain([first], source), first.schema) as feed:
            connection.register("_source", feed.reader())
            yield from self._evaluated(connection, evaluation_sql(self._job, self._columns, first.schema, carried=carried))

    def _evaluated(self, connection: duckdb.DuckDBPyConnection, sql: str) -> Iterator[pa.RecordBatch]:
        try:
            yield from connection.sql(sql).to_arrow_reader(BATCH_ROWS)
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise self._explain(error) from error

    def _disagreement(self, expected: int) -> SourceError:
        return SourceError(
            "its rows are not read as they were counted: this is a fault of refit's.",
            where=self._found.name,
            expected=f"{expected:,} rows",
            received=f"{self.num_read:,}",
            remedy="Leave the input out, and report it.",
        )

    def _explain(self, error: Exception) -> Exception:
        told = explain(self._job, self._columns, error)
        if told is not None:
            return told
        if first_line(error).startswith("IO Error"):
            return OSError(first_line(error))  # which may pass
        return RefusedError(
            f"the file cannot be read as {self._found.source.kind}: {first_line(error)}",
            where=self._found.name,
            remedy="Mend the file or the source's options.",
        )


class _StoredRows(InputRows):
    """The rows of one input as a shard holds them, each with its hash; without those that are to stay forgotten."""

    def __init__(self, step: Step, found: Input, opened: Text | Lines | Batches) -> None:
        super().__init__(step.connection, step.job, step.columns, arrow_schema(step.stored), found, opened)
        self._hashed = hashed_columns(step.job, step.columns).values()
        self._forgotten = step.forgotten

    def _made(self, rows: pa.RecordBatch, bad: np.ndarray | None = None) -> pa.Table:
        hashes = pa.array(hash_rows([rows[name] for name in self._hashed]))
        made = _store(self._job, pa.Table.from_batches([rows]).append_column(KEY_HASH, hashes), self._schema)
        kept = made if bad is None else without_rows(made, bad)
        if not len(self._forgotten):
            return kept
        return kept.filter(pa.array(~np.isin(kept[KEY_HASH].to_numpy(), self._forgotten)))


class WantedColumns:
    """Arrow batches as DuckDB can take them: the wanted columns, tensors as bytes."""

    def __init__(self, batches: Iterator[pa.RecordBatch], columns: tuple[Column, ...], found: Input, optional: Sequence[str]) -> None:
        """Begin; of ``columns`` those that are ``optional`` may be missing."""
        self._batches = batches
        self._columns = columns
        self._found = found
        self._optional = optional
        self._schema: pa.Schema | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Itself."""
        return self

    def __next__(self) -> pa.RecordBatch:
        """The next batch."""
        return self._plain(next(self._batches))

    def _plain(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The wanted columns only, all batches of one schema.

        Raises:
            SourceError: a column is missing, or changes its type from one batch to the next.
        """
        names, where = batch.schema.names, self._found.name
        check_names(names, where)
        lost = sorted({column.name for column in self._columns} - {*names, *self._optional})
        if lost:
            raise SourceError(f"the columns {', '.join(lost)} are missing.", where=where, received=", ".join(names))
        arrays = [_storage(batch.column(c.name), c, where) if c.name in names else self._missing(c, len(batch)) for c in self._columns]
        plain = pa.RecordBatch.from_arrays(arrays, names=[column.name for column in self._columns])
        if self._schema is not None and plain.schema != self._schema:
            changed = [f.name for f, now in zip(self._schema, plain.schema, strict=True) if f.type != now.type]
            raise SourceError(f"the columns {', '.join(changed)} change their type from one batch to the next.", where=where)
        self._schema = plain.schema
        return plain

    def _missing(self, column: Column, num_rows: int) -> pa.Array:
        known = self._schema.field(column.name).type if self._schema is not None else field_of(column).type
        return pa.nulls(num_rows, known)


def without_rows(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """A table without some rows, given in order: few are cut out, which copies nothing."""
    if not len(rows):
        return table
    if len(rows) > _FEW_CUTS:
        kept = np.ones(len(table), dtype=bool)
        kept[rows] = False
        return table.filter(pa.array(kept))
    bounds = [-1, *rows.tolist(), len(table)]
    return pa.concat_tables([table.slice(before + 1, after - before - 1) for before, after in pairwise(bounds)])


def _storage(values: pa.Array, column: Column, where: str) -> pa.Array:
    if pa.types.is_timestamp(values.type):
        return _microseconds(values, column, where)
    if pa.types.is_dictionary(values.type):
        return values.dictionary_decode()
    if column.shape is None or not isinstance(values, pa.FixedShapeTensorArray):
        return values
    if values.null_count:
        raise SourceError(f'{values.null_count} values of "{column.name}" are missing, a tensor column has none.', where="data.sources")
    content = np.ascontiguousarray(values.to_numpy_ndarray()).data
    return pa.Array.from_buffers(field_of(column).type, len(values), [None, pa.py_buffer(content)])


def _microseconds(values: pa.Array, column: Column, where: str) -> pa.Array:
    """Times in UTC; what is below a microsecond is cut off."""
    try:
        return values.cast(options=pc.CastOptions(pa.timestamp("us"), allow_time_truncate=True))
    except pa.ArrowInvalid as error:
        raise SourceError(
            f'"{column.name}" holds times that are too far away: {first_line(error)}',
            where=where,
            expected="years from -290,307 to 294,246, as microseconds can say them",
        ) from error


def _store(job: Job, rows: pa.Table, schema: pa.Schema) -> pa.Table:
    try:
        return _without_infinities(job, rows.select(schema.names).cast(schema))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        listing = ", ".join(f"{name}: {rows.schema.field(name).type}" for name in job.data.derive)
        raise JobError(
            f"a derived column cannot be stored: {first_line(error)}",
            where="data.derive",
            received=listing,
            expected="numbers, strings, booleans, dates or timestamps",
        ) from error


def _without_infinities(job: Job, rows: pa.Table) -> pa.Table:
    """Numbers that the job's SQL made and that are not finite are missing: an input's own never come so far."""
    for index, field in enumerate(rows.schema):
        if (field.name in job.data.derive or job.data.select) and pa.types.is_floating(field.type):
            rows = rows.set_column(index, field, pc.if_else(pc.is_finite(rows[field.name]), rows[field.name], None))
    return rows


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


def _fit_columns(job: Job, columns: tuple[Column, ...], found: Input, opened: Text | Lines | Batches) -> tuple[str, ...]:
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
