"""Statistics of the train split only, kinds inferred where the job is silent, and encodings that are defined for every value."""

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from refit.config import CategoryFeature, NumericFeature
from refit.errors import DataError
from refit.feature_plans import fit_plans, resolve_features
from refit.features import build_inputs, build_target
from refit.labels import MAX_CLASSES
from refit.records import TargetPlan
from refit.schema import MISSING_INTEGER, to_numpy
from refit.splits import Rows
from refit.targets import encode_labels, plan_target
from tests.refit.small import job_of, plan_of, snapshot_of, stored


def plans_of(table, **features):
    job = job_of("y", features=features) if features else job_of("y")
    snapshot = snapshot_of(table)
    return {plan.name: plan for plan in fit_plans(resolve_features(job, snapshot), snapshot, Rows("train", table))}


def encoded(plans, table):
    """What a builder receives, computed for the rows of a table."""
    features = build_inputs(tuple(plans.values()))
    outputs = {"vector": features.vector(), **features.images, **features.categories}
    if features.numeric is not None:
        outputs["numeric"] = features.numeric
    model = keras.Model(features.inputs, outputs)
    columns = {name: tf.constant(to_numpy(table[name], plan)) for name, plan in plans.items()}
    return {name: values.numpy() for name, values in model(columns).items()}


NUMERIC = {"kind": "numeric"}
CATEGORY = {"kind": "category"}

# ---- statistics


def test_mean_and_variance_are_those_of_numpy_over_what_is_present():
    values = np.random.default_rng(0).normal(5, 3, 200).astype(np.float32).astype(np.float64)
    holes = [None if i % 10 == 0 else float(v) for i, v in enumerate(values)]
    present = [v for v in holes if v is not None]
    plan = plans_of(stored(x=holes, y=values))["x"]
    assert plan.mean == pytest.approx(np.mean(present), rel=1e-6)
    assert plan.variance == pytest.approx(np.var(present), rel=1e-6)
    assert plan.num_missing == 20


def test_standardised_train_rows_have_mean_zero_and_deviation_one():
    values = np.random.default_rng(0).normal(500, 0.3, 400)
    table = stored(a=values, b=values**2, y=values)
    numeric = encoded(plans_of(table), table)["numeric"]
    np.testing.assert_allclose(numeric.mean(axis=0), 0, atol=1e-2)
    np.testing.assert_allclose(numeric.std(axis=0), 1, rtol=1e-2)


@pytest.mark.parametrize("side", ["validation", "test"])
def test_statistics_of_another_side_are_refused(side):
    table = stored(x=[1.0, 2.0], y=[1.0, 2.0])
    with pytest.raises(ValueError, match=f"train split only, not from {side}"):
        fit_plans({"x": NumericFeature(kind="numeric")}, snapshot_of(table), Rows(side, table))


def test_a_missing_number_becomes_the_mean_and_says_so():
    table = stored(a=[1.0, None, 3.0, 4.0], b=[1.0, 2.0, 3.0, 4.0], c=[None, 2.0, 3.0, None], y=[1.0] * 4)
    numeric = encoded(plans_of(table), table)["numeric"]
    assert numeric.shape == (4, 5)  # three columns, then an indicator for a and for c
    assert numeric[1, 0] == pytest.approx(0, abs=1e-6)
    np.testing.assert_array_equal(numeric[:, 3], [0, 1, 0, 0])
    np.testing.assert_array_equal(numeric[:, 4], [1, 0, 0, 1])


def test_a_number_that_is_missing_only_after_training_is_the_mean():
    table = stored(x=[1.0, 2.0, 3.0], y=[1.0] * 3)
    numeric = encoded(plans_of(table), stored(x=[None, 3.0], y=[1.0] * 2))["numeric"]
    np.testing.assert_allclose(numeric, [[0], [1.2247449]], rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "feature", "told"),
    [
        ([7.0] * 3, "numeric", "7.0"),
        ([1] * 3, "category", "1"),
        (["a"] * 3, "category", "a"),
        (pa.array([5] * 3, pa.date32()), "timestamp", "1970-01-06"),
        (np.ones((3, 2), np.float32), "vector", "the same vector"),
    ],
)
def test_a_constant_column_that_is_declared_is_refused(values, feature, told):
    with pytest.raises(DataError, match=rf'"x" has the same value in every row of the train split. Received: {told}'):
        plans_of(stored(x=values, y=[1.0, 2.0, 3.0]), x={"kind": feature})


def test_a_constant_column_that_nobody_asked_for_is_left_out_with_a_warning(caplog):
    table = stored(x=[7.0] * 4, z=[1, 2, 3, 4], word=["a"] * 4, y=[1.0, 2.0, 3.0, 4.0])
    plan = plan_of(job_of("y", fit__batch_size=2), table)
    assert [feature.name for feature in plan.features] == ["z"]
    assert '"x" has the same value in every row of the train split. It is left out' in caplog.text
    assert '"word" has the same value' in caplog.text


