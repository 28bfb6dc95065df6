"""Snapshots are found by their ids, also by those that they had before rows of them were forgotten; writers wait for each other."""

import threading

import filelock
import pytest

from refit.errors import AlreadyRunningError, UnknownNameError
from refit.ingestion import read_head
from refit.snapshots import find_dataset, read_snapshot, snapshot_id
from refit.upkeep import show_snapshot
from tests.refit.shop import AT, found
from tests.refit.shop import in_its_folder as in_its_folder  # a fixture
from tests.refit.shop import made_once as made_once  # a fixture
from tests.refit.shop import shop as shop  # a fixture
from tests.refit.shop import three as three  # a fixture


def test_a_wrong_name_gets_the_nearest_one(shop, three) -> None:
    with pytest.raises(UnknownNameError, match='Did you mean "people"'):
        find_dataset(shop.layout, "poeple")
    with pytest.raises(UnknownNameError, match="there is no snapshot"):
        show_snapshot(shop.layout, "people", "../../etc/passwd")


def test_an_id_is_the_digest_that_an_ingest_gives(shop, three) -> None:
    for snapshot in three:
        assert snapshot_id(snapshot.model_dump(mode="json")) == snapshot.id


def test_old_ids_lead_to_the_snapshots_without_the_rows(shop, three) -> None:
    erasure = shop.forget(key=["7"])
    assert {one.snapshot for one in erasure.snapshots} == {snapshot.id for snapshot in three}
    second = shop.forget(key=["8"])
    for snapshot in three:
        assert {7, 8}.isdisjoint(shop.ids(read_snapshot(shop.home, snapshot.id)))
    shown = show_snapshot(shop.layout, "people", three[0].id)
    assert (shown.tombstone.forgotten.by, shown.tombstone.forgotten.at, shown.tombstone.forgotten.num_rows) == ("me", AT, 1)
    assert read_head(shop.home).id in {one.now for one in second.snapshots}
    assert len(shop.gc(keep=3, dry_run=True).kept) == 3


def test_an_old_id_whose_snapshot_is_gone_is_explained(shop, three) -> None:
    shop.forget(key=["7"])
    shop.home.snapshot(read_snapshot(shop.home, three[0].id).id).unlink()
    with pytest.raises(UnknownNameError, match="were forgotten"):
        read_snapshot(shop.home, three[0].id)
    assert found(shop.verify()) == ["rows of this snapshot were forgotten, and the snapshot that took its place is not there."]


def test_another_writer_is_waited_for_and_then_told_of(shop, three) -> None:
    with filelock.FileLock(shop.home.lock), pytest.raises(AlreadyRunningError, match="another process"):
        shop.gc(wait_seconds=0.1)
    lock = filelock.FileLock(shop.home.lock, thread_local=False)
    lock.acquire()
    threading.Timer(0.3, lock.release).start()
    assert len(shop.gc(wait_seconds=20).removed) == 2
