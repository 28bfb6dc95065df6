"""Rows that a function of the repository yields as Arrow record batches."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa

from refit import references
from refit.config import PythonSource
from refit.errors import SourceError
from refit.records import SourceRecord
from refit.schema import column_of
from refit.sources.inputs import Batches, Input
from refit.sources.seen import Seen


def identity(source: PythonSource) -> str:
    """The call, as people read it."""
    return f"{source.read}({', '.join(f'{key}={value!r}' for key, value in source.options.items())})"


def list_inputs(source: PythonSource, _known: Mapping[str, SourceRecord], _seen: Seen) -> list[Input]:
    """One input: all that the function yields. Its digest is that of the rows, so the function runs once to be known.

    Raises:
        CodeError: the function cannot be had.
        SourceError: it fails.
    """
    return [Input(name=identity(source), digest=digest_rows(call(source)), source=source)]


@contextlib.contextmanager
def open_input(found: Input, _spool: Path) -> Iterator[Batches]:
    """The function's batches; the first one tells the columns."""
    if not isinstance(found.source, PythonSource):
        raise TypeError(type(found.source))
    batches = call(found.source)
    first = next(batches)

    def read() -> Iterator[pa.RecordBatch]:
        yield first
        yield from batches

    yield Batches(columns=tuple(column_of(field) for field in first.schema), read=read)


def call(source: PythonSource) -> Iterator[pa.RecordBatch]:
    """Run the function.

    Raises:
        CodeError: it cannot be had, or does not take its options.
        SourceError: it fails, yields nothing, or something that is no batch.
    """
    references.check_options(source.read, source.options, positional=0)
    function = references.load(source.read)
    num_batches = 0
    try:
        for batch in function(**source.options):
            if not isinstance(batch, pa.RecordBatch):
                raise _no_batch(source, type(batch).__name__)
            batch.validate(full=True)
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


def digest_rows(batches: Iterator[pa.RecordBatch]) -> str:
    """SHA-256 (hex) of batches as they come: schema and content."""
    content = hashlib.sha256()
    for batch in batches:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as stream:  # which holds dictionaries, too
            stream.write_batch(batch)
        content.update(sink.getvalue())
    return content.hexdigest()
