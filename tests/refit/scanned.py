"""What ingestion does with a text source, for its tests: a sealed DuckDB connection reads the scan, then the faults are asked for."""

import glob
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import duckdb
import pyarrow as pa

from refit.config import CsvSource, JsonSource
from refit.sources.inputs import DoubtfulError, Input, Lines, Place, Reject, Text, listing
from refit.sources.locations import list_files


@dataclass(frozen=True)
class Scanned:
    names: tuple[str, ...]
    rows: list[tuple[str | None, ...]]
    faults: list[Reject]
    places: list[Place]
    paths: tuple[Path, ...]

    @property
    def lines(self) -> list[int]:
        return [place.line for place in self.places]

    @property
    def fault_lines(self) -> list[int | None]:
        return [fault.line for fault in self.faults]


def input_of(path: Path, source: CsvSource | JsonSource) -> Input:
    (file,) = list_files(glob.escape(str(path)), source)
    return Input(name=str(path), digest="", source=source, files=(file,))


def csv_source(path: Path, **options: object) -> CsvSource:
    return CsvSource.model_validate({"kind": "csv", "path": str(path), **options})


def json_source(path: Path) -> JsonSource:
    return JsonSource(kind="json", path=str(path))


def sealed(paths: tuple[Path, ...]) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(config={"memory_limit": "600MB", "python_enable_replacements": "false"})
    connection.execute(f"SET allowed_paths={listing([str(path) for path in paths])}")
    connection.execute("SET enable_external_access=false")
    connection.execute("SET lock_configuration=true")
    return connection


def scan(module: ModuleType, found: Input, spool: Path) -> Scanned:
    """Everything that an input gives, read quickly if that will do; nothing is left of it in the spool."""
    spool.mkdir(exist_ok=True)
    try:
        scanned = _scan(module, found, spool)
    except DoubtfulError:
        assert list(spool.iterdir()) == []
        return _scan(module, replace(found, is_doubtful=True), spool)
    if isinstance(found.source, CsvSource):  # both ways come to the same
        careful = _scan(module, replace(found, is_doubtful=True), spool)
        assert careful == replace(scanned, paths=careful.paths)
    assert list(spool.iterdir()) == []
    return scanned


def _scan(module: ModuleType, found: Input, spool: Path) -> Scanned:
    with module.open_input(found, spool) as text:
        return _parsed(text) if isinstance(text, Lines) else _queried(text)


def _parsed(lines: Lines) -> Scanned:
    rows = [row for batch in lines.values() for row in rows_of(batch)]
    return Scanned(lines.names, rows, [], list(lines.locate(range(len(rows)))), ())


def _queried(text: Text) -> Scanned:
    with sealed(text.paths) as connection:
        reader = connection.sql(f"SELECT * FROM {text.scan}").to_arrow_reader(65_536)
        rows = [row for batch in reader for row in rows_of(batch)]
        assert len(rows) == text.count_rows()
        return Scanned(text.names, rows, text.faults(connection), list(text.locate(range(len(rows)))), text.paths)


def rows_of(batch: pa.RecordBatch) -> list[tuple[str | None, ...]]:
    return list(zip(*(column.to_pylist() for column in batch.columns), strict=True))
