"""A row keeps its side for ever, whatever happens around it; sides are complete, disjoint and of the asked size."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refit.config import SplitConfig, parse_job
from refit.errors import DataError, SourceError
from refit.ingestion import ingest
from refit.layout import Layout
from refit.records import SIDES
from refit.shards import read_table
from refit.splits import assign_sides, count_shared, membership_path, read_rows, split_rows

HASHES = np.random.default_rng(0).integers(0, 2**64, 200_000, dtype=np.uint64)
THIRDS = SplitConfig(validation=0.3, test=0.3)


def make(folder, files, *, key=("id",)):
    """Ingest ``{name: ids}`` as small Parquet files; the value and group of a row follow from its id."""
    (folder / "in").mkdir(parents=True, exist_ok=True)
    for old in (folder / "in").iterdir():
        old.unlink()
    for name, ids in files.items():
        columns = {"id": pa.array(ids, pa.int64()), "group": [f"g{i // 5}" for i in ids], "y": [i % 2 for i in ids]}
        pq.write_table(pa.table(columns), folder / "in" / f"{name}.parquet")
    source = {"kind": "parquet", "path": str(folder / "in" / "*.parquet")}
    job = parse_job({"name": "job", "data": {"sources": [source], "key": list(key)}, "target": {"column": "y"}})
    layout = Layout(folder / "home")
    return ingest(job, layout), layout


def sides_of(snapshot, layout, split, run="r1"):
    """``{id: side}`` of a split."""
    paths = layout.run("job", run)
    split_rows(snapshot, split, layout, paths)
    found = {side: read_rows(snapshot, layout, paths, side, ["id"]).table["id"].to_pylist() for side in SIDES}
    return {row: side for side, ids in found.items() for row in ids}


# ---- shares


@pytest.mark.parametrize(("validation", "test"), [(0.15, 0.2), (0.01, 0.01), (0.3, 0.69), (0.5, 0.25)])
def test_shares_are_near_those_that_were_asked_for(validation, test) -> None:
    sides = assign_sides(HASHES, SplitConfig(validation=validation, test=test))
    shares = np.bincount(sides, minlength=3) / len(sides)
    # four standard deviations of a binomial share
    assert np.abs(shares - [1 - validation - test, validation, test]).max() < 4 * np.sqrt(0.25 / len(HASHES))


def test_the_lowest_hashes_are_the_test_split() -> None:
    hashes = np.array([0, 2**62 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1], np.uint64)
    assert assign_sides(hashes, SplitConfig(test=0.25, validation=0.25)).tolist() == [2, 2, 1, 1, 0, 0]


def test_the_highest_hash_has_a_side_at_any_share() -> None:
    hashes = np.array([0, 2**64 - 1], np.uint64)
    split = SplitConfig(test=0.5, validation=0.5 - 2**-53)
    assert assign_sides(hashes, split).tolist()[0] == 2
    assert split.test + split.validation < 1


@given(st.floats(0.01, 0.98), st.floats(0.01, 0.98))
def test_a_larger_test_share_only_adds_rows_to_the_test_split(small, large) -> None:
    small, large = sorted((small, large))
    fewer, more = (assign_sides(HASHES[:1000], SplitConfig(test=share, validation=0.005)) == 2 for share in (small, large))
    assert not (fewer & ~more).any()


def test_no_rows_have_no_sides() -> None:
    assert assign_sides(np.array([], np.uint64), SplitConfig()).tolist() == []


# ---- a row stays where it is


@settings(deadline=None, max_examples=8)
@given(
    old=st.lists(st.integers(0, 10**6), min_size=60, max_size=90, unique=True),
    new=st.lists(st.integers(10**6, 2 * 10**6), max_size=40, unique=True),
    names=st.permutations(["a", "b", "c", "d"]),
    cut=st.integers(1, 59),
)
def test_a_row_keeps_its_side_when_rows_are_appended_and_files_renamed_and_reordered(old, new, names, cut) -> None:
    with tempfile.TemporaryDirectory() as folder:
        before = sides_of(*make(Path(folder), {"only": old}), THIRDS)
        files = {names[0]: old[cut:], names[1]: old[:cut][::-1]} | ({names[2]: new} if new else {})
        after = sides_of(*make(Path(folder), files), THIRDS, "r2")
    assert after.keys() == {*old, *new}
    assert {row: after[row] for row in old} == before


@pytest.mark.parametrize("key", [(), ("id",), ("group", "id")])
def test_a_row_keeps_its_side_when_rows_are_appended(tmp_path, key) -> None:
    before = sides_of(*make(tmp_path, {"b": range(100)}, key=key), THIRDS)
    after = sides_of(*make(tmp_path, {"b": range(100), "a": range(100, 300)}, key=key), THIRDS, "r2")
    assert {row: after[row] for row in range(100)} == before
    assert len(after) == 300


def test_a_group_stays_together_also_when_it_grows(tmp_path) -> None:
    split = SplitConfig(by="group", group="group", validation=0.3, test=0.3)
    before = sides_of(*make(tmp_path, {"a": range(0, 600, 2)}), split)
    after = sides_of(*make(tmp_path, {"a": range(0, 600, 2), "b": range(1, 600, 2)}), split, "r2")
    assert {row: after[row] for row in before} == before
    sides_of_group = {}
    for row, side in after.items():
        sides_of_group.setdefault(row // 5, set()).add(side)
    assert {len(sides) for sides in sides_of_group.values()} == {1}
    assert {side for sides in sides_of_group.values() for side in sides} == set(SIDES)


def test_without_groups_neighbours_are_parted(tmp_path) -> None:
    sides = sides_of(*make(tmp_path, {"a": range(600)}), THIRDS)
    assert any(sides[row] != sides[row + 1] for row in range(0, 600, 5))


# ---- what is written


def test_membership_is_sorted_disjoint_and_complete(tmp_path) -> None:
    snapshot, layout = make(tmp_path, {"a": range(500), "b": range(500, 900)})
    run = layout.run("job", "r1")
    record = split_rows(snapshot, SplitConfig(), layout, run)
    keys = {side: np.load(membership_path(run, side)) for side in SIDES}
    assert {side: len(values) for side, values in keys.items()} == record.num_rows
    assert all((np.diff(values.astype(object)) > 0).all() for values in keys.values())
    together = np.concatenate(list(keys.values()))
    assert len(np.unique(together)) == len(together) == 900
    every = read_table(snapshot, layout, ["_key_hash"])["_key_hash"].to_numpy()
    assert np.array_equal(np.sort(together), np.sort(every))
    assert all(values.dtype == np.uint64 for values in keys.values())


def test_rows_of_the_sides_are_all_rows_once_in_snapshot_order(tmp_path) -> None:
    snapshot, layout = make(tmp_path, {"a": range(200)})
    sides = sides_of(snapshot, layout, SplitConfig())
    assert sides.keys() == set(range(200))
    run = layout.run("job", "r1")
    for side in SIDES:
        rows = read_rows(snapshot, layout, run, side, ["y", "id"])
        ids = rows.table["id"].to_pylist()
        assert (rows.side, rows.table.column_names, ids) == (side, ["y", "id"], sorted(ids))


def test_a_split_can_be_repeated(tmp_path) -> None:
    snapshot, layout = make(tmp_path, {"a": range(200)})
    first, second = (split_rows(snapshot, SplitConfig(), layout, layout.run("job", run)) for run in ("r1", "r2"))
    assert first == second
    assert split_rows(snapshot, THIRDS, layout, layout.run("job", "r3")).digest != first.digest


def test_an_empty_side_is_refused_with_the_counts(tmp_path) -> None:
    snapshot, layout = make(tmp_path, {"a": range(30)})
    with pytest.raises(DataError, match="no row is left for validation and test") as caught:
        split_rows(snapshot, SplitConfig(validation=1e-9, test=1e-9), layout, layout.run("job", "r1"))
    assert "30 rows: 30 train, 0 validation, 0 test" in str(caught.value)
    assert not layout.run("job", "r1").split_dir.exists()


def test_one_group_leaves_sides_empty(tmp_path) -> None:
    snapshot, layout = make(tmp_path, {"a": range(5)})
    with pytest.raises(DataError, match="no row is left"):
        split_rows(snapshot, SplitConfig(by="group", group="group"), layout, layout.run("job", "r1"))


def test_a_group_that_is_no_column_is_refused(tmp_path) -> None:
    snapshot, layout = make(tmp_path, {"a": range(30)})
    with pytest.raises(DataError, match='"grup" is no column'):
        split_rows(snapshot, SplitConfig(by="group", group="grup"), layout, layout.run("job", "r1"))


# ---- the exam is fair


def test_test_rows_that_an_earlier_run_was_trained_on_are_counted(tmp_path) -> None:
    snapshot, layout = make(tmp_path, {"a": range(400)})
    runs = [layout.run("job", f"r{n}") for n in range(3)]
    split_rows(snapshot, SplitConfig(test=0.2), layout, runs[0])
    wider = split_rows(snapshot, SplitConfig(test=0.5), layout, runs[1])
    narrower = split_rows(snapshot, SplitConfig(test=0.2), layout, runs[2])
    assert count_shared(runs[2], runs[0]) == 0
    assert count_shared(runs[1], runs[0]) == wider.num_rows["test"] - narrower.num_rows["test"] > 0
    assert count_shared(runs[2], layout.run("job", "none")) is None


# ---- damage


@pytest.mark.parametrize("content", [None, b"", b"PAR1" + b"\0" * 100])
def test_a_missing_or_damaged_shard_is_named(tmp_path, content) -> None:
    snapshot, layout = make(tmp_path, {"a": range(30)})
    path = layout.dataset("job").shard(snapshot.shards[0].digest)
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(SourceError, match="missing or damaged") as caught:
        read_table(snapshot, layout, ["id"])
    assert str(path) in str(caught.value)
