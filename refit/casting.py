"""From what a source gives to what a shard holds: casts that lose nothing silently, the job's SQL, and the hash of a row's key.

All of it is one DuckDB query over one input, in a connection of its own, which reaches that input's file and nothing else:
no other files, no network, none of Python's variables.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import duckdb
import pyarrow as pa

from refit.config import RESERVED_PREFIX, ColumnType, Job
from refit.errors import DataError, JobError
from refit.records import Column
from refit.schema import SQL_TYPES, column_of, column_type, field_of
from refit.sources.inputs import Raw, first_line, identifier, listing, literal

KEPT, BAD_COLUMN, BAD_VALUE = "_kept_", "_bad_column_", "_bad_value_"
_MARKS = ("_kept_", "_bad_", "_hash_")
_MAX_THREADS = 8  # each holds buffers of its own: more would cost memory and save little time
_MEMORY = "1GB"
_AHEAD = "64MB"  # what DuckDB may read ahead of who takes the rows: five batches; with one its threads wait half of the time
_PROBE_ROWS = 3
_FAILING_EXPRESSIONS = ("Conversion Error", "Out of Range Error")  # refit's own casts raise neither; Arrow's stream keeps the text alone
_TEXT = pa.string()
_BLANKS = "' \t'"
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--.*")
_STUMBLE_OVER_BLANKS = ("boolean", "timestamp")  # DuckDB's casts of the others pass over blanks


def sealed_connection(paths: Iterable[str] = (), folders: Iterable[str] = ()) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection for a job's SQL, which reaches no files but these, no network, no Python variables; it cannot change that."""
    connection = duckdb.connect()
    for setting in (
        "TimeZone = 'UTC'",
        f"threads = {max(1, min(_MAX_THREADS, os.cpu_count() or 1))}",
        f"memory_limit = '{_MEMORY}'",
        "temp_directory = ''",
        f"streaming_buffer_size = '{_AHEAD}'",
        "python_enable_replacements = false",
        "autoinstall_known_extensions = false",
        "autoload_known_extensions = false",
        f"allowed_paths = {listing(list(paths))}",
        f"allowed_directories = {listing(list(folders))}",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")
    return connection


# ---- the query


def evaluation_sql(
    job: Job,
    columns: tuple[Column, ...],
    received: pa.Schema,
    source: str = "_source",
    raw: Raw | None = None,
    carried: Iterable[str] = (),
) -> str:
    """The query from an input's rows to stored rows and their marks.

    Args:
        job: its ``data`` and, where there is no key, its target.
        columns: source columns as they are pinned.
        received: the types in which the input gives them; a column that is not there is missing in every row.
        source: a table expression.
        raw: how ``source`` is cleaned, where its texts have blanks around them.
        carried: further columns, which go along as they are; of inputs that are typed.

    Returns:
        SQL with the stored columns, those that the row's hash is made of, whether the row is kept, and the first column that does
        not fit with its value.
    """
    casts = [_Cast.of(column, received, identifier(f"_cast_{i}"), job.data.key, raw) for i, column in enumerate(columns)]
    made = ", ".join(f"{cast.sql} AS {cast.mark}" for cast in casts)
    suspect = " OR ".join(cast.suspect for cast in casts if cast.suspect) or "false"
    typed = ", ".join([*(f"{cast.clean} AS {identifier(cast.column.name)}" for cast in casts), *map(identifier, carried)])
    faults = [(cast, fault) for cast in casts for fault in cast.faults]
    column = "".join(f" WHEN {fault} THEN {literal(cast.column.name)}" for cast, fault in faults)
    value = "".join(f" WHEN {fault} THEN CAST({cast.raw} AS VARCHAR)" for cast, fault in faults)
    derived = "".join(f", ({expression}\n) AS {identifier(name)}" for name, expression in job.data.derive.items())
    kept = f"coalesce(CAST(({job.data.where}\n) AS BOOLEAN), false)" if job.data.where else "true"
    selected = ", ".join(f"{expression}\n" for expression in job.data.select) or "*"
    hashed = "".join(f", {identifier(name)} AS {made}" for name, made in hashed_columns(job, columns).items() if made != name)
    return (
        f"SELECT {selected}{hashed}, {kept} AS {KEPT}, "  # noqa: S608 -- sealed connection
        f"_bad_column AS {BAD_COLUMN}, _bad_value AS {BAD_VALUE} FROM (SELECT *{derived} FROM (SELECT {typed}, "
        f"CASE WHEN _suspect THEN CASE WHEN false THEN '' {column} END END AS _bad_column, "
        f"CASE WHEN _suspect THEN CASE WHEN false THEN '' {value} END END AS _bad_value "
        f"FROM (SELECT *, {suspect} AS _suspect FROM (SELECT *, {made} FROM {source}))))"
    )


@dataclass(frozen=True)
class _Cast:
    """A source column on its way: ``sql`` makes its value of ``raw``, and the next level of the query calls it ``mark``.

    ``value`` is the raw text as far as it counts: without blanks, NULL where it is missing.
    """

    column: Column
    raw: str
    mark: str
    sql: str
    value: str
    is_number: bool = False
    can_fail: bool = False
    is_key: bool = False

    @classmethod
    def of(cls, column: Column, received: pa.Schema, mark: str, key: list[str], raw: Raw | None) -> Self:
        """The cast of a column; where texts have blanks around them, those are looked at only where the cast fails."""
        stored, is_key = field_of(column).type, column.name in key
        if column.name not in received.names:
            return cls(column, "NULL", mark, f"CAST(NULL AS {sql_type(column)})", "NULL", is_key=is_key)
        name, given, is_number = identifier(column.name), received.field(column.name).type, bool(pa.types.is_floating(stored))
        if sql_type(column) == "BLOB":
            return cls(column, name, mark, name, name, is_key=is_key)
        if given == stored:
            text = name if raw is None else _without_blanks(name, raw)
            return cls(column, name, mark, text, name, is_number=is_number, can_fail=is_number, is_key=is_key)
        value = name if raw is None else raw.clean(name)
        cast = text_cast(value if raw is not None and raw.has_null_words else name, column_type(stored), given)
        if raw is not None and column_type(stored) in _STUMBLE_OVER_BLANKS:
            cast = f"coalesce({cast}, {text_cast(value, column_type(stored), given)})"
        return cls(column, name, mark, cast, value, is_number=is_number, can_fail=True, is_key=is_key)

    @property
    def clean(self) -> str:
        """The stored value: NaN is a missing one."""
        return f"CASE WHEN isfinite({self.mark}) THEN {self.mark} END" if self.is_number else self.mark

    @property
    def suspect(self) -> str:
        """A cheap condition that holds wherever a fault may; empty where none may."""
        if self.is_key:
            return f"({self.clean} IS NULL)"
        return f"({self.raw} IS NOT NULL AND {self.clean} IS NULL)" if self.can_fail else ""

    @property
    def faults(self) -> Iterator[str]:
        """Conditions under which the row is rejected. Infinity is no number to train on."""
        if self.can_fail:
            wrong = f"({self.mark} IS NULL OR isinf({self.mark}))" if self.is_number else f"{self.mark} IS NULL"
            yield f"{self.value} IS NOT NULL AND {wrong}"
        if self.is_key:
            yield f"{self.clean} IS NULL"


def _without_blanks(name: str, raw: Raw) -> str:
    """To trim is dear: only what begins or ends with a blank is."""
    padded = " OR ".join(f"{name} LIKE {literal(pattern)}" for blank in raw.blanks for pattern in (f"{blank}%", f"%{blank}"))
    return f"CASE WHEN {padded} THEN {raw.clean(name)} ELSE {name} END" if padded else name


def sql_type(column: Column) -> str:
    """The type of a column in DuckDB."""
    if column.shape is not None or column.type == str(pa.binary()):
        return "BLOB"
    return SQL_TYPES[column_type(field_of(column).type)]


def text_cast(name: str, kind: ColumnType, given: pa.DataType = _TEXT) -> str:
    """SQL of the cast of a column to a type; NULL where a value does not fit it."""
    cast = f"TRY_CAST({name} AS {SQL_TYPES[kind]})"
    if kind.startswith("int") and not pa.types.is_integer(given):
        return _whole(f"CAST({name} AS VARCHAR)" if given != pa.string() else name, cast)
    if kind == "boolean" and pa.types.is_integer(given):  # DuckDB takes every number but 0 for true
        return f"CASE WHEN {name} IN (0, 1) THEN {cast} END"
    if kind == "date":
        return _day(name, cast, given)
    if kind == "timestamp" and given == pa.string():
        return _moment(name)
    return cast


def _whole(text: str, cast: str) -> str:
    """DuckDB would round 1.5 to 2 and 1e-1 to 0; 2.0 and 2. are whole. Most texts are what their number is written as."""
    is_whole = f"regexp_full_match(trim({text}, {_BLANKS}), '[+-]?[0-9]+([.]0*)?')"
    return f"CASE WHEN CAST({cast} AS VARCHAR) = {text} OR {is_whole} THEN {cast} END"


def _day(name: str, cast: str, given: pa.DataType) -> str:
    """DuckDB would drop the time of 2024-01-02 10:00, and takes inf for a day."""
    if given == pa.string():
        return f"CASE WHEN strlen(trim({name}, {_BLANKS})) <= 10 AND isfinite({cast}) THEN {cast} END"
    return f"CASE WHEN CAST({cast} AS TIMESTAMP) = {name} THEN {cast} END" if pa.types.is_timestamp(given) else cast


def _moment(name: str) -> str:
    """DuckDB would drop the offset of 10:00+02:00; its cast that keeps it is four times as dear, so only where one can be."""
    plain = f"strlen({name}) = 10 OR (strlen({name}) = 19 AND {name}[14] = ':' AND {name}[17] = ':')"
    both = f"CASE WHEN {plain} THEN TRY_CAST({name} AS TIMESTAMP) ELSE CAST(TRY_CAST({name} AS TIMESTAMPTZ) AS TIMESTAMP) END"
    return f"CASE WHEN isfinite({both}) THEN {both} END"


# ---- what a row is told by


def hashed_columns(job: Job, columns: tuple[Column, ...]) -> dict[str, str]:
    """What the hash of a row is made of, in order: the key, or all source columns but the target by their names.

    Returns:
        Names of the source with the names that they have in the evaluated rows.

    Raises:
        JobError: the key names a column that is not there.
    """
    known = {column.name for column in columns}
    names = job.data.key or sorted(known - {job.target.column})
    missing = [name for name in names if name not in known]
    if missing:
        raise JobError(
            f"the key names {', '.join(missing)}, which is no column of the source.", where="data.key", received=", ".join(sorted(known))
        )
    if not names:
        raise JobError("there is nothing but the target.", where="data", received=", ".join(known), remedy="Add columns to learn from.")
    return {name: f"_hash_{i}" if job.data.select else name for i, name in enumerate(names)}


# ---- what comes out


def stored_columns(job: Job, columns: tuple[Column, ...]) -> tuple[Column, ...]:
    """The columns of a shard: what the job's SQL makes of the source's columns, found by evaluating it over a few empty rows.

    Raises:
        JobError: an expression is wrong, or names a column twice, or gives more or fewer values than there are rows.
    """
    _check_derived(job, columns)
    received = pa.schema([field_of(column) for column in columns])
    with sealed_connection() as connection:
        _check_repeatable(job, connection)
        connection.register("_source", _empty_rows(columns))
        try:
            evaluated = connection.sql(evaluation_sql(job, columns, received)).to_arrow_table()
        except (duckdb.Error, pa.ArrowException) as error:
            raise (explain(job, columns, error) or _unknown(error)) from error
    if len(evaluated) != _PROBE_ROWS:
        raise JobError(
            "an expression changes the number of rows.",
            where="data.derive" if not job.data.select else "data.derive or data.select",
            remedy="An expression gives one value for each row: no unnest, no aggregate.",
        )
    return _columns_of(job, columns, evaluated.schema)


def _check_repeatable(job: Job, connection: duckdb.DuckDBPyConnection) -> None:
    """An expression gives a row the same value whenever it is read, with whatever other rows.

    Raises:
        JobError: it does not.
    """
    found = connection.sql("SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability NOT IN ('CONSISTENT')").fetchall()
    moody = "|".join(re.escape(name) for (name,) in found if name.isidentifier())
    pattern = re.compile(rf"\b(?:(?:{moody})\s*\(|over\s*\(|current_(?:date|time|timestamp)\b)", re.IGNORECASE)
    for where, expression, _ in _expressions(job):
        match = pattern.search(_QUOTED.sub("", expression))
        if match:
            raise JobError(
                f"{match[0].rstrip('( ')!r} gives a row another value at another time, or with other rows.",
                where=f"data.{where}",
                received=expression,
                remedy="Use columns of the row alone.",
            )


def _check_derived(job: Job, columns: tuple[Column, ...]) -> None:
    known = {column.name.casefold() for column in columns}
    taken = [name for name in job.data.derive if name.casefold() in known]
    if taken:
        raise JobError(
            f"{', '.join(map(repr, taken))} is a column of the source already.", where="data.derive", remedy="Take another name."
        )


def _empty_rows(columns: tuple[Column, ...]) -> pa.Table:
    return pa.table({column.name: pa.nulls(_PROBE_ROWS, field_of(column).type) for column in columns})


def _columns_of(job: Job, columns: tuple[Column, ...], evaluated: pa.Schema) -> tuple[Column, ...]:
    known = {column.name: column for column in columns}
    fields = [f for f in evaluated if not f.name.startswith(_MARKS)]
    names = [f.name.casefold() for f in fields]
    twice = sorted({f.name for f, name in zip(fields, names, strict=True) if names.count(name) > 1})
    reserved = [f.name for f in fields if is_reserved(f.name)]
    if twice or reserved:
        what = f"{', '.join(map(repr, twice))} is a column already" if twice else f"{', '.join(reserved)} is a name that is kept for refit"
        raise JobError(f"{what}.", where="data.select" if job.data.select else "data.derive", remedy="Take another name.")
    made = {*job.data.derive, *(() if not job.data.select else (f.name for f in fields))} - {
        f.name for f in fields if f.name in known and f.type == pa.binary() and known[f.name].type != str(pa.string())
    }
    return tuple(_stored(f) if f.name in made or f.name not in known else known[f.name] for f in fields)


def is_reserved(name: str) -> bool:
    """Whether a column may not have this name: it is refit's, or what DuckDB calls the position of a row."""
    return name.startswith(RESERVED_PREFIX) or name.casefold() == "file_row_number"


def _stored(field: pa.Field) -> Column:
    if pa.types.is_nested(field.type):
        raise JobError(
            f'the derived column "{field.name}" cannot be stored.',
            where="data.derive",
            received=str(field.type),
            expected="numbers, strings, booleans, dates or timestamps",
        )
    return Column(name=field.name, type=str(field_of(column_of(field)).type))


def explain(job: Job, columns: tuple[Column, ...], error: Exception) -> JobError | DataError | None:
    """Say which of the job's expressions is at fault by trying them one by one over empty rows; None where none is."""
    hashed_columns(job, columns)
    for where, expression, data in _expressions(job):
        fault = _check_expression(job.model_copy(update={"data": job.data.model_copy(update=data)}), columns)
        if fault:
            return JobError(
                f"the SQL cannot be evaluated: {fault}", where=f"data.{where}", received=expression, remedy="Mend the expression."
            )
    if first_line(error).startswith(_FAILING_EXPRESSIONS):
        expressions = "; ".join(expression for _, expression, _ in _expressions(job))
        return DataError(
            f"an expression fails on a row: {first_line(error)}",
            where="data.derive, data.where or data.select",
            received=expressions,
            remedy="Make it hold for every row, with TRY_CAST or CASE; data.where is applied after data.derive.",
        )
    return None


def _unknown(error: Exception) -> DataError:
    return DataError(f"the rows cannot be evaluated: {first_line(error)}", where="data")


def _expressions(job: Job) -> Iterable[tuple[str, str, dict[str, object]]]:
    for name, expression in job.data.derive.items():
        yield f"derive.{name}", expression, {"derive": {"_probe": expression}, "where": None, "select": []}
    if job.data.where:
        yield "where", job.data.where, {"select": []}
    for position, expression in enumerate(job.data.select):
        yield f"select.{position}", expression, {"select": [expression], "where": None}


def _check_expression(job: Job, columns: tuple[Column, ...]) -> str | None:
    received = pa.schema([field_of(column) for column in columns])
    with sealed_connection() as connection:
        connection.register("_source", _empty_rows(columns))
        try:
            connection.sql(evaluation_sql(job, columns, received)).fetchall()
        except duckdb.Error as error:
            return first_line(error)
    return None
