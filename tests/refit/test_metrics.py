"""Metrics agree with scikit-learn, weighed rows with repeated rows, and what the rows do not define is left out."""

import math

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from refit.answers import Answers
from refit.metrics import METRICS, compute_metrics, default_metric, metric_names

KINDS = ("binary", "classes", "multilabel", "regression")
EVERY = [(name, kind) for name, spec in METRICS.items() for kind in spec.kinds]


def rows(kind, num_rows, seed, num_classes=7):
    """Labels, and predictions with ties; every class occurs."""
    random = np.random.default_rng(seed)
    if kind == "regression":
        labels = random.normal(size=num_rows)
        return labels, labels + random.normal(size=num_rows)
    if kind == "multilabel":
        return random.integers(0, 2, (num_rows, 3)), np.round(random.random((num_rows, 3)), 2)
    if kind == "binary":
        num_classes = 2
    labels = random.integers(0, num_classes, num_rows)
    labels[: min(num_rows, num_classes)] = np.arange(min(num_rows, num_classes))
    scores = np.round(random.dirichlet(np.ones(num_classes), num_rows), 2) + 0.005
    return labels, scores / scores.sum(axis=1, keepdims=True)


def answers(kind, *more, **options):
    return Answers(kind, *rows(kind, *more), **options)


def once(name, told):
    return METRICS[name].weigh(told)(np.ones(len(told), np.uint8))


def test_perfect_and_known_predictions_have_the_values_known_from_the_definitions():
    labels = np.array([0, 1, 1, 0])
    predictions = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])
    assert compute_metrics("binary", labels, predictions) == pytest.approx(
        {
            "accuracy": 0.75,
            "auc": 0.75,
            "log_loss": -(math.log(0.9) + math.log(0.8) + math.log(0.4) + math.log(0.5)) / 4,
            "balanced_accuracy": 0.75,
            "pr_auc": (1 + 2 / 3) / 2,
            "f1": 2 / 3,
            "precision": 1.0,
            "recall": 0.5,
            "brier": (0.01 + 0.04 + 0.36 + 0.25) / 4,
            "ece": (0.1 + 0.2 + 0.6 + 0.5) / 4,
        }
    )
    labels = np.array([1.0, 2.0, 3.0])
    assert compute_metrics("regression", labels, np.array([1.0, 2.0, 5.0])) == pytest.approx(
        {
            "rmse": math.sqrt(4 / 3),
            "mae": 2 / 3,
            "r2": -1.0,
            "mape": 2 / 9,
            "median_absolute_error": 0.0,
            "absolute_error_p90": 1.6,
        }
    )
    labels = np.array([[1, 0, 1], [0, 0, 1]])
    assert compute_metrics("multilabel", labels, np.array([[0.8, 0.2, 0.4], [0.4, 0.1, 0.9]])) == pytest.approx(
        {
            "subset_accuracy": 0.5,
            "log_loss": -(2 * math.log(0.8) + math.log(0.4) + math.log(0.6) + 2 * math.log(0.9)) / 6,
            "micro_f1": 0.8,
            "macro_f1": (1 + 2 / 3) / 2,  # no row has, or is given, the second label
            "macro_auc": 1.0,
            "hamming_loss": 1 / 6,
        }
    )


@pytest.mark.parametrize(
    ("kind", "default"), [("binary", "auc"), ("classes", "accuracy"), ("multilabel", "log_loss"), ("regression", "rmse")]
)
def test_the_default_metric_is_one_that_is_computed(kind, default):
    assert default_metric(kind) == default
    assert default in metric_names(kind)
    assert set(compute_metrics(kind, *rows(kind, 50, 1))) == set(metric_names(kind))


