"""No row comes into the test split after it was trained on, whatever happens to the data. Each test also shows that it can fail."""

import itertools
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refit import splits
from refit.errors import CorruptRecordError, DataError
from refit.records import SIDES
from refit.splits import count_shared
from tests.refit.divided import DAY, Home, by, rows_of

ONCE = settings(deadline=None, max_examples=2)
OFTEN = settings(deadline=None, max_examples=15)


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def forget_what_was_settled(home):
    shutil.rmtree(home.home.splits_dir, ignore_errors=True)


# ---- by hash and group: whatever files do


@pytest.mark.parametrize("mode", ["hash", "group"])
@ONCE
@given(seed=st.integers(0, 10**6))
def test_no_row_changes_sides_when_data_are_appended_ten_times_and_files_shuffled_and_renamed(mode, seed) -> None:
    rng, ids = np.random.default_rng(seed), np.arange(50)
    with tempfile.TemporaryDirectory() as folder:
        home, seen, other_shares = Home(Path(folder)), {}, 0
        for step in range(11):
            parts = np.array_split(rng.permutation(ids), rng.integers(1, 4))
            names = rng.permutation([f"f{n}" for n in range(9)])
            snapshot = home.ingest({names[n]: rows_of(map(int, part)) for n, part in enumerate(parts)})
            sides = home.sides(snapshot, **by(mode))
            assert {row: sides[row] for row in seen} == seen
            assert sides.keys() == set(ids.tolist())
            seen = sides
            if step == 5:
                other = home.sides(snapshot, **by(mode, test=0.5))
                other_shares = sum(other[row] != seen[row] for row in seen)
            ids = np.concatenate([ids, np.arange(len(ids), len(ids) + 20)])
    assert other_shares > 0  # another rule would move rows, and this test would see it


def test_data_in_another_order_are_divided_alike_the_first_time_also_by_class_and_time(tmp_path) -> None:
    for mode in ("stratified", "time", "hash"):
        found = []
        for order in (range(120), reversed(range(120)), np.random.default_rng(3).permutation(120)):
            home = Home(tmp_path / f"{mode}{len(found)}")
            found.append(home.sides(home.store(rows_of(map(int, order))), **by(mode)))
        assert found[0] == found[1] == found[2]


# ---- by class: under appends


APPENDS = st.lists(st.lists(st.sampled_from("aaab"), min_size=1, max_size=40), min_size=1, max_size=10)


def append(home, steps, after=lambda _: None, **changes):
    """Divide again after each append, from 30 rows on; the sides after each."""
    classes = list("aabaabaaab" * 3)
    for step in [[], *steps]:
        classes += step
        yield classes, home.sides(home.store(rows_of(range(len(classes)), y=classes)), **by("stratified", **changes))
        after(home)


@OFTEN
@given(APPENDS)
def test_by_class_no_row_moves_and_cumulative_shares_stay_exact_to_rounding(steps) -> None:
    with tempfile.TemporaryDirectory() as folder:
        before = {}
        for classes, sides in append(Home(Path(folder)), steps):
            assert {row: sides[row] for row in before} == before
            before = sides
            for name in "ab":
                rows = [row for row, found in enumerate(classes) if found == name]
                counts = np.array([sum(sides[row] == side for row in rows) for side in SIDES])
                # rows only come, so that a side is never too full by more than its rounding
                assert np.abs(counts - np.array([0.4, 0.3, 0.3]) * len(rows)).max() <= 1 + 1e-9


def test_by_class_rows_would_move_if_nothing_were_settled(home) -> None:
    steps = [list("aab"), list("ab"), list("aaaab")]
    *_, (_, settled) = append(home, steps)
    moved = list(append(home, steps, after=forget_what_was_settled))
    assert any(later[row] != earlier[row] for (_, earlier), (_, later) in itertools.pairwise(moved) for row in earlier)
    assert len(settled) == 40


