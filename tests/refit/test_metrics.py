"""Metrics agree with scikit-learn, weighed rows with repeated rows, and what the rows do not define is left out."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refit.metrics import METRICS, compute_metrics, default_metric, metric_names


def rows(kind, num_rows, seed, num_classes=3):
    random = np.random.default_rng(seed)
    if kind == "regression":
        labels = random.normal(size=num_rows)
        return labels, labels + random.normal(size=num_rows)
    if kind == "binary":
        num_classes = 2
    labels = random.integers(0, num_classes, num_rows)
    labels[: min(num_rows, num_classes)] = np.arange(min(num_rows, num_classes))
    scores = np.round(random.dirichlet(np.ones(num_classes), num_rows), 2) + 0.005
    return labels, scores / scores.sum(axis=1, keepdims=True)


def test_perfect_and_known_predictions_have_the_values_known_from_the_definitions():
    labels = np.array([0, 1, 1, 0])
    predictions = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])
    metrics = compute_metrics("binary", labels, predictions)
    assert metrics == pytest.approx(
        {
            "accuracy": 0.75,
            "auc": 0.75,
            "log_loss": -(math.log(0.9) + math.log(0.8) + math.log(0.4) + math.log(0.5)) / 4,
        }
    )
    regression = compute_metrics("regression", np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 5.0]))
    assert regression == pytest.approx({"rmse": math.sqrt(4 / 3), "mae": 2 / 3, "r2": -1.0})


@pytest.mark.parametrize(("kind", "default"), [("binary", "auc"), ("classes", "accuracy"), ("regression", "rmse")])
def test_the_default_metric_is_one_that_is_computed(kind, default):
    assert default_metric(kind) == default
    assert default in metric_names(kind)
    assert set(compute_metrics(kind, *rows(kind, 50, seed=1))) == set(metric_names(kind))


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, spec in METRICS.items() for kind in spec.kinds])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), num_rows=st.integers(5, 60))
def test_a_weighed_metric_is_the_metric_of_repeated_rows(name, kind, seed, num_rows):
    labels, predictions = rows(kind, num_rows, seed)
    counts = np.random.default_rng(seed).poisson(1, num_rows).astype(np.uint8)
    counts[:3] = 1
    repeated = METRICS[name].measure(np.repeat(labels, counts), np.repeat(predictions, counts, axis=0))
    assert METRICS[name].weigh(labels, predictions)(counts) == pytest.approx(repeated, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_a_resample_without_rows_gives_no_number(name):
    labels, predictions = rows(METRICS[name].kinds[0], 8, seed=0)
    assert math.isnan(METRICS[name].weigh(labels, predictions)(np.zeros(8, np.uint8)))


def test_float32_predictions_that_do_not_quite_sum_to_one_are_accepted():
    labels, predictions = rows("classes", 500, seed=2)
    narrow = predictions.astype(np.float32)
    assert compute_metrics("classes", labels.astype(np.int32), narrow) == pytest.approx(
        compute_metrics("classes", labels, predictions), rel=1e-5
    )


def test_r2_keeps_its_digits_where_labels_are_far_from_zero():
    labels, predictions = rows("regression", 200, seed=3)
    far = METRICS["r2"].weigh(labels + 1e6, predictions + 1e6)(np.ones(200, np.uint8))
    assert far == pytest.approx(METRICS["r2"].measure(labels, predictions), abs=1e-6)


def test_a_metric_that_the_labels_do_not_define_is_left_out():
    one_class = compute_metrics("binary", np.zeros(4, np.int64), np.full((4, 2), 0.5))
    assert set(one_class) == {"accuracy", "log_loss"}
    assert set(compute_metrics("regression", np.ones(3), np.array([1.0, 2.0, 3.0]))) == {"rmse", "mae"}
    assert compute_metrics("classes", np.zeros(0, np.int64), np.zeros((0, 3))) == {}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["binary", "classes", "regression"])
def test_one_prediction_that_is_not_finite_spoils_every_metric(kind, bad):
    labels, predictions = rows(kind, 20, seed=4)
    predictions[3] = bad
    metrics = compute_metrics(kind, labels, predictions)
    assert set(metrics) == set(metric_names(kind))
    assert all(math.isnan(value) for value in metrics.values())


def test_rows_of_zeros_are_no_probabilities():
    metrics = compute_metrics("classes", np.array([0, 1, 2]), np.zeros((3, 3)))
    assert math.isnan(metrics["log_loss"])
