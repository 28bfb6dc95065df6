"""Raw inputs to a snapshot: typed Parquet shards named by content, and a record of what was read, kept and rejected.

What was read once is not read again. A row that does not fit goes to the rejects file, an input that cannot be read at all is
refused by name, and neither stops the others. Killed at any instant, the snapshot before stays what it was.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self, TypeVar

import duckdb
import filelock

from refit import hashing, inference
from refit.casting import is_reserved, sealed_connection, stored_columns
from refit.config import Job, digest
from refit.errors import CorruptRecordError, DataError, RefusedError, SchemaMismatchError, SourceError
from refit.keys import keep_newest
from refit.layout import DatasetLayout, Layout
from refit.progress import IngestProgress, OnIngestProgress
from refit.reading import Step, check_names, read_input
from refit.records import Column, SnapshotRecord, SourceRecord, sync_path, write_atomically
from refit.rejects import Rejects, check_rejected
from refit.schema import ARROW_TYPES, is_number, is_whole
from refit.shards import remove_leftovers
from refit.snapshots import read_forgotten, snapshot_id
from refit.sources import identity, list_inputs, open_input
from refit.sources.inputs import Batches, DoubtfulError, Input, Lines, Text
from refit.sources.seen import Seen

T = TypeVar("T")
_log = logging.getLogger(__name__)


def ingest(job: Job, layout: Layout, *, on_progress: OnIngestProgress | None = None) -> SnapshotRecord:
    """Bring the data set up to date with its inputs and return the snapshot; the same one when nothing is new.

    Args:
        job: its ``data`` and, where there is no key, its target (which the hash of a row leaves out).
        layout: where the data set lies.
        on_progress: told now and then.

    Raises:
        DataError: too many rows were rejected, or no row is left.
        SourceError: a source has no input; or one cannot be read and the job says ``refused: fail``.
        SchemaMismatchError: a column is missing or of another kind than at the first ingest.
        JobError: an SQL expression of the job is wrong.
    """
    home = layout.dataset(job.dataset)
    for folder in (home.shards_dir, home.snapshots_dir, home.rejects_dir, home.drops_dir, home.spool_dir):
        folder.mkdir(parents=True, exist_ok=True)
    with _waiting(home):
        remove_leftovers(home)
        parent = usable_parent(job, home)
        _tell_forgotten(home, parent)
        plan = _plan(job, home, parent)
        _tell_vanished(job, plan)
        _check_refused(job, plan)
        columns, read = _read_new(job, home, parent, plan.new, on_progress or (lambda _: None))
        return _commit(job, home, parent, columns, _merge(job, home, plan, read))


@contextlib.contextmanager
def _waiting(home: DatasetLayout) -> Iterator[None]:
    """Be the only one that writes, if need be after another ingest."""
    lock = filelock.FileLock(home.lock)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        _log.info("ingest: waiting for another ingest of the data set")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def list_current(job: Job, layout: Layout) -> list[tuple[str, str]]:
    """Name and digest of all that the next snapshot would be made of; what decides whether data have changed.

    Raises:
        SourceError: a source has no input.
        CodeError: a function cannot be had.
    """
    home = layout.dataset(job.dataset)
    plan = _plan(job, home, usable_parent(job, home))
    return sorted([*((r.name, r.digest) for r in plan.kept), *((found.name, found.digest) for found in plan.new)])


def read_head(home: DatasetLayout) -> SnapshotRecord | None:
    """The newest snapshot of a data set, or None."""
    try:
        newest = home.head.read_text().strip()
    except FileNotFoundError:
        return None
    try:
        return SnapshotRecord.read(home.snapshot(newest))
    except FileNotFoundError as error:
        raise CorruptRecordError(
            "the newest snapshot has no record.",
            where=str(home.snapshot(newest)),
            remedy=f"refit data verify tells all that is wrong; remove the folder {home.root} to ingest again.",
        ) from error


def reading_digest(job: Job) -> str:
    """Digest of what decides how a source's row becomes a stored row; another one begins the data set anew."""
    data = job.data
    hashed = {"key": data.key} if data.key else {"all_but": job.target.column}
    more = {"select": data.select} if data.select else {}
    return digest({"columns": data.columns, "derive": data.derive, "where": data.where, "hash": hashing.NAME, **hashed, **more})


def usable_parent(job: Job, home: DatasetLayout) -> SnapshotRecord | None:
    """The newest snapshot, where the job still reads rows as it was read."""
    head = read_head(home)
    return head if head is not None and head.reading == reading_digest(job) else None


