"""Texts to typed columns in memory, a column of a few thousand rows at a time.

Arrow's casts are many times cheaper than DuckDB's, and take less for a number. So a column is given to Arrow first, and what will not
do, or would mean something else there, is cast by ``refit.casting``: the result is always that of the query there (a property
test holds it).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refit.casting import text_cast
from refit.config import ColumnType
from refit.records import Column
from refit.schema import ARROW_TYPES, column_type, field_of

_IS_ODD = np.ones(256, dtype=bool)
_IS_ODD[list(b"0123456789+-.:eETtrufalsRUFALS ")] = False
_TIME_LENGTHS = frozenset((10, 19, 21, 22, 23, 24, 25, 26))  # 2024-01-02, with the time, with a fraction of a second


@dataclass(frozen=True)
class Typed:
    """A column's values as they are stored, null where they are missing or do not fit; and which do not fit (None: all do)."""

    values: pa.Array
    is_misfit: pa.BooleanArray | None = None


Clean = Callable[[pa.StringArray], pa.StringArray]


def cast_texts(values: pa.StringArray, clean: Clean, column: Column, connection: duckdb.DuckDBPyConnection) -> Typed:
    """Cast one column.

    Args:
        values: texts as they stand in an input.
        clean: takes the blanks around them off and makes missing ones null.
        column: as it is pinned; no tensor.
        connection: a sealed one, for what Arrow does not take.
    """
    kind = column_type(field_of(column).type)
    if kind == "string":
        return Typed(clean(values))
    typed = cast_by_arrow(values, kind)
    if typed is not None:
        return typed
    cleaned = clean(values)
    typed = cast_by_arrow(cleaned, kind) if cleaned is not values else None
    return typed if typed is not None else _cast_with_help(cleaned, kind, connection)


def cast_by_arrow(values: pa.StringArray, kind: ColumnType) -> Typed | None:
    """Cast a column of numbers, truth values or times; None where a value does not fit, or could mean another thing to DuckDB."""
    suits = _SUITS.get(kind)
    if suits is not None and not suits(values):
        return None
    try:
        cast = values.cast(ARROW_TYPES[kind])
    except pa.ArrowInvalid:
        return None
    if pa.types.is_floating(cast.type) and not _is_finite(cast):
        return None
    return Typed(cast)


def _is_finite(values: pa.FloatingPointArray) -> bool:
    numbers = (values.fill_null(0.0) if values.null_count else values).to_numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(numbers.sum()) or np.isfinite(numbers).all())


def _has_no_hexadecimals(values: pa.StringArray) -> bool:
    """Arrow takes 0x10 for sixteen."""
    _, offsets, content = values.buffers()
    if content is None:
        return True
    bounds = np.frombuffer(offsets, np.int32)
    text = content[bounds[values.offset] : bounds[values.offset + len(values)]].to_pybytes()
    return b"x" not in text and b"X" not in text


def _has_usual_lengths(values: pa.StringArray) -> bool:
    """Arrow takes 2024-01-02 10 for a moment."""
    lengths = pc.binary_length(values)
    extremes = pc.min_max(lengths).as_py()
    if extremes["min"] == extremes["max"]:
        return extremes["min"] is None or extremes["min"] in _TIME_LENGTHS
    return set(pc.unique(lengths).to_pylist()) - {None} <= _TIME_LENGTHS


_SUITS: dict[str, Callable[[pa.StringArray], bool]] = {
    **dict.fromkeys(("int8", "int16", "int32", "int64"), _has_no_hexadecimals),
    "timestamp": _has_usual_lengths,
}


