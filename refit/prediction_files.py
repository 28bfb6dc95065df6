"""Files of predictions: written aside, and in their places all at once when they are complete.

What is under way lies in a hidden folder beside the output, which is locked as long as its process lives: who comes after a killed
process clears the folder, and two that would write one output do not meet.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from refit.errors import AlreadyRunningError, RequestError
from refit.records import sync_path

_GROUP_ROWS = 16_384
_GROUP_BYTES = 64 << 20


# ---- places


@dataclass(frozen=True)
class Places:
    """An output and what lies beside it."""

    output: Path

    @property
    def rejects(self) -> Path:
        """Rows that could not be predicted."""
        return self.output.with_name(f"{self.output.name}.rejects.parquet")

    @property
    def record(self) -> Path:
        """What was done."""
        return self.output.with_name(f"{self.output.name}.refit.json")

    @property
    def aside(self) -> Path:
        """The folder of what is under way."""
        return self.output.with_name(f".{self.output.name}.predicting")


def check_output(output: Path, source: str, *, force: bool) -> Places:
    """See that an output can be written.

    Raises:
        RequestError: it cannot be, or it is there already.
    """
    if output.suffix.lower() not in WRITERS:
        raise RequestError("the ending of the output does not tell its format.", received=str(output), expected=", ".join(WRITERS))
    if not output.parent.is_dir() or not os.access(output.parent, os.W_OK | os.X_OK):
        what = "cannot be written" if output.parent.is_dir() else "does not exist"
        raise RequestError(f"the folder of the output {what}.", where=str(output.parent), remedy="Make it, or name another one.")
    if "://" not in source and output.exists() and Path(source).exists() and output.samefile(source):
        raise RequestError("the output would replace the input.", where=str(output), remedy="Name another file.")
    if output.is_dir():
        raise RequestError("the output is a folder.", where=str(output), remedy="Name a file in it.")
    if output.exists() and not force:
        raise RequestError("the output is there already.", where=str(output), remedy="Name another file, or replace it with --force.")
    return Places(output)


@contextlib.contextmanager
def working_aside(places: Places) -> Iterator[Path]:
    """A folder for what is not complete; gone afterwards.

    Raises:
        AlreadyRunningError: another process writes the same output.
    """
    places.aside.mkdir(exist_ok=True)
    handle = os.open(places.aside, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AlreadyRunningError("another process is writing this output.", where=str(places.output)) from error
        for left in places.aside.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield places.aside
        finally:
            shutil.rmtree(places.aside, ignore_errors=True)
    finally:
        os.close(handle)


def put_in_place(output: Path, rejects: Path | None, record: Path, places: Places) -> None:
    """Give complete files their names, the output last: where it is, the others are. Rejects of an earlier output go."""
    for path in filter(None, (output, rejects, record)):
        sync_path(path)
    if rejects is None:
        places.rejects.unlink(missing_ok=True)
    else:
        rejects.replace(places.rejects)
    record.replace(places.record)
    output.replace(places.output)
    sync_path(places.output.parent)


# ---- formats


class Format(Protocol):
    """A kind of file that tables of one schema are appended to."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Begin the file."""

    def write(self, rows: pa.Table) -> None:
        """Append rows."""

    def close(self) -> None:
        """End the file."""

    @staticmethod
    def holds(kind: pa.DataType) -> bool:
        """Whether columns of this type can be written."""


class ParquetFormat:
    """Parquet; columns of tensors have their shape and dtype in the field's metadata."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Begin the file."""
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", compression_level=1)
        self._pending: list[pa.Table] = []

    def write(self, rows: pa.Table) -> None:
        """Append rows, in row groups of a good size."""
        self._pending.append(rows)
        if sum(map(len, self._pending)) >= _GROUP_ROWS or sum(table.nbytes for table in self._pending) >= _GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """End the file."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.concat_tables(self._pending))
        self._pending = []

    @staticmethod
    def holds(kind: pa.DataType) -> bool:  # noqa: ARG004
        """Any."""
        return True


class CsvFormat:
    """CSV with a header; missing values are empty, texts stand in quotes."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Begin the file."""
        self._writer = pa_csv.CSVWriter(path, schema)

    def write(self, rows: pa.Table) -> None:
        """Append rows."""
        self._writer.write_table(rows)

    def close(self) -> None:
        """End the file."""
        self._writer.close()

    @staticmethod
    def holds(kind: pa.DataType) -> bool:
        """One value, and no bytes."""
        return not (pa.types.is_nested(kind) or _is_binary(kind))


class JsonFormat:
    """An object a line; missing values are null."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:  # noqa: ARG002 -- each line names its columns
        """Begin the file."""
        self._file: IO[str] = path.open("w", encoding="utf-8", newline="\n")
        self._connection = duckdb.connect()

    def write(self, rows: pa.Table) -> None:
        """Append rows."""
        if len(rows):
            lines = self._connection.from_arrow(rows).query("_rows", "SELECT CAST(to_json(_rows) AS VARCHAR) FROM _rows")
            self._file.writelines(f"{line}\n" for (line,) in lines.fetchall())  # type: ignore[union-attr]

    def close(self) -> None:
        """End the file."""
        self._file.close()
        self._connection.close()

    @staticmethod
    def holds(kind: pa.DataType) -> bool:
        """No bytes."""
        return not _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


WRITERS: Mapping[str, type[Format]] = {
    ".parquet": ParquetFormat,
    ".csv": CsvFormat,
    ".jsonl": JsonFormat,
}


# ---- columns


@dataclass(frozen=True)
class Naming:
    """How columns of the input and of the model come together.

    Attributes:
        kept: columns of the input that the format can hold.
        left_out: those that it cannot.
        renamed: names of predictions that the input has already, with the names that they have instead.
    """

    kept: tuple[str, ...]
    left_out: tuple[str, ...]
    renamed: Mapping[str, str]


def name_columns(shown: Mapping[str, str], rows: pa.Schema, predicted: Sequence[str], kind: type[Format]) -> Naming:
    """Decide which columns there will be, and what they are called.

    Args:
        shown: columns of the input with their names in ``rows``.
        rows: schema of the rows as they are read.
        predicted: names of the predictions' columns.
        kind: of the output.
    """
    kept = tuple(name for name, mark in shown.items() if kind.holds(rows.field(mark).type))
    left_out = tuple(name for name in shown if name not in kept)
    taken = {name.casefold() for name in kept}
    renamed: dict[str, str] = {}
    for name in predicted:
        free = name
        while free.casefold() in taken:
            free = f"refit_{free}"
        taken.add(free.casefold())
        if free != name:
            renamed[name] = free
    return Naming(kept, left_out, renamed)


def columns_of(name: str, values: np.ndarray, classes: Sequence[object] | None) -> dict[str, pa.Array]:
    """Columns of one named output: one of its name, or one for each class, or numbered from 0.

    Args:
        name: of the output.
        values: ``[rows, ...]``; texts as bytes.
        classes: of the target, where it has any.
    """
    if values.ndim == 1:
        return {name: _array(values)}
    width = int(np.prod(values.shape[1:]))
    known = classes if classes is not None and len(classes) == width else range(width)
    title = "probability" if name == "probabilities" else name
    return {f"{title}_{one}": _array(column) for one, column in zip(known, values.reshape(-1, width).T, strict=True)}


def _array(values: np.ndarray) -> pa.Array:
    if values.dtype == object:
        return pa.array(values, pa.binary()).cast(pa.string())
    return pa.array(values)
