"""One row a key: of all rows with the same key the newest counts.

The newest row is the last one of the newest input. What it replaces stays in its shard and is listed by position, so that a
correction costs what it brings and not what it corrects. Memory: 16 bytes a row of a range of hashes, and the ranges are
chosen so small that this does not grow with the data.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from refit.layout import DatasetLayout
from refit.records import ShardRecord, SourceRecord
from refit.shards import read_hashes, write_drops

_RANGE_ROWS = 1 << 23


def keep_newest(home: DatasetLayout, sources: Sequence[SourceRecord]) -> tuple[SourceRecord, ...]:
    """Find for every key the newest row, and mark all others as duplicate (same input) or superseded (a newer input).

    Args:
        home: where the shards lie.
        sources: oldest first; what was dropped before is looked at anew, since an input may have changed or gone.

    Returns:
        The same sources with their counts and the dropped positions of their shards.
    """
    owners = [(i, shard) for i, source in enumerate(sources) for shard in source.shards]
    shards = [shard for _, shard in owners]
    starts = np.concatenate([[0], np.cumsum([shard.num_rows for shard in shards], dtype=np.int64)])
    owner = np.array([i for i, _ in owners], dtype=np.int64)
    dropped, winners = _find_replaced(home, shards, starts)
    cuts = np.searchsorted(dropped, starts)
    by_own = _owner_of(dropped, starts, owner) == _owner_of(winners, starts, owner)
    marked = [_mark(home, shard, dropped[cuts[k] : cuts[k + 1]] - starts[k]) for k, shard in enumerate(shards)]
    own = [int(by_own[cuts[k] : cuts[k + 1]].sum()) for k in range(len(shards))]
    return tuple(_count(source, [(marked[k], own[k]) for k in np.flatnonzero(owner == i)]) for i, source in enumerate(sources))


def _owner_of(rows: np.ndarray, starts: np.ndarray, owner: np.ndarray) -> np.ndarray:
    return owner[np.searchsorted(starts, rows, side="right") - 1] if len(rows) else np.empty(0, dtype=np.int64)


def _mark(home: DatasetLayout, shard: ShardRecord, positions: np.ndarray) -> ShardRecord:
    name = write_drops(home, np.sort(positions)) if len(positions) else None
    return shard.model_copy(update={"dropped": name, "num_dropped": len(positions)})


def _count(source: SourceRecord, marked: list[tuple[ShardRecord, int]]) -> SourceRecord:
    shards, num_duplicate = tuple(shard for shard, _ in marked), sum(own for _, own in marked)
    num_dropped = sum(shard.num_dropped for shard in shards)
    kept = sum(shard.num_live for shard in shards)
    counts = {"num_duplicate": num_duplicate, "num_superseded": num_dropped - num_duplicate, "num_kept": kept}
    return source.model_copy(update={"shards": shards, **counts})


def _find_replaced(home: DatasetLayout, shards: Sequence[ShardRecord], starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that a newer one replaces, and for each the row that does: int64, numbered over all shards."""
    num_ranges = max(1, -(-int(starts[-1]) // _RANGE_ROWS))
    found = [_replaced_in(hashes, rows) for hashes, rows in _ranges(home, shards, starts, num_ranges)]
    dropped, winners = (np.concatenate([pair[k] for pair in found]) if found else np.empty(0, dtype=np.int64) for k in (0, 1))
    order = np.argsort(dropped)
    return dropped[order], winners[order]


def _ranges(
    home: DatasetLayout, shards: Sequence[ShardRecord], starts: np.ndarray, num_ranges: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Hashes and numbers of the rows of each range of hashes, in the order of rows."""
    width = np.uint64(-(-(1 << 64) // num_ranges) if num_ranges > 1 else (1 << 64) - 1)
    for k in range(num_ranges):
        hashes, rows = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for start, values in zip(starts, read_hashes(home, shards), strict=False):
            inside = np.flatnonzero(values // width == k) if num_ranges > 1 else np.arange(len(values))
            hashes.append(values[inside])
            rows.append(inside + start)
        yield np.concatenate(hashes), np.concatenate(rows)


def _replaced_in(hashes: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ordered = np.sort(hashes)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    at = np.minimum(np.searchsorted(repeated, hashes), len(repeated) - 1)
    several = np.flatnonzero(repeated[at] == hashes)
    newest = np.full(len(repeated), -1, dtype=np.int64)
    np.maximum.at(newest, at[several], rows[several])
    winner = newest[at[several]]
    is_replaced = winner != rows[several]
    return rows[several][is_replaced], winner[is_replaced]