# ---- what is new


@dataclass(frozen=True)
class _Plan:
    """Inputs that the next snapshot takes over from the last, oldest first, and those to be read."""

    kept: list[SourceRecord]
    new: list[Input]
    has_lost: bool

    @property
    def has_other_rows(self) -> bool:
        """Whether the next snapshot holds other rows than the last."""
        return bool(self.new) or self.has_lost

    @property
    def num_settled(self) -> int:
        """Inputs whose replaced rows are known; none where one is gone, so that what it replaced may come back."""
        return 0 if self.has_lost else len(self.kept)


def _plan(job: Job, home: DatasetLayout, parent: SnapshotRecord | None) -> _Plan:
    known = {source.name: source for source in parent.sources} if parent else {}
    seen = Seen.load(home.seen)
    listed = {found.name: found for found in list_inputs(job.data, known, seen)}
    seen.save(home.seen)
    same = {name for name, found in listed.items() if name in known and known[name].digest == found.digest}
    gone = [record for record in known.values() if record.name not in same and _is_still_named(job, record)]
    renamed = _match_renamed(gone, [found for name, found in listed.items() if name not in same])
    taken = {name: listed[name] for name in (*same, *renamed.values())}
    kept = [kept for record in known.values() if (kept := _keep(job, record, taken, renamed, listed)) is not None]
    held = {record.name for record in kept}
    return _Plan(kept, [found for name, found in listed.items() if name not in held], has_lost=len(kept) < len(known))


def _tell_forgotten(home: DatasetLayout, parent: SnapshotRecord | None) -> None:
    if parent is None and home.forgotten.exists():
        _log.warning("ingest: the data set begins anew; rows that were forgotten stay away only if their key and its types are the same")


def _tell_vanished(job: Job, plan: _Plan) -> None:
    gone = [record for record in plan.kept if record.is_vanished]
    if gone:
        rows = sum(record.num_kept for record in gone)
        _log.warning(
            "ingest: %d inputs are no longer there; their %s rows are kept (data.vanished: %s)", len(gone), f"{rows:,}", job.data.vanished
        )


def _check_refused(job: Job, plan: _Plan) -> None:
    refused = [record.refused for record in plan.kept if record.refused]
    if refused and job.data.refused == "fail":
        raise RefusedError(refused[0])


def _is_still_named(job: Job, record: SourceRecord) -> bool:
    """Whether the job has the source that listed the input; otherwise the input went with it."""
    return any(identity(source) == record.listed_by for source in job.data.sources)


def _match_renamed(gone: list[SourceRecord], new: list[Input]) -> dict[str, str]:
    """New names of inputs that are not there by name and content, but are by content."""
    by_digest: dict[str, list[str]] = {}
    for found in new:
        by_digest.setdefault(found.digest, []).append(found.name)
    return {record.name: by_digest[record.digest].pop(0) for record in gone if by_digest.get(record.digest)}


def _keep(
    job: Job, record: SourceRecord, taken: dict[str, Input], renamed: dict[str, str], listed: dict[str, Input]
) -> SourceRecord | None:
    """What the next snapshot holds of an input of the last: the same under its present name, or as it was if it has vanished."""
    name = renamed.get(record.name, record.name)
    if name in taken and taken[name].digest == record.digest:
        return record.model_copy(update={"name": name, "is_vanished": False, "listed_by": identity(taken[name].source)})
    if record.name not in listed and _is_still_named(job, record) and job.data.vanished == "keep":
        return record.model_copy(update={"is_vanished": True})
    return None


def _read_new(
    job: Job, home: DatasetLayout, parent: SnapshotRecord | None, new: list[Input], tell: OnIngestProgress
) -> tuple["_Columns", "_Read"]:
    if not new:
        return _Columns.of(parent), _Read()
    with sealed_connection((file.name for found in new for file in found.files), [str(home.spool_dir)]) as connection:
        columns = _Columns.of(parent) if parent else _pin_columns(connection, job, home, new)
        return columns, _read_inputs(connection, job, home, columns, new, tell)


# ---- columns


@dataclass(frozen=True)
class _Columns:
    """Columns as the sources have them, and as the shards do."""

    source: tuple[Column, ...]
    stored: tuple[Column, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, parent: SnapshotRecord | None) -> Self:
        """As the last snapshot pinned them."""
        return cls(parent.source_columns, parent.columns) if parent else cls((), ())


