"""Rows that must be forgotten: erased from all snapshots for good, and kept from coming back when a source is read again.

What is new is written first, then the records that name it, and what nothing names any more is removed last: killed at any
instant, every snapshot is what it was or what it is to be, and the same request again finishes the work.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from refit import hashing
from refit.casting import sealed_connection, text_cast
from refit.dependents import TrainedRun, find_trained, read_dataset_runs
from refit.errors import DataError, RefitError, RequestError, SourceError
from refit.keys import keep_newest
from refit.layout import DatasetLayout, Layout
from refit.ownership import own_job
from refit.records import Column, Record, ShardRecord, SnapshotRecord, SourceRecord, sync_path, write_array, write_atomically
from refit.schema import KEY_HASH, column_type, field_of
from refit.shards import ROW_GROUP_ROWS, ShardWriter, remove_leftovers
from refit.snapshots import (
    WAIT_SECONDS,
    Forgotten,
    Shelf,
    Tombstone,
    completed_files,
    count_forgotten,
    file_digest,
    find_dataset,
    find_newest,
    hold_lock,
    read_forgotten,
    read_shelf,
    snapshot_id,
)
from refit.sources.inputs import BATCH_ROWS, first_line, identifier, literal
from refit.upkeep import unneeded_files


@dataclass(frozen=True)
class Choice:
    """Which rows: those for which an SQL condition over the stored columns holds, or those with a key, its values as text."""

    where: str | None = None
    key: tuple[str, ...] = ()


class ErasurePlan(Record):
    """What is about to be erased: rows that have one of so many keys, by snapshot, in shards that may be shared."""

    dataset: str
    num_rows: int
    num_keys: int
    snapshots: dict[str, int]
    rejects: tuple[str, ...] = Field(description="Files of rejected rows, which may hold raw text of the same rows.")
    deletes_rejects: bool


class ErasedRows(Record):
    """One snapshot that was rewritten."""

    snapshot: str
    now: str
    num_rows: int


class Erasure(Record):
    """What was erased, and who had seen it."""

    dataset: str
    num_rows: int
    num_keys: int
    snapshots: tuple[ErasedRows, ...]
    runs: tuple[TrainedRun, ...]
    rejects_left: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Erasing:
    """An erasure in progress: where, and the sorted hashes of all rows that must not be there afterwards."""

    home: DatasetLayout
    shelf: Shelf
    hashes: np.ndarray
    gone: dict[str, int]
    deletes_rejects: bool

    def is_touched(self, record: SnapshotRecord) -> bool:
        has_rejects = self.deletes_rejects and any(source.rejects for source in record.sources)
        return has_rejects or self.rows_of(record) > 0

    def rows_of(self, record: SnapshotRecord) -> int:
        return sum(self.gone.get(shard.digest, 0) for shard in record.shards)


def forget_rows(
    layout: Layout,
    name: str,
    choice: Choice,
    *,
    confirm: Callable[[ErasurePlan], bool],
    by: str,
    at: datetime,
    deletes_rejects: bool = False,
    wait_seconds: float = WAIT_SECONDS,
) -> Erasure | None:
    """Erase rows from all snapshots for good, and keep them from coming back when a source is read again.

    With a row go all that have its key, those that newer ones replaced included. Killed at any instant, every snapshot is what it was
    or what it is to be; the same call again finishes the work.

    Args:
        layout: where everything lies.
        name: of the data set.
        choice: of the rows.
        confirm: is told the extent before anything is changed; returns whether to go on.
        by: who asks.
        at: when.
        deletes_rejects: delete all files of rejected rows too, which may hold the rows' raw text.
        wait_seconds: for another writer.

    Returns:
        What was erased; None where it was not confirmed.

    Raises:
        UnknownNameError: there is no such data set.
        RequestError: the condition or the key cannot be evaluated.
        AlreadyRunningError: a run of a job on the data set goes on, or another process is writing.
        DataError: a run of such a job is unfinished, or an old snapshot does not have the columns.
        SourceError: a shard is missing or damaged.
        CorruptRecordError: a record cannot be read, so that what there is cannot be told.
    """
    home = find_dataset(layout, name)
    with _owning_jobs(layout, name), hold_lock(home, wait_seconds):
        _check_finished(layout, name)
        remove_leftovers(home)
        shelf = read_shelf(home)
        for error in shelf.unreadable.values():
            raise error
        head = shelf.snapshots[find_newest(home, shelf)]
        chosen = _find_hashes(home, shelf, head, choice)
        erasing = _plan_erasure(home, shelf, chosen, deletes_rejects=deletes_rejects)
        plan = _describe(name, erasing)
        if (plan.snapshots or (deletes_rejects and plan.rejects)) and not confirm(plan):
            return None
        moved = _erase(erasing, head.id, Forgotten(at=at, num_rows=0, by=by))
        return _tell(layout, name, erasing, plan, head, moved)


@contextlib.contextmanager
def _owning_jobs(layout: Layout, name: str) -> Iterator[None]:
    with contextlib.ExitStack() as owned:
        for job in dict.fromkeys(run.job for run in read_dataset_runs(layout, name)):
            owned.enter_context(own_job(layout, job))
        yield


def _check_finished(layout: Layout, name: str) -> None:
    unfinished = [f"{run.job}/{run.run}" for run in read_dataset_runs(layout, name) if run.is_unfinished]
    if unfinished:
        raise DataError(
            f"unfinished runs would go on with rows that are to be erased: {', '.join(unfinished)}.",
            where=f"data set {name}",
            remedy="Finish them with refit run FILE, or give them up with refit run FILE --fresh; then give this command again.",
        )


def _tell(
    layout: Layout, name: str, erasing: _Erasing, plan: ErasurePlan, head: SnapshotRecord, moved: Mapping[str, SnapshotRecord]
) -> Erasure:
    left = tuple(str(path) for path in completed_files(erasing.home.rejects_dir))
    notes = []
    if left:
        notes.append("Files of rejected rows remain and may hold raw text of what was erased; --rejects deletes them all.")
    if plan.num_rows and not head.key:
        notes.append("The data set has no key: a row that comes back with any value changed is a new row and is not recognised.")
    return Erasure(
        dataset=name,
        num_rows=plan.num_rows,
        num_keys=plan.num_keys,
        snapshots=tuple(ErasedRows(snapshot=s, now=moved[s].id, num_rows=n) for s, n in plan.snapshots.items()),
        runs=tuple(find_trained(layout, name)),
        rejects_left=left,
        notes=tuple(notes),
    )


# ---- which rows


def _find_hashes(home: DatasetLayout, shelf: Shelf, head: SnapshotRecord, choice: Choice) -> np.ndarray:
    """Sorted key hashes of the rows that are chosen, over all snapshots."""
    if (choice.where is None) == (not choice.key):
        raise RequestError("one of a condition and a key says which rows.", expected="--where SQL, or --key VALUE")
    found = [np.empty(0, np.uint64)]
    conditions: dict[tuple[str, str], SnapshotRecord] = {}
    with sealed_connection() as connection:
        for record in shelf.snapshots.values():
            condition = choice.where or _key_condition(connection, record, head, choice.key)
            for shard in record.shards:
                conditions.setdefault((shard.digest, condition), record)
        for (shard_digest, condition), record in conditions.items():
            try:
                found.append(_matching(connection, home.shard(shard_digest), condition))
            except duckdb.Error as error:
                raise _unusable(record, head, condition, error) from error
    return np.unique(np.concatenate(found))


def _matching(connection: duckdb.DuckDBPyConnection, path: Path, condition: str) -> np.ndarray:
    """Hashes of the rows of a shard for which a condition holds.

    Raises:
        SourceError: the shard is missing or damaged: what it holds cannot be told.
    """
    _check_whole(path)
    with pq.ParquetFile(path) as file:
        connection.register("_rows", pa.RecordBatchReader.from_batches(file.schema_arrow, file.iter_batches(BATCH_ROWS)))
        query = f"SELECT DISTINCT {KEY_HASH} AS hash FROM _rows WHERE coalesce(CAST(({condition}\n) AS BOOLEAN), false)"  # noqa: S608
        try:
            return np.asarray(connection.sql(query).to_arrow_table()["hash"].to_numpy(), dtype=np.uint64)
        finally:
            connection.unregister("_rows")


def _check_whole(path: Path) -> None:
    try:
        received = file_digest(path)
    except OSError as error:
        received = error.strerror or str(error)
    if received != path.stem:
        raise SourceError(
            "a shard is missing or damaged, so that what it holds cannot be told. Nothing was erased.",
            where=str(path),
            received=received,
            remedy="refit data verify tells all faults. Where only old snapshots need it, refit data gc removes them.",
        )


def _unusable(record: SnapshotRecord, head: SnapshotRecord, condition: str, error: Exception) -> RefitError:
    columns = ", ".join(column.name for column in record.columns)
    if record.id == head.id or record.columns == head.columns:
        return RequestError(
            f"the SQL cannot be evaluated: {first_line(error)}",
            where="--where",
            received=condition,
            remedy=f"Mend the condition. The columns: {columns}.",
        )
    return DataError(
        f"the SQL cannot be evaluated in an older snapshot: {first_line(error)} Nothing was erased.",
        where=f"snapshot {record.id}",
        received=f"the columns {columns}",
        remedy=f"Name columns that all snapshots have, or remove the old ones first: refit data gc {record.dataset} --keep 1.",
    )


def _key_condition(connection: duckdb.DuckDBPyConnection, record: SnapshotRecord, head: SnapshotRecord, values: Sequence[str]) -> str:
    """The condition under which a row of a snapshot has a key: by its hash, or by its columns where another key was hashed."""
    if len(values) != len(head.key):
        key = f"the {len(head.key)} values of the key ({', '.join(head.key)}), in this order" if head.key else "--where"
        what = "that is not the whole key." if head.key else "the data set has no key."
        raise RequestError(what, where="--key", expected=key, received=", ".join(values), remedy="--where SQL takes any condition.")
    is_hashed_so = (record.key, record.key_hash) == (head.key, hashing.NAME)
    known = {column.name: column for column in (record.source_columns if is_hashed_so else record.columns)}
    lost = [name for name in head.key if name not in known]
    if lost:
        raise DataError(
            f"an older snapshot does not have the key's column {', '.join(lost)}. Nothing was erased.",
            where=f"snapshot {record.id}",
            remedy=f"Remove it first: refit data gc {record.dataset} --keep 1; or choose the rows with --where.",
        )
    casts = {name: _cast_of(known[name], value) for name, value in zip(head.key, values, strict=True)}
    cast = connection.sql("SELECT " + ", ".join(f"{sql} AS {identifier(name)}" for name, sql in casts.items())).to_arrow_table()
    _check_fits([known[name] for name in head.key], values, cast)
    if is_hashed_so:
        return f"{KEY_HASH} = {hashing.hash_rows([column.chunk(0) for column in cast.columns])[0]}::UBIGINT"
    return " AND ".join(f"{identifier(name)} = {sql}" for name, sql in casts.items())


def _cast_of(column: Column, value: str) -> str:
    """SQL of a value of the key, cast as a source's text is."""
    return text_cast(f"({literal(value)})", column_type(field_of(column).type))


