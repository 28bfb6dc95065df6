"""Each damage of a data set is found, and what is sound raises no alarm."""

import json
import shutil

import numpy as np
import pytest

from refit.snapshots import snapshot_id
from tests.refit.shop import damage_a_byte, edit, found
from tests.refit.shop import in_its_folder as in_its_folder  # a fixture
from tests.refit.shop import made_once as made_once  # a fixture
from tests.refit.shop import shop as shop  # a fixture
from tests.refit.shop import three as three  # a fixture


def test_what_an_ingest_left_is_sound(shop, three) -> None:
    shop.write("d", [100, None], suffix="x")
    shop.write("c", list(range(70, 90)))
    shop.ingest(data__max_rejected_fraction=0.9)
    verification = shop.verify()
    assert (found(verification), verification.notes) == ([], ())
    assert verification.num_snapshots == 4


def rename_record(shop, snapshot, change):
    """Change a record and give it the id that then belongs to it."""
    path = shop.home.snapshot(snapshot.id)
    edit(path, change)
    tree = json.loads(path.read_text())
    tree["id"] = snapshot_id(tree)
    shop.home.snapshot(tree["id"]).write_text(json.dumps(tree))


def set_drops(shop, snapshot, positions):
    shard = next(shard for shard in snapshot.shards if shard.dropped)
    np.save(shop.home.drops(shard.dropped), np.array(positions, dtype=np.uint32))


DAMAGES = {
    "a lost shard": (lambda shop, s: shop.home.shard(s.shards[0].digest).unlink(), "a shard is missing or damaged"),
    "a flipped bit": (damage_a_byte, "a shard is missing or damaged"),
    "a lost list": (lambda shop, s: shop.home.drops(s.shards[0].dropped).unlink(), "the list of a shard's replaced rows"),
    "another list": (lambda shop, s: set_drops(shop, s, [1, 2, 3, 4, 5]), "the list of a shard's replaced rows"),
    "a cut record": (lambda shop, s: shop.home.snapshot(s.id).write_text("{"), "this is no valid SnapshotRecord"),
    "an edited record": (
        lambda shop, s: edit(shop.home.snapshot(s.id), lambda tree: tree["sources"][0].update(name="b")),
        "the snapshot's record is not the one that was written",
    ),
    "no head": (lambda shop, _: shop.home.head.unlink(), "HEAD does not name a snapshot"),
    "a head of nothing": (lambda shop, _: shop.home.head.write_text("0000\n"), "HEAD does not name a snapshot"),
    "counts": (
        lambda shop, s: rename_record(shop, s, lambda tree: tree["sources"][0].update(num_read=7)),
        "the counts of an input do not add up",
    ),
    "kept rows": (
        lambda shop, s: rename_record(shop, s, lambda tree: tree["sources"][0].update(num_kept=6)),
        "an input's shards hold another number of rows",
    ),
    "a shard's rows": (
        lambda shop, s: rename_record(shop, s, lambda tree: tree["sources"][0]["shards"][0].update(num_rows=7)),
        "a shard has another number of rows",
    ),
    "a shard's size": (
        lambda shop, s: rename_record(shop, s, lambda tree: tree["sources"][0]["shards"][0].update(num_bytes=7)),
        "a shard has another size",
    ),
    "columns": (
        lambda shop, s: rename_record(shop, s, lambda tree: tree["columns"][0].update(name="other")),
        "a shard has other columns",
    ),
    "lost rejects": (
        lambda shop, s: shop.home.rejects_dir.joinpath(f"{s.sources[-1].rejects}.parquet").unlink(),
        "the file of rejected rows",
    ),
    "rejects": (
        lambda shop, s: rename_record(shop, s, lambda tree: tree["sources"][-1].update(num_rejected=5, num_filtered=-3)),
        "the file of rejected rows",
    ),
    "the forgotten": (lambda shop, _: shop.home.forgotten.write_bytes(b"x"), "the list of forgotten rows cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_found_and_none_stops_the_search(shop, name) -> None:
    shop.write("a", list(range(10)))
    shop.ingest()
    shop.write("b", [3, 4, 5, None, None, *range(20, 30)])
    snapshot = shop.ingest(data__max_rejected_fraction=0.9)
    assert found(shop.verify()) == []
    damage, expected = DAMAGES[name]
    damage(shop, snapshot)
    verification = shop.verify()
    assert any(what.startswith(expected) for what in found(verification)), found(verification)
    assert all(finding.where and finding.remedy for finding in verification.findings)


def test_faults_of_several_files_are_told_together(shop, three) -> None:
    damage_a_byte(shop, three[0])
    shop.home.shard(three[2].shards[-1].digest).unlink()
    wheres = {finding.where for finding in shop.verify().findings}
    assert wheres == {str(shop.home.shard(digest)) for digest in (three[0].shards[0].digest, three[2].shards[-1].digest)}


def test_leftovers_are_notes_and_no_faults(shop, three) -> None:
    (shop.home.shards_dir / ".shard.x").write_bytes(b"half")
    shutil.copy(shop.home.shard(three[0].shards[0].digest), shop.home.shard("0" * 64))
    verification = shop.verify()
    assert found(verification) == []
    assert len(verification.notes) == 2
