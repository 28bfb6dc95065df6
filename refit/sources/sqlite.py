"""SQLite through Python's own module: a column is of the widest kind that it holds, and text that is no UTF-8 is a rejected row."""

import contextlib
import math
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from refit.config import SqlSource
from refit.sources.inputs import MAX_RAW_TEXT, Reject, first_line, identifier
from refit.sources.queries import Bounds, check_names, database_label, endless_fault, failed_query, query_fault, select_sql, statement

_BATCH_ROWS = 16_384
_INTEGER, _REAL, _TEXT, _BLOB = 1, 2, 3, 4
_KINDS = {0: pa.string(), _INTEGER: pa.int64(), _REAL: pa.float64(), _TEXT: pa.string()}
_DECLARED = {
    "INT": _INTEGER,
    "CHAR": _TEXT,
    "CLOB": _TEXT,
    "TEXT": _TEXT,
    "REAL": _REAL,
    "FLOA": _REAL,
    "DOUB": _REAL,
    "DEC": _REAL,
    "NUM": _REAL,
}


@contextlib.contextmanager
def open_sqlite(source: SqlSource, path: Path) -> Iterator["Sqlite"]:
    """A SQLite file, opened read-only, in one transaction.

    Raises:
        SourceError: there is no such file, or it is no database.
        ConnectionError: another process locks it.
    """
    if not path.is_file():
        raise query_fault(
            source,
            "there is no such SQLite file.",
            remedy="Paths are relative to the working directory; a server is postgresql://host/name.",
        )
    with _telling_faults(source):
        # DuckDB asks for the rows in threads of its own, one at a time
        connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, check_same_thread=False, isolation_level=None)
    connection.text_factory = bytes
    with contextlib.closing(connection):
        connection.execute("BEGIN")
        yield Sqlite(source, connection)


@contextlib.contextmanager
def _telling_faults(source: SqlSource) -> Iterator[None]:
    """The module's errors as ours. A file that another process locks may pass; sqlite3.Warning is Python 3.11's "one statement only"."""
    try:
        yield
    except (sqlite3.Error, sqlite3.Warning, UnicodeDecodeError) as error:
        name = getattr(error, "sqlite_errorname", None) or ""
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR", "SQLITE_CANTOPEN")):
            raise ConnectionError(f"{database_label(source.database)}: the database cannot be read now: {first_line(error)}") from None
        if name in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
            raise query_fault(source, f"the file is no sound SQLite database: {first_line(error)}", remedy="Restore the file.") from None
        raise failed_query(source, first_line(error)) from None