def test_by_class_a_row_comes_back_to_its_side(home) -> None:
    every = home.sides(home.store(rows_of(range(90))), **by("stratified"))
    fewer = home.sides(home.store(rows_of(range(0, 90, 2), y=[0, 1, 1] * 15)), **by("stratified"))
    again = home.sides(home.store(rows_of(range(120))), **by("stratified"))
    assert {row: every[row] for row in fewer} == fewer
    assert {row: again[row] for row in every} == every


def test_other_shares_are_another_split_and_what_was_settled_stays(home) -> None:
    snapshot = home.store(rows_of(range(100)))
    first = home.sides(snapshot, **by("stratified"))
    other = home.sides(snapshot, **by("stratified", test=0.5))
    assert list(other.values()).count("test") == 50
    assert home.sides(snapshot, **by("stratified")) == first
    assert len(list(home.home.splits_dir.iterdir())) == 2


def test_jobs_that_divide_alike_share_what_is_settled(home) -> None:
    snapshot = home.store(rows_of(range(100)))
    first = home.sides(snapshot, **by("stratified"))
    more = home.store(rows_of(range(130)))
    assert home.sides(more, **by("stratified"), name="other", data__name="job") == home.sides(more, **by("stratified"))
    assert home.sides(snapshot, **by("stratified"), name="third", data__name="job") == first


def test_rows_that_a_condition_kept_out_are_assigned_when_it_no_longer_does(home) -> None:
    snapshot = home.store(rows_of(range(100)))
    some = home.sides(snapshot, **by("stratified", where="id % 3 > 0"))
    every = home.sides(snapshot, **by("stratified"))
    assert {row: every[row] for row in some} == some
    assert [list(every.values()).count(side) for side in SIDES] == [40, 30, 30]


# ---- by time: what was trained on is never tested on


STEPS = st.lists(
    st.tuples(st.integers(1, 12), st.integers(0, 6), st.lists(st.integers(0, 5), max_size=4), st.lists(st.integers(0, 29), max_size=6)),
    min_size=1,
    max_size=8,
)


def live(home, steps, after=lambda _: None, **changes):
    """Days pass, rows come late, and the times of old rows are corrected to later ones. What was trained on so far, and what is tested."""
    at = dict(enumerate(range(30)))
    trained = set()
    for days, num_rows, late, corrected in [(0, 0, [], []), *steps]:
        today = max(at.values()) + days
        for row in corrected:
            at[row] = today
        for day in [today, *[today - 1] * num_rows, *(max(0, today - 9 * back) for back in late)]:
            at[len(at)] = day
        times = pa.array(np.datetime64("2026-01-01", "us") + np.array(list(at.values())) * DAY)
        try:
            _, run = home.split(snapshot := home.store(rows_of(at, at=times)), **by("time", **changes))
        except DataError:  # a jump in time may leave a window without a row
            continue
        sides = home.read(snapshot, run)
        trained |= {row for row, side in sides.items() if side != "test"}
        yield trained, {row for row, side in sides.items() if side == "test"}
        after(home)


@OFTEN
@given(STEPS, st.sampled_from([{"validation": 0.2, "test": 0.2}, {"validation": "4 days", "test": "6 days", "gap": "1 day"}]))
def test_by_time_no_test_row_was_ever_trained_on(steps, split) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for trained, tested in live(Home(Path(folder)), steps, **split):
            assert not trained & tested


def test_by_time_rows_would_be_tested_after_training_if_nothing_were_settled(home) -> None:
    steps = [(2, 3, [], []), (2, 3, [1, 2], [0, 1, 2]), (1, 1, [5, 5, 5, 5], [])]
    split = {"validation": 0.2, "test": 0.2}
    assert any(trained & tested for trained, tested in live(home, steps, after=forget_what_was_settled, **split))
    assert not any(trained & tested for trained, tested in live(Home(home.folder / "settled"), steps, **split))


