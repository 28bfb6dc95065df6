"""How sure the difference of two models is that were asked about the same rows: an interval, a p-value and its standard error.

McNemar's test for shares of right answers, DeLong's for areas under the ROC curve, a bootstrap for every other metric.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refit.answers import Floats, Labels
from refit.weighing import Counts, Weighed

POWER = 0.8
MAX_DRAWS = 100_000_000
RESAMPLES = (100, 1000)


@dataclass(frozen=True)
class PairedTest:
    """First model minus second, in the metric's unit. ``standard_error`` is NaN, and the interval wide, where the rows are too few."""

    difference: float
    low: float
    high: float
    p_value: float
    standard_error: float
    method: str


def detectable(standard_error: float, *, confidence: float) -> float:
    """The smallest difference that a two-sided interval on so many rows leaves on one side of zero with a probability of 80 %.

    Source: Cohen (1988), Statistical power analysis for the behavioral sciences, chapter 2, https://doi.org/10.4324/9780203771587
    """
    from scipy.stats import norm

    return float(norm.ppf((1 + confidence) / 2) + norm.ppf(POWER)) * standard_error


def rows_needed(gap: float, detected: float, num_rows: int) -> int:
    """Rows that show a difference of ``gap`` 80 times in 100, where ``num_rows`` show one of ``detected``: errors shrink by the root.

    A gap of next to nothing counts as a millionth of ``detected``.
    """
    return math.ceil(num_rows * min(detected / max(abs(gap), 1e-300), 1e6) ** 2)


# ---- shares of right answers


def mcnemar(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_], *, confidence: float) -> PairedTest:
    """Difference of the shares of rows that two models have right, from the rows on which one is right and the other wrong.

    The p-value is that of the exact test. The interval is Tango's score interval, which allows for how many such rows there happen
    to be, widened where the exact interval of the share that the first model wins of them is wider: so it never leaves out zero
    where the exact test does not.

    Args:
        first: whether the first model is right, ``[n]``; n > 0.
        second: whether the second is, for the same rows.
        confidence: two-sided.

    Source:
        McNemar (1947), https://doi.org/10.1007/BF02295996; Tango (1998), Equivalence test and confidence interval for the difference
        in proportions for the paired-sample design, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8%3C891::AID-SIM780%3E3.0.CO;2-B;
        compared with others by Fagerland, Lydersen & Laake (2014), https://doi.org/10.1002/sim.6148
    """
    from scipy.stats import binomtest, norm

    num_rows, wins, losses = len(first), int((first & ~second).sum()), int((~first & second).sum())
    z = float(norm.ppf((1 + confidence) / 2))
    low, high, p_value, told = _tango_low(wins, losses, num_rows, z), -_tango_low(losses, wins, num_rows, z), 1.0, wins + losses
    if told:
        exact = binomtest(wins, told)
        share, p_value = exact.proportion_ci(confidence, method="exact"), float(exact.pvalue)
        low, high = min(low, (2 * share.low - 1) * told / num_rows), max(high, (2 * share.high - 1) * told / num_rows)
    method = f"McNemar's exact test, Tango's score interval, {told:,} rows on which one model is right and the other wrong"
    return PairedTest((wins - losses) / num_rows, float(low), float(high), p_value, math.sqrt(told) / num_rows, method)


def _tango_low(wins: int, losses: int, num_rows: int, z: float) -> float:
    """The lower end: where the score statistic of a difference below the observed one reaches z; formulas 4 to 9 of Tango (1998)."""
    from scipy.optimize import brentq

    observed = (wins - losses) / num_rows

    def excess(difference: float) -> float:
        b = (2 * num_rows - wins + losses) * difference - wins - losses
        c = -losses * difference * (1 - difference)
        share = (math.sqrt(max(b * b - 8 * num_rows * c, 0.0)) - b) / (4 * num_rows)
        variance = num_rows * (2 * share + difference * (1 - difference))
        return wins - losses - num_rows * difference - z * math.sqrt(max(variance, 0.0))

    nearly = observed - 1e-12
    return float(brentq(excess, -1.0, nearly)) if nearly > -1 and excess(nearly) < 0 else observed


# ---- areas under the ROC curve


def delong(labels: Labels, first: npt.NDArray[np.floating], second: npt.NDArray[np.floating], *, confidence: float) -> PairedTest:
    """Difference of the areas under two ROC curves, by the share of rows of the other class that each row is on the right side of.

    Its variance is DeLong's, by sorting instead of comparing all pairs. As those shares are means of few rows where a class is rare, the
    quantile is Student's with Satterthwaite's degrees of freedom. Where a class has fewer than two rows nothing is known: -1 to 1.

    Args:
        labels: 1 is the positive class, ``[n]``; both classes occur.
        first: scores of the first model, ``[n]``.
        second: those of the second.
        confidence: two-sided.

    Source:
        DeLong, DeLong & Clarke-Pearson (1988), https://doi.org/10.2307/2531595; Sun & Xu (2014), Fast implementation of DeLong's
        algorithm, https://doi.org/10.1109/LSP.2014.2337313; the quantile: Brunner & Munzel (2000), The nonparametric
        Behrens-Fisher problem, https://doi.org/10.1002/(SICI)1521-4036(200001)42:1%3C17::AID-BIMJ17%3E3.0.CO;2-U
    """
    from scipy.stats import t

    is_positive, method = labels == 1, "DeLong's test of two AUCs"
    of_positives, of_negatives = (a - b for a, b in zip(_placements(is_positive, first), _placements(is_positive, second), strict=True))
    difference = float(of_positives.mean())
    if min(len(of_positives), len(of_negatives)) < 2:
        return PairedTest(difference, -1.0, 1.0, 1.0, math.nan, f"{method}, for which there are too few rows of a class")
    parts = [(float(shares.var(ddof=1)) / len(shares), len(shares) - 1) for shares in (of_positives, of_negatives)]
    variance = sum(part for part, _ in parts)
    if not variance:
        return PairedTest(difference, difference, difference, 1.0, 0.0, method)
    error, freedom = math.sqrt(variance), variance**2 / sum(part**2 / free for part, free in parts)
    half = float(t.ppf((1 + confidence) / 2, freedom)) * error
    p_value = 2 * float(t.sf(abs(difference) / error, freedom))
    return PairedTest(difference, max(difference - half, -1.0), min(difference + half, 1.0), p_value, error, method)


