"""Parquet files, read by pyarrow: columns keep their types, tensors their shapes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from refit.config import ParquetSource
from refit.errors import RefusedError
from refit.schema import column_of
from refit.sources.inputs import BATCH_ROWS, Batches, Input, first_line
from refit.sources.locations import local_path


@contextlib.contextmanager
def open_input(found: Input, spool: Path) -> Iterator[Batches]:
    """The rows of one file, a row group at a time.

    Raises:
        RefusedError: it is no Parquet file, or is damaged.
    """
    if not isinstance(found.source, ParquetSource):
        raise TypeError(type(found.source))
    with local_path(found.files[0], found.source, spool) as path:
        with _refusing(found):
            file = pq.ParquetFile(path, page_checksum_verification=True)
            columns = tuple(column_of(field) for field in file.schema_arrow)
        with file:
            yield Batches(columns=columns, read=lambda: _read(file, found))


def _read(file: pq.ParquetFile, found: Input) -> Iterator[pa.RecordBatch]:
    with _refusing(found):
        for batch in file.iter_batches(BATCH_ROWS):
            batch.validate(full=True)
            yield batch


@contextlib.contextmanager
def _refusing(found: Input) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, ValueError, UnicodeDecodeError) as error:
        raise RefusedError(
            f"the file cannot be read as Parquet: {first_line(error)}", where=found.name, remedy="Write it again, or leave it out."
        ) from error
