"""The sql source, on real SQLite files and a real PostgreSQL server."""

import itertools
import sqlite3

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refit.errors import SourceError
from refit.records import SourceRecord
from refit.sources.databases import digest_batches, identity, list_inputs
from tests.refit.postgres import postgres as postgres  # a fixture
from tests.refit.queried import ingest, record, rows, rows_of, sql
from tests.refit.queried import lite as lite  # a fixture

# ---- names


def test_a_short_query_is_named_whole_and_a_long_one_by_its_beginning_and_a_digest():
    assert identity(sql("shop.db", "SELECT *\n  FROM t;")) == "sql: SELECT * FROM t @ shop.db"
    long = [identity(sql("shop.db", f"SELECT {', '.join(f'column{i}' for i in range(20))} FROM {t}")) for t in ("a", "b")]
    assert len(long[0]) < 100
    assert long[0] != long[1]
    assert identity(sql("shop.db", "SELECT 1", "id")) != identity(sql("shop.db", "SELECT 1"))


def test_a_name_holds_neither_user_nor_password_nor_options():
    name = identity(sql("postgresql://me@db.example:5433/shop?sslmode=require", "SELECT 1"))
    assert name == "sql: SELECT 1 @ postgresql://db.example:5433/shop"
    assert identity(sql("env:SHOP", "SELECT 1")) == "sql: SELECT 1 @ env:SHOP"
    assert "se/cret" not in identity(sql("postgresql://me:se/cret@db/shop", "SELECT 1"))


# ---- digests


def test_the_digest_changes_with_content_order_and_query_and_with_nothing_else(lite):
    path = lite("CREATE TABLE t(id, x)", rows=[(1, "a"), (2, None)])

    def content(query):
        return list_inputs(sql(path, query), {}, None)[0].digest

    first = content("SELECT id, x FROM t ORDER BY id")
    assert content("SELECT id, x FROM t ORDER BY id;") == first
    assert content("SELECT id, x FROM t ORDER BY id DESC") != first
    lite("UPDATE t SET x = '' WHERE id = 2")
    changed = content("SELECT id, x FROM t ORDER BY id")
    assert changed != first
    lite("UPDATE t SET x = NULL WHERE id = 2")
    assert content("SELECT id, x FROM t ORDER BY id") == first


CELLS = {
    "i": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "f": (pa.float64(), st.floats(allow_nan=False)),
    "s": (pa.string(), st.text(max_size=5)),
    "b": (pa.bool_(), st.booleans()),
    "t": (pa.timestamp("us"), st.datetimes()),
    "d": (pa.date32(), st.dates()),
}
TABLES = st.lists(st.tuples(*(st.none() | cell for _, cell in CELLS.values())), min_size=1, max_size=12)


def table(content):
    columns = zip(*content, strict=True)
    return pa.table({name: pa.array(values, kind) for (name, (kind, _)), values in zip(CELLS.items(), columns, strict=True)})


@settings(max_examples=30, deadline=None)
@given(content=TABLES, data=st.data())
def test_a_digest_does_not_depend_on_how_rows_are_cut_into_batches(content, data):
    whole = table(content)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(content)))) | {0, len(content)})
    parts = [batch for low, high in itertools.pairwise(cuts) for batch in whole.slice(low, high - low).to_batches()]
    assert digest_batches(parts) == digest_batches(whole.to_batches())


@settings(max_examples=30, deadline=None)
@given(content=TABLES, other=TABLES)
def test_other_rows_have_another_digest(content, other):
    same = table(content).equals(table(other))
    assert (digest_batches(table(content).to_batches()) == digest_batches(table(other).to_batches())) == same or -0.0 in [
        r[1] for r in content + other
    ]


# ---- incremental