def test_a_row_whose_time_was_corrected_is_left_out_until_it_is_old_again(home) -> None:
    times = np.datetime64("2026-01-01", "us") + np.arange(100) * DAY
    home.sides(home.store(rows_of(range(100))), **by("time", test="10 days", validation="10 days"))
    times[3] = times[99]
    record, run = home.split(corrected := home.store(rows_of(range(100), at=pa.array(times))), **by("time", test="10 days"))
    assert record.left_out == {"trained on before": 1}
    assert 3 not in home.read(corrected, run)
    times = np.concatenate([times, times[99] + np.arange(1, 60) * DAY])
    sides = home.sides(home.store(rows_of(range(159), at=pa.array(times))), **by("time", test="10 days", validation="10 days"))
    assert sides[3] == "train"


def test_a_row_is_tested_first_and_trained_on_later(home) -> None:
    first = home.sides(home.store(rows_of(range(100))), **by("time", test="10 days", validation="10 days"))
    later = home.sides(home.store(rows_of(range(130))), **by("time", test="10 days", validation="10 days"))
    assert first[95] == "test"
    assert later[95] == "train"


def test_a_wider_window_does_not_take_back_what_was_trained_on(home) -> None:
    snapshot = home.store(rows_of(range(100)))
    (_, narrow), (_, wide) = (home.split(snapshot, **by("time", test=test)) for test in (0.1, 0.5))
    assert count_shared(wide, narrow) == 0
    forget_what_was_settled(home)
    _, wide = home.split(snapshot, **by("time", test=0.5))
    assert count_shared(wide, narrow) > 0


# ---- killed, damaged, at once


@pytest.mark.parametrize("mode", ["stratified", "time"])
def test_a_split_that_was_killed_after_it_settled_gives_the_same_again(home, mode, monkeypatch) -> None:
    snapshot = home.store(rows_of(range(100)))
    expected = Home(home.folder / "undisturbed")
    undisturbed = expected.sides(expected.store(rows_of(range(100))), **by(mode))
    with monkeypatch.context() as patch:
        patch.setattr(splits, "write_array", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            home.split(snapshot, **by(mode))
    assert home.sides(snapshot, **by(mode)) == undisturbed
    (home.home.splits_dir / ".half.npz.x").write_bytes(b"half")
    before = {path.name: path.stat().st_mtime_ns for path in home.home.splits_dir.glob("[!.]*")}
    assert home.sides(snapshot, **by(mode)) == undisturbed
    assert {path.name: path.stat().st_mtime_ns for path in home.home.splits_dir.iterdir()} == before


@pytest.mark.parametrize("mode", ["stratified", "time"])
@pytest.mark.parametrize(
    "damage", [lambda c: c[:0], lambda c: c[: len(c) // 2], lambda c: c[:300] + bytes([c[300] ^ 1]) + c[301:], lambda c: c[:99]]
)
def test_damage_to_what_was_settled_is_told_and_nothing_is_divided_anew(home, mode, damage) -> None:
    snapshot = home.store(rows_of(range(100)))
    home.split(snapshot, **by(mode))
    (path,) = home.home.splits_dir.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    damaged = path.read_bytes()
    with pytest.raises(CorruptRecordError, match="what earlier splits have settled cannot be read") as caught:
        home.split(snapshot, **by(mode))
    assert str(path) in str(caught.value)
    assert path.read_bytes() == damaged


def test_splits_at_once_settle_one_after_the_other(home) -> None:
    snapshots = [home.store(rows_of(range(start, start + 100))) for start in range(0, 200, 20)]
    runs = [home.layout.run("job", f"at-once-{n}") for n in range(len(snapshots))]
    job = home.job(**by("stratified"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda pair: splits.split_rows(pair[0], job, home.layout, pair[1]), zip(snapshots, runs, strict=True)))
    sides = {}
    for snapshot, run in zip(snapshots, runs, strict=True):
        for row, side in home.read(snapshot, run).items():
            sides.setdefault(row, set()).add(side)
    assert {len(found) for found in sides.values()} == {1}
