"""Data sets kept in order: listed, shown, and rid of what nothing needs.

Where something is removed, the records that name it go first: killed at any instant, every record that is left is whole.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import duckdb
from pydantic import Field

from refit.casting import sealed_connection
from refit.dependents import read_dataset_runs
from refit.errors import DataError, RefitError, RequestError
from refit.layout import DatasetLayout, Layout
from refit.records import Column, Record, SnapshotRecord, SourceRecord, sync_path
from refit.shards import find_leftovers, remove_leftovers
from refit.snapshots import (
    WAIT_SECONDS,
    Shelf,
    Tombstone,
    completed_files,
    find_dataset,
    find_newest,
    hold_lock,
    read_head_id,
    read_shelf,
    read_snapshot,
)
from refit.sources.inputs import first_line, literal

MAX_REASONS = 5
_DIGEST_CHARACTERS = 64


# ---- listing and showing


class DatasetSummary(Record):
    """One data set in a line; what cannot be read is null, and ``fault`` says why."""

    name: str
    num_rows: int | None = None
    num_snapshots: int
    num_bytes: int = Field(description="All that the data set takes on disk.")
    snapshot: str | None = None
    at: datetime | None = Field(None, description="When the newest snapshot was made.")
    fault: str | None = None


class RejectsSummary(Record):
    """One file of rejected rows: how many there are, and the commonest reasons."""

    path: str
    num_rows: int = 0
    reasons: dict[str, int] = Field(default_factory=dict)
    fault: str | None = None


class SnapshotSummary(Record):
    """What a snapshot is made of. ``asked`` is the id that was asked for, which ``tombstone`` explains where it is another one."""

    dataset: str
    asked: str
    id: str
    parent: str | None
    at: datetime
    num_rows: int
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    inputs: tuple[SourceRecord, ...]
    rejects: tuple[RejectsSummary, ...]
    is_head: bool
    tombstone: Tombstone | None = None


def list_datasets(layout: Layout) -> list[DatasetSummary]:
    """All data sets, by name; one that is damaged is listed with its fault."""
    return [_summarise(layout.dataset(name)) for name in layout.datasets()]


def _summarise(home: DatasetLayout) -> DatasetSummary:
    shelf, name = read_shelf(home), home.root.name
    sizes = sum(file_size(path) for path in home.root.rglob("*"))
    counted = {"name": name, "num_snapshots": len(shelf.snapshots) + len(shelf.unreadable), "num_bytes": sizes}
    try:
        head = find_newest(home, shelf)
    except RefitError as error:
        return DatasetSummary(**counted, fault=error.what)
    return DatasetSummary(**counted, num_rows=shelf.snapshots[head].num_rows, snapshot=head, at=_time_of(home.snapshot(head)))


def show_snapshot(layout: Layout, name: str, snapshot: str | None = None) -> SnapshotSummary:
    """What a snapshot of a data set is made of; by default the newest.

    Raises:
        UnknownNameError: there is no such data set or snapshot.
        CorruptRecordError: its record cannot be read.
        DataError: there is no snapshot yet.
    """
    home = find_dataset(layout, name)
    shelf = read_shelf(home)
    asked = find_newest(home, shelf) if snapshot is None else _named(shelf, snapshot)
    record = read_snapshot(home, asked)
    files = dict.fromkeys(source.rejects for source in reversed(record.sources) if source.rejects)
    return SnapshotSummary(
        dataset=name,
        asked=asked,
        id=record.id,
        parent=record.parent,
        at=_time_of(home.snapshot(record.id)),
        num_rows=record.num_rows,
        key=record.key,
        columns=record.columns,
        inputs=record.sources,
        rejects=tuple(_read_reasons(home.rejects(name)) for name in files),
        is_head=record.id == read_head_id(home),
        tombstone=shelf.tombstones.get(asked),
    )


def _named(shelf: Shelf, snapshot: str) -> str:
    """The one id that begins so, else what was given."""
    known = [*shelf.snapshots, *shelf.tombstones, *shelf.unreadable]
    matches = [one for one in known if snapshot and one.startswith(snapshot)]
    return matches[0] if len(matches) == 1 and snapshot not in known else snapshot


def _read_reasons(path: Path) -> RejectsSummary:
    try:
        counts = count_rejected(path, by="told")
    except duckdb.Error as error:
        return RejectsSummary(path=str(path), fault=first_line(error) if path.exists() else "the file is not there.")
    return RejectsSummary(path=str(path), num_rows=sum(counts.values()), reasons=dict(list(counts.items())[:MAX_REASONS]))


def count_rejected(path: Path, *, by: Literal["file", "told"]) -> dict[str, int]:
    """Rejected rows by their file, or by the reason that is told of each, the most frequent first.

    A row stands in the file once for each of its faults. A misfit of an input that is no text has no raw text, and its number is
    counted apart from those of the rows that could not be read.

    Raises:
        duckdb.Error: the file is missing or damaged.
    """
    told = """any_value(CASE WHEN "column" IS NULL THEN reason ELSE '"' || "column" || '": ' || reason END) AS told"""
    rows = f"SELECT file, line, row, text IS NULL AS is_typed, {told} FROM read_parquet({literal(str(path))}) GROUP BY ALL"  # noqa: S608
    with sealed_connection([str(path)]) as connection:
        return dict(connection.sql(f"SELECT {by}, count(*) FROM ({rows}) GROUP BY {by} ORDER BY 2 DESC, 1").fetchall())  # noqa: S608


def _time_of(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def file_size(path: Path) -> int:
    """Bytes of a file; 0 for a folder, and for what has gone meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size if path.is_file() else 0
    return 0