def test_only_rows_above_the_last_value_are_read_and_known_inputs_stay(lite):
    path = lite("CREATE TABLE t(id INTEGER, x TEXT)", rows=[(2, "b"), (1, "a")])
    source, known = sql(path, "SELECT * FROM t", "id"), {}
    assert [row["id"] for row in ingest(source, known)] == [1, 2]
    lite(rows=[(4, "d"), (3, "c")])
    assert [row["id"] for row in ingest(source, known)] == [3, 4]
    assert ingest(source, known) == []
    assert [(found.name, found.digest) for found in list_inputs(source, known, None)] == [(r.name, r.digest) for r in known.values()]
    assert [r.watermark for r in known.values()] == ["2", "4"]


def test_rows_that_arrive_between_listing_and_reading_belong_to_the_next_range(lite):
    path = lite("CREATE TABLE t(id INTEGER)", rows=[(1,)])
    source = sql(path, "SELECT * FROM t", "id")
    (found,) = list_inputs(source, {}, None)
    lite(rows=[(2,)])
    assert rows_of(found) == [{"id": 1}]
    assert [f.bounds for f in list_inputs(source, {found.name: record(found, source)}, None)] == [None, ("1", "2")]


def test_inputs_of_other_sources_and_refused_ones_set_no_bound(lite):
    path = lite("CREATE TABLE t(id INTEGER)", rows=[(1,)])
    source, other = sql(path, "SELECT * FROM t", "id"), sql(path, "SELECT id FROM t", "id")
    (found,) = list_inputs(source, {}, None)
    known = {"a": record(found, other), "b": record(found, source).model_copy(update={"watermark": None})}
    assert list_inputs(source, known, None) == [found]


SERIES = {
    "integers": st.integers(-(2**63), 2**63 - 1),
    "numbers": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53),
    "text": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4),
}


@settings(max_examples=25, deadline=None)
@given(data=st.data(), kind=st.sampled_from(sorted(SERIES)))
def test_no_sqlite_row_is_lost_or_read_twice_whatever_the_values(data, kind, tmp_path_factory):
    path = tmp_path_factory.mktemp("series") / "t.db"
    series = data.draw(st.lists(SERIES[kind], min_size=1, max_size=12))
    steps = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    key = (lambda value: value.encode()) if kind == "text" else (lambda value: value)
    remaining, known, read = sorted(series, key=key), {}, []
    source = sql(path, "SELECT v, n FROM t", "v")
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t(v, n)")
        for step in [*steps, len(series)]:
            arriving, remaining = remaining[:step], remaining[step:]
            while remaining and arriving and remaining[0] == arriving[-1]:
                arriving.append(remaining.pop(0))
            connection.executemany("INSERT INTO t VALUES (?, 1)", [(value,) for value in arriving])
            connection.commit()
            read += [row["v"] for row in ingest(source, known)]
    connection.close()
    assert read == sorted(series, key=key)


def test_missing_values_in_the_incremental_column_are_counted_and_refused(lite):
    path = lite("CREATE TABLE t(id INTEGER)", rows=[(1,), (None,), (None,)])
    with pytest.raises(SourceError, match='2 rows have no value in "id"'):
        list_inputs(sql(path, "SELECT * FROM t", "id"), {}, None)
    assert rows(sql(path, "SELECT * FROM t WHERE id IS NOT NULL", "id")) == [{"id": 1}]


def test_an_incremental_column_that_is_missing_mixed_or_endless_is_told(lite):
    path = lite("CREATE TABLE t(id, x)", rows=[(1, 2), ("one", 9e999)])
    for column, expected in (("nope", 'no column "nope"'), ("id", "values of several kinds"), ("x", "nothing can ever be read")):
        with pytest.raises(SourceError, match=expected):
            list_inputs(sql(path, "SELECT * FROM t", column), {}, None)


def test_a_column_that_turned_from_text_into_numbers_is_told(lite):
    path = lite("CREATE TABLE t(id)", rows=[(1,)])
    source = sql(path, "SELECT * FROM t", "id")
    known = {"a": SourceRecord(name="a", digest="d", listed_by=identity(source), num_read=1, num_kept=1, watermark="2024-01-01")}
    with pytest.raises(SourceError, match="holds numbers now"):
        list_inputs(source, known, None)