def test_a_table_in_which_no_column_varies_is_refused():
    with pytest.raises(DataError, match="no column varies in the train split"):
        plan_of(job_of("y", fit__batch_size=2), stored(x=[7.0] * 4, y=[1.0, 2.0, 3.0, 4.0]))


def test_a_number_that_is_nan_counts_as_missing():
    table = stored(x=[1.0, float("nan"), 3.0], y=[1.0] * 3)
    plans = plans_of(table)
    numeric = encoded(plans, table)["numeric"]
    assert numeric[1, 0] == pytest.approx(0, abs=1e-6)
    assert plans["x"].num_missing == 1
    np.testing.assert_array_equal(numeric[:, 1], [0, 1, 0])


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_column_without_any_value_is_refused(value):
    with pytest.raises(DataError, match='"x" has no value in the train split'):
        plans_of(stored(x=pa.array([value] * 3, pa.float64()), y=[1.0] * 3))


# ---- kinds


def test_kinds_are_inferred_from_columns():
    table = stored(
        number=[1.5, 2.5],
        whole=[1, 2],
        truth=[True, False],
        word=["a", "b"],
        day=pa.array([1, 2], pa.date32()),
        image=np.zeros((2, 4, 4, 3), np.uint8),
        vector=np.zeros((2, 4), np.float32),
        y=[0, 1],
    )
    found = resolve_features(job_of("y"), snapshot_of(table))
    assert {name: feature.kind for name, feature in found.items()} == {
        "number": "numeric",
        "whole": "numeric",
        "truth": "numeric",
        "word": "category",
        "image": "image",
        "vector": "vector",
    }


def test_target_key_and_group_are_no_inferred_features():
    table = stored(id=[1, 2], station=["a", "b"], x=[1.0, 2.0], y=[0, 1])
    job = job_of("y", data__key=["id"], split={"by": "group", "group": "station"})
    assert list(resolve_features(job, snapshot_of(table))) == ["x"]


def test_a_table_with_nothing_to_predict_from_is_refused():
    with pytest.raises(DataError, match="no column is left to predict from"):
        resolve_features(job_of("y"), snapshot_of(stored(y=[0, 1], day=pa.array([1, 2], pa.date32()))))


def test_what_the_job_declares_is_taken_as_it_is():
    table = stored(whole=[1, 2], other=[1.0, 2.0], y=[0, 1])
    assert resolve_features(job_of("y", features={"whole": CATEGORY}), snapshot_of(table)) == {"whole": CategoryFeature(kind="category")}


# ---- categories


def test_vocabularies_go_by_falling_frequency_then_by_value():
    table = stored(word=["b", "a", "c", "c", None, "", "a", "d"], y=[1.0] * 8)
    assert plans_of(table, word=CATEGORY)["word"].vocabulary == ("a", "c", "b", "d")


def test_max_tokens_keeps_the_most_frequent():
    table = stored(word=["b", "a", "c", "c", "b", "b"], y=[1.0] * 6)
    assert plans_of(table, word={**CATEGORY, "max_tokens": 2})["word"].vocabulary == ("b", "c")


@pytest.mark.parametrize(
    ("train", "asked"),
    [
        (["b", "a", "b", None], ["b", "a", None, "new", ""]),
        ([20, 10, 20, None], [20, 10, None, 99, MISSING_INTEGER]),
        ([True, False, True, None], [True, False, None]),
    ],
    ids=["strings", "whole numbers", "truth values"],
)
def test_missing_and_unseen_categories_have_tokens_of_their_own(train, asked):
    plans = plans_of(stored(c=train, y=[1.0] * 4), c=CATEGORY)
    one_hot = encoded(plans, stored(c=asked, y=[1.0] * len(asked)))["c"]
    expected = [2, 3, 0, 1, 0][: len(asked)]
    np.testing.assert_array_equal(one_hot, np.eye(4)[expected])


def test_a_category_keeps_its_token_for_the_integers_beside_the_mask():
    plans = plans_of(stored(c=[-1, 0, -1], y=[1.0] * 3), c=CATEGORY)
    one_hot = encoded(plans, stored(c=[-1, 0, MISSING_INTEGER + 1, 5], y=[1.0] * 4))["c"]
    np.testing.assert_array_equal(one_hot.argmax(axis=1), [2, 3, 1, 1])


def test_unicode_categories_are_found_again():
    words = ["Zürich", "東京", "🦊", "Zürich"]
    plans = plans_of(stored(c=words, y=[1.0] * 4), c=CATEGORY)
    np.testing.assert_array_equal(encoded(plans, stored(c=words, y=[1.0] * 4))["c"].argmax(axis=1), [2, 3, 4, 2])