def _check_fits(columns: Sequence[Column], values: Sequence[str], cast: pa.Table) -> None:
    for column, value, found in zip(columns, values, cast.columns, strict=True):
        if found.null_count or column.shape is not None:
            raise RequestError(
                f'the value does not fit the key\'s column "{column.name}".', where="--key", expected=column.type, received=repr(value)
            )


# ---- their erasure


def _plan_erasure(home: DatasetLayout, shelf: Shelf, chosen: np.ndarray, *, deletes_rejects: bool) -> _Erasing:
    """Count in every shard the rows that are to go, those that an interrupted erasure left included."""
    hashes = np.union1d(chosen, read_forgotten(home))
    gone = {}
    for shard in dict.fromkeys(shard.digest for record in shelf.snapshots.values() for shard in record.shards):
        with pq.ParquetFile(home.shard(shard)) as file:
            num_gone = count_forgotten(file, hashes)
        if num_gone:
            gone[shard] = num_gone
    return _Erasing(home, shelf, hashes, gone, deletes_rejects)


def _describe(name: str, erasing: _Erasing) -> ErasurePlan:
    home = erasing.home
    touched = {snapshot: erasing.rows_of(record) for snapshot, record in erasing.shelf.snapshots.items() if erasing.is_touched(record)}
    found = [_gone_hashes(home.shard(shard), erasing.hashes) for shard in erasing.gone]
    return ErasurePlan(
        dataset=name,
        num_rows=sum(erasing.gone.values()),
        num_keys=len(np.unique(np.concatenate(found))) if found else 0,
        snapshots=touched,
        rejects=tuple(str(path) for path in completed_files(home.rejects_dir)),
        deletes_rejects=erasing.deletes_rejects,
    )


