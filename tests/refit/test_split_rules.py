"""The rules by which rows are divided, each against what it promises or what plain Python computes."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from refit.assignments import (
    NO_FOLD,
    NO_SIDE,
    TEST,
    TRAIN,
    UNASSIGNED,
    VALIDATION,
    Cuts,
    apportion,
    assign_by_time,
    assign_evenly,
    assign_folds,
    assign_sides,
    deal_folds,
    find_cuts,
    gap_of,
    sorted_once,
    unite_classes,
)
from refit.config import SplitConfig

HASHES = np.random.default_rng(1).integers(0, 2**64, 20_000, dtype=np.uint64)
SHARES = (0.65, 0.15, 0.2)
DAY = 86_400_000_000


def windows(**more):
    return SplitConfig(by="time", **more)


# ---- evenly by class


@given(st.tuples(*[st.integers(0, 30)] * 3), st.integers(0, 25), st.sampled_from([SHARES, (0.98, 0.01, 0.01), (0.2, 0.4, 0.4)]))
def test_new_rows_are_apportioned_as_near_to_the_shares_as_any_way_could(known, num_new, shares) -> None:
    def distance(new):
        total = sum(known) + num_new
        return sum((k + n - share * total) ** 2 for k, n, share in zip(known, new, shares, strict=True))

    found = apportion(known, num_new, shares)
    ways = ((a, b, num_new - a - b) for a in range(num_new + 1) for b in range(num_new + 1 - a))
    assert sum(found) == num_new
    assert min(found) >= 0
    assert distance(found) <= min(map(distance, ways)) + 1e-6


@given(st.lists(st.integers(3, 200), min_size=1, max_size=5), st.integers(0, 100))
def test_the_first_assignment_is_exact_to_rounding_for_each_class(sizes, seed) -> None:
    classes = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    keys = np.random.default_rng(seed).permutation(HASHES)[: len(classes)]
    sides = np.full(len(classes), UNASSIGNED, np.uint8)
    assign_evenly(keys, classes, sides, SHARES)
    for code, size in enumerate(sizes):
        counts = np.bincount(sides[classes == code], minlength=3)
        assert np.abs(counts - np.array(SHARES) * size).max() < 1


@given(st.integers(0, 1000))
def test_rows_with_one_key_stay_together_and_the_shares_are_near(seed) -> None:
    rng = np.random.default_rng(seed)
    keys = rng.choice(HASHES[:150], 400)
    classes = unite_classes(keys, rng.integers(0, 3, 400).astype(np.int32))
    sides = np.full(400, UNASSIGNED, np.uint8)
    assign_evenly(keys, classes, sides, SHARES)
    for key in np.unique(keys):
        assert len(np.unique(sides[keys == key])) == len(np.unique(classes[keys == key])) == 1
    largest = np.unique(keys, return_counts=True)[1].max()
    for code in range(3):
        of_class = classes == code
        assert np.abs(np.bincount(sides[of_class], minlength=3) - np.array(SHARES) * of_class.sum()).max() <= largest + 1


def test_without_uniting_rows_with_one_key_are_parted() -> None:
    pairs = np.repeat(HASHES[:50], 2)
    keys = np.concatenate([pairs, np.sort(HASHES)[:200]])  # of the second class only, and low: they move where it is cut
    classes = np.concatenate([np.tile([0, 1], 50), np.ones(200)]).astype(np.int32)

    def num_parted(classes):
        sides = np.full(len(keys), UNASSIGNED, np.uint8)
        assign_evenly(keys, classes, sides, (0.4, 0.3, 0.3))
        return np.count_nonzero(sides[:100:2] != sides[1:100:2])

    assert num_parted(classes) > 0
    assert num_parted(unite_classes(keys, classes.copy())) == 0


def test_assigned_rows_stay_and_rows_on_no_side_do_not_count() -> None:
    keys, classes = HASHES[:100], np.zeros(100, np.int32)
    sides = np.full(100, UNASSIGNED, np.uint8)
    sides[:10], sides[10:40] = TEST, NO_SIDE
    assign_evenly(keys, classes, sides, (0.5, 0.25, 0.25))
    assert (sides[:10] == TEST).all()
    assert (sides[10:40] == NO_SIDE).all()
    assert np.bincount(sides[sides != NO_SIDE]).tolist() in ([35, 17, 18], [35, 18, 17])


# ---- folds


def test_folds_of_one_side_are_uniform_although_its_hashes_are_not() -> None:
    pool = HASHES[assign_sides(HASHES, SplitConfig(validation=0.2, test=0.6)) <= VALIDATION]
    assert chisquare(np.bincount(assign_folds(pool, 7), minlength=7)).pvalue > 1e-4
    # the hash itself would leave folds empty
    assert not np.bincount((pool >> np.uint64(32)) * np.uint64(7) >> np.uint64(32), minlength=7)[:4].any()


def test_a_hash_has_the_same_fold_for_ever() -> None:
    # the first outputs of SplitMix64 seeded with 0, of which the fold is the part: https://prng.di.unimi.it/splitmix64.c
    outputs = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    states = np.array([n * 0x9E3779B97F4A7C15 % 2**64 for n in range(3)], np.uint64)
    assert assign_folds(states, 100).tolist() == [output * 100 >> 64 for output in outputs]


@given(st.integers(0, 1000), st.integers(2, 9))
def test_dealt_folds_take_equal_keys_together_and_differ_by_one_key_a_class(seed, num_folds) -> None:
    rng = np.random.default_rng(seed)
    keys = rng.choice(HASHES[:200], 300)
    classes = unite_classes(keys, rng.integers(0, 2, 300).astype(np.int32))
    is_dealt = keys % np.uint64(5) > 0
    folds = deal_folds(keys, classes, is_dealt, num_folds)
    assert (folds[~is_dealt] == NO_FOLD).all()
    for code in range(2):
        counts = [len(np.unique(keys[(folds == fold) & (classes == code)])) for fold in range(num_folds)]
        assert max(counts) - min(counts) <= 1
    assert sum(len(np.unique(keys[folds == fold])) for fold in range(num_folds)) == len(np.unique(keys[is_dealt]))


def test_each_hash_stands_once() -> None:
    assert sorted_once(np.array([3, 1, 3, 2, 1], np.uint64)).tolist() == [1, 2, 3]
    assert sorted_once(np.array([], np.uint64)).tolist() == []


# ---- by time


def days(*numbers):
    return np.sort(np.array(numbers, dtype=np.int64)) * DAY


def told(times, split, earlier=None):
    """Days on each side."""
    sides = assign_by_time(times, find_cuts(times, split, earlier), gap_of(split))
    return [(times[sides == code] // DAY).tolist() for code in range(4)]


def test_the_newest_share_is_the_test_window_and_that_before_it_validation() -> None:
    assert told(days(*range(10)), windows(validation=0.2, test=0.3)) == [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9], []]


def test_a_window_of_time_holds_so_many_days() -> None:
    assert told(days(*range(10)), windows(validation="2 days", test="3 days")) == [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9], []]
    assert told(days(*range(10)), windows(validation="1 week", test="36 hours")) == [[0], [1, 2, 3, 4, 5, 6, 7], [8, 9], []]


def test_a_gap_is_left_before_each_later_window() -> None:
    found = told(days(*range(10)), windows(validation="2 days", test="2 days", gap="1 day"))
    assert found == [[0, 1, 2, 3], [5, 6], [8, 9], [4, 7]]
    assert told(days(*range(10)), windows(validation=0.2, test=0.2, gap="1 day")) == found


def test_rows_of_one_instant_are_not_parted() -> None:
    assert told(days(0, 1, 2, 3, 3, 3, 3, 3, 4, 5), windows(validation=0.1, test=0.5)) == [[0, 1], [2], [3, 3, 3, 3, 3, 4, 5], []]


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=60), st.integers(0, 3))
def test_each_row_is_on_one_side_and_sides_follow_each_other_in_time(numbers, gap) -> None:
    split = windows(validation=0.25, test=0.25, **({"gap": f"{gap} days"} if gap else {}))
    times = days(*numbers)
    train, validation, test, between = told(times, split)
    assert sorted([*train, *validation, *test, *between]) == sorted(numbers)
    for earlier, later in itertools.pairwise(side for side in (train, validation, test) if side):
        assert max(earlier) + gap < min(later)
    assert len(test) >= round(0.25 * len(numbers))
    if not gap:
        assert not between


@given(st.lists(st.lists(st.integers(0, 90), min_size=3, max_size=30), min_size=2, max_size=6))
def test_cuts_only_move_forward(steps) -> None:
    earlier, split = None, windows(validation=0.2, test="5 days")
    for numbers in steps:
        cuts = find_cuts(days(*numbers), split, earlier)
        assert earlier is None or (cuts.validation >= earlier.validation and cuts.test >= earlier.test)
        earlier = cuts


def test_without_the_earlier_cuts_they_would_move_back() -> None:
    split = windows(validation=0.2, test=0.2)
    late, early = (find_cuts(days(*numbers), split, None) for numbers in (range(10), range(6)))
    assert early.test < late.test
    assert find_cuts(days(*range(6)), split, late) == late


@pytest.mark.parametrize("window", ["999999999 weeks", 1 - 1e-12])
def test_a_window_longer_than_all_time_takes_every_row(window) -> None:
    assert find_cuts(days(3, 5), windows(validation=1e-13, test=window), None) == Cuts(3 * DAY - 1, 3 * DAY - 1)


def test_no_rows_have_no_folds() -> None:
    assert assign_folds(np.array([], np.uint64), 3).tolist() == []
    assert deal_folds(np.array([], np.uint64), np.array([], np.int32), np.array([], bool), 3).tolist() == []
    assert TRAIN == 0
