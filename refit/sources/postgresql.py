"""PostgreSQL through ADBC: rows stream as Arrow, in a transaction that only reads and sees one state of the data."""

import contextlib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

import pyarrow as pa
from adbc_driver_postgresql import dbapi

from refit.config import SqlSource
from refit.errors import RefitError
from refit.sources.inputs import Reject, first_line, identifier, literal
from refit.sources.queries import (
    Bounds,
    Server,
    check_names,
    database_label,
    endless_fault,
    failed_query,
    query_fault,
    select_sql,
    statement,
)

_AS_IT_IS = ("bool", "int2", "int4", "int8", "float4", "float8", "text", "varchar", "name")
_CONVERTED = {
    "numeric": "{0}::float8",
    "money": "{0}::numeric::float8",
    "oid": "{0}::int8",
    "date": "CASE WHEN isfinite({0}) THEN {0} END",
    "timestamp": "CASE WHEN isfinite({0}) THEN {0} END",
    "timestamptz": "CASE WHEN isfinite({0}) THEN {0} AT TIME ZONE 'UTC' END",
}
_ORDERED = (
    "int2",
    "int4",
    "int8",
    "float4",
    "float8",
    "numeric",
    "oid",
    "text",
    "varchar",
    "bpchar",
    "name",
    "date",
    "timestamp",
    "timestamptz",
)
_SESSION = {"TimeZone": "UTC", "DateStyle": "ISO", "extra_float_digits": "3", "standard_conforming_strings": "on"}
_WRONG_ADDRESS = re.compile(
    r"authentication failed|does not exist|no password supplied|invalid|pg_hba|permission denied|not permitted|certificate",
    re.IGNORECASE,
)
_LOST = re.compile(
    r"terminating connection|server closed|could not (receive|send)|no connection|connection to server|SSL|shutting down|timeout",
    re.IGNORECASE,
)
# Connection, resources, operator's intervention, rolled back. Source: https://www.postgresql.org/docs/current/errcodes-appendix.html
_PASSING_STATES = ("08", "53", "57", "40")


@contextlib.contextmanager
def open_postgresql(source: SqlSource, server: Server) -> Iterator["Postgresql"]:
    """A connection in a transaction that only reads.

    Raises:
        SourceError: the server does not let us in.
        ConnectionError: it cannot be reached at the moment.
    """
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(_connected(source, server))
        cursor = stack.enter_context(connection.cursor())
        with _telling_faults(source, server):
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            cursor.execute(
                "SELECT " + ", ".join(f"set_config({literal(name)}, {literal(value)}, true)" for name, value in _SESSION.items())
            )
            cursor.fetchall()
        yield Postgresql(source, server, cursor)


def _connected(source: SqlSource, server: Server) -> dbapi.Connection:
    try:
        return dbapi.connect(server.uri)
    except dbapi.Error as error:
        reason = server.scrub(_reason(error))
    if _WRONG_ADDRESS.search(reason):
        raise query_fault(
            source,
            f"the server does not let us in: {reason}",
            remedy="Check the address, the user and the password (env:NAME or PGPASSWORD).",
        )
    raise ConnectionError(f"{database_label(source.database)}: the server cannot be reached: {reason}")


@contextlib.contextmanager
def _telling_faults(source: SqlSource, server: Server) -> Iterator[None]:
    """The driver's errors as ours, without what they were caused by, as that may show the address."""
    try:
        yield
    except RefitError:
        raise
    except (dbapi.Error, pa.ArrowException, OSError) as error:
        _raise_fault(source, server, error)


def _raise_fault(source: SqlSource, server: Server, error: Exception) -> NoReturn:
    reason = server.scrub(_reason(error))
    state = getattr(error, "sqlstate", None) or ""
    if state.startswith(_PASSING_STATES) or (not state and _LOST.search(reason)):
        raise ConnectionError(f"{database_label(source.database)}: the server was lost: {reason}") from None
    raise failed_query(source, reason) from None


def _reason(error: Exception) -> str:
    """What the server said, without the driver's words around it."""
    details = dict(getattr(error, "details", None) or [])
    primary = details.get("PG_DIAG_MESSAGE_PRIMARY", b"")
    said = re.sub(r"^(\w+: )?(\[libpq\] )?(Failed to \w+( query)?: )?(Execution error \[\w+\]: )?", "", first_line(error))
    return primary.decode(errors="replace") if primary else re.sub(r"^(ERROR|FATAL):\s*", "", said)


@dataclass(frozen=True)
class Postgresql:
    """A PostgreSQL server, in a read-only transaction that sees one state of the data."""

    source: SqlSource
    server: Server
    cursor: dbapi.Cursor

    def faults(self) -> AbstractContextManager[None]:
        """The driver's errors as ours."""
        return _telling_faults(self.source, self.server)

    def schema(self, bounds: Bounds | None) -> pa.Schema:
        """The columns after conversion; types that refit does not store come as PostgreSQL's own text."""
        found = self.cursor.adbc_execute_schema(self._converted(bounds))
        return pa.schema([(column.name, column.type) for column in found])

    @cached_property
    def _types(self) -> dict[str, str]:
        """The server's names of the types of the query's columns."""
        found = self.cursor.adbc_execute_schema(statement(self.source))
        check_names(self.source, found.names)
        return {column.name: (column.metadata or {}).get(b"POSTGRESQL:type", b"").decode() for column in found}

    def _converted(self, bounds: Bounds | None) -> str:
        columns = []
        for name, kind in self._types.items():
            template = "{0}" if kind in _AS_IT_IS else _CONVERTED.get(kind, "{0}::text")
            columns.append(f"{template.format(f'q.{identifier(name)}')} AS {identifier(name)}")
        return select_sql(self.source, ", ".join(columns), self._within(bounds))

    def _within(self, bounds: Bounds | None) -> str:
        column = self.source.incremental
        if bounds is None or column is None:
            return ""
        name = f"q.{identifier(column)}"
        given = [
            f"{name} {sign} {self._bound(column, value)}" for sign, value in zip((">", "<="), bounds, strict=True) if value is not None
        ]
        return f"WHERE {' AND '.join(given)} ORDER BY {name}"

    def read(self, schema: pa.Schema, bounds: Bounds | None, rejects: list[Reject]) -> Iterator[pa.RecordBatch]:  # noqa: ARG002 -- PostgreSQL checks its text
        """The rows, as they arrive."""
        self.cursor.execute(self._converted(bounds))
        with self.cursor.fetch_record_batch() as reader:
            for batch in reader:
                yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)

    def extent(self, column: str, low: str | None) -> tuple[str | None, int]:
        """The greatest value, as text that the server reads back to the same value."""
        name = f"q.{identifier(column)}"
        kind = self._ordered_type(column)
        above = "" if low is None else f"WHERE {name} > {self._bound(column, low)} OR {name} IS NULL"
        self.cursor.execute(select_sql(self.source, f"max({name})::text, count(*) - count({name})", above))
        high, num_missing = self.cursor.fetchone()
        if high is not None and kind not in ("text", "varchar", "bpchar", "name") and high.lower() in ("nan", "infinity"):
            raise endless_fault(self.source, column, high)
        return high, int(num_missing)

    def _bound(self, column: str, value: str) -> str:
        return f"{literal(value)}::{self._ordered_type(column)}"

    def _ordered_type(self, column: str) -> str:
        kind = self._types[column]
        if kind not in _ORDERED:
            raise query_fault(
                self.source,
                f'"{column}" cannot be read incrementally.',
                expected="a column of numbers, text, dates or times",
                received=kind,
                remedy="Name another column, or convert it in the query.",
            )
        return kind
