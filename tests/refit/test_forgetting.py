"""What is forgotten is gone from every file and does not come back, and all else stays."""

import shutil
from datetime import datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refit.errors import AlreadyRunningError, CorruptRecordError, DataError, RequestError, SourceError, UnknownNameError
from refit.ingestion import read_head
from refit.keys import keep_newest
from refit.ownership import own_job
from refit.snapshots import read_snapshot
from refit.upkeep import show_snapshot
from tests.refit.shop import Shop, damage_a_byte, files, found, holding, three_snapshots
from tests.refit.shop import in_its_folder as in_its_folder  # a fixture
from tests.refit.shop import made_once as made_once  # a fixture
from tests.refit.shop import shop as shop  # a fixture
from tests.refit.shop import three as three  # a fixture


def test_a_forgotten_row_is_nowhere_on_disk_and_never_comes_back(shop, three) -> None:
    assert len(holding(shop.home, "Hugo-7;")) >= 2
    erasure = shop.forget(key=["7"])
    assert [one.num_rows for one in sorted(erasure.snapshots, key=lambda one: one.num_rows)] == [1, 2, 2]
    assert (erasure.num_rows, erasure.num_keys) == (2, 1)
    assert holding(shop.home, "Hugo-7;") == []
    assert (found(shop.verify()), shop.verify().notes) == ([], ())
    head = read_head(shop.home)
    assert shop.ingest() == head
    shop.write("a", list(range(41)))
    again = shop.ingest()
    assert 7 not in shop.ids(again)
    assert again.sources[-1].num_filtered == 1
    assert holding(shop.home, "Hugo-7;") == []


def test_the_erased_rows_move_from_kept_to_filtered_and_the_others_stay(shop, three) -> None:
    before = [shop.rows(snapshot) for snapshot in three]
    shop.forget(where="name LIKE 'Ann%'")
    for snapshot, rows in zip(three, before, strict=True):
        now = read_snapshot(shop.home, snapshot.id)
        assert shop.rows(now) == [row for row in rows if row["id"] % 8]
        for old, new in zip(snapshot.sources, now.sources, strict=True):
            assert (new.num_read, new.num_rejected) == (old.num_read, old.num_rejected)
            erased = sum(shard.num_rows for shard in old.shards) - sum(shard.num_rows for shard in new.shards)
            assert new.num_filtered - old.num_filtered == erased


def test_a_row_that_a_newer_one_replaced_goes_with_its_whole_key(shop, three) -> None:
    erasure = shop.forget(where="name = 'Fritz-5;'")  # only the old version is called so
    assert (erasure.num_rows, erasure.num_keys) == (2, 1)
    assert holding(shop.home, "Fritz-5;") == []
    assert 5 not in shop.ids(read_head(shop.home))


def test_a_run_keeps_the_snapshot_that_took_the_place_of_its_own(shop, three) -> None:
    shop.run(three[0])
    shop.forget(key=["7"])
    shop.gc(keep=1)
    assert len(shop.rows(read_snapshot(shop.home, three[0].id))) == 39
    assert found(shop.verify()) == []
    with pytest.raises(UnknownNameError):
        read_snapshot(shop.home, three[1].id)


def test_what_is_kept_equals_what_an_ingest_without_the_rows_keeps(shop, three, tmp_path) -> None:
    shop.forget(where="id IN (7, 8, 41, 66)")
    (tmp_path / "other").mkdir()
    other = Shop(tmp_path / "other")
    other.home.root.mkdir(parents=True)
    shutil.copy(shop.home.forgotten, other.home.forgotten)
    snapshot = [*three_snapshots(other)][-1]
    head = read_head(shop.home)
    assert other.rows(snapshot) == shop.rows(head)
    counted = [(s.num_read, s.num_kept, s.num_filtered, s.num_duplicate, s.num_superseded) for s in head.sources]
    assert counted == [(s.num_read, s.num_kept, s.num_filtered, s.num_duplicate, s.num_superseded) for s in snapshot.sources]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    inputs=st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=40), min_size=1, max_size=3),
    gone=st.sets(st.integers(0, 30), max_size=20),
)
def test_whatever_is_forgotten_the_rest_stays_and_the_counts_agree(tmp_path_factory, inputs, gone) -> None:
    shop = Shop(tmp_path_factory.mktemp("shop"))
    for number, ids in enumerate(inputs):
        shop.write(f"f{number}", ids, suffix=f"/{number}")
        before = shop.ingest()
    rows = shop.rows(before)
    shop.forget(where=f"id IN ({', '.join(map(str, sorted(gone | {99})))})")
    now = read_head(shop.home)
    assert shop.rows(now) == [row for row in rows if row["id"] not in gone]
    assert now.sources == keep_newest(shop.home, now.sources)
    assert (found(shop.verify()), shop.verify().notes) == ([], ())