def _gone_hashes(path: Path, hashes: np.ndarray) -> np.ndarray:
    with pq.ParquetFile(path) as file:
        return np.intersect1d(file.read(columns=[KEY_HASH])[KEY_HASH].to_numpy(), hashes)


def _erase(erasing: _Erasing, head: str, forgotten: Forgotten) -> dict[str, SnapshotRecord]:
    """Write what is new, move HEAD, then remove what is old; return the new snapshots by the old ids."""
    home, shelf = erasing.home, erasing.shelf
    if len(erasing.hashes):
        write_array(home.forgotten, erasing.hashes)
    made = {shard: _rewrite_shard(home, shard, erasing.hashes) for shard in erasing.gone}
    touched = {snapshot: record for snapshot, record in shelf.snapshots.items() if erasing.is_touched(record)}
    moved = {snapshot: _rewrite_snapshot(erasing, record, made) for snapshot, record in touched.items()}
    if made:
        sync_path(home.shards_dir)
    for record in moved.values():
        _write_snapshot(home, shelf, record, moved)
    if head in moved:
        write_atomically(home.head, f"{moved[head].id}\n".encode())
    for snapshot, record in moved.items():
        told = forgotten.model_copy(update={"num_rows": erasing.rows_of(touched[snapshot])})
        Tombstone(id=snapshot, forgotten=told, now=record.id).write(home.snapshot(snapshot))
    _sweep(erasing)
    return moved


