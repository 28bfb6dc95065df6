"""A row keeps its side for ever, whatever happens around it; sides are complete, disjoint and of the asked size."""

import ast
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refit.assignments import assign_sides
from refit.config import SplitConfig
from refit.errors import DataError, SourceError
from refit.records import SIDES
from refit.shards import read_table
from refit.splits import Rows, TrainRows, count_shared, fold_sides, membership_path, pool_sides, read_rows, read_sides
from tests.refit.divided import Home, by, rows_of
from tests.refit.reference_hash import hash_of

HASHES = np.random.default_rng(0).integers(0, 2**64, 200_000, dtype=np.uint64)
THIRDS = by("hash")


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


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


@settings(deadline=None, max_examples=6)
@given(
    old=st.lists(st.integers(0, 10**6), min_size=60, max_size=90, unique=True),
    new=st.lists(st.integers(10**6, 2 * 10**6), max_size=40, unique=True),
    names=st.permutations(["a", "b", "c", "d"]),
    cut=st.integers(1, 59),
)
def test_a_row_keeps_its_side_when_rows_are_appended_and_files_renamed_and_reordered(old, new, names, cut) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder))
        before = home.sides(home.ingest({"only": rows_of(old)}), **THIRDS)
        files = {names[0]: rows_of(old[cut:]), names[1]: rows_of(old[:cut][::-1])} | ({names[2]: rows_of(new)} if new else {})
        after = home.sides(home.ingest(files), **THIRDS)
    assert after.keys() == {*old, *new}
    assert {row: after[row] for row in old} == before


@pytest.mark.parametrize("key", [[], ["id"], ["group", "id"]])
def test_a_row_keeps_its_side_when_rows_are_appended(home, key) -> None:
    before = home.sides(home.ingest({"b": rows_of(range(100))}, data__key=key), **THIRDS)
    after = home.sides(home.ingest({"b": rows_of(range(100)), "a": rows_of(range(100, 300))}, data__key=key), **THIRDS)
    assert {row: after[row] for row in range(100)} == before
    assert len(after) == 300