def _pin_columns(connection: duckdb.DuckDBPyConnection, job: Job, home: DatasetLayout, new: list[Input]) -> _Columns:
    """Columns of the sources: as declared, else inferred over all inputs."""
    guesses: dict[str, inference.Guess] = {}
    typed: dict[str, Column] = {}
    for found in new:
        try:
            _with_care(found, home, lambda found, opened: _look_at(connection, job, found, opened, guesses, typed))
        except RefusedError:
            if job.data.refused == "fail":
                raise
    found_columns = (*(c for c in typed.values() if c.name not in guesses), *inference.guessed_columns(guesses))
    source = _declared(job, found_columns, new)
    notes = tuple(note for name, guess in guesses.items() if (note := guess.note(name)))
    for note in notes:
        _log.warning("ingest: %s", note)
    return _Columns(source, stored_columns(job, source) if source else (), notes)


def _with_care(found: Input, home: DatasetLayout, work: Callable[[Input, Text | Lines | Batches], T]) -> T:
    """Do something with an input, taking its lines for its rows if they are."""
    try:
        with open_input(found, home.spool_dir) as opened:
            return work(found, opened)
    except DoubtfulError:
        careful = replace(found, is_doubtful=True)
        with open_input(careful, home.spool_dir) as opened:
            return work(careful, opened)


def _look_at(
    connection: duckdb.DuckDBPyConnection,
    job: Job,
    found: Input,
    opened: Text | Lines | Batches,
    guesses: dict[str, inference.Guess],
    typed: dict[str, Column],
) -> None:
    names = [c.name for c in opened.columns] if isinstance(opened, Batches) else list(opened.names)
    check_names(names, found.name)
    if isinstance(opened, Batches):
        for column in opened.columns:
            typed[column.name] = _wider(typed.get(column.name, column), column)
        return
    undeclared = [name for name in names if name not in job.data.columns and name not in typed]
    for name in names:
        if name in job.data.columns:
            typed.setdefault(name, Column(name=name, type=str(ARROW_TYPES[job.data.columns[name]])))
    for name in undeclared:
        guesses.setdefault(name, inference.Guess())
    inference.guess_types(connection, opened, undeclared, guesses, found.name)


def _wider(known: Column, column: Column) -> Column:
    """Of two types of numbers the one that holds both; else the first, to which the values of the other must be cast."""
    if known.type == column.type or not (is_number(known) and is_number(column)):
        return known
    return Column(name=known.name, type="int64" if is_whole(known) and is_whole(column) else "double")


def _declared(job: Job, columns: tuple[Column, ...], new: list[Input]) -> tuple[Column, ...]:
    names = [column.name for column in columns]
    for where, wanted in (("data.columns", job.data.columns), ("data.optional", job.data.optional)):
        lost = [name for name in wanted if name not in names]
        if lost and columns:
            raise SourceError(f"no source has the column {', '.join(map(repr, lost))}.", where=where, received=", ".join(names))
    reserved = [name for name in names if is_reserved(name)]
    if reserved:
        raise SchemaMismatchError(
            f'the columns {", ".join(reserved)} have names that are kept for refit: file_row_number, and all that begin with "_".',
            where=", ".join(found.name for found in new[:3]),
            remedy="Rename them in the source.",
        )
    declared = job.data.columns
    return tuple(Column(name=c.name, type=str(ARROW_TYPES[declared[c.name]])) if c.name in declared else c for c in columns)


# ---- reading


def _teller(tell: OnIngestProgress, progress: IngestProgress) -> Callable[[int, int], None]:
    return lambda rows, rejected: tell(replace(progress, num_read=rows, num_rejected=rejected))


@dataclass
class _Read:
    """What one ingest has read so far."""

    records: dict[str, SourceRecord] = field(default_factory=dict)
    num_read: int = 0
    num_rejected: int = 0

    def add(self, record: SourceRecord) -> None:
        self.records[record.name] = record
        self.num_read += record.num_read
        self.num_rejected += record.num_rejected


def _read_inputs(
    connection: duckdb.DuckDBPyConnection, job: Job, home: DatasetLayout, columns: _Columns, new: list[Input], tell: OnIngestProgress
) -> _Read:
    read = _Read()
    forgotten = read_forgotten(home)
    name = digest([reading_digest(job), *sorted(found.digest for found in new)])[:16]
    path = home.rejects_dir / f".{name}"
    try:
        with Rejects(path, home.rejects_dir / ".misfits") as rejects:
            for done, found in enumerate(new):
                step = Step(
                    connection,
                    job,
                    home,
                    columns.source,
                    columns.stored,
                    forgotten,
                    _teller(tell, IngestProgress(found.name, done, len(new))),
                )
                record = _read_or_refuse(step, found, rejects, name)
                read.add(record.model_copy(update={"notes": (*columns.notes, *record.notes)}) if not done else record)
                if not record.refused:
                    _log.info("ingest: %s: %s", found.name, _counted(record))
        kept = home.rejects(name)
        if read.num_rejected:
            sync_path(path)
            path.rename(kept)
        _check_rejected(job, read, rejects, kept)
    finally:
        path.unlink(missing_ok=True)
    return read


