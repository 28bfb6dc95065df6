"""Row groups of a snapshot's shards: what rows lie where, and reading any of them by itself.

Shards are looked at before any is read: one that is missing, truncated or altered is told at once. What is kept in memory is a
few numbers a row group, and of the rows one truth value each.
"""

import contextlib
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from refit.errors import SourceError
from refit.layout import DatasetLayout, Layout
from refit.records import ShardRecord, SnapshotRecord
from refit.schema import arrow_schema
from refit.shards import read_drops
from refit.snapshots import file_digest
from refit.sources.inputs import first_line

Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]
_DIGESTED_BYTES = 1 << 30  # reading more once again would take seconds
_KEPT_FOOTERS = 64


@dataclass(frozen=True)
class RowGroups:
    """Row groups of which rows are wanted, in the order of the snapshot.

    Attributes:
        home: where the shards lie.
        schema: of the columns that are read.
        shards: all of them.
        drops: for each shard the positions of rows that do not count, sorted.
        shard: number of the shard that each group lies in.
        group: its number there.
        first: its first row, counted in the shard.
        size: its rows, those that do not count included.
        first_live: its first row, counted over all rows of the snapshot that count.
        is_chosen: for each row of the snapshot that counts, whether it is wanted.
        num_chosen: wanted rows of each group.
    """

    home: DatasetLayout
    schema: pa.Schema
    shards: tuple[ShardRecord, ...]
    drops: tuple[np.ndarray, ...]
    shard: Numbers
    group: Numbers
    first: Numbers
    size: Numbers
    first_live: Numbers
    is_chosen: Mask
    num_chosen: Numbers
    _footers: "OrderedDict[int, pq.FileMetaData]" = field(default_factory=OrderedDict, repr=False)

    def __len__(self) -> int:
        """Row groups."""
        return len(self.group)

    @property
    def num_rows(self) -> int:
        """Wanted rows."""
        return int(self.num_chosen.sum())

    def choose(self, is_chosen: Mask) -> "RowGroups":
        """The same groups with other rows wanted."""
        return replace(self, is_chosen=is_chosen, num_chosen=_count(is_chosen, self.first_live))

    def read(self, number: int) -> pa.Table:
        """Wanted rows of one group, in order; strings as dictionaries.

        Raises:
            SourceError: the shard is missing or damaged.
        """
        at = int(self.shard[number])
        path = self.home.shard(self.shards[at].digest)
        texts = [column.name for column in self.schema if pa.types.is_string(column.type)]
        with telling_damage(path), pq.ParquetFile(path, metadata=self._footer(at, path), read_dictionary=texts) as file:
            table = file.read_row_group(int(self.group[number]), columns=self.schema.names, use_threads=False)
        mask = self._mask(number)
        return table if mask.all() else table.filter(pa.array(mask))

    def _footer(self, at: int, path: Path) -> pq.FileMetaData:
        """A shard's footer; the most recent ones are kept, for each takes as long to parse as a row group to read."""
        footer = self._footers.pop(at, None) or pq.read_metadata(path)
        self._footers[at] = footer
        while len(self._footers) > _KEPT_FOOTERS:
            self._footers.popitem(last=False)
        return footer

    def _mask(self, number: int) -> Mask:
        """Which rows of the group are wanted: bool ``[size]``."""
        first, size, live = int(self.first[number]), int(self.size[number]), int(self.first_live[number])
        drops = self.drops[int(self.shard[number])]
        inside = drops[np.searchsorted(drops, first) : np.searchsorted(drops, first + size)]
        mask = np.ones(size, dtype=bool)
        mask[inside.astype(np.int64) - first] = False
        mask[mask] = self.is_chosen[live : live + size - len(inside)]
        return mask


def _count(is_chosen: Mask, first_live: Numbers) -> Numbers:
    """Wanted rows of each group, group by group: ``np.add.reduceat`` would take 8 bytes a row."""
    stops = (*first_live[1:].tolist(), len(is_chosen))
    counts = (np.count_nonzero(is_chosen[first:stop]) for first, stop in zip(first_live.tolist(), stops, strict=False))
    return np.fromiter(counts, np.int64, len(first_live))


