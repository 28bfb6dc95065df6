"""Data sets are listed and shown, and lose nothing that is needed when they are tidied."""

from pathlib import Path

import pytest

from refit.errors import CorruptRecordError, DataError, RequestError, UnknownNameError
from refit.upkeep import list_datasets, show_snapshot
from tests.refit.shop import edit, files, found
from tests.refit.shop import in_its_folder as in_its_folder  # a fixture
from tests.refit.shop import made_once as made_once  # a fixture
from tests.refit.shop import shop as shop  # a fixture
from tests.refit.shop import three as three  # a fixture

# ---- listing and showing


def test_data_sets_are_listed_with_their_newest_snapshot(shop, three) -> None:
    (summary,) = list_datasets(shop.layout)
    assert (summary.name, summary.num_rows, summary.num_snapshots, summary.snapshot) == ("people", 80, 3, three[-1].id)
    assert summary.num_bytes == sum(len(content) for content in files(shop.home).values())


def test_an_empty_home_has_no_data_sets(shop) -> None:
    assert list_datasets(shop.layout) == []
    with pytest.raises(UnknownNameError, match="There is none yet"):
        show_snapshot(shop.layout, "people")


def test_a_damaged_data_set_is_listed_with_its_fault(shop, three) -> None:
    shop.home.head.write_text("nothing\n")
    (summary,) = list_datasets(shop.layout)
    assert summary.num_rows is None
    assert "HEAD" in summary.fault


def test_a_data_set_whose_first_ingest_failed_has_no_snapshot_yet(shop) -> None:
    shop.write("a", [None])
    with pytest.raises(DataError):
        shop.ingest()
    with pytest.raises(DataError, match="no snapshot yet"):
        show_snapshot(shop.layout, "people")
    assert found(shop.verify()) == []
    assert shop.gc().kept == ()


def test_a_snapshot_is_shown_with_its_inputs_and_the_commonest_reasons(shop) -> None:
    shop.write("a", [1, 2, None, None, 3])
    snapshot = shop.ingest(data__max_rejected_fraction=1.0)
    shown = show_snapshot(shop.layout, "people", snapshot.id[:6])
    (rejects,) = shown.rejects
    assert (shown.id, shown.is_head, shown.num_rows) == (snapshot.id, True, 3)
    assert [(one.num_read, one.num_kept, one.num_rejected) for one in shown.inputs] == [(5, 3, 2)]
    assert rejects.reasons == {'"id": a part of the key is missing': 2}
    assert Path(rejects.path).exists()


# ---- removing


def test_the_newest_and_those_of_runs_are_kept_with_all_they_need(shop, three) -> None:
    first, second, third = three
    shop.run(first)
    removal = shop.gc(keep=1)
    assert (removal.removed, removal.kept, removal.kept_for_runs) == ((second.id,), (third.id, first.id), (first.id,))
    assert (found(shop.verify()), shop.verify().notes) == ([], ())
    assert (len(shop.rows(first)), len(shop.rows(third))) == (40, 80)


def test_what_only_old_snapshots_need_goes(shop, three) -> None:
    shop.write("a", [1])
    last = shop.ingest()
    (shop.home.shards_dir / ".shard.x").write_bytes(b"half")
    (shop.home.spool_dir / "rows-x").mkdir(parents=True)
    (shop.home.spool_dir / "rows-x" / "part").write_bytes(b"half")
    before = sum(len(content) for content in files(shop.home).values())
    would = shop.gc(keep=1, dry_run=True)
    assert sum(len(content) for content in files(shop.home).values()) == before
    removal = shop.gc(keep=1)
    assert removal.files == would.files
    assert sum(len(content) for content in files(shop.home).values()) == before - removal.num_bytes
    assert {path.stem for path in shop.home.shards_dir.iterdir()} == {shard.digest for shard in last.shards}
    assert {path.stem for path in shop.home.drops_dir.iterdir()} == {shard.dropped for shard in last.shards if shard.dropped}
    assert {path.name[:64] for path in shop.home.profiles_dir.iterdir()} <= {shard.digest for shard in last.shards}
    assert shop.gc(keep=1).files == ()
    assert shop.ingest() == last


def test_data_that_came_back_make_a_cycle_of_parents_that_ends(shop) -> None:
    shop.write("a", [1, 2, 3])
    first = shop.ingest()
    shop.write("a", [1, 2])
    second = shop.ingest()
    shop.write("a", [1, 2, 3])
    assert shop.ingest().id == first.id
    edit(shop.home.snapshot(first.id), lambda tree: tree.update(parent=second.id))
    assert shop.gc(keep=9).kept == (first.id, second.id)
    assert shop.gc(keep=1).removed == (second.id,)


def test_a_parent_that_cannot_be_read_gives_its_place_to_the_newest_by_date(shop, three) -> None:
    shop.home.snapshot(three[1].id).write_text("{")
    assert shop.gc(keep=2, dry_run=True).kept == (three[2].id, three[0].id)


def test_nothing_is_removed_where_head_is_damaged(shop, three) -> None:
    shop.home.head.unlink()
    before = files(shop.home)
    with pytest.raises(CorruptRecordError, match="HEAD"):
        shop.gc()
    assert files(shop.home) == before


def test_nothing_is_removed_where_a_run_cannot_be_read(shop, three) -> None:
    shop.run(three[0]).record.write_text("{")
    before = files(shop.home)
    with pytest.raises(CorruptRecordError):
        shop.gc()
    assert files(shop.home) == before
    shop.run(three[0])
    shop.home.snapshot(three[0].id).write_text("{")
    with pytest.raises(CorruptRecordError, match=three[0].id):
        shop.gc()


def test_at_least_one_snapshot_is_kept(shop, three) -> None:
    with pytest.raises(RequestError, match="--keep"):
        shop.gc(keep=0)
