"""SQLite: columns of any kind, text that is none, and queries that cannot be used."""

import sqlite3

import pytest

from refit.errors import SourceError
from refit.sources.databases import list_inputs, open_input
from tests.refit.postgres import postgres as postgres  # a fixture
from tests.refit.queried import SPOOL, rows, sql, told, types
from tests.refit.queried import lite as lite  # a fixture

# ---- SQLite: types


def test_sqlite_columns_come_in_the_widest_kind_that_they_hold(lite):
    path = lite("CREATE TABLE t(i, r, s, n NUMERIC, u)", rows=[(1, 1, "a", 1, None), (2, 2.5, None, 2, None)])
    assert types(sql(path, "SELECT * FROM t")) == {"i": "int64", "r": "double", "s": "string", "n": "double", "u": "string"}
    assert rows(sql(path, "SELECT i, r, s FROM t")) == [{"i": 1, "r": 1.0, "s": "a"}, {"i": 2, "r": 2.5, "s": None}]


def test_a_sqlite_column_that_begins_with_thousands_of_missing_values_keeps_its_type(lite):
    path = lite("CREATE TABLE t(x, y)", rows=[(None, None)] * 20_000 + [("late", 2**60 + 1)])
    read = rows(sql(path, "SELECT * FROM t"))
    assert len(read) == 20_001
    assert read[-1] == {"x": "late", "y": 2**60 + 1}


def test_numbers_among_text_come_as_text_with_every_digit(lite):
    path = lite("CREATE TABLE t(x)", rows=[(1,), (0.1 + 0.2,), ("n/a",), (None,), (2**63 - 1,)])
    assert [row["x"] for row in rows(sql(path, "SELECT x FROM t"))] == ["1", "0.30000000000000004", "n/a", None, str(2**63 - 1)]


def test_large_whole_numbers_among_fractions_become_floats(lite):
    path = lite("CREATE TABLE t(x)", rows=[(2**62 + 1,), (0.5,)])
    assert [row["x"] for row in rows(sql(path, "SELECT x FROM t"))] == [float(2**62 + 1), 0.5]


def test_a_column_without_values_has_the_type_that_it_was_declared_with(lite):
    path = lite("CREATE TABLE t(i INTEGER, r REAL, d DECIMAL(10, 2), s VARCHAR(5), x)")
    found = types(sql(path, "SELECT * FROM t"))
    assert found == {"i": "int64", "r": "double", "d": "double", "s": "string", "x": "string"}


def test_text_that_is_no_utf8_is_a_rejected_row_and_the_others_are_read(lite):
    path = lite("CREATE TABLE t(x)", "INSERT INTO t VALUES ('good'), (CAST(x'61ff62' AS TEXT)), ('fine')")
    (found,) = list_inputs(sql(path, "SELECT x, 7 AS y FROM t"), {}, None)
    with open_input(found, SPOOL) as batches:
        read = [row["x"] for batch in batches.read() for row in batch.to_pylist()]
    assert read == ["good", "fine"]
    (reject,) = batches.rejects
    assert (reject.row, reject.column, reject.text) == (1, "x", "a\\xffb")


def test_bytes_are_refused_with_the_names_of_their_columns(lite):
    path = lite("CREATE TABLE t(a BLOB, b)", "INSERT INTO t VALUES (x'00ff', 1)")
    with pytest.raises(SourceError, match='columns of bytes are not read: "a"'):
        list_inputs(sql(path, "SELECT * FROM t"), {}, None)
    assert rows(sql(path, "SELECT hex(a) AS a FROM t")) == [{"a": "00FF"}]


# ---- SQLite: bad input


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT nope FROM t", "no such column: nope"),
        ("SELEC * FROM t", "is not a SELECT"),
        ("DELETE FROM t", "is not a SELECT"),
        ("ATTACH 'other.db' AS o", "is not a SELECT"),
        ("WITH c AS (SELECT 1) DELETE FROM t", "the query failed"),
        ("SELECT * FROM t; DROP TABLE t", "the query failed"),
        ("SELECT * FROM t) AS q; DELETE FROM t; --", "the query failed"),
        ("SELECT id, id FROM t", 'two columns of the query are called "id"'),
        ("SELECT id, 1 AS ID FROM t", "two columns of the query are called"),
        ("SELECT abs(-9223372036854775807 - 1) AS x", "integer overflow"),
    ],
)
def test_a_query_that_cannot_be_used_is_told_and_changes_nothing(lite, query, expected):
    path = lite("CREATE TABLE t(id)", rows=[(1,)])
    with pytest.raises(SourceError, match=expected) as raised:
        list_inputs(sql(path, query), {}, None)
    assert str(path) in str(raised.value)
    assert rows(sql(path, "SELECT * FROM t")) == [{"id": 1}]
    assert [entry.name for entry in path.parent.iterdir()] == ["shop.db"]


@pytest.mark.parametrize(
    "query", ["SELECT id FROM t;", "-- all\nSELECT id FROM t -- end", "/* a */ WITH c AS (SELECT * FROM t) SELECT id FROM c", "VALUES (1)"]
)
def test_comments_and_semicolons_around_a_query_do_no_harm(lite, query):
    assert [list(row.values()) for row in rows(sql(lite("CREATE TABLE t(id)", rows=[(1,)]), query))] == [[1]]


def test_a_missing_file_is_told_and_not_created(tmp_path):
    with pytest.raises(SourceError, match="no such SQLite file"):
        list_inputs(sql(tmp_path / "none.db", "SELECT 1"), {}, None)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_database_is_told(tmp_path):
    (tmp_path / "x.db").write_bytes(b"id,label\n1,2\n" * 100)
    with pytest.raises(SourceError, match="no sound SQLite database"):
        list_inputs(sql(tmp_path / "x.db", "SELECT 1 FROM t"), {}, None)


def test_a_database_that_another_process_locks_may_be_tried_again(lite, monkeypatch):
    path = lite("CREATE TABLE t(id)", rows=[(1,)])
    monkeypatch.setattr(sqlite3, "connect", lambda *a, connect=sqlite3.connect, **k: connect(*a, **{**k, "timeout": 0}))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(ConnectionError, match="locked"):
            list_inputs(sql(path, "SELECT * FROM t"), {}, None)
    finally:
        other.close()


def test_an_error_of_the_reader_is_not_taken_for_one_of_the_database(lite):
    (found,) = list_inputs(sql(lite("CREATE TABLE t(id)", rows=[(1,)]), "SELECT * FROM t"), {}, None)
    with pytest.raises(sqlite3.OperationalError, match="disk"), open_input(found, SPOOL):
        raise sqlite3.OperationalError("disk")


def test_an_empty_table_gives_no_rows(lite):
    path = lite("CREATE TABLE t(id INTEGER)")
    assert rows(sql(path, "SELECT * FROM t")) == []
    assert list_inputs(sql(path, "SELECT * FROM t", "id"), {}, None) == []


def test_other_databases_are_not_mistaken_for_files(monkeypatch):
    monkeypatch.setenv("SHOP", "mysql://me:hidden@db/shop")
    with pytest.raises(SourceError, match="kind mysql are not read") as raised:
        list_inputs(sql("env:SHOP", "SELECT 1"), {}, None)
    assert "hidden" not in told(raised.value)
    monkeypatch.delenv("SHOP")
    with pytest.raises(SourceError, match="environment variable is not set"):
        list_inputs(sql("env:SHOP", "SELECT 1"), {}, None)
