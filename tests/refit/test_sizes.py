"""Too few rows are told, and enough are enough."""

import numpy as np
import pytest

from refit.sizes import MINIMUM_ROWS, check_sizes, rows_needed_to_compare, rows_needed_to_split
from tests.refit.labelled import job_of


def sizes(num_rows, num_per_class=None, **more):
    return {record.name: record for record in check_sizes(job_of(**more), num_rows, num_per_class or {})}


def test_just_enough_rows_pass_and_fewer_fail():
    assert sizes(MINIMUM_ROWS)["rows"].ok
    found = sizes(MINIMUM_ROWS - 1)["rows"]
    assert (found.ok, found.only_warns) == (False, False)
    assert found.detail == "19 rows are too few to split and judge; 20 at least"


def test_smaller_shares_need_more_rows():
    split = {"validation": 0.01, "test": 0.2}
    needed = rows_needed_to_split(job_of(split=split))
    assert needed == 299  # 0.99 ** 299 < 0.05 < 0.99 ** 298
    assert [sizes(rows, split=split)["rows"].ok for rows in (needed - 1, needed)] == [False, True]


def test_so_many_rows_leave_no_side_empty():
    job = job_of(split={"validation": 0.1, "test": 0.3})
    rng = np.random.default_rng(12)
    draws = rng.random((20_000, rows_needed_to_split(job)))
    assert ((draws < 0.1).any(axis=1)).mean() == pytest.approx(0.955, abs=0.01)


def test_classes_that_a_side_may_lack_are_named():
    found = sizes(1000, {"a": 900, "b": 81, "c": 12, "d": 7})["classes on each side"]
    assert (found.ok, found.only_warns) == (False, True)
    assert "'c' (12), 'd' (7); 19 rows of a class are enough" in found.detail


def test_the_test_rows_that_a_comparison_needs_are_told():
    found = sizes(400, {"a": 200, "b": 200})["test rows"]
    assert (found.ok, found.only_warns) == (False, True)
    assert found.detail == "the test split will hold about 80 rows; a difference of 2 points can be told from noise with about 2,000"
    assert sizes(10_000, {"a": 5000, "b": 5000})["test rows"].ok
    wide = sizes(400, {"a": 200, "b": 200}, gate={"champion": {"margin": 0.2}})["test rows"]
    assert wide.ok
    assert "20 points" in wide.detail


def test_a_quantity_has_no_points_to_be_told_apart():
    assert list(sizes(400)) == ["rows"]


def test_the_rows_for_a_comparison_are_those_of_the_literature():
    # Source: powerandsamplesize.com, McNemar's test, p01 = 0.45, p10 = 0.05, alpha 0.05, power 0.8: 23 pairs
    assert rows_needed_to_compare(0.4, confidence=0.95, disagreement=0.5) == 23


def test_so_many_rows_tell_the_difference_as_often_as_promised():
    num_rows = rows_needed_to_compare(0.02, confidence=0.95)
    rng = np.random.default_rng(13)
    better, worse, _ = rng.multinomial(num_rows, [0.06, 0.04, 0.9], 20_000).T
    assert ((better - worse) / np.sqrt(better + worse) > 1.96).mean() == pytest.approx(0.8, abs=0.02)
