"""Statistics of shards: one pass over each, kept beside the data, merged at almost no cost.

Counts, extremes, means and variances are exact, over all rows that count. Distributions are those of a random sample of
``SAMPLE_ROWS`` rows, whole rows, the same for all columns: what is computed from a sample has the sample's n. Every row
draws a random number from a generator that is seeded with the shard's first rows, and the rows with the smallest numbers are
the sample, so that the samples of shards merge into the sample of their union, and the same shards always give the same.

Source: bottom-k sampling, E. Cohen and H. Kaplan (2007), "Summarizing data using bottom-k sketches", doi:10.1145/1281100.1281133.
The hash of the key would serve as that number only where keys are unique: without a key, equal rows share their hash and
enter the sample together, and 20,000 rows may be copies of two. The lowest hashes are also the test split.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from refit.errors import CorruptRecordError, SchemaMismatchError
from refit.layout import DatasetLayout
from refit.records import Column, Record, ShardRecord, write_atomically
from refit.schema import KEY_HASH, column_of, tensor_to_numpy

SAMPLE_ROWS = 20_000
PROFILE_VERSION = 2
MAX_TEXT = 100
RANK = "_rank"

_STATISTICS = b"statistics"
_BATCH_ROWS = 65_536
_SEED_ROWS = 1_024
_BATCH_BYTES = 8 << 20
_READ_BYTES = 1 << 20
_MERGED_AT_ONCE = 32
_AT_ONCE = 2  # shards that are read at the same time
_DIGEST_BYTES = hashlib.sha256().digest_size

Values = Literal["number", "whole", "truth", "time", "tensor", "text", "bytes"]


def values_of(column: Column) -> Values:
    """What a column holds: ``bytes`` have no distribution, of tensors the mean of each row is taken, of times the seconds since 1970."""
    if column.shape is not None:
        return "tensor"
    prefixes: dict[str, Values] = {"int": "whole", "uint": "whole", "date": "time", "timestamp": "time"}
    exact: dict[str, Values] = {"bool": "truth", "string": "text", "float": "number", "double": "number"}
    if column.type in exact:
        return exact[column.type]
    return next((kind for prefix, kind in prefixes.items() if column.type.startswith(prefix)), "bytes")


class ColumnProfile(Record):
    """One column over all rows that count. A missing value is null or not a number.

    ``minimum`` to ``variance`` (the population's) are of the finite values; null where there are none, where the column holds
    text or bytes, or where a sum leaves the range of a double.
    """

    column: Column
    num_rows: int = 0
    num_missing: int = 0
    num_infinite: int = 0
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    variance: float | None = None

    @property
    def num_present(self) -> int:
        """Rows that have a value."""
        return self.num_rows - self.num_missing

    @property
    def missing_share(self) -> float:
        """Share of the rows without a value; 0 where there are no rows."""
        return self.num_missing / self.num_rows if self.num_rows else 0.0

    def merge(self, other: "ColumnProfile") -> "ColumnProfile":
        """The profile of both sets of rows together.

        Raises:
            SchemaMismatchError: they are of different types.
        """
        if self.column != other.column:
            raise SchemaMismatchError(
                f'the column "{self.column.name}" has two types among the shards of one snapshot.',
                expected=self.column.type,
                received=other.column.type,
                remedy="Ingest the sources into a new data set.",
            )
        return ColumnProfile(
            column=self.column,
            num_rows=self.num_rows + other.num_rows,
            num_missing=self.num_missing + other.num_missing,
            num_infinite=self.num_infinite + other.num_infinite,
            **_merge_moments(self, other),
        )

    @property
    def num_finite(self) -> int:
        """Values that entered the mean."""
        return self.num_present - self.num_infinite


def _merge_moments(one: ColumnProfile, two: ColumnProfile) -> dict[str, float | None]:
    """Source: T. Chan, G. Golub, R. LeVeque (1983), "Algorithms for computing the sample variance", doi:10.1080/00031305.1983.10483115."""
    parts = [part for part in (one, two) if part.num_finite]
    minima, maxima = [p.minimum for p in parts if p.minimum is not None], [p.maximum for p in parts if p.maximum is not None]
    extremes = {"minimum": min(minima, default=None), "maximum": max(maxima, default=None)}
    if len(parts) < 2:
        return extremes | {"mean": parts[0].mean if parts else None, "variance": parts[0].variance if parts else None}
    if one.mean is None or two.mean is None:
        return extremes | {"mean": None, "variance": None}
    share, distance = two.num_finite / (one.num_finite + two.num_finite), two.mean - one.mean
    mean = one.mean + distance * share
    if one.variance is None or two.variance is None:
        return extremes | {"mean": _finite(mean), "variance": None}
    variance = one.variance * (1 - share) + two.variance * share + distance * distance * share * (1 - share)
    return extremes | {"mean": _finite(mean), "variance": _finite(variance)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Profile:
    """Statistics of a set of rows.

    Attributes:
        num_rows: rows that count.
        columns: by name.
        sample: at most ``SAMPLE_ROWS`` rows, ascending by the uint64 column ``_rank``. Text is string, at most ``MAX_TEXT`` characters
            and a digest; all else float64 with NaN where it is missing. Columns of bytes are left out.
    """

    num_rows: int
    columns: dict[str, ColumnProfile]
    sample: pa.Table

    def column(self, column: Column) -> ColumnProfile:
        """The profile of a column; one in which every row is missing where the shards do not have it."""
        return self.columns.get(column.name) or ColumnProfile(column=column, num_rows=self.num_rows, num_missing=self.num_rows)

    def values(self, name: str) -> np.ndarray:
        """The sampled values that are not missing: float64 or, of text, objects ``[values]``."""
        if name not in self.sample.column_names:
            return np.empty(0)
        array = self.sample[name].drop_null()
        values = np.asarray(array.to_numpy(zero_copy_only=False))
        return values if values.dtype == object else values[~np.isnan(values)]


class _Statistics(Record):
    version: int
    sample_rows: int
    num_rows: int
    columns: tuple[ColumnProfile, ...]


def profile_shards(shards: Sequence[ShardRecord], home: DatasetLayout) -> Profile:
    """Statistics of the rows that count in these shards; only shards without a cached profile are read.

    Raises:
        CorruptRecordError: a shard, or the list of its dropped rows, is not there or cannot be read.
        SchemaMismatchError: a column has different types in two shards.
    """
    merged = merge_profiles([])
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(shards), _MERGED_AT_ONCE):
            profiles = pool.map(lambda shard: profile_shard(shard, home), shards[start : start + _MERGED_AT_ONCE])
            merged = merge_profiles([merged, *profiles])
    return merged


def merge_profiles(profiles: Sequence[Profile]) -> Profile:
    """The profile of all their rows together. Where ranks are equal, the earlier profile comes first.

    Raises:
        SchemaMismatchError: a column has different types.
    """
    parts = [part for part in profiles if part.num_rows]
    columns = {name: profile.column for part in parts for name, profile in part.columns.items()}
    merged = {name: reduce(ColumnProfile.merge, (part.column(column) for part in parts)) for name, column in columns.items()}
    return Profile(sum(part.num_rows for part in parts), merged, _merge_samples([part.sample for part in parts]))


def _merge_samples(samples: list[pa.Table]) -> pa.Table:
    """The ``SAMPLE_ROWS`` rows of the lowest rank; of each sample only the rows that can be among them are touched."""
    if not samples:
        return pa.table({RANK: pa.array([], pa.uint64())})
    ranks = [sample[RANK].to_numpy() for sample in samples]
    highest = np.sort(np.concatenate(ranks))[:SAMPLE_ROWS][-1]
    heads = [sample.slice(0, int(np.searchsorted(rank, highest, side="right"))) for sample, rank in zip(samples, ranks, strict=True)]
    table = pa.concat_tables(heads, promote_options="default")
    return table.take(np.argsort(table[RANK].to_numpy(), kind="stable")[:SAMPLE_ROWS])


# ---- one shard, cached


def profile_shard(shard: ShardRecord, home: DatasetLayout) -> Profile:
    """Statistics of one shard's rows that count, from the cache where it has them.

    Raises:
        CorruptRecordError: the shard, or the list of its dropped rows, is not there or cannot be read.
    """
    path = profile_path(shard, home)
    known = _read_profile(path)
    if known is not None:
        return known
    try:
        dropped = np.load(home.drops(shard.dropped)) if shard.dropped else np.empty(0, dtype=np.uint32)
        profile = _measure(home.shard(shard.digest), dropped)
    except (OSError, ValueError) as error:
        raise CorruptRecordError(
            f"the shard's rows cannot be read: {error}", where=str(home.shard(shard.digest)), remedy="Restore the data set's folder."
        ) from error
    _write_profile(profile, path)
    return profile


def keep_profile(profile: Profile, digest: str, home: DatasetLayout) -> None:
    """Cache the statistics of a shard all of whose rows count, made while it was written."""
    _write_profile(profile, home.profile(digest))


def profile_path(shard: ShardRecord, home: DatasetLayout) -> Path:
    """Where a shard's profile is cached: by the digests of its content and of the positions that do not count."""
    return home.profile(f"{shard.digest}{f'-{shard.dropped}' if shard.dropped else ''}")


def _write_profile(profile: Profile, path: Path) -> None:
    """An Arrow file with the statistics in its metadata, after the digest of it all."""
    statistics = _Statistics(
        version=PROFILE_VERSION, sample_rows=SAMPLE_ROWS, num_rows=profile.num_rows, columns=tuple(profile.columns.values())
    )
    table = profile.sample.replace_schema_metadata({_STATISTICS: statistics.model_dump_json()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue()
    write_atomically(path, hashlib.sha256(content).digest() + content.to_pybytes())


def _read_profile(path: Path) -> Profile | None:
    """A cached profile; ``None`` where there is none of this version, or a damaged one."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    content = memoryview(stored)[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != stored[:_DIGEST_BYTES]:
        return None
    table = pa.ipc.open_file(pa.py_buffer(content)).read_all()
    statistics = _Statistics.model_validate_json(table.schema.metadata[_STATISTICS])
    if (statistics.version, statistics.sample_rows) != (PROFILE_VERSION, SAMPLE_ROWS):
        return None
    return Profile(statistics.num_rows, {c.column.name: c for c in statistics.columns}, table.replace_schema_metadata())


# ---- the pass over one shard


class ShardProfiler:
    """Measures the rows of a shard in their order, while they are written or when they are read."""

    def __init__(self, columns: Sequence[Column]) -> None:
        """Begin; ``columns`` are those of the shard but ``_key_hash``."""
        self._profiles = {column.name: ColumnProfile(column=column) for column in columns}
        self._numbers: np.random.PCG64 | None = None
        self._highest = np.iinfo(np.uint64).max
        self._sample: list[pa.Table] = []
        self._num_sampled = 0
        self._num_rows = 0

    def add(self, rows: pa.Table, counts: np.ndarray | None = None) -> None:
        """Measure the next rows.

        Args:
            rows: with ``_key_hash``; a column of bytes that is left out has a value in every row. The first ones are
                ``_SEED_ROWS`` at least, unless there are no more.
            counts: which of them count, bool ``[rows]``; by default all.
        """
        counts = np.ones(len(rows), dtype=bool) if counts is None else counts
        self._numbers = self._numbers or np.random.PCG64(_seed(rows))
        ranks = self._numbers.random_raw(len(rows))
        picked = np.flatnonzero(counts & (ranks <= self._highest))
        sampled: dict[str, pa.ChunkedArray] = {RANK: pa.chunked_array([pa.array(ranks[picked], pa.uint64())])}
        for name, known in self._profiles.items():
            if name in rows.column_names:
                profile, values = _examine(known.column, rows[name], counts, picked)
                if values is not None:
                    sampled[name] = values
            else:
                profile = ColumnProfile(column=known.column, num_rows=int(counts.sum()))
            self._profiles[name] = known.merge(profile)
        self._num_rows += int(counts.sum())
        self._keep(pa.table(sampled))

    def _keep(self, sampled: pa.Table) -> None:
        self._sample.append(sampled)
        self._num_sampled += len(sampled)
        if self._num_sampled > 2 * SAMPLE_ROWS:
            lowest = self._lowest_sampled()
            self._sample, self._num_sampled, self._highest = [lowest], len(lowest), lowest[RANK].to_numpy().max()

    def _lowest_sampled(self) -> pa.Table:
        table = pa.concat_tables(self._sample)
        return table.take(_lowest(table[RANK].to_numpy()))

    def finish(self) -> Profile:
        """The statistics of all rows that count."""
        if not self._sample:
            return Profile(0, self._profiles, pa.table({RANK: pa.array([], pa.uint64())}))
        sample = self._lowest_sampled()
        return Profile(self._num_rows, self._profiles, sample.take(np.argsort(sample[RANK].to_numpy(), kind="stable")))


def _seed(rows: pa.Table) -> int:
    """Of the generator that gives each row of a shard its rank: made of what its first rows are."""
    return int.from_bytes(hashlib.sha256(rows[KEY_HASH].slice(0, _SEED_ROWS).to_numpy().tobytes()).digest()[:16], "big")


def _lowest(ranks: np.ndarray) -> np.ndarray:
    """Where the ``SAMPLE_ROWS`` lowest ranks stand, ascending."""
    return np.sort(np.argsort(ranks, kind="stable")[:SAMPLE_ROWS])


def _counting(start: int, stop: int, dropped: np.ndarray) -> np.ndarray:
    """Which of the rows from ``start`` to ``stop`` count: bool ``[stop - start]``."""
    counts = np.ones(stop - start, dtype=bool)
    first, last = np.searchsorted(dropped, (start, stop))
    counts[dropped[first:last].astype(np.int64) - start] = False
    return counts


def _measure(path: Path, dropped: np.ndarray) -> Profile:
    columns = [column_of(field) for field in pq.read_schema(path) if field.name != KEY_HASH]
    texts = [column.name for column in columns if values_of(column) == "text"]
    profiler = ShardProfiler(columns)
    with pq.ParquetFile(path, read_dictionary=_repeating(path, texts), buffer_size=_READ_BYTES, pre_buffer=False) as file:
        whole = _without_missing_bytes(file.metadata, columns)
        wanted = [KEY_HASH, *(column.name for column in columns if column.name not in whole)]
        for start, table in _read_rows(file, wanted):
            profiler.add(table, _counting(start, start + len(table), dropped))
    return profiler.finish()


def _repeating(path: Path, texts: list[str]) -> list[str]:
    """Columns of text that lie there as dictionaries: to make one of the others while reading costs five times as much."""
    metadata = pq.read_metadata(path)
    if not metadata.num_row_groups:
        return []
    chunks = [metadata.row_group(0).column(i) for i in range(metadata.num_columns)]
    return [chunk.path_in_schema for chunk in chunks if chunk.path_in_schema in texts and "RLE_DICTIONARY" in chunk.encodings]


def _without_missing_bytes(metadata: Any, columns: list[Column]) -> set[str]:  # noqa: ANN401 -- pyarrow is untyped
    """Columns of bytes that, by the file's own statistics, have a value in every row: nothing of them must be read."""
    names = {column.name for column in columns if values_of(column) == "bytes"}
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            known = chunk.statistics is not None and chunk.statistics.has_null_count
            if not known or chunk.statistics.null_count:
                names.discard(chunk.path_in_schema)
    return names


def _read_rows(file: pq.ParquetFile, names: list[str]) -> Iterator[tuple[int, pa.Table]]:
    """Consecutive rows with the position of the first: so few that wide rows do not fill the memory, over borders of row groups."""
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    row_bytes = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1)
    rows = int(min(max(_BATCH_BYTES / max(row_bytes, 1), 1), _BATCH_ROWS))
    start, stop = 0, 0
    waiting: list[pa.RecordBatch] = []
    for batch in file.iter_batches(rows, columns=names):
        waiting.append(batch)
        stop += len(batch)
        if stop - start >= rows:
            yield start, pa.Table.from_batches(waiting)
            start, waiting = stop, []
    if waiting:
        yield start, pa.Table.from_batches(waiting)


def _examine(
    column: Column, values: pa.ChunkedArray, counts: np.ndarray, picked: np.ndarray
) -> tuple[ColumnProfile, pa.ChunkedArray | None]:
    """The profile of the rows that count, and the values of those that are in the sample."""
    kind = values_of(column)
    if kind in ("text", "bytes"):
        missing = int((_is_missing(values) & counts).sum()) if values.null_count else 0
        profile = ColumnProfile(column=column, num_rows=int(counts.sum()), num_missing=missing)
        return profile, pa.chunked_array(_texts(values, picked), pa.string()) if kind == "text" else None
    numbers = _numbers(values, column)
    return _describe(column, numbers if counts.all() else numbers[counts]), pa.chunked_array([pa.array(numbers[picked])])


def _is_missing(values: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(values.is_null().to_numpy())


def _describe(column: Column, numbers: np.ndarray) -> ColumnProfile:
    """Statistics of float64 ``[rows]`` with NaN where it is missing. Finite extremes say that everything between them is finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        moments = _moments(numbers)
        if moments["minimum"] is not None and moments["maximum"] is not None:
            return ColumnProfile(column=column, num_rows=len(numbers), **moments)
        finite = numbers[np.isfinite(numbers)]
        moments = _moments(finite)
    missing = int(np.isnan(numbers).sum())
    infinite = len(numbers) - missing - len(finite)
    return ColumnProfile(column=column, num_rows=len(numbers), num_missing=missing, num_infinite=infinite, **moments)


def _moments(numbers: np.ndarray) -> dict[str, float | None]:
    """Extremes, mean and variance; null where they are not finite."""
    if not len(numbers):
        return dict.fromkeys(("minimum", "maximum", "mean", "variance"))
    mean = float(numbers.mean())
    apart = numbers - mean
    variance = float(np.einsum("i,i->", apart, apart)) / len(numbers)
    told = {"minimum": float(numbers.min()), "maximum": float(numbers.max()), "mean": mean, "variance": variance}
    return {name: value if math.isfinite(value) else None for name, value in told.items()}


_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_DAY_SECONDS = 86_400.0


def _numbers(values: pa.ChunkedArray, column: Column) -> np.ndarray:
    """Values as float64 ``[rows]``, NaN where they are missing: times in seconds since 1970, tensors as the mean of their elements."""
    if column.shape is not None:
        return _brightness(values, column)
    scale = 1.0
    if pa.types.is_timestamp(values.type):
        values, scale = values.cast(pa.int64()), 1 / _PER_SECOND[values.type.unit]
    elif pa.types.is_date32(values.type):
        values, scale = values.cast(pa.int32()), _DAY_SECONDS
    numbers = np.asarray(values.cast(pa.float64(), safe=False).to_numpy())
    return numbers if scale == 1.0 else numbers * scale


def _brightness(values: pa.ChunkedArray, column: Column) -> np.ndarray:
    present = values.drop_null() if values.null_count else values
    tensors = tensor_to_numpy(present, column).reshape(len(present), -1)
    means = np.full(len(values), np.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        means[~_is_missing(values)] = tensors.sum(axis=1, dtype=np.float64) / max(tensors.shape[1], 1)
    return means


def _texts(values: pa.ChunkedArray, picked: np.ndarray) -> Iterator[pa.StringArray]:
    """The picked strings, long ones cut; each distinct one is looked at once, however often it stands there."""
    start = 0
    for chunk in values.chunks:
        first, last = np.searchsorted(picked, (start, start + len(chunk)))
        taken = chunk.take(pa.array(picked[first:last] - start))
        start += len(chunk)
        if not pa.types.is_dictionary(taken.type) and (pc.max(pc.binary_length(taken)).as_py() or 0) <= MAX_TEXT:
            yield taken  # bytes are as many as characters, or more
            continue
        taken = taken if pa.types.is_dictionary(taken.type) else taken.dictionary_encode()
        used = taken.indices.unique().drop_null()
        words = taken.dictionary.take(used)
        if len(words) and pc.max(pc.binary_length(words)).as_py() > MAX_TEXT:
            words = pa.array([_shorten(word.as_py()) for word in words], pa.string())
        yield words.take(pc.index_in(taken.indices, used))


def _shorten(text: str) -> str:
    """The first characters; a digest keeps long texts with the same beginning apart."""
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[:MAX_TEXT]}… #{hashlib.sha256(text.encode()).hexdigest()[:8]}"
