"""PostgreSQL: types, streams, lost connections, and passwords that are never shown."""

import datetime as dt
import logging
import pickle

import adbc_driver_postgresql.dbapi as postgresql
import pytest

from refit.errors import RefitError, SourceError
from refit.sources.databases import list_inputs, open_input
from tests.refit.postgres import PASSWORD, Postgres
from tests.refit.postgres import postgres as postgres  # a fixture
from tests.refit.queried import SPOOL, ingest, rows, sql, told, types
from tests.refit.queried import lite as lite  # a fixture


@pytest.fixture
def server(postgres: Postgres, monkeypatch):
    """The server with an empty database; its address is in SHOP."""
    postgres.execute("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    monkeypatch.setenv("SHOP", postgres.address())
    return postgres


def shop(query, incremental=None):
    return sql("env:SHOP", query, incremental)


def test_postgresql_types_come_as_numbers_text_and_times_in_utc(server):
    server.execute("CREATE TYPE mood AS ENUM ('sad', 'glad')")
    query = """SELECT 1::smallint AS a, 2::int AS b, 3::bigint AS c, 1.5::real AS d, 2.5::float8 AS e,
        12.345::numeric(10, 3) AS f, true AS g,
        'x'::text AS h, 'y'::char(4) AS i, DATE '2020-01-02' AS j, TIMESTAMP '2020-01-02 03:04:05.123456' AS k,
        TIMESTAMPTZ '2020-01-02 03:04:05.123456+02' AS l, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid AS m, '{"a": 1}'::jsonb AS n,
        ARRAY[1, 2] AS o, 'glad'::mood AS p, '3.50'::money AS q,
        TIME '10:11:12.5' AS r, '\\x00ff'::bytea AS s, NULL AS t, ROW(1, 'x') AS u"""
    assert rows(shop(query)) == [
        {
            "a": 1,
            "b": 2,
            "c": 3,
            "d": 1.5,
            "e": 2.5,
            "f": 12.345,
            "g": True,
            "h": "x",
            "i": "y",
            "j": dt.date(2020, 1, 2),
            "k": dt.datetime(2020, 1, 2, 3, 4, 5, 123456),  # noqa: DTZ001 -- stored without zone
            "l": dt.datetime(2020, 1, 2, 1, 4, 5, 123456),  # noqa: DTZ001
            "m": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "n": '{"a": 1}',
            "o": "{1,2}",
            "p": "glad",
            "q": 3.5,
            "r": "10:11:12.5",
            "s": "\\x00ff",
            "t": None,
            "u": "(1,x)",
        }
    ]
    found = types(shop(query))
    assert (found["a"], found["d"], found["f"], found["j"], found["l"]) == ("int16", "float", "double", "date32[day]", "timestamp[us]")


def test_infinite_dates_are_missing_and_numerics_that_are_no_number_stay_so(server):
    (row,) = rows(shop("SELECT 'infinity'::timestamp AS a, '-infinity'::timestamptz AS b, 'infinity'::date AS c, 'NaN'::numeric AS d"))
    assert (row["a"], row["b"], row["c"]) == (None, None, None)
    assert row["d"] != row["d"]


def test_postgresql_rows_stream_in_several_batches_and_keep_their_order(server):
    query = "SELECT i, 'some text that fills batches ' || i AS s FROM generate_series(400000, 1, -1) AS i ORDER BY i DESC"
    (found,) = list_inputs(shop(query), {}, None)
    with open_input(found, SPOOL) as batches:
        read = list(batches.read())
    assert len(read) > 1
    assert max(batch.nbytes for batch in read) < 2**25
    assert [int(value) for batch in read for value in batch.column("i").to_numpy()] == list(range(400000, 0, -1))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT nope FROM t", 'column "nope" does not exist'),
        ("SELECT FROM WHERE", "syntax error"),
        ("DROP TABLE t", "is not a SELECT"),
        ("WITH c AS (DELETE FROM t RETURNING id) SELECT id FROM c", "must be at the top level"),
        ("SELECT id FROM t; DROP TABLE t", "multiple commands"),
        ("SELECT id FROM t) AS q; DROP TABLE t; --", "the query failed"),
        ("SELECT setval('s', 99) AS x", "read-only transaction"),
        ("SELECT id, id FROM t", 'two columns of the query are called "id"'),
        ('SELECT id, id AS "Id" FROM t', 'two columns of the query are called "id", "Id"'),
        ("SELECT FROM t", "gives no columns"),
        ("SELECT 10 / (id - 1) AS x FROM t", "division by zero"),
    ],
)
def test_a_postgresql_query_that_cannot_be_used_is_told_and_changes_nothing(server, query, expected):
    server.execute("CREATE TABLE t AS SELECT 1 AS id", "CREATE SEQUENCE s")
    with pytest.raises(SourceError, match=expected) as raised:
        list_inputs(shop(query), {}, None)
    assert PASSWORD not in told(raised.value)
    assert rows(shop("SELECT t.id, s.last_value FROM t, s")) == [{"id": 1, "last_value": 1}]