@dataclass(frozen=True)
class Sqlite:
    """A SQLite file. Text comes as bytes, since SQLite does not check that it is UTF-8."""

    source: SqlSource
    connection: sqlite3.Connection

    def faults(self) -> AbstractContextManager[None]:
        """The module's errors as ours."""
        return _telling_faults(self.source)

    def schema(self, bounds: Bounds | None) -> pa.Schema:
        """A column's type is the widest of what it is declared as and of what it holds: whole numbers, numbers, text."""
        declared = self._declared()
        rank = "max(CASE typeof({0}) WHEN 'null' THEN 0 WHEN 'integer' THEN 1 WHEN 'real' THEN 2 WHEN 'text' THEN 3 ELSE 4 END)"
        row = self._execute(", ".join(rank.format(f"q.{identifier(name)}") for name in declared), bounds).fetchone()
        held = {name: rank or 0 for name, rank in zip(declared, row, strict=True)}
        blobs = ", ".join(f'"{name}"' for name, rank in held.items() if rank == _BLOB)
        if blobs:
            raise query_fault(
                self.source, f"columns of bytes are not read: {blobs}.", remedy="Leave them out of the query, or select hex(column)."
            )
        return pa.schema([(name, _KINDS[max(rank, declared[name])]) for name, rank in held.items()])

    def _declared(self) -> dict[str, int]:
        """Names of the query's columns, and the kinds that they were declared as (0: none)."""
        self.connection.execute(f"CREATE TEMP VIEW IF NOT EXISTS refit_query AS {statement(self.source)}")
        columns = [
            (name.decode(), kind.decode().upper()) for _, name, kind, *_ in self.connection.execute("PRAGMA temp.table_info(refit_query)")
        ]
        names = {name.casefold() for name, _ in columns}
        # A view renames the second "id" to "id:1".
        check_names(self.source, [base if (base := re.sub(r":\d+$", "", name)).casefold() in names else name for name, _ in columns])
        return {name: next((rank for word, rank in _DECLARED.items() if word in kind), 0) for name, kind in columns}

    def read(self, schema: pa.Schema, bounds: Bounds | None, rejects: list[Reject]) -> Iterator[pa.RecordBatch]:
        """The rows; those with text that is no UTF-8 go to ``rejects``."""
        cursor = self._execute(", ".join(f"q.{identifier(name)}" for name in schema.names), bounds, is_ordered=True)
        start = 0
        while rows := cursor.fetchmany(_BATCH_ROWS):
            yield _batch(schema, rows, start, rejects)
            start += len(rows)

    def extent(self, column: str, low: str | None) -> tuple[str | None, int]:
        """The greatest value; the column must hold numbers only or text only."""
        self._declared()
        name = f"q.{identifier(column)}"
        kinds = f"min(typeof({name})) FILTER (WHERE {name} IS NOT NULL), max(typeof({name})) FILTER (WHERE {name} IS NOT NULL)"
        above = "" if low is None else f"WHERE {name} > ? OR {name} IS NULL"
        sql = select_sql(self.source, f"max({name}), count(*) - count({name}), {kinds}", above)
        high, num_missing, least, greatest = self.connection.execute(sql, () if low is None else (self._bound(column, low),)).fetchone()
        if high is None:
            return None, int(num_missing)
        if {least, greatest} - {b"integer", b"real"} and (least, greatest) != (b"text", b"text"):
            raise query_fault(
                self.source,
                f'"{column}" holds values of several kinds, so none is the greatest.',
                received=f"{least.decode()} and {greatest.decode()}",
                expected="numbers only, or text only",
                remedy="Name a column of one kind, such as CAST(column AS INTEGER) AS position.",
            )
        if high == math.inf:
            raise endless_fault(self.source, column, str(high))
        return high.decode() if isinstance(high, bytes) else repr(high), int(num_missing)

    def _bound(self, column: str, value: str) -> str | int | float:
        """A bound in the column's own kind, since to SQLite every text is greater than every number."""
        found = self.connection.execute(
            select_sql(self.source, f"typeof(q.{identifier(column)})", f"WHERE q.{identifier(column)} IS NOT NULL LIMIT 1")
        ).fetchone()
        if found is None or found[0] == b"text":
            return value
        try:
            return int(value) if re.fullmatch(r"-?\d+", value) else float(value)
        except ValueError:
            raise query_fault(
                self.source,
                f'"{column}" held text when it was last read, and holds numbers now.',
                received=f"last value read: {value}",
                remedy="Change the query, so that all is read anew.",
            ) from None

    def _execute(self, select: str, bounds: Bounds | None, *, is_ordered: bool = False) -> sqlite3.Cursor:
        if bounds is None or self.source.incremental is None:
            return self.connection.execute(select_sql(self.source, select, ""))
        name = f"q.{identifier(self.source.incremental)}"
        given = [
            (sign, self._bound(self.source.incremental, value))
            for sign, value in zip(("> ?", "<= ?"), bounds, strict=True)
            if value is not None
        ]
        within = "WHERE " + " AND ".join(f"{name} {sign}" for sign, _ in given)
        return self.connection.execute(
            select_sql(self.source, select, f"{within} ORDER BY {name}" if is_ordered else within), [value for _, value in given]
        )


# ---- rows


def _batch(schema: pa.Schema, rows: list[tuple[Any, ...]], start: int, rejects: list[Reject]) -> pa.RecordBatch:
    """Rows of SQLite, counted from ``start``, as Arrow."""
    columns = [_plain(values, column.type) for values, column in zip(zip(*rows, strict=True), schema, strict=True)]
    broken = sorted({row for column in columns if pa.types.is_binary(column.type) for row in _not_text(column)})
    if broken:
        kept = pa.array(sorted(set(range(len(rows))) - set(broken)), pa.int64())
        rejects += [_reject(schema, columns, row, start) for row in broken]
        columns = [column.take(kept) for column in columns]
    return pa.RecordBatch.from_arrays([column.cast(kind.type) for column, kind in zip(columns, schema, strict=True)], schema=schema)


def _plain(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Values of one column; text as bytes. A number among text is written as Python writes it, which keeps every digit."""
    kind = pa.binary() if pa.types.is_string(kind) else kind
    try:
        return pa.array(values, kind)
    except pa.ArrowException:
        if pa.types.is_floating(kind):
            return pa.array([None if value is None else float(value) for value in values], kind)
        return pa.array([value if value is None or isinstance(value, bytes) else str(value).encode() for value in values], kind)


def _not_text(column: pa.Array) -> list[int]:
    """Rows of a column of bytes that are no UTF-8."""
    try:
        column.cast(pa.string())
    except pa.ArrowInvalid:
        return [row for row, value in enumerate(column.to_pylist()) if value is not None and not _is_text(value)]
    return []


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _reject(schema: pa.Schema, columns: list[pa.Array], row: int, start: int) -> Reject:
    content = {name: column[row].as_py() for name, column in zip(schema.names, columns, strict=True)}
    name = next(name for name, value in content.items() if isinstance(value, bytes) and not _is_text(value))
    text = content[name].decode(errors="backslashreplace")[:MAX_RAW_TEXT]
    return Reject("the text is no valid UTF-8", text, row=start + row, column=name)