def _placements(is_positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> tuple[Floats, Floats]:
    """For each positive row the share of negatives below it, for each negative the share of positives above it; equals count half."""
    positives, negatives = scores[is_positive], scores[~is_positive]
    return _share_below(negatives, positives), 1 - _share_below(positives, negatives)


def _share_below(rivals: npt.NDArray[np.floating], scores: npt.NDArray[np.floating]) -> Floats:
    ordered = np.sort(rivals)
    below = np.searchsorted(ordered, scores, side="left") + np.searchsorted(ordered, scores, side="right")
    share: Floats = below / (2 * len(rivals))
    return share


# ---- every other metric


def bootstrap(first: Weighed, second: Weighed, *, num_rows: int, confidence: float, seed: int, row_size: int = 1) -> PairedTest:
    """Difference of a metric of two models, both measured on the same resampled rows.

    How often a row is drawn is Poisson(1), which for many rows is drawing with replacement. A thousand resamples give the
    percentile interval, expanded to what Student's quantile makes of so many rows. Where they would take too long, a hundred or more
    give the standard error, and the interval is Student's: with so many rows the difference is normal.

    Args:
        first: the metric of the first model for rows that count so often, as ``MetricSpec.weigh`` gives it.
        second: that of the second.
        num_rows: n > 0.
        row_size: numbers that the metric takes of a row, for how long it takes.
        confidence: two-sided.
        seed: of the resampling.

    Source:
        Efron & Tibshirani (1993), An Introduction to the Bootstrap, section 13.3, https://doi.org/10.1201/9780429246593; Poisson:
        Hanley & MacGibbon (2006), https://doi.org/10.1016/j.cmpb.2006.04.006; the expanded interval: Hesterberg (2015), What teachers
        should know about the bootstrap, https://doi.org/10.1080/00031305.2015.1089789; a hundred for a standard error: Efron &
        Tibshirani, section 6.4
    """
    fewest, most = RESAMPLES
    num_resamples = min(most, max(fewest, MAX_DRAWS // (num_rows * row_size)))
    method = f"paired bootstrap, {num_resamples} resamples, seed {seed}"
    ones = np.ones(num_rows, np.uint8)
    difference = first(ones) - second(ones)
    drawn = _resample(first, second, num_rows=num_rows, seed=seed, num_resamples=num_resamples)
    if len(drawn) < 2:
        return PairedTest(difference, math.nan, math.nan, math.nan, math.nan, method)
    error = float(drawn.std(ddof=1))
    interval = _percentile_interval if num_resamples == most else _student_interval
    low, high, p_value = interval(difference, drawn, num_rows, confidence)
    return PairedTest(difference, low, high, p_value, error, method)


def _percentile_interval(_: float, drawn: Floats, num_rows: int, confidence: float) -> tuple[float, float, float]:
    from scipy.stats import norm, t

    expansion = math.sqrt(num_rows / max(num_rows - 1, 1))
    freedom = max(num_rows - 1, 1)
    tail = float(norm.sf(expansion * t.ppf((1 + confidence) / 2, freedom)))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    beyond = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    p_value = 2 * float(t.sf(norm.isf((beyond + 1) / (len(drawn) + 1)) / expansion, freedom))
    return float(low), float(high), min(1.0, p_value)


def _student_interval(difference: float, drawn: Floats, _: int, confidence: float) -> tuple[float, float, float]:
    from scipy.stats import t

    error, freedom = float(drawn.std(ddof=1)), len(drawn) - 1
    half = float(t.ppf((1 + confidence) / 2, freedom)) * error
    return difference - half, difference + half, 2 * float(t.sf(abs(difference) / error, freedom)) if error else 1.0


def _resample(first: Weighed, second: Weighed, *, num_rows: int, seed: int, num_resamples: int) -> Floats:
    """Differences over the resamples that define the metric (one that drew a single class has no precision)."""
    generator, frequencies = np.random.default_rng(seed), _poisson_table()
    differences = np.empty(num_resamples)
    for index in range(num_resamples):
        counts = frequencies[generator.integers(0, len(frequencies), num_rows, dtype=np.uint16)]
        differences[index] = first(counts) - second(counts)
    return differences[np.isfinite(differences)]


def _poisson_table() -> Counts:
    """65,536 numbers of which each is equally likely: Poisson(1) to 1e-5, eight times as fast to draw as numpy's own."""
    probabilities = [math.exp(-1) / math.factorial(count) for count in range(12)]
    levels = (np.arange(2**16) + 0.5) / 2**16
    return np.searchsorted(np.cumsum(probabilities), levels).astype(np.uint8)
