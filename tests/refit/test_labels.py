"""Unsound labels are told."""

import math

import numpy as np
import pyarrow as pa
import pytest

from refit.labels import check_labels, target_kind
from refit.records import Column
from tests.refit.labelled import alarms, job_of, run


def test_missing_labels_are_counted():
    found = run(check_labels, job_of(), {"y": [None, 1, math.nan, 2.5]})["labels"]
    assert (found.ok, found.only_warns) == (False, False)
    assert found.detail == "2 of 4 labels (50 %) are missing; filter them with data.where"


@pytest.mark.parametrize("values", [[1] * 9, ["a", None, "a"], pa.array([None, None], pa.string())])
def test_a_target_that_never_varies_fails(values):
    found = run(check_labels, job_of(), {"x": range(len(values)), "y": values})["target varies"]
    assert (found.ok, found.only_warns) == (False, False)
    assert "the same value in every row" in found.detail


def test_infinite_labels_fail():
    found = run(check_labels, job_of(), {"y": [0.5, math.inf, -math.inf, *np.arange(20.0)]})["labels finite"]
    assert (found.ok, found.only_warns) == (False, False)
    assert found.detail.startswith("2 of 23 labels are infinite")


def test_a_quantity_of_few_values_warns():
    assert "only 3 values" in alarms({"y": [0.5, 1.5, 2.5] * 40})["target values"]
    assert alarms({"y": np.arange(120) % 10}, kind="regression") == {}


def test_small_classes_are_named():
    detail = alarms({"y": ["a"] * 50 + ["b"] * 50 + ["c"] * 3 + ["d"]})["class sizes"]
    assert "'c' (3), 'd' (1)" in detail


def test_a_quantity_taken_for_classes_is_told_how_to_be_one():
    detail = alarms({"y": [*range(20)] * 5 + [21, 22]})["class sizes"]
    assert detail.endswith("filter these with data.where, or say that it is a quantity (target.kind: regression)")


def test_classes_that_only_spelling_tells_apart_are_named():
    assert "'Yes' and 'yes '" in alarms({"y": ["Yes"] * 50 + ["yes "] * 40 + ["no"] * 40})["class names"]


@pytest.mark.parametrize("rows", [300, 15_000])
def test_a_target_with_a_class_for_nearly_each_row_may_be_an_identifier(rows):
    found = alarms({"y": [f"n{i}" for i in range(rows)]})
    assert "is the target an identifier?" in found["classes"]
    assert list(found) == ["classes"]


def test_a_very_rare_class_warns_and_says_what_to_compare_by():
    detail = alarms({"y": [1] * 10 + [0] * 9990})["rarer class"]
    assert "10 of 10,000 rows (0.1 %) are '1'" in detail
    assert "accuracy is 99.9 %" in detail
    assert alarms({"y": [1] * 100 + [0] * 9900}) == {}


@pytest.mark.parametrize(
    ("column", "num_values", "kind"),
    [
        ("string", 2, "binary"),
        ("string", 500, "classes"),
        ("int64", 2, "binary"),
        ("int64", 101, "regression"),
        ("double", 2, "regression"),
    ],
)
def test_the_kind_of_a_target_is_inferred_from_type_and_values(column, num_values, kind):
    assert target_kind(job_of(), Column(name="y", type=column), num_values) == kind
    assert target_kind(job_of(kind="classes"), Column(name="y", type=column), num_values) == "classes"