def _rewrite_shard(home: DatasetLayout, shard: str, hashes: np.ndarray) -> tuple[ShardRecord, ...]:
    """Write a shard's other rows anew, in their order; none where nothing is left."""
    with pq.ParquetFile(home.shard(shard)) as file:
        writer = ShardWriter(home, file.schema_arrow)
        try:
            for batch in file.iter_batches(ROW_GROUP_ROWS):
                is_gone = pc.is_in(batch[KEY_HASH], value_set=pa.array(hashes))
                writer.write(pa.Table.from_batches([batch]).filter(pc.invert(is_gone)))
            return writer.finish()
        finally:
            writer.close()


def _rewrite_snapshot(erasing: _Erasing, record: SnapshotRecord, made: Mapping[str, tuple[ShardRecord, ...]]) -> SnapshotRecord:
    """The snapshot without the rows, under its new id; what replaces what is found anew."""
    sources = tuple(_rewrite_source(erasing, source, made) for source in record.sources)
    changed = record.model_copy(update={"sources": keep_newest(erasing.home, sources) if record.key else sources})
    return changed.model_copy(update={"id": snapshot_id(changed.model_dump(mode="json"))})


def _rewrite_source(erasing: _Erasing, source: SourceRecord, made: Mapping[str, tuple[ShardRecord, ...]]) -> SourceRecord:
    shards = tuple(new for shard in source.shards for new in made.get(shard.digest, (shard,)))
    num_gone = sum(erasing.gone.get(shard.digest, 0) for shard in source.shards)
    changed = {
        "shards": shards,
        "num_kept": sum(shard.num_live for shard in shards),
        "num_filtered": source.num_filtered + num_gone,
        "rejects": None if erasing.deletes_rejects else source.rejects,
    }
    return source.model_copy(update=changed)


def _write_snapshot(home: DatasetLayout, shelf: Shelf, record: SnapshotRecord, moved: Mapping[str, SnapshotRecord]) -> None:
    """Write a new record whose parent is the parent's new self; one that is there already stays."""
    parent = shelf.resolve(record.parent) if record.parent else None
    parent = moved[parent].id if parent is not None and parent in moved else parent
    if not home.snapshot(record.id).exists():
        record.model_copy(update={"parent": parent if parent != record.id else None}).write(home.snapshot(record.id))


def _sweep(erasing: _Erasing) -> None:
    home = erasing.home
    unneeded = list(unneeded_files(home, read_shelf(home).snapshots.values()))
    for path in unneeded:
        if path.parent != home.rejects_dir or erasing.deletes_rejects:
            path.unlink(missing_ok=True)
