"""Intervals that cover what they promise, against definitions and published numbers, and differences found as often as was predicted."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom, norm

from refit.answers import Answers
from refit.paired_tests import bootstrap, delong, detectable, mcnemar, rows_needed
from refit.weighing import mean_of, squared_errors, weigh_auc, weigh_rmse


def hits(both=0, first=0, second=0, neither=0):
    """Who is right on how many rows."""
    counts = (both, first, second, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def scores(num_rows, random, *, gains=(1.0, 1.0), shared=0.5, share=0.5):
    """Labels, and normal scores of two models that rise with the label by their gains and have a part in common."""
    labels = (random.random(num_rows) < share).astype(np.int64)
    labels[:4] = [0, 0, 1, 1]
    common = random.normal(size=num_rows) * math.sqrt(shared)
    return labels, *(common + random.normal(size=num_rows) * math.sqrt(1 - shared) + gain * labels for gain in gains)


def is_within(times, trials, share):
    """Whether so many times are what a binomial distribution gives but for one in a thousand."""
    return binom.ppf(0.0005, trials, share) <= times <= binom.ppf(0.9995, trials, share)


# ---- shares of right answers


def test_mcnemar_gives_the_published_numbers_of_a_small_trial():
    # Source: Fagerland, Lydersen & Laake (2014), https://doi.org/10.1002/sim.6148: airway hyper-responsiveness before and after stem cell
    # transplantation, 1, 1, 7 and 12 of 21 children; exact p-value 0.0703, Tango's interval -0.517 to -0.026.
    found = mcnemar(*hits(1, 1, 7, 12), confidence=0.95)
    assert found.difference == pytest.approx(-6 / 21)
    assert found.p_value == pytest.approx(0.0703, abs=5e-5)
    assert found.low == pytest.approx(-0.517, abs=5e-4)
    assert found.high > 0  # where Tango's is -0.026: the exact test does not leave out zero, so the interval does not


def score_statistic(wins, losses, num_rows, difference):
    """McNemar's score statistic of a difference, with the share of losses that is most likely under it, found by search."""

    def minus_likelihood(share):
        shares = np.array([share + difference, share, 1 - 2 * share - difference])
        if (shares <= 0).any():
            return math.inf
        return -float(np.array([wins, losses, num_rows - wins - losses]) @ np.log(shares))

    low, high = max(0.0, -difference), (1 - difference) / 2
    share = minimize_scalar(minus_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (wins - losses - num_rows * difference) / math.sqrt(num_rows * (2 * share + difference - difference**2))


@pytest.mark.parametrize(("wins", "losses", "num_rows"), [(40, 60, 500), (90, 60, 400), (300, 20, 700), (55, 50, 10_000)])
def test_the_interval_ends_where_the_score_statistic_reaches_the_quantile(wins, losses, num_rows):
    found = mcnemar(*hits(0, wins, losses, num_rows - wins - losses), confidence=0.9)
    z = norm.ppf(0.95)
    # The exact interval is wider by a continuity correction at most, half a row on which one model is right and the other wrong.
    for end, sign in ((found.low, 1), (found.high, -1)):
        assert score_statistic(wins, losses, num_rows, end) * sign == pytest.approx(z, abs=1.2 / math.sqrt(wins + losses))
        assert score_statistic(wins, losses, num_rows, end) * sign > z - 1e-4


@given(counts=st.tuples(*[st.integers(0, 40)] * 4).filter(any), confidence=st.sampled_from([0.8, 0.95, 0.99]))
@settings(max_examples=200, deadline=None)
def test_the_interval_leaves_out_zero_only_where_the_exact_test_does_and_swapping_the_models_turns_it(counts, confidence):
    found = mcnemar(*hits(*counts), confidence=confidence)
    turned = mcnemar(*reversed(hits(*counts)), confidence=confidence)
    assert -1 <= found.low <= found.difference <= found.high <= 1
    assert not (found.low > 0 or found.high < 0) or found.p_value <= 1 - confidence + 1e-12
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=1e-9)
    assert turned.p_value == pytest.approx(found.p_value)


def test_rows_on_which_both_are_right_still_leave_a_difference_possible():
    found = mcnemar(*hits(both=400), confidence=0.95)
    # Source: Tango (1998), the interval without such rows: plus and minus z^2 / (n + z^2).
    bound = 1.959964**2 / (400 + 1.959964**2)
    assert (found.low, found.high, found.difference, found.p_value) == pytest.approx((-bound, bound, 0, 1), rel=1e-5)


@pytest.mark.parametrize(("first", "second", "num_rows"), [(0.02, 0.02, 100), (0.05, 0.02, 300), (0.3, 0.2, 60), (0.01, 0.001, 1000)])
def test_mcnemar_covers_the_true_difference_as_often_as_it_says(first, second, num_rows):
    random, covered = np.random.default_rng(0), 0
    for wins, losses, rest in random.multinomial(num_rows, [first, second, 1 - first - second], 400):
        found = mcnemar(*hits(rest, wins, losses), confidence=0.95)
        covered += found.low <= first - second <= found.high
    assert covered >= binom.ppf(0.001, 400, 0.95)