def test_an_empty_postgresql_table_gives_columns_and_no_rows(server):
    server.execute("CREATE TABLE t(id int, at timestamptz)")
    (found,) = list_inputs(shop("SELECT * FROM t"), {}, None)
    with open_input(found, SPOOL) as batches:
        assert [column.type for column in batches.columns] == ["int32", "timestamp[us]"]
        assert sum(batch.num_rows for batch in batches.read()) == 0
    assert list_inputs(shop("SELECT * FROM t", "id"), {}, None) == []


SECRETS = [
    "wrong-horse",
    "wrong%2Fhorse",
    "wrong/horse",
    "wrong horse",
    "wrong%zzhorse",
    "wrong@horse",
    "wrong?horse",
    "wrong:horse",
    "12/wrong-horse",
    f"{'wrong-horse' * 30}@x",
]


@pytest.mark.parametrize("password", SECRETS)
def test_a_wrong_password_is_an_error_that_does_not_show_it(server, monkeypatch, caplog, capfd, password):
    monkeypatch.setenv("SHOP", server.address(password))
    caplog.set_level(logging.DEBUG)
    with pytest.raises(SourceError, match=r"does not let us in|cannot be understood") as raised:
        list_inputs(shop("SELECT 1"), {}, None)
    shown = told(raised.value) + caplog.text + "".join(capfd.readouterr()) + repr(pickle.dumps(raised.value))
    assert "horse" not in shown
    assert raised.value.__cause__ is None


def test_the_driver_itself_does_show_a_password(server):
    with pytest.raises(postgresql.Error, match="wrong horse"):
        postgresql.connect(server.address("wrong horse"))


def test_a_server_that_cannot_be_reached_may_be_tried_again(server, monkeypatch):
    monkeypatch.setenv("SHOP", "postgresql://me:hidden@127.0.0.1:1/shop")
    with pytest.raises(ConnectionError, match="cannot be reached") as raised:
        list_inputs(shop("SELECT 1"), {}, None)
    assert not isinstance(raised.value, RefitError)
    assert "hidden" not in told(raised.value)


def test_a_connection_that_is_cut_while_rows_stream_may_be_tried_again(server):
    (found,) = list_inputs(shop("SELECT i, repeat('x', 100) AS s FROM generate_series(1, 1000000) AS i"), {}, None)
    with open_input(found, SPOOL) as batches:
        stream = batches.read()
        next(stream)
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'COPY%' AND pid <> pg_backend_pid()")
        with pytest.raises(ConnectionError, match="was lost") as raised:
            list(stream)
    assert not isinstance(raised.value, RefitError)


def test_an_input_that_was_left_half_read_can_be_read_again(server):
    (found,) = list_inputs(shop("SELECT i FROM generate_series(1, 500000) AS i"), {}, None)
    for _ in range(2):
        with open_input(found, SPOOL) as batches:
            assert next(batches.read())["i"][0].as_py() == 1


def test_a_database_that_does_not_exist_is_told(server, monkeypatch):
    monkeypatch.setenv("SHOP", server.address().replace("/postgres", "/nope"))
    with pytest.raises(SourceError, match='database "nope" does not exist'):
        list_inputs(shop("SELECT 1"), {}, None)


def test_an_address_without_a_password_takes_it_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert rows(sql(f"postgresql://refit@{server.host}", "SELECT 1 AS x")) == [{"x": 1}]


VALUES = {
    "bigint": ["-9223372036854775808", "7", "9223372036854775807"],
    "float8": ["-1e300", "0.1", "0.30000000000000004", "1e300"],
    "float4": ["0.1", "0.2", "16777216"],
    "numeric": ["-1", "123456789012345678901234567890.000000001", "123456789012345678901234567890.000000002"],
    "text": ["", "it's", "it\\s", "zürich"],
    "date": ["0001-01-01", "1999-12-31", "2024-02-29"],
    "timestamp": ["2024-01-01 00:00:00", "2024-01-01 00:00:00.000001", "2024-01-01 00:00:00.000002"],
    "timestamptz": ["2024-10-27 00:30:00.000001+00", "2024-10-27 02:30:00+01", "2024-10-27 02:30:00.5+01"],
}


@pytest.mark.parametrize("kind", sorted(VALUES))
def test_no_postgresql_row_is_lost_or_read_twice_whatever_the_type(server, kind):
    server.execute(f'CREATE TABLE t("The key" {kind}, n serial)')
    source, known, read = shop('SELECT * FROM t -- "quoted"', "The key"), {}, []
    for value in VALUES[kind]:
        quoted = value.replace("'", "''")
        server.execute(f"""INSERT INTO t("The key") VALUES ('{quoted}'), ('{quoted}')""")
        read.append([row["n"] for row in ingest(source, known)])
    assert ingest(source, known) == []
    assert [sorted(part) for part in read] == [[2 * i + 1, 2 * i + 2] for i in range(len(VALUES[kind]))]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("(1::float8), ('NaN')", "nothing can ever be read"),
        ("('infinity'::timestamptz)", "nothing can ever be read"),
        ("(1), (NULL)", '1 rows have no value in "v"'),
        ("(true)", "cannot be read incrementally"),
    ],
)
def test_a_postgresql_column_that_cannot_be_read_incrementally_is_told(server, values, expected):
    with pytest.raises(SourceError, match=expected):
        list_inputs(shop(f"SELECT v FROM (VALUES {values}) AS t(v)", "v"), {}, None)
