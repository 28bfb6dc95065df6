"""From a snapshot and a job to the side of each row: what each way of dividing reads of the data, and what it refuses.

Only the columns that the rule names are read. Beside them memory holds at most 16 bytes a row.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refit.assignments import (
    NO_FOLD,
    NO_SIDE,
    SIDE_CODES,
    TEST,
    TRAIN,
    UNASSIGNED,
    VALIDATION,
    Codes,
    Cuts,
    Hashes,
    Mask,
    Sides,
    Times,
    assign_by_time,
    assign_evenly,
    assign_folds,
    assign_sides,
    chunks,
    deal_folds,
    find_cuts,
    gap_of,
    threshold,
    unite_classes,
)
from refit.casting import sealed_connection, stored_columns
from refit.config import Job, nearest
from refit.errors import DataError, JobError
from refit.hashing import hash_rows
from refit.labels import target_kind
from refit.layout import DatasetLayout, Layout
from refit.records import SIDES, Column, Side, SnapshotRecord
from refit.schema import KEY_HASH, field_of
from refit.settled import Settled, is_among, read_settled, settled_name
from refit.shards import live_mask, read_shard, read_table, shard_paths, telling_damage
from refit.sources.inputs import first_line, literal
from refit.wording import counted, format_list, shorten

MAX_STRATA = 1_000  # each is a pass over the rows


@dataclass(frozen=True)
class Stored:
    """The rows to divide, and the rule."""

    snapshot: SnapshotRecord
    job: Job
    layout: Layout

    @property
    def home(self) -> DatasetLayout:
        """Where the rows lie."""
        return self.layout.dataset(self.snapshot.dataset)

    def read_keys(self) -> Hashes:
        """Hash of each row's key: uint64 ``[rows]`` in snapshot order."""
        keys, start = np.empty(self.snapshot.num_rows, dtype=np.uint64), 0
        for shard in self.snapshot.shards:
            keys[start : start + shard.num_live] = read_shard(self.home, shard, [KEY_HASH])[KEY_HASH].to_numpy()
            start += shard.num_live
        return keys

    def column(self, name: str, where: str) -> Column:
        """A column that holds one value a row.

        Raises:
            DataError: there is none of that name, or it holds tensors.
        """
        known = {column.name: column for column in self.snapshot.columns}
        if name not in known:
            raise DataError(f'"{name}" is no column of the data.{nearest(name, known)}', where=where)
        if known[name].shape is not None:
            raise DataError(f'"{name}" holds tensors, by which rows cannot be divided.', where=where, remedy="Name another column.")
        return known[name]

    def read_parts(self, column: Column) -> Iterator[tuple[slice, pa.Array]]:
        """The values of one shard after another, each with the place of its rows."""
        start = 0
        for shard in self.snapshot.shards:
            values = read_shard(self.home, shard, [column.name])[column.name].cast(field_of(column).type).combine_chunks()
            yield slice(start, start + len(values)), values
            start += len(values)

    def read_codes(self, column: Column) -> tuple[Codes, list[object]]:
        """Each value as its place among all values: int32 ``[rows]``, and the values in order; a missing one is one of them."""
        values = read_table(self.snapshot, self.layout, [column.name])[column.name]
        encoded = values.dictionary_encode(null_encoding="encode").combine_chunks()
        names = encoded.dictionary.to_pylist()
        order = sorted(range(len(names)), key=lambda place: (names[place] is not None, str(names[place])))
        ranks = np.empty(len(names), dtype=np.int32)
        ranks[order] = np.arange(len(names), dtype=np.int32)
        codes = np.asarray(encoded.indices.to_numpy(), dtype=np.int32)
        return ranks[codes] if len(names) else codes, [names[place] for place in order]


@dataclass(frozen=True)
class Division:
    """Where each row is.

    Attributes:
        sides: uint8 ``[rows]`` in snapshot order: 0 train, 1 validation, 2 test, 3 no side.
        left_out: rows on no side by what keeps them off.
        cuts: where time is cut.
        settled: what is to be kept for the splits that follow; None where nothing is new.
    """

    sides: Sides
    left_out: dict[str, int]
    cuts: Cuts | None = None
    settled: Settled | None = None

    @property
    def num_rows(self) -> dict[Side, int]:
        """Rows on each side."""
        return {side: int(np.count_nonzero(self.sides == code)) for side, code in SIDE_CODES.items()}


