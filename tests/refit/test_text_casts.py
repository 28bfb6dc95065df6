"""Typed columns in memory: whatever a text says, Arrow's short cut and DuckDB's query make the same of it."""

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from refit import text_casts
from refit.casting import sealed_connection, text_cast
from refit.config import ColumnType
from refit.records import Column
from refit.schema import ARROW_TYPES
from refit.text_casts import cast_rows, cast_texts

KINDS = tuple(ARROW_TYPES)
_WORDS = "1 0 00 7 12 2024 - + . e E x X _ , : T Z +02 a f d n inf nan Infinity NaN true FALSE t yes on epoch 01 31 23 59 60 10 \u0663 % $"
PARTS = st.sampled_from([*_WORDS.split(), " ", "\t"])
NUMBERS = st.one_of(st.integers(-(2**65), 2**65).map(str), st.floats().map(repr), st.floats(width=32).map(lambda x: f"{x:.3f}"))
TIMES = st.one_of(st.datetimes().map(str), st.datetimes().map(lambda t: t.isoformat()), st.dates().map(str), st.times().map(str))
TEXTS = st.lists(st.one_of(PARTS, PARTS, st.text(max_size=3)), max_size=8).map("".join) | NUMBERS | TIMES


def by_query(texts: list[str | None], kind: ColumnType, connection: duckdb.DuckDBPyConnection) -> list[tuple[object, bool]]:
    """The value and whether it does not fit, as ``refit.casting`` has it: NaN is missing, infinity fits nowhere."""
    with connection.cursor() as cursor:
        cursor.register("_given", pa.table({"value": pa.array(texts, pa.string())}))
        cast = text_cast("value", kind)
        made = cursor.sql(f"SELECT {cast} AS made FROM _given").to_arrow_table()["made"].combine_chunks().cast(ARROW_TYPES[kind])
    values = made.to_pylist()
    if pa.types.is_floating(made.type):
        misfits = [text is not None and (value is None or np.isinf(value)) for text, value in zip(texts, values, strict=True)]
        return [(None if value is None or not np.isfinite(value) else value, bad) for value, bad in zip(values, misfits, strict=True)]
    return [(value, text is not None and value is None) for text, value in zip(texts, values, strict=True)]


def in_memory(texts: list[str | None], kind: ColumnType, connection: duckdb.DuckDBPyConnection) -> list[tuple[object, bool]]:
    column = Column(name="x", type=str(ARROW_TYPES[kind]))
    typed = cast_texts(pa.array(texts, pa.string()), lambda values: values, column, connection)
    assert typed.values.type == ARROW_TYPES[kind]
    misfits = typed.is_misfit.to_pylist() if typed.is_misfit is not None else [False] * len(texts)
    return list(zip(typed.values.to_pylist(), misfits, strict=True))


@pytest.fixture(scope="module")
def connection():
    with sealed_connection() as connection:
        yield connection


@settings(max_examples=150, deadline=None)
@example(texts=["0x10"], kind="int64")
@example(texts=["inf"], kind="date")
@example(texts=["2024-01-02 10"], kind="timestamp")
@example(texts=["1.0", "2."], kind="int32")
@example(texts=["-0"], kind="int8")
@example(texts=["1e400", "nan"], kind="float64")
@example(texts=[" 7 "], kind="int64")
@given(texts=st.lists(st.none() | TEXTS, min_size=1, max_size=3), kind=st.sampled_from(KINDS))
def test_a_text_becomes_the_same_value_in_memory_and_in_the_query(connection, texts, kind) -> None:
    texts = [text if text is None else text.replace("\0", "") for text in texts]
    assert in_memory(texts, kind, connection) == by_query(texts, kind, connection)


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.integers(-(2**31), 2**31 - 1) | st.none(), min_size=1, max_size=5))
def test_numbers_take_the_short_cut(values) -> None:
    texts = pa.array([None if value is None else str(value) for value in values], pa.string())
    typed = text_casts.cast_by_arrow(texts, "int32")
    assert typed is not None
    assert typed.values.to_pylist() == values


def test_the_comparison_can_fail(connection, monkeypatch) -> None:
    monkeypatch.setattr(text_casts, "_SUITS", {})
    assert in_memory(["0x10"], "int64", connection) != by_query(["0x10"], "int64", connection)


def test_a_row_is_told_by_its_first_wrong_column_and_a_missing_part_of_the_key() -> None:
    texts = pa.record_batch({"k": ["a", None, "c", "d"], "x": ["1", "2", " oops ", "4"], "y": ["1", "b", "b", "0"]})
    columns = (
        Column(name="k", type="string"),
        Column(name="x", type="int64"),
        Column(name="y", type="double"),
        Column(name="z", type="string"),
    )
    with sealed_connection() as connection:
        judged = cast_rows(texts, lambda values: pc.ascii_trim(values, characters=" "), columns, ["k"], connection)
    assert judged.bad.tolist() == [1, 2]
    assert (judged.bad_columns.to_pylist(), judged.bad_values.to_pylist()) == (["k", "x"], [None, "oops"])
    assert judged.table["x"].to_pylist() == [1, 2, None, 4]
    assert judged.table["z"].null_count == 4
