"""A chosen threshold is as good by its rule as any that there is, and defined where the rows decide nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, precision_score, recall_score

from refit.answers import Answers
from refit.errors import RequestError
from refit.thresholds import choose_threshold

MEASURES = {"f1": f1_score, "accuracy": accuracy_score, "balanced_accuracy": balanced_accuracy_score}


def rows(seed, num_rows, decimals, dtype):
    random = np.random.default_rng(seed)
    labels = (random.random(num_rows) < 0.3).astype(np.int64)
    labels[:2] = [0, 1]
    scores = np.clip(0.3 * labels + random.normal(0.3, 0.2, num_rows), 0, 1).round(decimals).astype(dtype)
    return labels, scores


def decided(labels, scores, threshold):
    """As a metric decides by it."""
    return Answers("binary", labels, np.stack([1 - scores, scores], axis=1), threshold).chosen


def every_decision(scores):
    """All ways to cut the rows in two by their score."""
    return [scores > level for level in (-1.0, *np.unique(scores))]


some_rows = st.builds(rows, st.integers(0, 2**31), st.integers(2, 40), st.integers(1, 3), st.sampled_from([np.float32, np.float64]))


@pytest.mark.parametrize("rule", sorted(MEASURES))
@settings(max_examples=60, deadline=None)
@given(told=some_rows)
def test_no_other_threshold_is_better_by_the_rule(rule, told):
    labels, scores = told
    found = MEASURES[rule](labels, decided(labels, scores, choose_threshold(labels, scores, rule)))
    assert found == pytest.approx(max(MEASURES[rule](labels, chosen) for chosen in every_decision(scores)))


@settings(max_examples=60, deadline=None)
@given(told=some_rows, limit=st.floats(0.05, 1))
def test_a_recall_is_reached_with_the_highest_precision_that_it_allows(told, limit):
    labels, scores = told
    chosen = decided(labels, scores, choose_threshold(labels, scores, {"recall_at_least": limit}))
    allowed = [other for other in every_decision(scores) if recall_score(labels, other) >= limit - 1e-12]
    assert recall_score(labels, chosen) >= limit - 1e-12
    assert precision_score(labels, chosen) == pytest.approx(max(precision_score(labels, other, zero_division=0) for other in allowed))


@settings(max_examples=60, deadline=None)
@given(told=some_rows, limit=st.floats(0.05, 1))
def test_a_precision_is_reached_with_the_highest_recall_that_it_allows_or_come_near_to(told, limit):
    labels, scores = told
    chosen = decided(labels, scores, choose_threshold(labels, scores, {"precision_at_least": limit}))
    others = [other for other in every_decision(scores) if (other & (labels == 1)).any()]
    allowed = [other for other in others if precision_score(labels, other) >= limit - 1e-12]
    if allowed:
        assert precision_score(labels, chosen) >= limit - 1e-12
        assert recall_score(labels, chosen) == pytest.approx(max(recall_score(labels, other) for other in allowed))
    else:
        assert precision_score(labels, chosen) == pytest.approx(max(precision_score(labels, other) for other in others))


def test_a_threshold_lies_half_way_between_two_scores():
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.9])
    assert choose_threshold(labels, scores, "f1") == pytest.approx(0.25)
    assert choose_threshold(labels, scores, {"precision_at_least": 1.0}) == pytest.approx(0.25)
    assert choose_threshold(labels, scores) == 0.5


def test_of_equally_good_thresholds_the_one_nearest_to_a_half_is_taken_and_of_two_the_lower():
    labels, scores = np.array([1, 0, 1, 0]), np.array([0.2, 0.4, 0.6, 0.8])
    # Half of the rows are right with all positive, with none, and with the upper two.
    assert choose_threshold(labels, scores, "accuracy") == pytest.approx(0.5)
    labels, scores = np.array([0, 1, 0, 1]), np.array([0.2, 0.4, 0.6, 0.8])
    assert choose_threshold(labels, scores, "accuracy") == pytest.approx(0.3)  # as good as 0.7


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_neighbouring_numbers_are_told_apart_in_their_own_precision(dtype):
    low = dtype(0.7)
    scores = np.array([low, np.nextafter(low, dtype(1))], dtype)
    threshold = choose_threshold(np.array([0, 1]), scores, "accuracy")
    assert (scores > dtype(threshold)).tolist() == [False, True]
    assert decided(np.array([0, 1]), scores, threshold).tolist() == [0, 1]


@pytest.mark.parametrize("lowest", [0.0, 0.3])
def test_every_row_may_be_positive_and_rows_with_a_lower_score_too(lowest):
    labels, scores = np.array([1, 0, 1]), np.array([lowest, 0.5, 0.9], np.float32)
    threshold = choose_threshold(labels, scores, {"recall_at_least": 1.0})
    assert threshold < lowest
    assert decided(labels, scores, threshold).tolist() == [1, 1, 1]


def test_no_row_may_be_positive_where_that_is_most_often_right():
    labels, scores = np.array([0, 0, 0, 1]), np.array([0.6, 0.7, 0.9, 0.2])
    threshold = choose_threshold(labels, scores, "accuracy")
    assert threshold == pytest.approx(0.95)
    certain = choose_threshold(labels, np.array([0.6, 0.7, 1.0, 0.2]), "accuracy")
    assert certain == 1.0
    assert decided(labels, np.array([0.6, 0.7, 1.0, 0.2]), certain).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("rule", ["half", "f1", "accuracy", "balanced_accuracy", {"recall_at_least": 0.9}, {"precision_at_least": 0.9}])
@pytest.mark.parametrize(
    ("labels", "scores"),
    [([], []), ([1, 1], [0.1, 0.9]), ([0, 0], [0.1, 0.9]), ([0, 1], [0.1, np.nan]), ([0, 1], [0.1, np.inf])],
)
def test_rows_that_say_nothing_leave_the_threshold_at_a_half(rule, labels, scores):
    assert choose_threshold(np.array(labels, np.int64), np.array(scores, np.float32), rule) == 0.5


def test_equal_scores_are_not_divided():
    labels, scores = np.array([0, 1, 1]), np.array([0.4, 0.4, 0.4])
    assert decided(labels, scores, choose_threshold(labels, scores, "accuracy")).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "rule",
    ["best", {}, {"recall": 0.9}, {"recall_at_least": 0}, {"precision_at_least": 1.1}, {"recall_at_least": 0.5, "precision_at_least": 0.5}],
)
def test_an_unknown_rule_is_refused(rule):
    with pytest.raises(RequestError, match="there is no such rule for a threshold") as raised:
        choose_threshold(np.array([0, 1]), np.array([0.1, 0.9]), rule)
    assert repr(rule) in str(raised.value)