def test_without_a_key_equal_rows_go_together_and_the_reader_is_warned(tmp_path) -> None:
    shop = Shop(tmp_path, data__key=[])
    shop.write("a", [1, 2, 2, 3])
    shop.ingest()
    erasure = shop.forget(where="id = 2")
    assert (erasure.num_rows, erasure.num_keys) == (2, 1)
    assert any("no key" in note for note in erasure.notes)
    assert shop.ids(read_head(shop.home)) == [1, 3]
    with pytest.raises(RequestError, match="no key"):
        shop.forget(key=["1"])


def test_a_data_set_may_lose_all_its_rows(shop, three) -> None:
    shop.forget(where="true")
    assert read_head(shop.home).num_rows == 0
    assert list(shop.home.shards_dir.iterdir()) == []
    assert found(shop.verify()) == []


def test_a_second_request_for_the_same_rows_finds_nothing_and_changes_nothing(shop, three) -> None:
    shop.forget(key=["7"])
    before = files(shop.home)
    again = shop.forget(key=["7"], confirm=lambda _: pytest.fail("nothing to confirm"))
    assert (again.num_rows, again.snapshots) == (0, ())
    assert files(shop.home) == before


def test_a_no_changes_nothing(shop, three) -> None:
    before, plans = files(shop.home), []
    assert shop.forget(key=["7"], confirm=plans.append) is None
    assert files(shop.home) == before
    assert (plans[0].num_rows, len(plans[0].snapshots)) == (2, 3)


def test_rejects_remain_and_are_told_of_or_are_deleted(shop) -> None:
    (shop.place / "a.csv").write_text("id,name,y\n1,Ann,0\n2,Ben,1\nthree,Cleo,0\n4,Dora,1\n")
    csv = {"data__sources": [{"kind": "csv", "path": "in/*.csv"}], "data__columns": {"id": "int64"}}
    old = shop.ingest(**csv, data__max_rejected_fraction=0.9)
    (kept,) = shop.home.rejects_dir.iterdir()
    erasure = shop.forget(where="name = 'Ben'")
    assert (erasure.rejects_left, holding(shop.home, "three,Cleo")) == ((str(kept),), [kept])
    assert any("--rejects" in note for note in erasure.notes)
    assert found(shop.verify()) == []
    erasure = shop.forget(where="name = 'Cleo'", deletes_rejects=True)
    assert (erasure.rejects_left, erasure.notes, holding(shop.home, "Cleo")) == ((), (), [])
    assert found(shop.verify()) == []
    assert read_snapshot(shop.home, old.id).sources[0].num_rejected == 1
    assert show_snapshot(shop.layout, "people").rejects == ()
    assert shop.ingest(**csv, data__max_rejected_fraction=0.9) == read_head(shop.home)


def test_a_key_is_cast_as_a_source_is_and_one_that_does_not_fit_is_refused(tmp_path) -> None:
    shop = Shop(tmp_path, data__key=["name", "id"])
    shop.write("a", [1, 2, 3])
    shop.ingest()
    for values, text in ((["1"], "whole key"), (["Ben-1;", "one"], 'column "id"')):
        with pytest.raises(RequestError, match=text):
            shop.forget(key=values)
    assert shop.forget(key=["Ben-1;", "01"]).num_rows == 1


TEN = datetime(2024, 2, 29, 10)  # noqa: DTZ001 -- as it is stored


