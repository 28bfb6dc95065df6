"""Rows that could not be used: each with its file, line, column, reason, value and raw text, in one Parquet file an ingest.

Rows whose values do not fit are noted by number while an input is read, and looked up in it afterwards unless it was known at once
where they stand. What is held in memory is their numbers, 8 bytes each: a file of nothing but bad rows costs no more than a good one.
"""

import array
import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from refit.errors import DataError
from refit.sources.inputs import MAX_RAW_TEXT, Place, Reject

SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),
        ("row", pa.int64()),
        ("column", pa.string()),
        ("reason", pa.string()),
        ("value", pa.string()),
        ("text", pa.string()),
    ]
)
_BATCH_ROWS = 8_192
Row = tuple[str | int | None, ...]


class Rejects:
    """The rejects of one ingest, written as they come."""

    def __init__(self, path: Path, notes: Path) -> None:
        """Begin the file ``path``; ``notes`` is a place for a temporary file."""
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")
        self._notes = notes
        self.reasons: Counter[str] = Counter()

    def __enter__(self) -> Self:
        """Close the file at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the file; what was written stays."""
        self._writer.close()

    def write(self, name: str, rejects: Sequence[Reject]) -> int:
        """Add rows that a source could not read; return how many there are (of a line with two faults the first counts)."""
        once = {(r.file, r.line, r.row): r for r in reversed(rejects)}
        self.reasons.update(r.reason for r in once.values())
        for batch in _batched(reversed(once.values())):
            self.write_rows([(r.file or name, r.line, r.row, r.column, r.reason, None, r.text) for r in batch])
        return len(once)

    def misfits(self, name: str) -> "Misfits":
        """Collects the rows of one input whose values do not fit."""
        return Misfits(self, name, self._notes)

    def write_rows(self, rows: list[Row]) -> None:
        """Write rows as ``SCHEMA`` has them; long texts are cut."""
        columns = [
            pa.array([_cut(value) for value in values], field.type) for values, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)
        ]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))


class Misfits:
    """Rows of one input in which a value does not fit its column: numbers in memory, columns and values on disk."""

    _SCHEMA = pa.schema([("column", pa.string()), ("value", pa.string()), ("line", pa.int64()), ("text", pa.string())])

    def __init__(self, rejects: Rejects, name: str, notes: Path) -> None:
        """Begin; ``notes`` is where the values wait."""
        self._rejects = rejects
        self._name = name
        self._path = notes
        self._writer: pq.ParquetWriter | None = None
        self._rows = array.array("Q")
        self.by_column: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def __len__(self) -> int:
        """Rows so far."""
        return len(self._rows)

    def add(self, rows: Sequence[int], columns: pa.Array, values: pa.Array, places: Sequence[Place] = ()) -> None:
        """Note rows by their numbers in the input, from 0 and ascending; a missing value is a missing part of the key.

        Args:
            rows: their numbers.
            columns: the first column of each that is wrong.
            values: its text.
            places: where they stand, where that is known already; for all rows of an input or none.
        """
        unknown = [pa.nulls(len(rows), pa.int64()), pa.nulls(len(rows), pa.string())]
        known = [pa.array([place.line for place in places]), pa.array([place.text for place in places])] if places else unknown
        noted = pa.RecordBatch.from_arrays([columns.cast(pa.string()), values.cast(pa.string()), *known], schema=self._SCHEMA)
        self._writer = self._writer or pq.ParquetWriter(self._path, self._SCHEMA, compression="lz4")
        self._writer.write_batch(noted)
        self._rows.extend(rows)
        for counted in noted.filter(pc.is_valid(noted["value"]))["column"].value_counts().to_pylist():
            name = counted["values"]
            self.by_column[name] += counted["counts"]
            if name not in self.examples:
                self.examples[name] = str(noted["value"][pc.index(noted["column"], name).as_py()])[:80]

    def finish(self, locate: Callable[[Sequence[int]], Iterator[Place]] | None) -> int:
        """Look the rows up in the input, where that can be done, and write them; return how many there are."""
        if self._writer is None:
            return 0
        self._writer.close()
        self._writer = None
        places = locate(self._rows) if locate else None
        rows = iter(self._rows)
        with pq.ParquetFile(self._path) as file:
            for batch in file.iter_batches(_BATCH_ROWS):
                self._rejects.write_rows([self._told(next(rows), places, noted) for noted in batch.to_pylist()])
        self._path.unlink()
        return len(self._rows)

    def close(self) -> None:
        """Give up what was noted, unless it was written."""
        if self._writer is not None:
            with contextlib.suppress(OSError):  # a full disk must not hide the error that led here
                self._writer.close()
            self._writer = None
            self._path.unlink(missing_ok=True)

    def _told(self, row: int, places: Iterator[Place] | None, noted: dict[str, Any]) -> Row:
        column, value, line, text = noted.values()
        reason = "a part of the key is missing" if value is None else "does not fit the column's type"
        self._rejects.reasons[f'"{column}": {reason}'] += 1
        if places is not None:
            place = next(places)
            line, text = place.line, place.text
        return self._name, line, row if line is None else None, column, reason, value, text


def check_rejected(rejects: Rejects, num_rejected: int, num_read: int, *, limit: float, worst: str, remedy: str) -> None:
    """See that not too many rows were rejected.

    Args:
        rejects: with the reasons.
        num_rejected: of all inputs.
        num_read: likewise.
        limit: the largest share that is allowed.
        worst: where most of them are.
        remedy: what to do.

    Raises:
        DataError: more were, with the five commonest reasons.
    """
    if num_rejected > limit * num_read:
        reasons = "; ".join(f"{reason} ({count:,})" for reason, count in rejects.reasons.most_common(5))
        raise DataError(
            f"{num_rejected:,} of {num_read:,} rows cannot be used: {reasons}.",
            where=f"most of them in {worst}",
            expected=f"at most {limit:.2%}",
            remedy=remedy,
        )


def _cut(value: object) -> object:
    return value[:MAX_RAW_TEXT] if isinstance(value, str) else value


def _batched(rejects: Iterator[Reject]) -> Iterator[list[Reject]]:
    while batch := list(itertools.islice(rejects, _BATCH_ROWS)):
        yield batch
