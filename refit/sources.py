"""Where rows come from: files that DuckDB parses, and functions that yield Arrow batches.

Every source gives its inputs (a name and the digest of the content, so that what was read once is not read again), and
for an input a stream of Arrow batches of plain or tensor columns.
"""

import glob
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from refit import references
from refit.config import CsvSource, DataConfig, JsonSource, ParquetSource, PythonSource, Source, digest
from refit.errors import SourceError
from refit.records import Column
from refit.schema import ARROW_TYPES, column_of

BATCH_ROWS = 65_536
_PIECE_BYTES = 1 << 20
_REJECTED_LINES = "SELECT line, column_name, error_message, csv_line FROM reject_errors ORDER BY line"


@dataclass(frozen=True)
class Input:
    """One file or one function: ``digest`` changes when its content or the way to read it changes."""

    name: str
    digest: str
    source: Source


@dataclass(frozen=True)
class Reject:
    """A line whose structure is broken, as the parser saw it."""

    line: int
    column: str | None
    reason: str
    text: str


def list_inputs(data: DataConfig) -> list[Input]:
    """All inputs of a job, in the order of its sources, files by name.

    Raises:
        SourceError: a pattern matches no file, or a file cannot be read.
        CodeError: a function cannot be had.
    """
    inputs = [found for source in data.sources for found in _inputs(source)]
    names = [found.name for found in inputs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SourceError(f"{', '.join(twice)} would be read twice.", where="data.sources", remedy="Let no two patterns match one file.")
    return inputs


def _inputs(source: Source) -> list[Input]:
    if isinstance(source, PythonSource):
        call = f"{source.read}({', '.join(f'{k}={v!r}' for k, v in source.options.items())})"
        return [Input(name=call, digest=_digest_batches(source), source=source)]
    reading = digest(source.model_dump(mode="json", exclude={"path"}))
    return [Input(name=str(path), digest=_digest_file(path, reading), source=source) for path in find_files(source.path)]


def find_files(pattern: str) -> list[Path]:
    """Files that a path or glob names, sorted.

    Raises:
        SourceError: there is none.
    """
    found = sorted(Path(name) for name in glob.glob(pattern, recursive=True))  # noqa: PTH207 -- patterns may be absolute
    files = [path for path in found if path.is_file()]
    if not files:
        what = "is a folder" if found else "does not exist" if not glob.has_magic(pattern) else "matches no file"
        remedy = "Name the files in it, such as folder/*.csv." if found else "Paths are relative to the working directory."
        raise SourceError(f'the source "{pattern}" {what}.', where=f"data.sources, looked in {Path.cwd()}", remedy=remedy)
    return files


def read_columns(inputs: list[Input], declared: dict[str, str]) -> tuple[Column, ...]:
    """Columns of all inputs together: their types as declared, else inferred over the whole input.

    Raises:
        SourceError: an input cannot be parsed, or a declared column is nowhere.
    """
    columns: dict[str, Column] = {}
    for source in dict.fromkeys(_key(found.source) for found in inputs):
        for column in _columns([found for found in inputs if _key(found.source) == source]):
            columns.setdefault(column.name, column)
    lost = [name for name in declared if name not in columns]
    if lost:
        raise SourceError(f"no source has the column {', '.join(map(repr, lost))}.", where="data.columns", received=", ".join(columns))
    return tuple(Column(name=c.name, type=_arrow_name(declared[c.name])) if c.name in declared else c for c in columns.values())


def _arrow_name(declared: str) -> str:
    return str(ARROW_TYPES[declared])  # type: ignore[index]


def _key(source: Source) -> str:
    return source.model_dump_json()


def _columns(inputs: list[Input]) -> list[Column]:
    source = inputs[0].source
    if isinstance(source, PythonSource):
        return [column_of(field) for field in next(read_batches(inputs[0], [])).schema]
    with duckdb.connect() as connection:
        relation = _query(connection, f"SELECT * FROM {_scan(source, [found.name for found in inputs])} LIMIT 0", inputs[0])  # noqa: S608
        return [column_of(field) for field in relation.to_arrow_table().schema]


def read_batches(found: Input, rejects: list[Reject]) -> Iterator[pa.RecordBatch]:
    """The rows of an input as the source types them; all columns of CSV files come as strings, to be cast by ingestion.

    Lines of CSV files with too many or too few columns, or broken quotes, are added to ``rejects`` at the end.

    Raises:
        SourceError: the input cannot be parsed, or its function fails.
    """
    if isinstance(found.source, PythonSource):
        yield from _call(found.source)
        return
    with duckdb.connect() as connection:
        scan = _text_scan(connection, found) if isinstance(found.source, CsvSource) else _scan(found.source, [found.name])
        relation = _query(connection, f"SELECT * FROM {scan}", found)  # noqa: S608 -- names and options are quoted literals
        try:
            yield from relation.to_arrow_reader(BATCH_ROWS)
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise _unreadable(found, error) from error
        if isinstance(found.source, CsvSource):
            rejects += [Reject(*row) for row in connection.sql(_REJECTED_LINES).fetchall()]


def _query(connection: duckdb.DuckDBPyConnection, sql: str, found: Input) -> duckdb.DuckDBPyRelation:
    try:
        return connection.sql(sql)
    except duckdb.Error as error:
        raise _unreadable(found, error) from error


def _unreadable(found: Input, error: Exception) -> SourceError:
    return SourceError(
        f"the file cannot be read as {found.source.kind}: {first_line(error)}",
        where=found.name,
        remedy="Mend the file or the source's options.",
    )


def first_line(error: Exception) -> str:
    """The first line of a library's message, as one sentence."""
    return str(error).strip().splitlines()[0].rstrip(".") + "."


def _scan(source: Source, names: list[str]) -> str:
    """A table function over files that infers the columns; lines that do not parse are passed over."""
    files = _list([_escaped(name) for name in names])
    if isinstance(source, ParquetSource):
        return f"read_parquet({files}, union_by_name=true)"
    if isinstance(source, JsonSource):
        return f"read_json({files}, union_by_name=true, sample_size=-1)"
    if not isinstance(source, CsvSource):
        raise TypeError(type(source))
    options = {**_dialect(source), "sample_size": "-1", "union_by_name": "true", "ignore_errors": "true"}
    if source.names:
        options["names"] = _list(source.names)
    return f"read_csv({files}, {_arguments(options)})"


def _text_scan(connection: duckdb.DuckDBPyConnection, found: Input) -> str:
    """A table function over one CSV file: all columns as text, nothing guessed, broken lines kept aside."""
    names = _query(connection, f"SELECT * FROM {_scan(found.source, [found.name])} LIMIT 0", found).columns  # noqa: S608
    columns = "{" + ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names) + "}"
    dialect = _dialect(found.source) if isinstance(found.source, CsvSource) else {}
    options = {**dialect, "auto_detect": "false", "columns": columns, "store_rejects": "true"}
    return f"read_csv({literal(_escaped(found.name))}, {_arguments(options)})"