@pytest.mark.parametrize(
    ("kind", "value", "other", "text"),
    [
        (pa.int16(), 7, 8, "7"),
        (pa.int64(), 7, 8, "+7.0"),
        (pa.float32(), 0.1, 0.2, "0.1"),
        (pa.float64(), 0.1, 0.2, "1e-1"),
        (pa.string(), " a'b", "a'b", " a'b"),
        (pa.bool_(), True, False, "true"),
        (pa.date32(), TEN.date(), TEN.date() - timedelta(1), "2024-02-29"),
        (pa.timestamp("us"), TEN, TEN - timedelta(1), "2024-02-29 10:00:00"),
        (pa.timestamp("us"), TEN, TEN - timedelta(1), "2024-02-29T12:00:00+02:00"),
    ],
)
@pytest.mark.parametrize("is_rekeyed", [False, True])
def test_a_key_of_any_type_is_found_by_its_hash_and_by_its_columns(tmp_path, kind, value, other, text, is_rekeyed) -> None:
    shop = Shop(tmp_path)
    shop.write("a", [1, 2], k=pa.array([value, other], kind))
    old = shop.ingest(data__key=["id"]) if is_rekeyed else None
    head = shop.ingest(data__key=["k"], data__select=["name", "y"])
    assert shop.forget(key=[text]).num_rows == (2 if is_rekeyed else 1)
    for snapshot in filter(None, (old, head)):
        assert [row["name"] for row in shop.rows(read_snapshot(shop.home, snapshot.id), "name")] == ["Cleo-2;"]


@pytest.mark.parametrize(
    "sql", ["nme = 'Ann'", "id = ", "sum(id) > 1", "1; DROP TABLE x", "name = (SELECT content FROM read_text('/etc/passwd'))"]
)
def test_sql_that_cannot_be_evaluated_changes_nothing(shop, three, sql) -> None:
    before = files(shop.home)
    with pytest.raises(RequestError, match="SQL cannot be evaluated"):
        shop.forget(where=sql)
    assert files(shop.home) == before


def test_an_older_snapshot_without_the_column_is_told_of(shop) -> None:
    shop.write("a", [1, 2, 3])
    shop.ingest()
    shop.ingest(data__derive={"initial": "left(name, 1)"})
    with pytest.raises(DataError, match="older snapshot"):
        shop.forget(where="initial = 'B'")
    shop.gc(keep=1)
    assert shop.forget(where="initial = 'B'").num_rows == 1


def test_rows_of_snapshots_with_another_key_are_found_by_their_columns(shop) -> None:
    shop.write("a", [1, 2, 3])
    old = shop.ingest(data__key=["name"])
    shop.ingest()
    assert shop.forget(key=["2"]).num_rows == 2
    assert shop.ids(read_snapshot(shop.home, old.id)) == [1, 3]


def test_a_damaged_shard_or_record_stops_the_erasure_before_it_begins(shop, three) -> None:
    damage_a_byte(shop, three[2])
    before = files(shop.home)
    with pytest.raises(SourceError, match="missing or damaged"):
        shop.forget(key=["77"])
    assert files(shop.home) == before
    shop.home.snapshot(three[0].id).write_text("{")
    with pytest.raises(CorruptRecordError):
        shop.forget(key=["77"])


def test_a_shard_of_several_row_groups_keeps_its_other_rows_in_order(shop) -> None:
    shop.write("a", list(range(50_000)))
    old = shop.ingest()
    shop.forget(where="id % 1000 = 17")
    now = read_snapshot(shop.home, old.id)
    assert [row["id"] for row in shop.rows(now)] == [i for i in range(50_000) if i % 1000 != 17]
    assert found(shop.verify()) == []


def test_nothing_is_erased_under_a_run_that_is_unfinished_or_owned(shop, three) -> None:
    shop.run(three[0], status="cancelled")
    with pytest.raises(DataError, match="people/20260101-000000-aaaa"):
        shop.forget(key=["7"])
    shop.run(three[0])
    with own_job(shop.layout, "people"), pytest.raises(AlreadyRunningError, match="people"):
        shop.forget(key=["7"])
    assert read_head(shop.home) == three[2]
    assert shop.forget(key=["7"]).num_rows == 2


def test_the_search_for_a_text_finds_it_in_shards_and_profiles(shop, three) -> None:
    assert {path.suffix for path in holding(shop.home, "Hugo-7;")} == {".parquet", ".arrow"}