# ---- what nothing needs


class Removal(Record):
    """What was removed, or would be: snapshots by id, files relative to the data set's folder."""

    dataset: str
    is_dry_run: bool
    kept: tuple[str, ...]
    kept_for_runs: tuple[str, ...] = Field(description="Those of them that are kept only because runs refer to them.")
    removed: tuple[str, ...]
    files: tuple[str, ...]
    num_bytes: int


def remove_unneeded(layout: Layout, name: str, *, keep: int, dry_run: bool = False, wait_seconds: float = WAIT_SECONDS) -> Removal:
    """Keep the newest snapshots and those that runs refer to, with all that they need; remove the rest for good.

    Where a parent's record cannot be read, the newest by date of those that are left take the places behind it.

    Args:
        layout: where data sets lie.
        name: of the data set.
        keep: so many snapshots, the newest and its parents.
        dry_run: remove nothing.
        wait_seconds: for another writer.

    Raises:
        UnknownNameError: there is no such data set.
        CorruptRecordError: what is needed cannot be told; nothing was removed.
        AlreadyRunningError: another process is writing.
    """
    if keep < 1:
        raise RequestError("the newest snapshot is always kept.", where="--keep", expected="1 or more", received=str(keep))
    home = find_dataset(layout, name)
    with hold_lock(home, wait_seconds):
        shelf = read_shelf(home)
        newest = _newest(home, shelf, keep)
        kept = tuple(dict.fromkeys([*newest, *_referred(layout, name, shelf)]))
        removed = tuple(snapshot for snapshot in (*shelf.snapshots, *shelf.unreadable) if snapshot not in kept)
        graves = [snapshot for snapshot in shelf.tombstones if shelf.resolve(snapshot) not in kept]
        records = [home.snapshot(snapshot) for snapshot in (*graves, *removed)]
        unneeded = list(unneeded_files(home, [shelf.snapshots[snapshot] for snapshot in kept]))
        going = [*records, *unneeded, *find_leftovers(home)]
        files, num_bytes = tuple(path.relative_to(home.root).as_posix() for path in going), sum(file_size(path) for path in going)
        if not dry_run:
            _remove(home, records, unneeded)
    only_for_runs = tuple(snapshot for snapshot in kept if snapshot not in newest)
    told = {"kept": kept, "kept_for_runs": only_for_runs, "removed": removed, "files": files, "num_bytes": num_bytes}
    return Removal(dataset=name, is_dry_run=dry_run, **told)


def _referred(layout: Layout, name: str, shelf: Shelf) -> Iterator[str]:
    """Snapshots that runs refer to.

    Raises:
        CorruptRecordError: one of them cannot be read, so that what it needs cannot be told.
    """
    for snapshot in (shelf.resolve(run.snapshot) for run in read_dataset_runs(layout, name) if run.snapshot):
        if snapshot in shelf.unreadable:
            raise shelf.unreadable[snapshot]
        if snapshot in shelf.snapshots:
            yield snapshot


def _newest(home: DatasetLayout, shelf: Shelf, keep: int) -> list[str]:
    """The newest snapshots; none where there never was one.

    Raises:
        CorruptRecordError: HEAD is damaged.
    """
    try:
        lineage = shelf.lineage(find_newest(home, shelf))
    except DataError:
        return []
    parent = shelf.snapshots[lineage[-1]].parent
    times = shelf.times(home)
    is_broken = parent is not None and shelf.resolve(parent) in shelf.unreadable
    others = sorted(set(times) - set(lineage), key=times.__getitem__, reverse=True) if is_broken else []
    return [*lineage, *others][:keep]


def _remove(home: DatasetLayout, records: Sequence[Path], files: Sequence[Path]) -> None:
    """Records first: a file that nothing names does no harm, a record that names a lost file does."""
    for path in records:
        path.unlink(missing_ok=True)
    if records:
        sync_path(home.snapshots_dir)
    for path in files:
        path.unlink(missing_ok=True)
    remove_leftovers(home)


def unneeded_files(home: DatasetLayout, kept: Iterable[SnapshotRecord]) -> Iterator[Path]:
    """Files that none of the snapshots needs."""
    sources = [source for record in kept for source in record.sources]
    shards = [shard for source in sources for shard in source.shards]
    digests = {shard.digest for shard in shards}
    needed: dict[Path, set[str]] = {
        home.shards_dir: digests,
        home.drops_dir: {shard.dropped for shard in shards if shard.dropped},
        home.rejects_dir: {source.rejects for source in sources if source.rejects},
    }
    for folder, stems in needed.items():
        yield from (path for path in completed_files(folder) if path.stem not in stems)
    yield from (path for path in completed_files(home.profiles_dir) if path.stem[:_DIGEST_CHARACTERS] not in digests)