def _dialect(source: CsvSource) -> dict[str, str]:
    quote = literal('"')
    options = {"header": str(source.header).lower(), "delim": literal(source.delimiter), "quote": quote, "escape": quote}
    return {**options, "nullstr": _list(source.null_values)}


def _arguments(options: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())


def _escaped(name: str) -> str:
    """A file's name as DuckDB must be told it: it takes every name for a pattern."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _list(words: list[str]) -> str:
    return "[" + ", ".join(literal(word) for word in words) + "]"


def literal(text: str) -> str:
    """``text`` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """``name`` as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _call(source: PythonSource) -> Iterator[pa.RecordBatch]:
    references.check_options(source.read, source.options, positional=0)
    function = references.load(source.read)
    num_batches = 0
    try:
        for batch in function(**source.options):
            if not isinstance(batch, pa.RecordBatch):
                raise _no_batch(source, type(batch).__name__)
            num_batches += 1
            yield batch
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(
            f"the function failed: {type(error).__name__}: {error}.", where=source.read, remedy="Mend the function."
        ) from error
    if not num_batches:
        raise _no_batch(source, "nothing")


def _no_batch(source: PythonSource, received: str) -> SourceError:
    return SourceError("a python source yields Arrow record batches.", where=source.read, received=received, expected="pyarrow.RecordBatch")


def _digest_batches(source: PythonSource) -> str:
    content = hashlib.sha256()
    for batch in _call(source):
        content.update(batch.schema.serialize())
        content.update(batch.serialize())
    return content.hexdigest()


def _digest_file(path: Path, reading: str) -> str:
    content = hashlib.sha256(reading.encode())
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                content.update(piece)
    except OSError as error:
        raise SourceError(
            f"the file cannot be read: {error.strerror}.", where=str(path), remedy="Give the process the right to read it."
        ) from error
    return content.hexdigest()
