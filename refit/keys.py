"""One row a key: of all rows with the same key the newest counts.

The newest row is the last one of the newest input. What it replaces stays in its shard and is listed by position, so that a
correction costs what it brings and not what it corrects. Memory: 16 bytes a row of a range of hashes, and the ranges are
chosen so small that this does not grow with the data; and 24 bytes for each row that shares its key.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np

from refit.layout import DatasetLayout
from refit.parallel import ordered_map
from refit.records import ShardRecord, SourceRecord
from refit.shards import read_drops, read_hashes, write_drops

_RANGE_ROWS = 1 << 24


def keep_newest(home: DatasetLayout, sources: Sequence[SourceRecord], *, num_settled: int = 0) -> tuple[SourceRecord, ...]:
    """Find for every key the newest row, and mark all others as duplicate (same input) or superseded (a newer input).

    Args:
        home: where the shards lie.
        sources: oldest first.
        num_settled: so many of the oldest are as this function left them, all together; 0 where an input has changed or gone, so that
            rows may come back. Where few rows are new, the settled ones are compared with them alone.

    Returns:
        The same sources with their counts and the dropped positions of their shards.
    """
    num_new = sum(shard.num_rows for source in sources[num_settled:] for shard in source.shards)
    num_old = sum(shard.num_rows for source in sources[:num_settled] for shard in source.shards)
    if num_new > min(_RANGE_ROWS, num_old):
        return _compare_all(home, sources)
    fresh = _compare_all(home, sources[num_settled:])
    hashes = _Lookup(np.sort(np.concatenate([np.empty(0, np.uint64), *read_hashes(home, [s for source in fresh for s in source.shards])])))
    return (*(_supersede(home, source, hashes) for source in sources[:num_settled]), *fresh)


class _Lookup:
    """A set of hashes in which most others are known not to be by their first bits."""

    def __init__(self, ordered: np.ndarray) -> None:
        self._ordered = ordered
        self._shift = np.uint64(64 - min(24, max(16, len(ordered).bit_length() + 3)))
        self._first_bits = np.zeros(1 << int(np.uint64(64) - self._shift), dtype=bool)
        self._first_bits[ordered >> self._shift] = True

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """Positions of those hashes that are in the set, ascending."""
        maybe = np.flatnonzero(self._first_bits[hashes >> self._shift])
        at = np.minimum(np.searchsorted(self._ordered, hashes[maybe]), len(self._ordered) - 1)
        return np.asarray(maybe[self._ordered[at] == hashes[maybe]] if len(self._ordered) else maybe[:0])


def _supersede(home: DatasetLayout, source: SourceRecord, newer: _Lookup) -> SourceRecord:
    """Drop the rows of an input whose keys are among newer ones."""
    shards = [
        _mark(home, shard, np.union1d(read_drops(home, shard), newer.find(hashes)))
        for shard, hashes in zip(source.shards, read_hashes(home, source.shards), strict=True)
    ]
    return _count(source, [(shard, 0) for shard in shards], num_duplicate=source.num_duplicate)


def _compare_all(home: DatasetLayout, sources: Sequence[SourceRecord]) -> tuple[SourceRecord, ...]:
    owners = [(i, shard) for i, source in enumerate(sources) for shard in source.shards]
    shards = [shard for _, shard in owners]
    starts = np.concatenate([[0], np.cumsum([shard.num_rows for shard in shards], dtype=np.int64)])
    owner = np.array([i for i, _ in owners], dtype=np.int64)
    dropped, is_own = _find_replaced(home, shards, starts, owner)
    cuts = np.searchsorted(dropped, starts)
    marked = [_mark(home, shard, dropped[cuts[k] : cuts[k + 1]] - starts[k]) for k, shard in enumerate(shards)]
    own = [int(is_own[cuts[k] : cuts[k + 1]].sum()) for k in range(len(shards))]
    both, firsts = list(zip(marked, own, strict=True)), np.searchsorted(owner, np.arange(len(sources) + 1))
    return tuple(_count(source, both[firsts[i] : firsts[i + 1]]) for i, source in enumerate(sources))


def _mark(home: DatasetLayout, shard: ShardRecord, positions: np.ndarray) -> ShardRecord:
    name = write_drops(home, np.sort(positions)) if len(positions) else None
    return shard.model_copy(update={"dropped": name, "num_dropped": len(positions)})


def _count(source: SourceRecord, marked: list[tuple[ShardRecord, int]], *, num_duplicate: int = 0) -> SourceRecord:
    shards, num_duplicate = tuple(shard for shard, _ in marked), num_duplicate + sum(own for _, own in marked)
    num_dropped = sum(shard.num_dropped for shard in shards)
    kept = sum(shard.num_live for shard in shards)
    counts = {"num_duplicate": num_duplicate, "num_superseded": num_dropped - num_duplicate, "num_kept": kept}
    return source.model_copy(update={"shards": shards, **counts})


def _find_replaced(
    home: DatasetLayout, shards: Sequence[ShardRecord], starts: np.ndarray, owner: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that a newer one replaces: int64, numbered over all shards; and of each whether one of its own input does."""
    repeated = _find_repeated(home, shards, max(1, -(-int(starts[-1]) // _RANGE_ROWS)))
    if not len(repeated):
        return np.empty(0, np.int64), np.empty(0, bool)
    lookup, keys, rows = _Lookup(repeated), [], []
    for start, hashes in zip(starts, read_hashes(home, shards), strict=False):
        found = lookup.find(hashes)
        keys.append(hashes[found])
        rows.append(found + start)
    key, row = np.concatenate(keys), np.concatenate(rows)
    source = owner[np.searchsorted(starts, row, side="right") - 1]
    order = np.lexsort((row, key))
    key, row, source = key[order], row[order], source[order]
    has_newer = np.append(key[1:] == key[:-1], False)  # rows of one key stand together, the newest last
    has_own = has_newer & np.append(source[1:] == source[:-1], False)
    order = np.argsort(row[has_newer])
    return row[has_newer][order], has_own[has_newer][order]


def _find_repeated(home: DatasetLayout, shards: Sequence[ShardRecord], num_ranges: int) -> np.ndarray:
    """Hashes that several rows have, sorted; a range of them at a time."""
    found = [np.empty(0, np.uint64)]
    for first, last in pairwise(round(k * 2**64 / num_ranges) for k in range(num_ranges + 1)):
        parts = list(ordered_map(partial(_sorted_between, first=first, last=last - 1), read_hashes(home, shards)))
        ordered = np.concatenate([np.empty(0, np.uint64), *parts])
        ordered.sort(kind="stable")  # which merges what is sorted already
        found.append(np.unique(ordered[1:][ordered[1:] == ordered[:-1]]))
    return np.concatenate(found)


def _sorted_between(hashes: np.ndarray, *, first: int, last: int) -> np.ndarray:
    ordered = np.sort(hashes)
    begin = np.searchsorted(ordered, np.uint64(first))
    return ordered[begin : np.searchsorted(ordered, np.uint64(last), side="right")]