# ---- areas under the ROC curve


def delong_by_definition(labels, first, second):
    """Difference and its variance from all pairs. Source: DeLong, DeLong & Clarke-Pearson (1988), formulas 3 to 6."""
    parts = []
    for told in (first, second):
        positives, negatives = told[labels == 1][:, None], told[labels == 0][None]
        parts.append((positives > negatives) + 0.5 * (positives == negatives))
    areas = [part.mean() for part in parts]
    by_positive, by_negative = (np.cov(np.stack([part.mean(axis=axis) for part in parts])) for axis in (1, 0))
    covariance = by_positive / (labels == 1).sum() + by_negative / (labels == 0).sum()
    return areas[0] - areas[1], covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]


@pytest.mark.parametrize("decimals", [9, 0])
@pytest.mark.parametrize("share", [0.5, 0.05])
def test_delong_is_its_definition_with_ties_and_without(decimals, share):
    labels, first, second = scores(300, np.random.default_rng(1), gains=(1.5, 0.5), share=share)
    first, second = first.round(decimals), second.round(decimals)
    found = delong(labels, first, second, confidence=0.95)
    difference, variance = delong_by_definition(labels, first, second)
    assert (found.difference, found.standard_error) == pytest.approx((difference, math.sqrt(variance)))
    z = (found.high - found.difference) / found.standard_error
    assert 1.96 < z < (1.98 if share == 0.5 else 2.15)  # Student's quantile is the wider, the rarer the class


def test_delong_gives_an_auc_that_the_metric_gives_too():
    labels, first, second = scores(500, np.random.default_rng(2), gains=(1.5, 0.5))
    areas = [weigh_auc(Answers("binary", labels, np.stack([-told, told], axis=1)))(np.ones(500, np.uint8)) for told in (first, second)]
    assert delong(labels, first, second, confidence=0.9).difference == pytest.approx(areas[0] - areas[1])


def test_the_p_value_of_delong_is_below_the_rest_of_the_confidence_where_the_interval_leaves_out_zero():
    random = np.random.default_rng(3)
    for _ in range(50):
        found = delong(*scores(60, random, gains=(1.4, 0.8)), confidence=0.9)
        assert (found.low > 0 or found.high < 0) == (found.p_value < 0.1)


def test_with_one_row_of_a_class_delong_knows_nothing():
    labels = np.array([1, 0, 0, 0])
    found = delong(labels, np.array([0.9, 0.1, 0.2, 0.3]), np.array([0.0, 0.1, 0.2, 0.3]), confidence=0.95)
    assert (found.difference, found.low, found.high, found.p_value) == (1, -1, 1, 1)


def test_models_that_both_separate_the_classes_do_not_differ():
    found = delong(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.3, 0.1, 0.5, 0.6]), confidence=0.95)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


@pytest.mark.parametrize(("num_rows", "share"), [(200, 0.5), (200, 0.06)])
def test_delong_covers_the_true_difference_as_often_as_it_says(num_rows, share):
    random, covered = np.random.default_rng(4), 0
    truth = norm.cdf(1.5 / math.sqrt(2)) - norm.cdf(1 / math.sqrt(2))
    for _ in range(600):
        found = delong(*scores(num_rows, random, gains=(1.5, 1.0), share=share), confidence=0.95)
        covered += found.low <= truth <= found.high
    assert covered >= binom.ppf(0.001, 600, 0.94)


# ---- every other metric


def means(values):
    """The mean of values as a metric of rows."""
    return mean_of(lambda _: values)(Answers("regression", values, values))


def test_the_bootstrap_of_means_is_the_interval_of_student():
    values = np.random.default_rng(5).normal(size=(2, 40))
    found = bootstrap(means(values[0]), means(values[1]), num_rows=40, confidence=0.95, seed=0)
    paired = values[0] - values[1]
    # Source: Student's interval of paired differences, t(0.975; 39) = 2.0227.
    half = 2.0227 * paired.std(ddof=1) / math.sqrt(40)
    assert found.difference == pytest.approx(paired.mean())
    assert (found.low, found.high) == pytest.approx((paired.mean() - half, paired.mean() + half), abs=0.15 * half)
    assert found.standard_error == pytest.approx(paired.std(ddof=0) / math.sqrt(40), rel=0.08)
    assert found.method == "paired bootstrap, 1000 resamples, seed 0"


def test_the_p_value_of_the_bootstrap_is_that_of_student():
    values = np.random.default_rng(6).normal(size=50)
    values = (values - values.mean()) / values.std(ddof=1) * math.sqrt(50)  # a mean of t * 1
    found = bootstrap(means(values + 2.0), means(np.zeros(50)), num_rows=50, confidence=0.95, seed=0)
    assert found.p_value == pytest.approx(0.0511, abs=0.02)  # Source: 2 P(T > 2) with 49 degrees of freedom