def test_features_lie_side_by_side_numbers_first():
    table = stored(c=["a", "b"], n=[1.0, 3.0], y=[1.0] * 2)
    out = encoded(plans_of(table), table)
    np.testing.assert_array_equal(out["vector"], np.hstack([out["numeric"], out["c"]]))


# ---- images


@pytest.mark.parametrize(("dtype", "scale", "expected"), [(np.uint8, None, 1 / 255), (np.float32, None, 1.0), (np.uint8, 0.5, 0.5)])
def test_images_are_scaled(dtype, scale, expected):
    image = np.arange(16).astype(dtype).reshape(2, 2, 4, 1)
    table = stored(image=image, y=[1.0] * 2)
    plans = plans_of(table, image={"kind": "image", "scale": scale})
    out = encoded(plans, table)
    assert plans["image"].scale == expected
    np.testing.assert_allclose(out["image"], image * expected, rtol=1e-6)
    np.testing.assert_allclose(out["vector"], out["image"].reshape(2, -1))  # flattened where there is nothing else


def test_an_image_beside_numbers_is_no_part_of_the_vector():
    table = stored(image=np.ones((2, 2, 2, 1), np.uint8), n=[1.0, 3.0], y=[1.0] * 2)
    assert encoded(plans_of(table), table)["vector"].shape == (2, 1)


# ---- target


def target_of(values, kind=None, dtype=None):
    table = stored(x=[0.0] * len(values), y=pa.array(values, dtype))
    return plan_target(job_of("y", target__kind=kind), snapshot_of(table), table["y"])


@pytest.mark.parametrize(
    ("values", "kind", "classes"),
    [
        (["no", "yes", "no"], "binary", ("no", "yes")),
        (["b", "a", "c"], "classes", ("a", "b", "c")),
        ([7, 3, 7], "binary", (3, 7)),
        ([2, 0, 1], "classes", (0, 1, 2)),
        ([True, False, True], "binary", (0, 1)),
        ([1.0, 0.0, 1.0], "regression", None),
        (list(range(MAX_CLASSES)), "classes", tuple(range(MAX_CLASSES))),
        (list(range(MAX_CLASSES + 1)), "regression", None),
    ],
)
def test_the_kind_of_the_target_is_inferred(values, kind, classes):
    target = target_of(values)
    assert (target.kind, target.classes) == (kind, classes)


def test_many_words_are_classes_however_many():
    assert target_of([f"w{i:03}" for i in range(MAX_CLASSES + 20)]).kind == "classes"


def test_a_declared_kind_is_kept():
    assert target_of([0, 1], "regression").classes is None
    assert target_of([0, 1], "classes").classes == (0, 1)
    assert target_of([1.0, 0.0], "binary").classes == (0, 1)


@pytest.mark.parametrize("values", [["a"], ["a", "b", "c"]])
def test_a_binary_target_without_two_values_is_refused(values):
    with pytest.raises(DataError, match=rf"has {len(values)} values in the train split, a binary target has two"):
        target_of(values, "binary")


def test_fractions_as_classes_are_refused():
    with pytest.raises(DataError):
        target_of([0.25, 0.75, 0.5], "classes")


def test_labels_become_positions_among_the_classes():
    target = target_of(["b", "a", "c"])
    codes = encode_labels(pa.chunked_array([["c", "a"], ["b"]]), target)
    assert codes.dtype == np.int32
    assert codes.tolist() == [2, 0, 1]


def test_labels_of_a_regression_are_their_values():
    codes = encode_labels(pa.chunked_array([[1.5, -2.0]]), target_of([0.5, 1.5]))
    assert codes.dtype == np.float32
    assert codes.tolist() == [1.5, -2.0]


@pytest.mark.parametrize(("label", "told"), [("zebra", "'zebra'"), (None, "None")])
def test_a_label_unseen_in_training_is_refused_by_name(label, told):
    with pytest.raises(DataError, match=rf'2 rows have a "y" that does not occur in the train split.*{told}') as failure:
        encode_labels(pa.chunked_array([["a", label, label]], pa.string()), target_of(["a", "b", "c"]))
    assert "data.where" in failure.value.remedy


@pytest.mark.parametrize(("values", "units"), [(["a", "b"], 1), (["a", "b", "c"], 3), ([0.5, 1.5], 1)])
def test_the_head_has_a_unit_a_class_or_one(values, units):
    target = build_target(target_of(values))
    output = target.head(keras.Input((5,)))
    assert (target.units, output.shape, output.dtype) == (units, (None, units), "float32")


def test_the_plan_of_a_target_survives_its_record():
    target = target_of([3, 7])
    assert TargetPlan.model_validate_json(target.model_dump_json()) == target