def divide(stored: Stored, keys: Hashes) -> Division:
    """Put every row on a side, or on none.

    Args:
        stored: the rows and the rule.
        keys: hash of each row's key: uint64 ``[rows]``.

    Raises:
        JobError: ``split.where`` cannot be evaluated, or ``data.time`` is missing.
        DataError: a column is missing or of another type, or has values by which rows cannot be divided.
        CorruptRecordError: what earlier splits have settled cannot be read.
    """
    is_in = np.ones(len(keys), dtype=bool) if stored.job.split.where is None else _find_where(stored)
    if not is_in.any():
        raise DataError(
            "no row is left to divide.",
            where="split.where",
            expected=stored.job.split.where or "rows",
            received=counted(len(keys), "row"),
            remedy="Mend the condition.",
        )
    rules: dict[str, Callable[[Stored, Hashes, Mask], Division]] = {
        "hash": _divide_by_hash,
        "group": _divide_by_group,
        "stratified": _divide_evenly,
        "time": _divide_by_time,
        "column": _divide_by_column,
    }
    division = rules[stored.job.split.by](stored, keys, is_in)
    division.sides[~is_in] = NO_SIDE
    left_out = {"where": int(np.count_nonzero(~is_in)), **division.left_out}
    return replace(division, left_out={reason: count for reason, count in left_out.items() if count})


def _divide_by_hash(stored: Stored, keys: Hashes, _: Mask) -> Division:
    return Division(assign_sides(keys, stored.job.split), {})


# ---- the condition


def _find_where(stored: Stored) -> Mask:
    """Whether the condition holds for each row: bool ``[rows]``; where it is null it does not."""
    _check_where(stored)
    home, shards = stored.home, stored.snapshot.shards
    is_in, start = np.zeros(stored.snapshot.num_rows, dtype=bool), 0
    with telling_damage(home, shards), sealed_connection(str(path) for path in shard_paths(home, shards)) as connection:
        for shard in shards:
            holds = np.zeros(shard.num_rows, dtype=bool)
            holds[_matching(connection, str(home.shard(shard.digest)), str(stored.job.split.where))] = True
            is_in[start : start + shard.num_live] = holds[live_mask(home, shard)]
            start += shard.num_live
    return is_in


def _matching(connection: duckdb.DuckDBPyConnection, path: str, condition: str) -> np.ndarray:
    """Positions of the rows of a shard for which the condition holds."""
    rows = f"read_parquet({literal(path)}, file_row_number=true, hive_partitioning=false)"
    query = f"SELECT file_row_number FROM {rows} WHERE coalesce(CAST(({condition}\n) AS BOOLEAN), false)"  # noqa: S608 -- sealed connection
    try:
        return np.asarray(connection.execute(query).fetchnumpy()["file_row_number"])
    except (duckdb.IOException, duckdb.InvalidInputException):
        raise
    except duckdb.Error as error:
        raise _useless(condition, first_line(error), "Make it hold for every row, with TRY_CAST or CASE.") from error


def _check_where(stored: Stored) -> None:
    """See that the condition is one, over the stored columns of a row alone."""
    data = stored.job.data.model_copy(update={"where": stored.job.split.where, "derive": {}, "select": [], "key": []})
    try:
        stored_columns(stored.job.model_copy(update={"data": data}), stored.snapshot.columns)
    except (JobError, DataError) as error:
        raise _useless(str(data.where), error.what, error.remedy) from error


def _useless(condition: str, what: str, remedy: str) -> JobError:
    return JobError(what, where="split.where", received=condition, remedy=remedy)


# ---- by group


def _divide_by_group(stored: Stored, keys: Hashes, is_in: Mask) -> Division:
    sides = np.empty(len(keys), dtype=np.uint8)
    for rows, hashes in _group_hashes(stored, is_in):
        sides[rows] = assign_sides(hashes, stored.job.split)
    return Division(sides, {})


def _group_hashes(stored: Stored, is_in: Mask) -> Iterator[tuple[slice, Hashes]]:
    """The hash of each row's group, a shard at a time.

    Raises:
        DataError: rows have no group, so that what belongs together cannot be told.
    """
    column = stored.column(str(stored.job.split.group), "split.group")
    num_missing = 0
    for rows, values in stored.read_parts(column):
        num_missing += _count_missing(values, is_in[rows])
        yield rows, hash_rows([values])
    _check_present(column, num_missing, is_in, "split.group", "what belongs together cannot be told")


def _count_missing(values: pa.Array, is_in: Mask) -> int:
    return int(np.count_nonzero(values.is_null().to_numpy(zero_copy_only=False) & is_in)) if values.null_count else 0


def _check_present(column: Column, num_missing: int, is_in: Mask, where: str, why: str) -> None:
    if num_missing:
        raise DataError(
            f'{num_missing:,} of {counted(int(np.count_nonzero(is_in)), "row")} have no "{column.name}": {why}.',
            where=where,
            remedy=f"""Mend the data, or leave those rows out: split.where: '"{column.name}" IS NOT NULL'.""",
        )


