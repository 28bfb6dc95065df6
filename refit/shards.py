"""The rows of a data set on disk: immutable Parquet files, named by content, less the rows that others have replaced."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from refit.errors import SourceError
from refit.layout import DatasetLayout, Layout
from refit.profiles import ShardProfiler, keep_profile
from refit.records import ShardRecord, SnapshotRecord, array_bytes, write_array
from refit.schema import KEY_HASH, arrow_schema, column_of
from refit.sources.inputs import listing, literal

ROW_GROUP_ROWS = 16_384
SHARD_ROWS = 1 << 20
_REPEATING = 0.5
_MEASURED_LATER = 2  # so many pieces of rows may wait for their statistics
_TEMPORARY = ".shard."


class ShardWriter:
    """Writes tables into shards of ``SHARD_ROWS`` rows, the last one of fewer, and names each by the digest of its bytes."""

    def __init__(self, home: DatasetLayout, schema: pa.Schema) -> None:
        """Begin without a file; an input of which nothing is kept leaves none."""
        self._home = home
        self._schema = schema
        self._pool = ThreadPoolExecutor(1)  # measures rows and completes shards while the next rows are written
        self._measuring: deque[Future[None]] = deque()
        self._done: list[tuple[_OpenShard, Future[ShardRecord]]] = []
        self._open: _OpenShard | None = None
        self._pending: list[pa.Table] = []
        self._pending_rows = 0

    def write(self, table: pa.Table) -> None:
        """Append rows; they reach the disk in full row groups."""
        self._pending.append(table)
        self._pending_rows += len(table)
        if self._pending_rows >= ROW_GROUP_ROWS:
            self._flush(whole_groups=True)

    def finish(self) -> tuple[ShardRecord, ...]:
        """Write what is left and return the shards."""
        self._flush(whole_groups=False)
        self._end_shard()
        shards = tuple(future.result() for _, future in self._done)
        self._pool.shutdown()
        return shards

    def close(self) -> None:
        """Give up what is not complete."""
        self._pool.shutdown(cancel_futures=True)
        for shard, _ in self._done:
            shard.path.unlink(missing_ok=True)  # complete ones have another name by now
        if self._open is not None:
            with contextlib.suppress(OSError):  # a full disk must not hide the error that led here
                self._open.writer.close()
            self._open.path.unlink(missing_ok=True)

    def _flush(self, *, whole_groups: bool) -> None:
        """Write what is pending, cut at the same rows in whatever pieces it came."""
        rows = pa.concat_tables(self._pending) if self._pending_rows else None
        while rows is not None and len(rows):
            full = min(len(rows) - len(rows) % ROW_GROUP_ROWS if whole_groups else len(rows), SHARD_ROWS - self._num_open)
            if not full:
                break
            self._append(rows.slice(0, full).combine_chunks())
            rows = rows.slice(full)
        self._pending, self._pending_rows = ([rows], len(rows)) if rows is not None else ([], 0)

    @property
    def _num_open(self) -> int:
        return self._open.num_rows if self._open is not None else 0

    def _append(self, rows: pa.Table) -> None:
        shard = self._open = self._open or _OpenShard.begin(self._home, self._schema, rows)
        shard.writer.write_table(rows, row_group_size=ROW_GROUP_ROWS)
        shard.num_rows += len(rows)
        self._measuring.append(self._pool.submit(shard.profiler.add, rows))
        while len(self._measuring) > _MEASURED_LATER:
            self._measuring.popleft().result()
        if shard.num_rows == SHARD_ROWS:
            self._end_shard()

    def _end_shard(self) -> None:
        if self._open is not None:
            self._open.writer.close()
            self._done.append((self._open, self._pool.submit(self._open.complete, self._home)))
            self._open = None


@dataclass
class _OpenShard:
    """A shard that rows are written to."""

    path: Path
    writer: pq.ParquetWriter
    profiler: ShardProfiler
    num_rows: int = 0

    @classmethod
    def begin(cls, home: DatasetLayout, schema: pa.Schema, rows: pa.Table) -> Self:
        """Make its file; how texts are written is decided by the first rows."""
        handle, path = tempfile.mkstemp(dir=home.shards_dir, prefix=_TEMPORARY)
        os.close(handle)
        writer = pq.ParquetWriter(path, schema, use_dictionary=_repeating(rows), **_encoding(schema))
        return cls(Path(path), writer, ShardProfiler([column_of(field) for field in schema if field.name != KEY_HASH]))

    def complete(self, home: DatasetLayout) -> ShardRecord:
        """Give the closed file the name of its content, once it has reached the disk and its statistics are kept."""
        with self.path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        self.path.chmod(0o644)
        record = ShardRecord(digest=content, num_rows=self.num_rows, num_bytes=self.path.stat().st_size)
        keep_profile(self.profiler.finish(), content, home)
        self.path.rename(home.shard(content))
        return record


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """Floats and hashes do not get smaller; statistics of floats and texts cost more than they are good for."""
    dense = [field.name for field in schema if pa.types.is_floating(field.type) or field.name == KEY_HASH]
    compression = {field.name: "none" if field.name in dense else "lz4" for field in schema}
    told = [field.name for field in schema if field.name not in dense and not pa.types.is_string(field.type)]
    return {"compression": compression, "write_statistics": told}


def _repeating(rows: pa.Table) -> list[str]:
    """Columns of text whose values repeat: for the others a dictionary costs half of the time to write and saves nothing."""
    first = rows.slice(0, ROW_GROUP_ROWS)
    texts = [field.name for field in rows.schema if pa.types.is_string(field.type)]
    return [name for name in texts if pc.count_distinct(first[name]).as_py() <= _REPEATING * len(first)]


def find_leftovers(home: DatasetLayout) -> list[Path]:
    """What an ingest has left half done, or has not done yet, sorted."""
    folders = (home.shards_dir, home.drops_dir, home.rejects_dir, home.snapshots_dir, home.profiles_dir, home.root)
    hidden = [path for folder in folders for path in folder.glob(".*") if path.is_file()]
    return sorted([*hidden, *(path for path in home.spool_dir.rglob("*") if path.is_file())])


def remove_leftovers(home: DatasetLayout) -> None:
    """Remove what an ingest that was killed has left half done; call it as the only writer."""
    for path in find_leftovers(home):
        path.unlink(missing_ok=True)
    shutil.rmtree(home.spool_dir, ignore_errors=True)
    home.spool_dir.mkdir(parents=True)


# ---- rows that no longer count


def write_drops(home: DatasetLayout, positions: np.ndarray) -> str:
    """Keep the sorted positions (uint32) of a shard's rows that no longer count; return the digest that names them."""
    positions = positions.astype(np.uint32)
    name = hashlib.sha256(array_bytes(positions)).hexdigest()
    if not home.drops(name).exists():
        write_array(home.drops(name), positions)
    return name


