"""What a source gives: inputs with an identity, and for each a way to read its rows.

A source is a module with two functions. ``list_inputs(source, known, seen)`` names what there is to read now, with a digest
of the content, so that what was read once is not read again. ``open_input(found, spool)`` is a context manager that gives
``Text``, which DuckDB reads and ingestion casts, ``Lines``, which Arrow parses, or ``Batches`` of Arrow columns that are typed already.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from refit.config import Source
from refit.parallel import ordered_map
from refit.records import Column, SourceRecord

if TYPE_CHECKING:
    from refit.sources.seen import Seen

BATCH_ROWS = 65_536


@dataclass(frozen=True)
class File:
    """A file at a location.

    Attributes:
        name: how people know it: the path as given, or ``s3://bucket/key``.
        size: bytes.
        stamp: changes whenever the content may have changed (size and times; inode where there is one).
    """

    name: str
    size: int
    stamp: str


@dataclass(frozen=True)
class Input:
    """What is read as a whole: a file, a folder of images, a range of a query, a function.

    Attributes:
        name: unique in a data set.
        digest: changes when the content or the way to read it changes.
        source: of the job.
        files: what it is made of, where it is made of files.
        bounds: SQL only: the incremental column's values, above the first up to the second, as text.
        is_doubtful: a quick reading of it went wrong, so that it is to be read with all care.
    """

    name: str
    digest: str
    source: Source
    files: tuple[File, ...] = ()
    bounds: tuple[str | None, str | None] | None = None
    is_doubtful: bool = False


@dataclass(frozen=True)
class Reject:
    """A row that cannot be used. ``line`` counts a text file's lines from 1; ``row`` the rows of other inputs from 0."""

    reason: str
    text: str
    line: int | None = None
    row: int | None = None
    column: str | None = None
    file: str | None = None


@dataclass(frozen=True)
class Place:
    """Where a row of a text file begins, and its raw text (cut at ``MAX_RAW_TEXT`` characters)."""

    line: int
    text: str


@dataclass(frozen=True)
class Text:
    """Rows that DuckDB reads as text.

    Attributes:
        scan: a table expression, every column VARCHAR, missing values NULL.
        names: its columns, in order.
        paths: the files that it reads; the connection may read no others.
        faults: what the scan could not read as a row; called in the scan's connection after its last row.
        locate: for rows of the scan, counted from 0 and ascending, where they stand in the input. Costs a pass over it.
        count_rows: tells how many rows the scan must give.
        raw: the scan where it is cheaper to have without the blanks around values taken off; see ``Raw``.
        dialect: said of the input in errors, such as ``separated by ','``.
    """

    scan: str
    names: tuple[str, ...]
    paths: tuple[Path, ...]
    faults: Callable[[duckdb.DuckDBPyConnection], list[Reject]]
    locate: Callable[[Sequence[int]], Iterator[Place]]
    count_rows: Callable[[], int]
    raw: "Raw | None" = None
    dialect: str = ""


@dataclass(frozen=True)
class Parsed:
    """A piece of ``Lines``.

    Attributes:
        rows: the values as strings, as they stand in the text.
        text: the piece; every line has its end.
        ends: where the lines end, int64 ``[lines]``.
    """

    rows: pa.RecordBatch
    text: bytearray
    ends: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Lines:
    """Text of which every line is a row or empty, in pieces that can be parsed side by side.

    Attributes:
        names: its columns, in order.
        read: yields the pieces, each of whole lines.
        parse: raises ``DoubtfulError`` where a line is not shown to be a row: the input is to be opened anew as ``is_doubtful``.
        clean: values of a column without the blanks around them, missing ones null.
        find: for rows of a piece, counted from 0 and ascending, where they stand in it, its first line being 1.
        locate: for rows of the whole input where they stand in it. Costs a pass over it.
        num_lines: before the first piece.
        dialect: said of the input in errors.
    """

    names: tuple[str, ...]
    read: Callable[[], Iterator[bytearray]]
    parse: Callable[[bytearray], Parsed]
    clean: Callable[[pa.StringArray], pa.StringArray]
    find: Callable[[Parsed, npt.NDArray[np.int64]], list[Place]]
    locate: Callable[[Sequence[int]], Iterator[Place]]
    num_lines: int = 0
    dialect: str = ""

    def values(self) -> Iterator[pa.RecordBatch]:
        """All rows, parsed side by side and cleaned, in order."""
        return ordered_map(self.cleaned, self.read())

    def cleaned(self, piece: bytearray) -> pa.RecordBatch:
        """The rows of a piece, parsed and cleaned."""
        rows = self.parse(piece).rows
        return pa.RecordBatch.from_arrays([self.clean(column) for column in rows.columns], schema=rows.schema)


class DoubtfulError(Exception):
    """A text is not what a quick look took it for; it is to be opened anew as ``is_doubtful``."""


@dataclass(frozen=True)
class Raw:
    """A scan of values with the blanks that stand around them, for who casts them to types to which blanks mean nothing.

    Attributes:
        scan: a table expression with the columns of the text.
        clean: SQL of a value, made of that of the raw one: without blanks, NULL where it is missing.
        blanks: the characters that stand around values.
        has_null_words: some texts that are no blanks stand for a missing value.
    """

    scan: str
    clean: Callable[[str], str]
    blanks: str = " \t"
    has_null_words: bool = False


@dataclass(frozen=True)
class Batches:
    """Rows that come as Arrow.

    Attributes:
        columns: what every batch holds, at least.
        read: yields the batches; called once.
        rejects: rows that could not be read; complete when ``read`` has ended.
    """

    columns: tuple[Column, ...]
    read: Callable[[], Iterator[pa.RecordBatch]]
    rejects: list[Reject] = field(default_factory=list)


MAX_RAW_TEXT = 2_000


class Opener(Protocol):
    """A module that reads inputs of one kind."""

    def open_input(self, found: Input, spool: Path) -> AbstractContextManager[Text | Lines | Batches]:
        """Make an input ready to be read; what it puts into the folder ``spool`` is gone afterwards."""


class Lister(Protocol):
    """A module that also tells its inputs, where they are not simply the files of a path."""

    def identity(self, source: Any) -> str:  # noqa: ANN401 -- each module takes its own kind
        """How a source is told from others, without secrets."""

    def list_inputs(self, source: Any, known: Mapping[str, SourceRecord], seen: "Seen") -> list[Input]:  # noqa: ANN401
        """What there is to read now, with digests."""


def first_line(error: BaseException) -> str:
    """The first line of a library's message, as one sentence."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".") + "."


def literal(text: str) -> str:
    """``text`` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """``name`` as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def listing(words: Sequence[str]) -> str:
    """Words as an SQL list of strings."""
    return "[" + ", ".join(literal(word) for word in words) + "]"