# ---- evenly by class


def _divide_evenly(stored: Stored, keys: Hashes, is_in: Mask) -> Division:
    split = stored.job.split
    classes = _read_classes(stored, keys, is_in, min_rows=len(SIDES))
    settled = read_settled(stored.home, settled_name(stored.snapshot, stored.job))
    sides = settled.sides_of(keys)
    sides[~is_in] = NO_SIDE
    is_new = sides == UNASSIGNED
    validation, test = float(split.validation), float(split.test)
    assign_evenly(keys, classes, sides, (1 - validation - test, validation, test))
    if not is_new.any():
        return Division(sides, {})
    grown = {side: settled.add(side, keys[is_new & (sides == code)]) for side, code in SIDE_CODES.items()}
    return Division(sides, {}, settled=Settled(grown))


def _read_classes(stored: Stored, keys: Hashes, is_in: Mask, *, min_rows: int) -> Codes:
    """Class of each row as a number, the same for rows with one key: int32 ``[rows]``.

    Raises:
        DataError: a class has fewer rows than ``min_rows``, or there are too many classes.
    """
    split = stored.job.split
    column = stored.column(split.stratify or stored.job.target.column, "split.stratify")
    classes, names = stored.read_codes(column)
    if len(names) > MAX_STRATA:
        raise DataError(
            f'"{column.name}" has {len(names):,} values, too many to spread each evenly.',
            where="split.stratify",
            expected=f"{MAX_STRATA:,} at most",
            remedy="Name a column of classes, or take by: hash.",
        )
    num_rows = _count(classes, len(names), is_in)
    few = [f"{shorten(str(name))} ({count})" for name, count in zip(names, num_rows, strict=True) if 0 < count < min_rows]
    if few:
        raise DataError(
            f'"{column.name}" has {counted(len(few), "value")} in fewer rows than there are sides: {format_list(few)}.',
            where="split.stratify",
            expected=f"{min_rows} rows or more of each",
            remedy="Add rows, leave these out (split.where), or take by: hash.",
        )
    return classes if stored.snapshot.key else unite_classes(keys, classes)


def _count(codes: Codes | Sides, num_codes: int, is_in: Mask) -> list[int]:
    """How many rows have each code."""
    counts = np.zeros(num_codes, dtype=np.int64)
    for rows in chunks(len(codes)):
        counts += np.bincount(codes[rows][is_in[rows]], minlength=num_codes)
    return [int(count) for count in counts]


# ---- by time


def _divide_by_time(stored: Stored, keys: Hashes, is_in: Mask) -> Division:
    """By windows. A row that was trained on, and whose time was corrected since, is kept out of the test split."""
    settled = read_settled(stored.home, settled_name(stored.snapshot, stored.job))
    sides, cuts = _cut_time(stored, is_in, settled)
    gap = int(np.count_nonzero((sides == NO_SIDE) & is_in))
    trained = settled.add("train", keys[sides <= VALIDATION])
    tested = np.flatnonzero(sides == TEST)
    tested = tested[is_among(keys[tested], trained)]
    sides[tested] = NO_SIDE
    left_out = {"gap": gap, "trained on before": len(tested)}
    is_new = cuts != settled.cuts or len(trained) > len(settled.keys["train"])
    return Division(sides, left_out, cuts, Settled({**settled.keys, "train": trained}, cuts) if is_new else None)


def _cut_time(stored: Stored, is_in: Mask, settled: Settled) -> tuple[Sides, Cuts]:
    split = stored.job.split
    times = _read_times(stored, is_in)
    ordered = times[is_in]
    ordered.sort()
    cuts = find_cuts(ordered, split, settled.cuts)
    del ordered
    sides = assign_by_time(times, cuts, gap_of(split))
    sides[~is_in] = NO_SIDE
    return sides, cuts


def _read_times(stored: Stored, is_in: Mask) -> Times:
    """When each row came to be: int64 ``[rows]``, microseconds since 1970.

    Raises:
        JobError: the job does not say which column tells it.
        DataError: that column holds no times, or a row has none.
    """
    if stored.job.data.time is None:
        raise JobError("a split by time needs data.time, the column that says when a row came to be.", where="split.by")
    column = stored.column(stored.job.data.time, "data.time")
    stored_type = field_of(column).type
    if not (pa.types.is_timestamp(stored_type) or pa.types.is_date(stored_type)):
        raise DataError(
            f'"{column.name}" holds no times.',
            where="data.time",
            expected="a timestamp or a date",
            received=column.type,
            remedy=f"Declare it (data.columns: {{{column.name}: timestamp}}), or derive one (data.derive).",
        )
    times, num_missing = np.empty(len(is_in), dtype=np.int64), 0
    for rows, values in stored.read_parts(column):
        num_missing += _count_missing(values, is_in[rows])
        times[rows] = values.cast(pa.timestamp("us")).cast(pa.int64()).fill_null(0).to_numpy()
    _check_present(column, num_missing, is_in, "data.time", "whether they are older or newer cannot be told")
    return times


