"""Arrow batches on their way into DuckDB, which would tell an error of theirs as its own."""

from collections.abc import Iterator
from functools import cached_property
from types import TracebackType
from typing import Self

import pyarrow as pa


class Feed:
    """Batches of one schema for one DuckDB query; leaving the context raises what making them raised."""

    def __init__(self, batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> None:
        """Begin; nothing is taken yet."""
        self._batches = batches
        self._schema = schema
        self._failure: Exception | None = None

    @cached_property
    def first(self) -> pa.RecordBatch:
        """The first batch, which stays the first of the reader; an empty one where there is none."""
        return next(self._batches, pa.RecordBatch.from_pylist([], schema=self._schema))

    def reader(self) -> pa.RecordBatchReader:
        """All batches, once."""
        return pa.RecordBatchReader.from_batches(self._schema, self._all())

    def _all(self) -> Iterator[pa.RecordBatch]:
        try:
            yield self.first
            yield from self._batches
        except Exception as error:
            self._failure = error
            raise

    def __enter__(self) -> Self:
        """Use the batches within."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Let go of what is left; what making them raised is the error, whatever came of it."""
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()
        if self._failure is not None and isinstance(error, Exception):
            raise self._failure from error