def read_drops(home: DatasetLayout, shard: ShardRecord) -> np.ndarray:
    """Positions of the rows of a shard that no longer count: uint32, sorted.

    Raises:
        SourceError: they are missing or damaged.
    """
    if shard.dropped is None:
        return np.empty(0, dtype=np.uint32)
    try:
        return np.asarray(np.load(home.drops(shard.dropped), allow_pickle=False))
    except (OSError, ValueError) as error:
        raise _damaged(home, home.drops(shard.dropped), error) from error


def live_mask(home: DatasetLayout, shard: ShardRecord) -> np.ndarray:
    """Whether each row of a shard counts: bool ``[rows]``."""
    mask = np.ones(shard.num_rows, dtype=bool)
    mask[read_drops(home, shard)] = False
    return mask


# ---- reading


def read_table(snapshot: SnapshotRecord, layout: Layout, columns: Sequence[str]) -> pa.Table:
    """Columns of all rows of a snapshot that count, in order.

    Raises:
        SourceError: a shard is missing or damaged.
    """
    schema = arrow_schema(snapshot.columns)
    tables = [read_shard(layout.dataset(snapshot.dataset), shard, columns) for shard in snapshot.shards]
    wanted = pa.schema([schema.field(name) for name in columns])
    return pa.concat_tables(tables).cast(wanted) if tables else wanted.empty_table()


def read_shard(home: DatasetLayout, shard: ShardRecord, columns: Sequence[str]) -> pa.Table:
    """Columns of the rows of a shard that count.

    Raises:
        SourceError: the shard is missing or damaged.
    """
    path = home.shard(shard.digest)
    try:
        table = pq.ParquetFile(path).read(columns=list(columns))
    except (OSError, pa.ArrowException) as error:
        raise _damaged(home, path, error) from error
    return table.filter(pa.array(live_mask(home, shard))) if shard.num_dropped else table


def read_hashes(home: DatasetLayout, shards: Sequence[ShardRecord]) -> Iterator[np.ndarray]:
    """Key hashes of each shard, rows that do not count included: uint64 ``[rows]``."""
    for shard in shards:
        path = home.shard(shard.digest)
        try:
            yield np.asarray(pq.ParquetFile(path).read(columns=[KEY_HASH])[KEY_HASH].to_numpy())
        except (OSError, pa.ArrowException) as error:
            raise _damaged(home, path, error) from error


def live_rows_sql(connection: duckdb.DuckDBPyConnection, home: DatasetLayout, shards: Sequence[ShardRecord]) -> str:
    """A table expression over all rows of shards that count, in bounded memory; usable in that connection alone, any number of times.

    The connection must be allowed to read ``shard_paths``.
    """
    whole = [str(home.shard(shard.digest)) for shard in shards if not shard.num_dropped]
    parts = [f"SELECT * FROM read_parquet({listing(whole)}, hive_partitioning=false)"] if whole else []  # noqa: S608 -- names of our own
    for shard in (shard for shard in shards if shard.num_dropped):
        view = f"_drops_{shard.dropped}_{shard.digest[:8]}"
        connection.register(view, pa.table({"position": read_drops(home, shard).astype(np.int64)}))
        path = literal(str(home.shard(shard.digest)))
        parts.append(
            "SELECT * EXCLUDE (file_row_number) FROM "  # noqa: S608 -- names of our own
            f"read_parquet({path}, file_row_number=true, hive_partitioning=false) "
            f"WHERE file_row_number NOT IN (SELECT position FROM {view})"
        )
    return f"({' UNION ALL BY NAME '.join(parts)})"


@contextlib.contextmanager
def telling_damage(home: DatasetLayout, shards: Sequence[ShardRecord]) -> Iterator[None]:
    """Turn what DuckDB says of a shard that it cannot read into an error that says what to do."""
    try:
        yield
    except (duckdb.IOException, duckdb.InvalidInputException) as error:
        lost = [path for path in shard_paths(home, shards) if not path.exists()]
        raise _damaged(home, lost[0] if lost else home.shards_dir, error) from error


def shard_paths(home: DatasetLayout, shards: Sequence[ShardRecord]) -> list[Path]:
    """The files of shards."""
    return [home.shard(shard.digest) for shard in shards]


def _damaged(home: DatasetLayout, path: Path, error: Exception) -> SourceError:
    return SourceError(
        f"a part of the data set is missing or damaged: {error}.",
        where=str(path),
        remedy=f"refit data verify tells all that is; remove the folder {home.root} to ingest again: sources are not touched.",
    )
