"""Weights of classes and rows: what they are, and what cannot be one."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.utils.class_weight import compute_class_weight

from refit.errors import DataError, JobError
from refit.records import Column, TargetPlan
from refit.weights import check_weight_column, check_weights_count, class_weights, sample_weights
from tests.refit.small import job_of, keep, plan_of, snapshot_of, stored

LABELS = pa.chunked_array([["a", "c", "b", "a"], ["a", "a"]])
TARGET = TargetPlan(name="y", kind="classes", column=Column(name="y", type="string"), classes=("a", "b", "c"))


def test_balanced_weights_are_those_of_scikit_learn():
    expected = compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=LABELS.to_numpy())
    np.testing.assert_allclose(class_weights("balanced", TARGET, LABELS), expected)


def test_a_class_that_is_not_named_weighs_one():
    assert class_weights({"c": 2.5, "a": 0.0}, TARGET, LABELS) == (0.0, 1.0, 2.5)
    assert class_weights(None, TARGET, LABELS) is None


def test_whole_numbers_are_named_by_their_digits():
    target = TargetPlan(name="y", kind="binary", column=Column(name="y", type="int64"), classes=(0, 1))
    assert class_weights({"1": 4.0}, target, pa.chunked_array([[0, 1, 0]])) == (1.0, 4.0)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"aa": 1.0}, r'"aa" is no class of the target. Did you mean "a"'),
        ({"a": -1.0}, r"not negative.*a: -1.0"),
        ({"a": 0.0, "b": 0.0, "c": 0.0}, "no row of the train split would count"),
    ],
)
def test_weights_that_fit_no_class_are_refused(config, told):
    with pytest.raises(JobError, match=told):
        class_weights(config, TARGET, LABELS)


def test_a_quantity_has_no_classes_to_weigh():
    with pytest.raises(JobError, match='"y" is a quantity'):
        plan_of(job_of("y", fit__batch_size=1, fit__class_weight="balanced"), stored(x=[1.0, 2.0], y=[1.5, 2.5]))


def test_weights_of_rows_are_numbers_from_0_on():
    np.testing.assert_array_equal(sample_weights(pa.chunked_array([[0, 2], [3]]), "w"), np.array([0, 2, 3], np.float32))


def test_what_is_no_weight_is_refused_with_counts():
    values = pa.chunked_array([[1.0, None, -2.0, float("nan"), float("inf"), -1.0]])
    with pytest.raises(DataError, match=r'"w".*6 values, of which 1 missing, 2 negative, 2 not finite'):
        sample_weights(values, "w")


def test_a_side_of_which_no_row_counts_is_refused():
    check_weights_count(pa.chunked_array([[0.0, 0.1]]), "w", "train")
    with pytest.raises(DataError, match=r'all values of "w" are 0 in the validation split.*2 values'):
        check_weights_count(pa.chunked_array([[0.0, 0.0]]), "w", "validation")


@pytest.mark.parametrize(("name", "error", "told"), [("ww", JobError, 'no column.*Did you mean "w"'), ("s", DataError, "no numbers")])
def test_a_column_that_cannot_hold_weights_is_refused(name, error, told):
    snapshot = snapshot_of(stored(w=[1.0], s=["a"]))
    check_weight_column(snapshot, "w")
    with pytest.raises(error, match=told):
        check_weight_column(snapshot, name)


def test_weights_of_both_sides_are_checked_when_batches_are_planned(tmp_path):
    table = stored(x=[1.0, 2.0, 3.0], w=[1.0, 1.0, -1.0], y=[1.0, 2.0, 3.0])
    job = job_of("y", fit__batch_size=1, fit__sample_weight="w")
    with pytest.raises(DataError, match="1 values, of which 1 negative"):
        keep(tmp_path, job, table, [0, 0, 1])
    assert [feature.name for feature in keep(tmp_path / "test", job, table, [0, 0, 2]).plan.features] == ["x"]


def test_a_weight_that_is_declared_as_a_feature_is_refused():
    features = {"x": {"kind": "numeric"}, "w": {"kind": "numeric"}}
    with pytest.raises(JobError, match='"w" is the weight of a row'):
        plan_of(job_of("y", features=features, fit__batch_size=1, fit__sample_weight="w"), stored(x=[1.0, 2.0], w=[1.0, 1.0], y=[1.0, 2.0]))