def test_many_rows_take_fewer_resamples_to_about_the_same_interval():
    random = np.random.default_rng(7)
    values = random.normal(size=(2, 250_000))
    found = bootstrap(means(values[0]), means(values[1]), num_rows=250_000, confidence=0.95, seed=0)
    assert found.method == "paired bootstrap, 400 resamples, seed 0"
    half = 1.96 * (values[0] - values[1]).std() / 500
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.15)
    assert (found.high + found.low) / 2 == pytest.approx(found.difference)


def test_the_bootstrap_is_a_function_of_its_seed():
    first, second = (means(np.random.default_rng(seed).normal(size=100)) for seed in (8, 9))
    one, again, other = (bootstrap(first, second, num_rows=100, confidence=0.9, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert (one.low, one.high) != (other.low, other.high)


def test_resamples_that_do_not_define_the_metric_are_left_out_and_without_any_there_are_no_numbers():
    labels = np.array([0, 0, 1])
    good, bad = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]]), np.array([[0.1, 0.9], [0.8, 0.2], [0.5, 0.5]])
    weighed = [weigh_auc(Answers("binary", labels, told)) for told in (good, bad)]
    found = bootstrap(*weighed, num_rows=3, confidence=0.9, seed=0)
    assert (found.low, found.difference, found.high) == (0, 0.5, 1)
    weighed = [weigh_auc(Answers("binary", np.zeros(3, np.int64), told)) for told in (good, bad)]
    assert math.isnan(bootstrap(*weighed, num_rows=3, confidence=0.9, seed=0).low)


def test_the_bootstrap_of_a_curved_metric_covers_the_true_difference_as_often_as_it_says():
    random, covered = np.random.default_rng(10), 0
    for seed in range(100):
        noise = random.normal(size=(2, 80)) * [[1.0], [1.3]]
        weighed = [weigh_rmse(Answers("regression", np.zeros(80), told)) for told in noise]
        found = bootstrap(*weighed, num_rows=80, confidence=0.95, seed=seed)
        covered += found.low <= -0.3 <= found.high
    assert covered >= binom.ppf(0.001, 100, 0.94)


# ---- what so many rows can find


def test_a_smaller_difference_needs_more_rows_by_the_square():
    assert rows_needed(0.01, 0.02, 1000) == 4000
    assert rows_needed(-0.02, 0.02, 1000) == 1000
    assert rows_needed(1e-200, 1e200, 10) == 10**13


def test_the_detectable_difference_is_the_textbook_one():
    # Source: z(0.975) + z(0.8) = 1.959964 + 0.841621.
    assert detectable(2.0, confidence=0.95) == pytest.approx(2 * 2.801585)


def test_a_better_accuracy_is_found_as_often_as_predicted():
    first, second = 0.10, 0.06
    error = mcnemar(*hits(840, 100, 60), confidence=0.95).standard_error
    num_rows = rows_needed(first - second, detectable(error, confidence=0.95), 1000)
    assert num_rows == pytest.approx(785, abs=2)  # Source: Connor (1987), https://doi.org/10.2307/2531961, gives 779
    drawn = np.random.default_rng(11).multinomial(num_rows, [first, second, 1 - first - second], 500)
    found = sum(mcnemar(*hits(rest, wins, losses), confidence=0.95).low > 0 for wins, losses, rest in drawn)
    assert is_within(found, 500, 0.79)  # the exact test costs a point of power


def test_a_better_auc_is_found_as_often_as_predicted():
    random = np.random.default_rng(12)
    truth = norm.cdf(1.2 / math.sqrt(2)) - norm.cdf(1 / math.sqrt(2))
    error = delong(*scores(100_000, random, gains=(1.2, 1.0)), confidence=0.95).standard_error
    num_rows = rows_needed(truth, detectable(error, confidence=0.95), 100_000)
    found = sum(delong(*scores(num_rows, random, gains=(1.2, 1.0)), confidence=0.95).low > 0 for _ in range(500))
    assert is_within(found, 500, 0.8)


def test_a_better_error_is_found_as_often_as_predicted():
    random = np.random.default_rng(13)

    def compare(num_rows, seed):
        noise = random.normal(size=(2, num_rows)) * [[1.0], [1.15]]
        weighed = [mean_of(squared_errors)(Answers("regression", np.zeros(num_rows), told)) for told in noise]
        return bootstrap(*weighed, num_rows=num_rows, confidence=0.95, seed=seed)

    truth = 1.15**2 - 1
    num_rows = rows_needed(truth, detectable(compare(50_000, 0).standard_error, confidence=0.95), 50_000)
    found = sum(compare(num_rows, seed).high < 0 for seed in range(100))
    assert is_within(found, 100, 0.8)