def _cast_with_help(values: pa.StringArray, kind: ColumnType, connection: duckdb.DuckDBPyConnection) -> Typed:
    """Leave to DuckDB what looks like no number and no time, and all where Arrow still will not do."""
    odd = _find_odd(values)
    if len(odd) in (0, len(values)):
        return _cast_by_duckdb(values, kind, connection)
    is_odd = np.zeros(len(values), dtype=bool)
    is_odd[odd] = True
    typed = cast_by_arrow(pc.if_else(pa.array(is_odd), None, values), kind)
    if typed is None:
        return _cast_by_duckdb(values, kind, connection)
    asked = _cast_by_duckdb(values.take(pa.array(odd)), kind, connection)
    is_odd[odd] = False if asked.is_misfit is None else asked.is_misfit.to_numpy(zero_copy_only=False)
    mask = np.zeros(len(values), dtype=bool)
    mask[odd] = True
    return Typed(pc.replace_with_mask(typed.values, pa.array(mask), asked.values), pa.array(is_odd) if is_odd.any() else None)


def _find_odd(values: pa.StringArray) -> np.ndarray:
    """Rows whose texts have characters that a number or a time seldom has, ascending: int64."""
    _, offsets, content = values.buffers()
    if content is None:
        return np.empty(0, np.int64)
    bounds = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1]
    at = np.flatnonzero(_IS_ODD[np.frombuffer(content, np.uint8)[bounds[0] : bounds[-1]]]) + bounds[0]
    return np.unique(np.searchsorted(bounds, at, side="right") - 1)


def _cast_by_duckdb(values: pa.StringArray, kind: ColumnType, connection: duckdb.DuckDBPyConnection) -> Typed:
    with connection.cursor() as cursor:
        cursor.register("_texts", pa.table({"value": values}))
        cast = text_cast("value", kind)
        chunks = cursor.sql(f"SELECT {cast} AS made FROM _texts").to_arrow_table()["made"].cast(ARROW_TYPES[kind]).chunks  # noqa: S608
    found = pa.concat_arrays(chunks) if chunks else pa.array([], ARROW_TYPES[kind])
    is_misfit = pc.and_(pc.is_valid(values), pc.is_null(found))
    if pa.types.is_floating(found.type):
        is_misfit = pc.or_(is_misfit, pc.fill_null(pc.is_inf(found), False))
        found = pc.if_else(pc.is_finite(found), found, None)
    return Typed(found, is_misfit if is_misfit.true_count else None)


# ---- rows


@dataclass(frozen=True)
class Judged:
    """Typed columns, and the rows that do not fit: where they are, the first column that is wrong, and its text."""

    table: pa.RecordBatch
    bad: np.ndarray
    bad_columns: pa.StringArray
    bad_values: pa.StringArray


def cast_rows(
    texts: pa.RecordBatch, clean: Clean, columns: Sequence[Column], key: Sequence[str], connection: duckdb.DuckDBPyConnection
) -> Judged:
    """Cast the rows of a text.

    Args:
        texts: strings; a column that is not there is missing in every row.
        clean: of ``cast_texts``.
        columns: as they are pinned.
        key: columns in which nothing may be missing.
        connection: a sealed one.
    """
    typed: list[pa.Array] = []
    culprit = np.full(len(texts), -1, dtype=np.int32)
    for index, column in enumerate(columns):
        if column.name not in texts.schema.names:
            cast = Typed(pa.nulls(len(texts), field_of(column).type))
        else:
            cast = cast_texts(texts[column.name], clean, column, connection)
        typed.append(cast.values)
        wrong = cast.values.is_null() if column.name in key and cast.values.null_count else cast.is_misfit
        if wrong is not None:
            at = wrong.to_numpy(zero_copy_only=False)
            culprit[at & (culprit < 0)] = index
    bad = np.flatnonzero(culprit >= 0)
    told = [_told(texts, clean, columns[culprit[row]].name, row) for row in bad.tolist()]
    return Judged(
        pa.RecordBatch.from_arrays(typed, names=[column.name for column in columns]),
        bad,
        pa.array([column for column, _ in told], pa.string()),
        pa.array([value for _, value in told], pa.string()),
    )


def _told(texts: pa.RecordBatch, clean: Clean, name: str, row: int) -> tuple[str, str | None]:
    """The column and the text in it; null where it is missing."""
    return name, clean(texts[name].slice(row, 1))[0].as_py() if name in texts.schema.names else None
