"""Sources end to end: what comes later is added, what was read is not read again, and the newest row of a key counts."""

import sqlite3

import pytest

from refit.config import parse_job
from refit.errors import SourceError
from refit.ingestion import ingest, list_current
from refit.layout import Layout
from refit.shards import read_table
from tests.refit.object_store import running_store, set_credentials
from tests.refit.postgres import PASSWORD
from tests.refit.postgres import postgres as postgres  # a fixture


class Desk:
    """One data set over one source."""

    def __init__(self, home, source, **data) -> None:
        tree = {"name": "job", "data": {"sources": [source], **data}, "target": {"column": "y"}}
        self.job, self.layout, self.told = parse_job(tree), Layout(home), []

    def ingest(self):
        self.told = []
        return ingest(self.job, self.layout, on_progress=self.told.append)

    def rows(self, snapshot, *columns):
        return sorted(tuple(row.values()) for row in read_table(snapshot, self.layout, columns).to_pylist())

    @property
    def read(self):
        return {progress.name for progress in self.told}


# ---- databases


@pytest.fixture
def shop(tmp_path):
    database = sqlite3.connect(tmp_path / "shop.db", isolation_level=None)
    database.execute("CREATE TABLE orders (id INTEGER, price REAL, y INTEGER)")
    database.executemany("INSERT INTO orders VALUES (?, ?, ?)", [(i, i / 2, i % 2) for i in range(10)])
    yield database
    database.close()


def orders(tmp_path, **more):
    return {"kind": "sql", "database": str(tmp_path / "shop.db"), "query": "SELECT * FROM orders", **more}


def test_rows_above_the_watermark_are_added(tmp_path, shop) -> None:
    desk = Desk(tmp_path / "home", orders(tmp_path, incremental="id"))
    first = desk.ingest()
    assert (first.num_rows, [source.watermark for source in first.sources]) == (10, ["9"])
    assert desk.ingest() == first
    assert not desk.read
    shop.executemany("INSERT INTO orders VALUES (?, ?, ?)", [(10, 1.0, 0), (11, 2.0, 1)])
    second = desk.ingest()
    assert [(source.num_kept, source.watermark, source.is_vanished) for source in second.sources] == [(10, "9", False), (2, "11", False)]
    assert len(desk.read) == 1
    assert desk.rows(second, "id") == [(i,) for i in range(12)]


def test_a_correction_with_a_later_time_replaces_the_row(tmp_path, shop) -> None:
    shop.execute("CREATE TABLE labels (id INTEGER, changed INTEGER, y INTEGER)")
    shop.executemany("INSERT INTO labels VALUES (?, ?, ?)", [(1, 100, 0), (2, 100, 0)])
    source = {**orders(tmp_path, incremental="changed"), "query": "SELECT * FROM labels"}
    desk = Desk(tmp_path / "home", source, key=["id"])
    desk.ingest()
    shop.execute("INSERT INTO labels VALUES (1, 200, 1)")
    snapshot = desk.ingest()
    assert desk.rows(snapshot, "id", "y") == [(1, 1), (2, 0)]
    assert [source.num_superseded for source in snapshot.sources] == [1, 0]


def test_without_an_incremental_column_all_is_read_when_anything_has_changed(tmp_path, shop) -> None:
    desk = Desk(tmp_path / "home", orders(tmp_path))
    first = desk.ingest()
    assert desk.ingest() == first
    shop.execute("UPDATE orders SET y = 1 WHERE id = 0")
    second = desk.ingest()
    assert second.id != first.id
    assert (second.num_rows, len(second.sources)) == (10, 1)


def test_a_broken_query_is_no_empty_table(tmp_path, shop) -> None:
    desk = Desk(tmp_path / "home", orders(tmp_path), vanished="drop")
    before = desk.ingest()
    shop.execute("DROP TABLE orders")
    with pytest.raises(SourceError, match="orders"):
        desk.ingest()
    assert desk.layout.dataset("job").head.read_text().strip() == before.id


def test_rows_of_a_server_are_added_as_they_come(tmp_path, postgres, monkeypatch) -> None:
    postgres.execute("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    postgres.execute("CREATE TABLE orders AS SELECT i AS id, i::numeric / 2 AS price, i % 2 AS y FROM generate_series(1, 100000) i")
    monkeypatch.setenv("SHOP", postgres.address())
    source = {"kind": "sql", "database": "env:SHOP", "query": "SELECT * FROM orders", "incremental": "id"}
    desk = Desk(tmp_path / "home", source)
    first = desk.ingest()
    assert (first.num_rows, first.column("price").type) == (100_000, "double")
    postgres.execute("INSERT INTO orders VALUES (100001, 1, 0)")
    assert [record.num_kept for record in desk.ingest().sources] == [100_000, 1]
    for path in desk.layout.home.rglob("*.json"):
        assert PASSWORD not in path.read_text()


# ---- object stores


@pytest.fixture(scope="module")
def store():
    with running_store() as store:
        yield store


@pytest.fixture
def bucket(store, monkeypatch):
    set_credentials(monkeypatch)
    return store


def test_objects_are_read_once_and_what_comes_later_is_added(tmp_path, bucket) -> None:
    bucket.put("taxi/a.csv", b"x,y\n1,0\n2,1\n")
    source = {"kind": "csv", "path": bucket.address("taxi/*.csv"), "endpoint": bucket.endpoint}
    desk = Desk(tmp_path / "home", source)
    assert desk.ingest().num_rows == 2
    bucket.put("taxi/b.csv", b"x,y\n3,0\n4\n5,1\n" + b"6,1\n" * 100)
    second = desk.ingest()
    assert desk.read == {bucket.address("taxi/b.csv")}
    assert [(source.num_kept, source.num_rejected) for source in second.sources] == [(2, 0), (102, 1)]
    assert not list(desk.layout.dataset("job").spool_dir.iterdir())


# ---- places and times


def test_paths_may_be_relative_to_the_working_directory(tmp_path, monkeypatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("x,y\n1,0\n2,1\n")
    monkeypatch.chdir(tmp_path)
    snapshot = Desk(tmp_path / "home", {"kind": "csv", "path": "data/*.csv"}).ingest()
    assert [source.name for source in snapshot.sources] == ["data/a.csv"]


def test_what_decides_whether_data_have_changed_stays_while_they_do(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,0\n")
    (tmp_path / "b.csv").write_text("x,y\n2,0\n")
    desk = Desk(tmp_path / "home", {"kind": "csv", "path": f"{tmp_path}/*.csv"})
    before = list_current(desk.job, desk.layout)
    desk.ingest()
    assert list_current(desk.job, desk.layout) == before
    (tmp_path / "b.csv").unlink()  # its rows are kept
    assert list_current(desk.job, desk.layout) == before
    (tmp_path / "c.csv").write_text("x,y\n3,0\n")
    assert list_current(desk.job, desk.layout) != before


def test_late_data_with_old_times_are_welcome(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("id,when,y\n1,2024-02-01,0\n2,2024-02-02,0\n")
    desk = Desk(tmp_path / "home", {"kind": "csv", "path": f"{tmp_path}/*.csv"}, key=["id"])
    desk.ingest()
    (tmp_path / "b.csv").write_text("id,when,y\n3,2023-01-01,1\n1,2023-01-01,1\n")
    assert desk.rows(desk.ingest(), "id", "y") == [(1, 1), (2, 0), (3, 1)]