def test_a_group_stays_together_also_when_it_grows(home) -> None:
    even, odd = rows_of(range(0, 600, 2)), rows_of(range(1, 600, 2))
    before = home.sides(home.ingest({"a": even}), **by("group"))
    after = home.sides(home.ingest({"a": even, "b": odd}), **by("group"))
    assert {row: after[row] for row in before} == before
    sides_of_group = {}
    for row, side in after.items():
        sides_of_group.setdefault(row // 5, set()).add(side)
    assert {len(sides) for sides in sides_of_group.values()} == {1}
    assert {side for sides in sides_of_group.values() for side in sides} == set(SIDES)


def test_without_groups_neighbours_are_parted(home) -> None:
    sides = home.sides(home.store(rows_of(range(600))), **THIRDS)
    assert any(sides[row] != sides[row + 1] for row in range(0, 600, 5))


def test_the_side_of_a_group_follows_from_its_hash(home) -> None:
    sides = home.sides(home.store(rows_of(range(100))), **by("group", validation=0.2, test=0.4))
    for row, side in sides.items():
        share = hash_of(f"g{row // 5}") / 2**64
        assert side == ("test" if share < 0.4 else "validation" if share < 0.6 else "train")


# ---- what is written


def test_membership_is_sorted_disjoint_and_complete(home) -> None:
    snapshot = home.store(rows_of(range(500)), rows_of(range(500, 900)))
    record, run = home.split(snapshot)
    keys = {side: np.load(membership_path(run, side)) for side in SIDES}
    assert {side: len(values) for side, values in keys.items()} == record.num_rows
    assert all((np.diff(values.astype(object)) > 0).all() for values in keys.values())
    together = np.concatenate(list(keys.values()))
    assert len(np.unique(together)) == len(together) == 900
    every = read_table(snapshot, home.layout, ["_key_hash"])["_key_hash"].to_numpy()
    assert np.array_equal(np.sort(together), np.sort(every))
    assert all(values.dtype == np.uint64 for values in keys.values())


def test_rows_of_the_sides_are_all_rows_once_in_snapshot_order(home) -> None:
    snapshot = home.store(rows_of(range(150)), rows_of(range(150, 200)))
    _, run = home.split(snapshot)
    assert home.read(snapshot, run).keys() == set(range(200))
    for side in SIDES:
        rows = read_rows(snapshot, home.layout, run, side, ["y", "id"])
        ids = rows.table["id"].to_pylist()
        assert (rows.side, rows.table.column_names, ids) == (side, ["y", "id"], sorted(ids))


def test_a_split_can_be_repeated(home) -> None:
    snapshot = home.store(rows_of(range(200)))
    first, second, other = (home.split(snapshot, **changes)[0] for changes in ({}, {}, THIRDS))
    assert first == second
    assert other.digest != first.digest


def test_an_empty_side_is_refused_with_the_counts(home) -> None:
    snapshot = home.store(rows_of(range(30)))
    with pytest.raises(DataError, match="no row is left for validation and test") as caught:
        home.split(snapshot, split__validation=1e-9, split__test=1e-9)
    assert "30 rows: 30 train, 0 validation, 0 test" in str(caught.value)
    assert not home.layout.run("job", "r1").split_dir.exists()


def test_one_group_leaves_sides_empty(home) -> None:
    with pytest.raises(DataError, match="no row is left"):
        home.split(home.store(rows_of(range(5))), **by("group"))


# ---- folds and the pool


@pytest.mark.parametrize("mode", ["hash", "group", "stratified", "column"])
def test_each_row_that_is_not_tested_validates_once_over_the_folds(home, mode) -> None:
    table = rows_of(range(400), part=["test" if i % 5 == 0 else "train" for i in range(400)])
    record, run = home.split(home.store(table), **by(mode, k_fold={"folds": 4}))
    sides, pool = read_sides(run), pool_sides(run)
    assert np.array_equal(pool == 0, sides <= 1)
    validated = np.zeros(400, int)
    for fold in range(4):
        drawn = fold_sides(run, fold)
        assert np.array_equal(drawn, read_sides(run, fold))
        assert np.array_equal(drawn == 2, sides == 2)
        assert np.array_equal(drawn <= 1, sides <= 1)
        assert (drawn == 1).sum() == record.folds[fold]
        validated += drawn == 1
    assert np.array_equal(validated, (sides <= 1).astype(int))
    assert record.learns_from == "pool"


def test_folds_are_about_equal_and_those_by_group_keep_groups_together(home) -> None:
    snapshot = home.store(rows_of(range(4000)))
    record, _ = home.split(snapshot, split={"k_fold": {"folds": 5}})
    num_pool = sum(record.folds)
    assert max(abs(count - num_pool / 5) for count in record.folds) < 4 * np.sqrt(num_pool * 0.16)
    _, run = home.split(snapshot, **by("group", k_fold={"folds": 5}))
    folds = np.load(run.folds).reshape(-1, 5)
    assert (folds == folds[:, :1]).all()
    assert {*folds[:, 0]} == {0, 1, 2, 3, 4, 255}


def test_stratified_folds_differ_by_a_row_of_each_class_at_most(home) -> None:
    classes = ["a"] * 61 + ["b"] * 33 + ["c"] * 12
    record, run = home.split(home.store(rows_of(range(106), y=classes)), **by("stratified", k_fold={"folds": 5}))
    folds = np.load(run.folds)
    counts = np.array([[np.sum((folds == fold) & (np.array(classes) == name)) for name in "abc"] for fold in range(5)])
    assert (counts.max(axis=0) - counts.min(axis=0)).max() <= 1
    assert max(record.folds) - min(record.folds) <= 1


def test_a_class_of_which_few_rows_are_left_for_the_folds_is_no_fault(home) -> None:
    record, _ = home.split(home.store(rows_of(range(60), y=["a"] * 27 + ["b"] * 30 + ["c"] * 3)), **by("stratified", k_fold={"folds": 5}))
    assert record.num_rows["test"] == 18
    assert sum(record.folds) == 42


def test_rows_can_be_read_by_fold_and_of_the_pool(home) -> None:
    snapshot = home.store(rows_of(range(150)), rows_of(range(150, 300)))
    _, run = home.split(snapshot, split={"k_fold": {"folds": 3}})
    split, pool, fold = (home.read(snapshot, run, draw=draw) for draw in ("split", "pool", 1))
    assert {row for row, side in pool.items() if side == "train"} == {row for row, side in split.items() if side != "test"}
    assert "validation" not in pool.values()
    assert {row for row, side in fold.items() if side == "test"} == {row for row, side in split.items() if side == "test"}
    assert 0 < list(fold.values()).count("validation") < 150
    with pytest.raises(ValueError, match="no fold 3"):
        fold_sides(run, 3)


def test_a_split_that_is_drawn_anew_each_epoch_learns_from_the_pool(home) -> None:
    snapshot = home.store(rows_of(range(200)))
    assert home.split(snapshot)[0].learns_from == "train"
    assert home.split(snapshot, split__resplit_each_epoch=True)[0].learns_from == "pool"


@pytest.mark.parametrize(
    ("table", "folds", "says"),
    [
        (rows_of(range(12)), 40, "too few for 40 folds"),
        (rows_of(range(60), y=["b"] * 59 + ["c"]), 5, r"fold \d of 5 has rows of one class only: \d+ rows with \"y\" 'b'"),
    ],
)
def test_folds_that_tell_nothing_are_refused_with_the_numbers(home, table, folds, says) -> None:
    with pytest.raises(DataError, match=says):
        home.split(home.store(table), split={"validation": 0.3, "test": 0.3, "k_fold": {"folds": folds}})
    assert not home.layout.run("job", "r1").split_dir.exists()


def test_a_fold_of_one_class_is_no_fault_of_a_regression(home) -> None:
    table = rows_of(range(60), y=[1.5] * 60)
    assert len(home.split(home.store(table), split={"k_fold": {"folds": 3}})[0].folds) == 3


# ---- the exam is fair


def test_test_rows_that_an_earlier_run_was_trained_on_are_counted(home) -> None:
    snapshot = home.store(rows_of(range(400)))
    (_, first), (wider, wide), (narrower, narrow) = (home.split(snapshot, split__test=test) for test in (0.2, 0.5, 0.2))
    assert count_shared(narrow, first) == 0
    assert count_shared(wide, first) == wider.num_rows["test"] - narrower.num_rows["test"] > 0
    assert count_shared(narrow, home.layout.run("job", "none")) is None


def test_a_key_that_is_trained_on_and_tested_is_refused(home) -> None:
    twice = {name: pa.concat_arrays([pa.array(values)] * 2) for name, values in rows_of(range(50)).items()}
    table = twice | {"part": ["train"] * 50 + ["test"] * 50}
    with pytest.raises(DataError, match="the keys of 50 test rows stand on train or validation"):
        home.split(home.store(table), **by("column"))
    assert not home.layout.run("job", "r1").split_dir.exists()


def test_only_the_train_side_comes_as_rows_to_learn_from(home) -> None:
    snapshot = home.store(rows_of(range(200)))
    _, run = home.split(snapshot)
    kinds = {side: type(read_rows(snapshot, home.layout, run, side, ["id"])) for side in SIDES}
    assert kinds == {"train": TrainRows, "validation": Rows, "test": Rows}


def test_nothing_but_the_split_makes_rows_to_learn_from() -> None:
    root = Path(__file__).parents[2]
    makers = [
        path.name
        for folder in ("refit", "tasks", "flows", "models", "deployments")
        for path in (root / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and "TrainRows" in ast.unparse(node.func)
    ]
    assert makers == ["splits.py"]


# ---- damage


@pytest.mark.parametrize("content", [None, b"", b"PAR1" + b"\0" * 100])
def test_a_missing_or_damaged_shard_is_named(home, content) -> None:
    snapshot = home.store(rows_of(range(30)))
    path = home.home.shard(snapshot.shards[0].digest)
    path.unlink() if content is None else path.write_bytes(content)
    for read in (lambda: read_table(snapshot, home.layout, ["id"]), lambda: home.split(snapshot, split__where="id > 3")):
        with pytest.raises(SourceError, match="missing or damaged") as caught:
            read()
        assert str(path) in str(caught.value)


def test_rows_that_were_forgotten_since_the_split_are_told(home) -> None:
    snapshot = home.store(rows_of(range(100)))
    _, run = home.split(snapshot)
    with pytest.raises(DataError, match="other rows than were divided"):
        read_rows(home.store(rows_of(range(99))), home.layout, run, "train", ["id"])