def _read_or_refuse(step: Step, found: Input, rejects: Rejects, rejects_name: str) -> SourceRecord:
    try:
        record = _with_care(found, step.home, lambda found, opened: read_input(step, found, opened, rejects))
    except RefusedError as error:
        _refuse(step.job, error)
        return SourceRecord(
            name=found.name, digest=found.digest, listed_by=identity(found.source), num_read=0, num_kept=0, refused=str(error)
        )
    return record.model_copy(update={"rejects": rejects_name if record.num_rejected else None})


def _refuse(job: Job, error: RefusedError) -> None:
    if job.data.refused == "fail":
        raise error
    _log.warning("ingest: refused: %s", error)


def _counted(record: SourceRecord) -> str:
    return f"{record.num_read:,} rows read, {record.num_kept:,} kept, {record.num_rejected:,} rejected, {record.num_filtered:,} filtered"


def _check_rejected(job: Job, read: _Read, rejects: Rejects, path: Path) -> None:
    worst = max(read.records.values(), key=lambda record: record.num_rejected)
    check_rejected(
        rejects,
        read.num_rejected,
        read.num_read,
        limit=job.data.max_rejected_fraction,
        worst=f"{worst.name} ({worst.num_rejected:,})",
        remedy=f"Each stands in {path}. Mend the source, declare the types (data.columns), or raise data.max_rejected_fraction.",
    )


# ---- the snapshot


def _merge(job: Job, home: DatasetLayout, plan: _Plan, read: _Read) -> tuple[SourceRecord, ...]:
    """All inputs of the next snapshot, oldest first; of rows with one key the newest is kept."""
    sources = (*plan.kept, *(read.records[found.name] for found in plan.new))
    return keep_newest(home, sources, num_settled=plan.num_settled) if job.data.key and plan.has_other_rows else sources


def _check_rows(job: Job, sources: tuple[SourceRecord, ...]) -> None:
    if any(source.num_kept for source in sources):
        return
    refused = [source.refused for source in sources if source.refused]
    if refused and len(refused) == len(sources):
        more = f"\nand {len(refused) - 5:,} more." if len(refused) > 5 else ""
        raise SourceError(
            "no input can be read.\n" + "\n".join(f"  - {text}" for text in refused[:5]) + more if len(refused) > 1 else refused[0]
        )
    where = ", ".join(source.name for source in sources[:3]) or job.dataset
    rejected, filtered = sum(source.num_rejected for source in sources), sum(source.num_filtered for source in sources)
    raise DataError(
        "no row is left.",
        where=where,
        received=f"{sum(source.num_read for source in sources):,} rows, {rejected:,} rejected, {filtered:,} filtered",
        remedy="See what the sources hold, the file of rejects, and data.where.",
    )


def _commit(
    job: Job, home: DatasetLayout, parent: SnapshotRecord | None, columns: _Columns, sources: tuple[SourceRecord, ...]
) -> SnapshotRecord:
    _check_rows(job, sources)
    content = {
        "dataset": job.dataset,
        "key": job.data.key,
        "key_hash": hashing.NAME,
        "reading": reading_digest(job),
        "columns": [column.model_dump(mode="json") for column in columns.stored],
        "source_columns": [column.model_dump(mode="json") for column in columns.source],
        "sources": [source.model_dump(mode="json") for source in sources],
    }
    snapshot = snapshot_id(content)
    if parent is not None and parent.id == snapshot:
        return parent
    record = SnapshotRecord.model_validate({**content, "id": snapshot, "parent": parent.id if parent else None})
    for folder in (home.shards_dir, home.rejects_dir, home.drops_dir):
        sync_path(folder)
    if home.snapshot(snapshot).exists():  # data may come back to what they were
        record = SnapshotRecord.read(home.snapshot(snapshot))
    else:
        record.write(home.snapshot(snapshot))
    write_atomically(home.head, f"{snapshot}\n".encode())
    return record