# ---- by column


def _divide_by_column(stored: Stored, keys: Hashes, is_in: Mask) -> Division:
    """As the data say it; where they name no row for validation, it is drawn from train by hash."""
    split = stored.job.split
    column = stored.column(str(split.column), "split.column")
    meanings: dict[str, Side] = {side: side for side in SIDES} | split.values
    words = pa.array(list(meanings), pa.string())
    codes = np.array([*(SIDE_CODES[side] for side in meanings.values()), UNASSIGNED], dtype=np.uint8)
    sides, unknown = np.empty(len(keys), dtype=np.uint8), Counter[str]()
    for rows, values in stored.read_parts(column):
        texts = values.cast(pa.string())
        places = pc.index_in(texts, value_set=words).fill_null(len(words)).to_numpy()
        sides[rows] = codes[places]
        for item in pc.value_counts(texts.filter(pa.array((sides[rows] == UNASSIGNED) & is_in[rows]))):
            unknown["missing" if item["values"].as_py() is None else shorten(item["values"].as_py())] += item["counts"].as_py()
    _check_known(column, unknown, meanings)
    if not ((sides == VALIDATION) & is_in).any():
        sides[(sides == TRAIN) & (keys < threshold(float(split.validation)))] = VALIDATION
    return Division(sides, {})


def _check_known(column: Column, unknown: Counter[str], meanings: dict[str, Side]) -> None:
    if unknown:
        told = [f"{word} ({counted(count, 'row')})" for word, count in unknown.most_common()]
        raise DataError(
            f'"{column.name}" names no side in {counted(unknown.total(), "row")}.',
            where="split.column",
            expected=", ".join(map(shorten, meanings)),
            received=format_list(told),
            remedy="Say what they mean (split.values), or leave those rows out (split.where).",
        )


# ---- folds


def divide_folds(stored: Stored, keys: Hashes, sides: Sides) -> tuple[Sides, tuple[int, ...]]:
    """Cut the rows of train and validation into folds.

    Returns:
        uint8 ``[rows]``, ``NO_FOLD`` for other rows; and the rows of each fold.

    Raises:
        DataError: there are too few rows, a fold has none, or one has rows of one class only.
    """
    num_folds, is_pool = stored.job.split.k_fold.folds if stored.job.split.k_fold else 0, sides <= VALIDATION
    folds = _assign_folds(stored, keys, is_pool, num_folds)
    folds[~is_pool] = NO_FOLD
    counts = _count(folds, num_folds, is_pool)
    if not all(counts):
        num_pool = counted(int(np.count_nonzero(is_pool)), "row")
        raise DataError(
            f"train and validation have {num_pool}, too few for {num_folds} folds: {counts.count(0)} would have none.",
            where="split.k_fold",
            received=", ".join(f"{count:,}" for count in counts),
            remedy="Take fewer folds, or add rows" + (" of more groups." if stored.job.split.by == "group" else "."),
        )
    _check_fold_classes(stored, folds, num_folds)
    return folds, tuple(counts)


def _assign_folds(stored: Stored, keys: Hashes, is_pool: Mask, num_folds: int) -> Sides:
    if stored.job.split.by == "stratified":
        return deal_folds(keys, _read_classes(stored, keys, is_pool, min_rows=1), is_pool, num_folds)
    if stored.job.split.by != "group":
        return assign_folds(keys, num_folds)
    folds = np.empty(len(keys), dtype=np.uint8)
    for rows, hashes in _group_hashes(stored, is_pool):
        folds[rows] = assign_folds(hashes, num_folds)
    return folds


def _check_fold_classes(stored: Stored, folds: Sides, num_folds: int) -> None:
    target = stored.column(stored.job.target.column, "target.column")
    codes, names = stored.read_codes(target)
    if target_kind(stored.job, target, len(names)) in ("regression", "multilabel"):
        return
    for fold in range(num_folds):
        found = np.flatnonzero(_count(codes, len(names), folds == fold))
        if len(found) < 2:
            rows = counted(int(np.count_nonzero(folds == fold)), "row")
            raise DataError(
                f'fold {fold + 1} of {num_folds} has rows of one class only: {rows} with "{target.name}" {shorten(str(names[found[0]]))}.',
                where="split.k_fold",
                expected="two classes or more in each fold",
                remedy="Take fewer folds, add rows, or spread the classes (split.by: stratified).",
            )