def open_row_groups(snapshot: SnapshotRecord, layout: Layout, columns: Sequence[str], is_chosen: Mask) -> RowGroups:
    """Look at every shard and list its row groups.

    Args:
        snapshot: the data.
        layout: where they lie.
        columns: what is to be read.
        is_chosen: for each row that counts, in the order of the snapshot, whether it is wanted.

    Raises:
        SourceError: a shard is missing, truncated or altered, or there are other rows than ``is_chosen`` tells of.
    """
    home, shards = layout.dataset(snapshot.dataset), tuple(snapshot.shards)
    if len(is_chosen) != snapshot.num_rows:
        raise SourceError(
            "the split belongs to other data.", expected=f"{len(is_chosen):,} rows", received=f"{snapshot.num_rows:,} rows in the snapshot"
        )
    drops = tuple(read_drops(home, shard) for shard in shards)
    schema = arrow_schema(snapshot.columns)
    found, live = [], 0
    for at, shard in enumerate(shards):
        sizes = _group_sizes(home.shard(shard.digest), shard, columns)
        first = np.concatenate([[0], np.cumsum(sizes)])[:-1].astype(np.int64)
        found.append(
            np.stack([np.full(len(sizes), at), np.arange(len(sizes)), first, sizes, live + first - np.searchsorted(drops[at], first)])
        )
        live += shard.num_live
    numbers = np.concatenate(found, axis=1).astype(np.int64) if found else np.empty((5, 0), np.int64)
    ends = np.append(numbers[4, 1:], live)
    numbers = numbers[:, ends > numbers[4]]  # a group of which every row was dropped
    wanted = pa.schema([schema.field(name) for name in columns])
    shard_of, group, first, size, first_live = numbers
    return RowGroups(home, wanted, shards, drops, shard_of, group, first, size, first_live, is_chosen, _count(is_chosen, first_live))


def _group_sizes(path: Path, shard: ShardRecord, columns: Sequence[str]) -> np.ndarray:
    with telling_damage(path):
        size = path.stat().st_size
        if size != shard.num_bytes:
            raise _damaged(path, "it has another size than its record", f"{shard.num_bytes:,} bytes", f"{size:,} bytes")
        footer = pq.read_metadata(path)
    if footer.num_rows != shard.num_rows:
        raise _damaged(path, "it has other rows than its record", f"{shard.num_rows:,} rows", f"{footer.num_rows:,} rows")
    lost = sorted(set(columns) - set(footer.schema.to_arrow_schema().names))
    if lost:
        raise _damaged(path, "it lacks columns", ", ".join(columns), f"none called {', '.join(lost)}")
    return np.array([footer.row_group(number).num_rows for number in range(footer.num_row_groups)], dtype=np.int64)


def check_digests(snapshot: SnapshotRecord, layout: Layout) -> None:
    """See that shards hold what they were named after; where all of them are larger than a gigabyte, only that they are there.

    Raises:
        SourceError: one is missing or altered.
    """
    home = layout.dataset(snapshot.dataset)
    is_small = sum(shard.num_bytes for shard in snapshot.shards) <= _DIGESTED_BYTES
    for shard in snapshot.shards:
        path = home.shard(shard.digest)
        with telling_damage(path):
            _group_sizes(path, shard, [])
            content = file_digest(path) if is_small else shard.digest
        if content != shard.digest:
            raise _damaged(path, "its content was altered", f"the digest {shard.digest[:12]}…", f"{content[:12]}…")


def stored_bytes(snapshot: SnapshotRecord, layout: Layout, columns: Sequence[str]) -> int:
    """Bytes of columns in all shards as they are encoded, uncompressed: about what their words or bytes take in memory.

    Raises:
        SourceError: a shard is missing or damaged.
    """
    return sum(chunk.total_uncompressed_size for chunk in _column_chunks(snapshot, layout, columns))


def count_missing(snapshot: SnapshotRecord, layout: Layout, columns: Sequence[str]) -> Counter[str]:
    """Missing values by column, for those that have any, as far as footers tell; rows that do not count are counted, too.

    Raises:
        SourceError: a shard is missing or damaged.
    """
    found: Counter[str] = Counter()
    for chunk in _column_chunks(snapshot, layout, columns):
        if chunk.is_stats_set and chunk.statistics.has_null_count and chunk.statistics.null_count:
            found[chunk.path_in_schema] += chunk.statistics.null_count
    return found


def _column_chunks(snapshot: SnapshotRecord, layout: Layout, columns: Sequence[str]) -> Iterator[pq.ColumnChunkMetaData]:
    for shard in snapshot.shards if columns else ():
        path = layout.dataset(snapshot.dataset).shard(shard.digest)
        with telling_damage(path):
            footer = pq.read_metadata(path)
        for group in range(footer.num_row_groups):
            chunks = (footer.row_group(group).column(at) for at in range(footer.num_columns))
            yield from (chunk for chunk in chunks if chunk.path_in_schema in columns)


@contextlib.contextmanager
def telling_damage(path: Path) -> Iterator[None]:
    """Turn what cannot be read of a shard into an error that says what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise _damaged(path, "it is missing") from error
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, first_line(error)) from error


def _damaged(path: Path, what: str, expected: str = "", received: str = "") -> SourceError:
    return SourceError(
        f"a shard of the data set cannot be used: {what}.",
        where=str(path),
        expected=expected,
        received=received,
        remedy="refit data verify tells all that is damaged; remove the data set's folder to ingest again: sources are not touched.",
    )
