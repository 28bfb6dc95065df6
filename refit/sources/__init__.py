"""Where rows come from. Each kind of source is a module of its own, as ``refit.sources.inputs`` describes them.

A module is imported when a job names its kind: who reads CSV files waits for no image or database library.
"""

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from refit.config import CsvSource, DataConfig, JsonSource, ParquetSource, PythonSource, Source, SqlSource, digest
from refit.errors import NothingThereError, SourceError
from refit.records import SourceRecord
from refit.sources.inputs import Batches, Input, Lines, Lister, Opener, Text
from refit.sources.locations import list_files
from refit.sources.seen import Seen, digest_files

_MODULES = {
    "csv": "delimited",
    "json": "jsons",
    "parquet": "tables",
    "images": "images",
    "idx": "idx",
    "sql": "databases",
    "python": "functions",
}
_WHERE = {"path", "endpoint", "region"}  # where a file lies, which is not how it is read


def identity(source: Source) -> str:
    """How a source of the job is told from its others: what its inputs are ``listed_by``. A path keeps its variables."""
    return _module(source).identity(source) if isinstance(source, SqlSource | PythonSource) else source.path


def _module(source: Source) -> Lister:
    return cast(Lister, importlib.import_module(f"refit.sources.{_MODULES[source.kind]}"))


def list_inputs(data: DataConfig, known: Mapping[str, SourceRecord], seen: Seen) -> list[Input]:
    """All inputs that are there now, in the order of the job's sources, files by name.

    Args:
        data: of the job.
        known: inputs that the data set holds, by name; a source that gave some may have none left.
        seen: digests of files that have not changed since.

    Raises:
        SourceError: a source has no input, or cannot be read.
        CodeError: a function cannot be had.
    """
    inputs = [found for source in data.sources for found in _inputs(source, known, seen)]
    names = [found.name for found in inputs]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise SourceError(f"{', '.join(twice)} would be read twice.", where="data.sources", remedy="Let no two patterns match one file.")
    return inputs


def _inputs(source: Source, known: Mapping[str, SourceRecord], seen: Seen) -> list[Input]:
    try:
        if isinstance(source, CsvSource | JsonSource | ParquetSource):
            return _list_files(source, seen)
        return _module(source).list_inputs(source, known, seen)
    except NothingThereError:
        if any(record.listed_by == identity(source) for record in known.values()):
            return []  # what has vanished is ingestion's to decide
        raise


def _list_files(source: CsvSource | JsonSource | ParquetSource, seen: Seen) -> list[Input]:
    files = list_files(source.path, source)
    reading = digest(source.model_dump(mode="json", exclude=_WHERE))
    contents = digest_files(files, source, seen)
    return [
        Input(name=file.name, digest=digest([reading, content]), source=source, files=(file,))
        for file, content in zip(files, contents, strict=True)
    ]


@contextlib.contextmanager
def open_input(found: Input, spool: Path) -> Iterator[Text | Lines | Batches]:
    """Make an input ready to be read.

    Args:
        found: from ``list_inputs``.
        spool: a folder for copies, which are gone afterwards.

    Raises:
        RefusedError: nothing of it can be read.
        SourceError: it cannot be had.
    """
    with cast(Opener, _module(found.source)).open_input(found, spool) as opened:
        yield opened