@pytest.mark.parametrize(("name", "kind"), EVERY)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), num_rows=st.integers(9, 60), threshold=st.sampled_from([0.2, 0.5, 0.8]))
def test_a_weighed_metric_is_the_metric_of_repeated_rows(name, kind, seed, num_rows, threshold):
    told = answers(kind, num_rows, seed, threshold=threshold)
    counts = np.random.default_rng(seed).poisson(1, num_rows).astype(np.uint8)
    counts[:7] = 1
    repeated = Answers(kind, np.repeat(told.labels, counts, axis=0), np.repeat(told.predictions, counts, axis=0), threshold)
    assert METRICS[name].weigh(told)(counts) == pytest.approx(METRICS[name].measure(repeated), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_a_resample_without_rows_gives_no_number(name, kind):
    assert math.isnan(METRICS[name].weigh(answers(kind, 8, 0))(np.zeros(8, np.uint8)))


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_a_perfect_model_has_the_best_value_and_an_imperfect_one_a_worse_one(name, kind):
    labels, predictions = rows(kind, 400, 6)
    sure = np.eye(predictions.shape[1])[labels] if kind in ("binary", "classes") else labels.astype(float)
    best = METRICS[name].measure(Answers(kind, labels, sure))
    assert best == pytest.approx(1.0 if METRICS[name].higher_is_better else 0.0, abs=1e-12)
    found = METRICS[name].measure(Answers(kind, labels, predictions))
    assert found < best if METRICS[name].higher_is_better else found > best


def test_brier_scores_are_those_of_scikit_learn():
    told = answers("binary", 300, 8)
    assert once("brier", told) == pytest.approx(sklearn.metrics.brier_score_loss(told.labels, told.scores))
    told = answers("classes", 300, 8)
    assert once("brier", told) == pytest.approx(np.square(told.predictions - np.eye(7)[told.labels]).sum(axis=1).mean())


def test_the_calibration_error_is_near_zero_where_probabilities_are_true_and_their_excess_where_not():
    random = np.random.default_rng(0)
    score = random.uniform(0.1, 0.5, 200_000)
    labels = (random.random(200_000) < score).astype(np.int64)
    assert once("ece", Answers("binary", labels, np.stack([1 - score, score], axis=1))) < 0.01
    wrong = score + 0.2
    assert once("ece", Answers("binary", labels, np.stack([1 - wrong, wrong], axis=1))) == pytest.approx(0.2, abs=0.005)
    classes = np.stack([1 - wrong, wrong / 2, wrong / 2], axis=1)  # sure of the class 0 by 0.3 to 0.7, which is right less often by 0.2
    labels = np.where(random.random(200_000) < classes[:, 0] - 0.2, 0, random.integers(1, 3, 200_000))
    is_first = classes.argmax(axis=1) == 0
    assert once("ece", Answers("classes", labels[is_first], classes[is_first])) == pytest.approx(0.2, abs=0.01)


def test_the_calibration_error_has_15_bins_of_as_many_rows_each():
    # 150 scores in order, of which every bin of ten is off by its own amount: 0 in the first, 0.01 times its number in the others.
    score = np.sort(np.random.default_rng(1).permutation(np.linspace(0.3, 0.7, 150)))
    labels = np.tile([0, 1], 75)
    bins = np.arange(150) // 10
    expected = np.mean([abs(labels[bins == number].mean() - score[bins == number].mean()) for number in range(15)])
    shuffled = np.random.default_rng(2).permutation(150)
    told = Answers("binary", labels[shuffled], np.stack([1 - score, score], axis=1)[shuffled])
    assert once("ece", told) == pytest.approx(expected)


def test_equal_probabilities_share_a_bin_so_that_the_order_of_rows_does_not_matter():
    labels = np.array([0] * 50 + [1] * 50)
    assert once("ece", Answers("binary", labels, np.full((100, 2), 0.5))) == pytest.approx(0, abs=1e-12)


def test_a_threshold_moves_decisions_and_nothing_else():
    labels, predictions = rows("binary", 500, 9)
    half, low = (compute_metrics("binary", labels, predictions, threshold=threshold) for threshold in (0.5, 0.1))
    moved = {name for name in half if half[name] != low[name]}
    assert moved == {"accuracy", "balanced_accuracy", "f1", "precision", "recall"}
    assert low["recall"] > half["recall"]
    positive = predictions[:, 1] > 0.1
    assert low["precision"] == pytest.approx(labels[positive].mean())


def test_a_score_at_the_threshold_is_not_above_it():
    told = Answers("binary", np.array([0, 1]), np.array([[0.75, 0.25], [0.5, 0.5]], np.float32), 0.25)
    assert told.chosen.tolist() == [0, 1]
    narrow = np.float32(0.1)
    assert Answers("binary", np.array([0]), np.array([[1 - narrow, narrow]]), float(narrow)).chosen.tolist() == [0]


def test_a_model_that_finds_no_positive_has_a_precision_of_zero_and_so_has_a_resample_of_its_rows():
    labels, predictions = np.array([0, 1, 0, 1]), np.tile([0.9, 0.1], (4, 1))
    metrics = compute_metrics("binary", labels, predictions)
    assert (metrics["precision"], metrics["recall"], metrics["f1"]) == (0, 0, 0)
    assert once("precision", Answers("binary", labels, predictions)) == 0


def test_metrics_of_a_single_label_are_those_of_a_binary_target():
    labels, predictions = rows("binary", 200, 10)
    one = compute_metrics("multilabel", labels[:, None], predictions[:, 1:])
    both = compute_metrics("binary", labels, predictions)
    assert [one[name] for name in ("subset_accuracy", "micro_f1", "macro_f1", "macro_auc", "log_loss")] == pytest.approx(
        [both[name] for name in ("accuracy", "f1", "f1", "auc", "log_loss")]
    )
    assert one["hamming_loss"] == pytest.approx(1 - both["accuracy"])


def test_float32_predictions_that_do_not_quite_sum_to_one_are_accepted():
    labels, predictions = rows("classes", 500, 2)
    narrow = predictions.astype(np.float32)
    assert compute_metrics("classes", labels.astype(np.int32), narrow) == pytest.approx(
        compute_metrics("classes", labels, predictions), rel=1e-5
    )


def test_r2_keeps_its_digits_where_labels_are_far_from_zero():
    labels, predictions = rows("regression", 200, 3)
    far = once("r2", Answers("regression", labels + 1e6, predictions + 1e6))
    assert far == pytest.approx(METRICS["r2"].measure(Answers("regression", labels, predictions)), abs=1e-6)


def test_a_metric_that_the_labels_do_not_define_is_left_out():
    one_class = compute_metrics("binary", np.zeros(4, np.int64), np.full((4, 2), 0.5))
    assert set(one_class) == {"accuracy", "log_loss", "brier", "ece"}
    assert {"r2", "mape"} == set(metric_names("regression")) - set(compute_metrics("regression", np.zeros(3), np.array([1.0, 2.0, 3.0])))
    assert {"top_3_accuracy", "top_5_accuracy"} & set(compute_metrics("classes", *rows("classes", 50, 5, 5))) == {"top_3_accuracy"}
    no_label = compute_metrics("multilabel", np.zeros((4, 3), np.int64), np.full((4, 3), 0.2))
    assert set(no_label) == {"subset_accuracy", "log_loss", "hamming_loss"}


@pytest.mark.parametrize("kind", KINDS)
def test_without_rows_there_are_no_metrics(kind):
    labels, predictions = rows(kind, 20, 4)
    assert compute_metrics(kind, labels[:0], predictions[:0]) == {}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_one_prediction_that_is_not_finite_spoils_every_metric(kind, bad):
    labels, predictions = rows(kind, 20, 4)
    predictions[3] = bad
    metrics = compute_metrics(kind, labels, predictions)
    assert set(metrics) == set(metric_names(kind))
    assert all(math.isnan(value) for value in metrics.values())


@pytest.mark.parametrize("name", ["log_loss", "brier", "ece"])
def test_rows_of_zeros_are_no_probabilities(name):
    assert math.isnan(compute_metrics("classes", np.array([0, 1, 2]), np.zeros((3, 3)))[name])
