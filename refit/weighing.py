"""Metrics of rows that count a given number of times each, which is what a bootstrap asks again and again.

Each function here prepares the rows once and gives a function from counts ``[n]`` to the value of the metric for the rows
repeated so often, without repeating them; NaN where they do not define it.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from refit.answers import Answers, Floats, Integers

Counts = npt.NDArray[np.uint8]
Weighed = Callable[[Counts], float]
Weigh = Callable[[Answers], Weighed]
NUM_BINS = 15


def measure_once(weigh: Weigh) -> Callable[[Answers], float]:
    """The metric of rows that count once each."""
    return lambda answers: weigh(answers)(np.ones(len(answers), np.uint8))


def _dot(counts: Counts, values: Floats) -> float:
    """Sum of values that count so often. As fast as ``@``, whose threads wait for each other where the processor is busy."""
    return float(np.einsum("i,i->", counts, values))


# ---- means of one value a row


def mean_of(rows: Callable[[Answers], Floats]) -> Weigh:
    """The mean of ``rows(answers)``, ``[n]``."""

    def weigh(answers: Answers) -> Weighed:
        values = rows(answers)
        return lambda counts: _ratio(_dot(counts, values), float(counts.sum()), math.nan)

    return weigh


def hits(answers: Answers) -> Floats:
    """1 where the decision is right, else 0."""
    return answers.hits


def top_hits(num_best: int) -> Callable[[Answers], Floats]:
    """1 where the class is among the most probable ones, else 0; of equals the later class comes first, as in scikit-learn.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.metrics.top_k_accuracy_score.html
    """

    def rows(answers: Answers) -> Floats:
        labels = answers.labels.astype(np.int64)[:, None]
        told: npt.NDArray[np.floating] = np.take_along_axis(answers.predictions, labels, axis=1)
        is_later = np.arange(answers.num_classes)[None] > labels
        ahead = ((answers.predictions > told) | ((answers.predictions == told) & is_later)).sum(axis=1)
        is_hit: Floats = (ahead < num_best).astype(np.float64)
        return is_hit

    return rows


def surprises(answers: Answers) -> Floats:
    """Minus the log of the true class's probability, multilabel: the mean over labels; 0 counts as float64's smallest step.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.metrics.log_loss.html
    """
    told, smallest = answers.probabilities, np.finfo(np.float64).eps
    if answers.kind == "multilabel":
        true = np.where(answers.labels == 1, told, 1 - told)
    else:
        true = told[np.arange(len(answers)), answers.labels.astype(np.int64)]
    logs: Floats = -np.log(np.clip(true, smallest, 1 - smallest))
    return logs if logs.ndim == 1 else logs.mean(axis=1)


def brier_scores(answers: Answers) -> Floats:
    """Squared distance of the probabilities from the truth; of a binary target that of the positive class alone (half of it).

    Source: Brier (1950), Verification of forecasts expressed in terms of probability,
    https://doi.org/10.1175/1520-0493(1950)078%3C0001:VOFEIT%3E2.0.CO;2
    """
    told = answers.probabilities
    true = told[np.arange(len(answers)), answers.labels.astype(np.int64)]
    squares: Floats = np.square(told).sum(axis=1) - 2 * true + 1
    return squares / 2 if answers.kind == "binary" else squares


def wrong_labels(answers: Answers) -> Floats:
    """Share of the labels that are wrong."""
    share: Floats = (answers.chosen != answers.labels).mean(axis=1)
    return share


def absolute_errors(answers: Answers) -> Floats:
    """Distance of prediction and label."""
    return np.abs(answers.errors)


def squared_errors(answers: Answers) -> Floats:
    """Squared distance of prediction and label."""
    return np.square(answers.errors)


def relative_errors(answers: Answers) -> Floats:
    """Distance of prediction and label as a share of the label."""
    sizes: Floats = np.maximum(np.abs(answers.labels.astype(np.float64)), np.finfo(np.float64).eps)
    return np.abs(answers.errors) / sizes


# ---- functions of several means


def weigh_rmse(answers: Answers) -> Weighed:
    """Root of the mean squared error."""
    mean = mean_of(squared_errors)(answers)
    return lambda counts: math.sqrt(mean(counts))


def weigh_r2(answers: Answers) -> Weighed:
    """R² from sums over rows; labels are centred first, so that the variance loses no digits.

    Source: 1 - sum (y - f)^2 / sum (y - mean y)^2, https://en.wikipedia.org/wiki/Coefficient_of_determination
    """
    errors = squared_errors(answers)
    wide = answers.labels.astype(np.float64)
    centred = wide - wide.mean()
    squares = np.square(centred)

    def weighed(counts: Counts) -> float:
        spread = _dot(counts, squares) - _dot(counts, centred) ** 2 / max(float(counts.sum()), 1.0)
        return 1 - _dot(counts, errors) / spread if spread > 0 else math.nan

    return weighed


# ---- functions of how many rows have, and are given, each class


Tally = tuple[Floats, Floats, Floats]


def _tally(answers: Answers) -> Callable[[Counts], Tally]:
    """Rows of each class, or label, that are right, that have it, and that are given it: three times ``[k]``."""
    labels, chosen, num_classes = answers.labels.astype(np.int64), answers.chosen, answers.num_classes
    if answers.kind == "multilabel":
        three = np.ascontiguousarray(np.concatenate([labels * chosen, labels, chosen], axis=1).T, np.float32)
        return lambda counts: _split(three @ counts.astype(np.float32))
    pairs, which = np.unique(labels * num_classes + chosen, return_inverse=True)
    actual, given = np.divmod(pairs, num_classes)

    def tally(counts: Counts) -> Tally:
        mass = np.bincount(which, counts, len(pairs)).astype(np.float64)
        rows = (mass * (actual == given), mass, mass)
        return _split(np.concatenate([np.bincount(of, told, num_classes) for of, told in zip((actual, actual, given), rows, strict=True)]))

    return tally


def _split(numbers: npt.NDArray[np.floating]) -> Tally:
    first, second, third = numbers.astype(np.float64).reshape(3, -1)
    return first, second, third


def weigh_recall(answers: Answers) -> Weighed:
    """Share of the positive rows that are found."""
    return _of_tally(answers, lambda right, actual, _: _ratio(right[1], actual[1], math.nan))


def weigh_precision(answers: Answers) -> Weighed:
    """Share of the rows found positive that are; 0 where none is found."""
    return _of_tally(answers, lambda right, actual, chosen: _ratio(right[1], chosen[1], 0.0 if actual.any() else math.nan))


def weigh_f1(answers: Answers) -> Weighed:
    """Harmonic mean of precision and recall."""
    return _of_tally(answers, lambda right, actual, chosen: _ratio(2 * right[1], actual[1] + chosen[1] if actual[1] else 0, math.nan))


def weigh_balanced_accuracy(answers: Answers) -> Weighed:
    """Mean over the classes among the labels of the share that is right."""
    return _of_tally(answers, lambda right, actual, _: _mean_ratio(right, actual))


def weigh_macro_f1(answers: Answers) -> Weighed:
    """Mean of F1 over the classes, or labels, that some row has or is given."""
    return _of_tally(answers, lambda right, actual, chosen: _mean_ratio(2 * right, actual + chosen))


def weigh_micro_f1(answers: Answers) -> Weighed:
    """F1 over all labels of all rows as if they were one."""
    return _of_tally(answers, lambda right, actual, chosen: _ratio(2 * right.sum(), actual.sum() + chosen.sum(), math.nan))


def _of_tally(answers: Answers, value: Callable[[Floats, Floats, Floats], float]) -> Weighed:
    tally = _tally(answers)
    return lambda counts: value(*tally(counts))


def _ratio(part: float, whole: float, otherwise: float) -> float:
    return float(part / whole) if whole else otherwise


def _mean_ratio(parts: Floats, wholes: Floats) -> float:
    is_there = wholes > 0
    return float((parts[is_there] / wholes[is_there]).mean()) if is_there.any() else math.nan


# ---- functions of the order of rows; they are sorted once


def weigh_auc(answers: Answers) -> Weighed:
    """Area under the ROC curve: the share of pairs whose positive scores above their negative, ties by half.

    Source: Mann & Whitney (1947), https://doi.org/10.1214/aoms/1177730491; Hanley & McNeil (1982), https://doi.org/10.1148/radiology.143.1.7063747
    """
    labels, scores = answers.labels, answers.scores
    order = np.argsort(scores, kind="stable")
    positives, negatives = order[labels[order] == 1], order[labels[order] != 1]
    winners, rivals = scores[positives], scores[negatives]
    below, up_to = np.searchsorted(rivals, winners, side="left"), np.searchsorted(rivals, winners, side="right")

    def weighed(counts: Counts) -> float:
        num_rivals, weights = _cumulate(counts[negatives]), counts[positives]
        pairs = float(weights.sum()) * float(num_rivals[-1])
        return _dot(weights, num_rivals[below] + num_rivals[up_to]) / 2 / pairs if pairs > 0 else math.nan

    return weighed


def _cumulate(counts: Counts) -> Integers:
    """Sums of the first 0, 1, 2, ... counts."""
    sums = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=sums[1:])
    return sums


def weigh_macro_auc(answers: Answers) -> Weighed:
    """Mean area under the ROC curve over the labels that some rows have and others have not."""
    areas = [weigh_auc(label) for label in answers.by_label()]

    def weighed(counts: Counts) -> float:
        values = [value for area in areas if not math.isnan(value := area(counts))]
        return float(np.mean(values)) if values else math.nan

    return weighed


def weigh_pr_auc(answers: Answers) -> Weighed:
    """Average precision: the mean over positive rows of the precision among the rows that score as high or higher.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.metrics.average_precision_score.html
    """
    order = np.argsort(-answers.scores, kind="stable")
    is_positive = answers.labels[order] == 1
    positives, negatives = order[is_positive], order[~is_positive]
    scores = -answers.scores
    found_by = np.searchsorted(scores[positives], scores[positives], side="right")
    taken_by = np.searchsorted(scores[negatives], scores[positives], side="right")

    def weighed(counts: Counts) -> float:
        weights = counts[positives]
        found, wrong, total = _cumulate(weights)[found_by], _cumulate(counts[negatives])[taken_by], float(weights.sum())
        precision = found / np.maximum(found + wrong, 1)
        return _dot(weights, precision) / total if total > 0 else math.nan

    return weighed


def weigh_quantile(share: float) -> Weigh:
    """Quantile of the absolute errors, between two rows by linear interpolation."""

    def weigh(answers: Answers) -> Weighed:
        errors = absolute_errors(answers)
        order = np.argsort(errors)
        ordered = errors[order]

        def weighed(counts: Counts) -> float:
            if not counts.any():
                return math.nan
            ends = _cumulate(counts[order])[1:]
            rank = share * (int(ends[-1]) - 1)
            low, high = ordered[np.searchsorted(ends, [math.floor(rank), math.ceil(rank)], side="right")]
            return float(low + (high - low) * (rank - math.floor(rank)))

        return weighed

    return weigh


def weigh_ece(answers: Answers) -> Weighed:
    """Expected calibration error: how far the rows' mean probability lies from the share that is right, over 15 bins of as many rows each.

    Of classes the probability is that of the class chosen, of a binary target that of the positive class. Rows whose probability is
    the same to four digits fall into the same bin, so that their order does not matter.

    Source: Guo et al. (2017), On calibration of modern neural networks, https://proceedings.mlr.press/v70/guo17a.html; bins of as many rows
    each: Roelofs et al. (2022), Mitigating bias in calibration error estimation, https://proceedings.mlr.press/v151/roelofs22a.html
    """
    told, is_right = _stated(answers)
    levels, which = np.unique(np.round(told, 4), return_inverse=True)
    excess = is_right - told

    def weighed(counts: Counts) -> float:
        mass, total = np.bincount(which, counts, len(levels)), float(counts.sum())
        if not total:
            return math.nan
        bins: Integers = ((np.cumsum(mass) - mass / 2) * NUM_BINS / total).astype(np.int64)
        gaps = np.bincount(bins, np.bincount(which, counts * excess, len(levels)))
        return float(np.abs(gaps).sum()) / total

    return weighed


def _stated(answers: Answers) -> tuple[Floats, Floats]:
    """The probability that a row's answer states, and whether it was right."""
    told = answers.probabilities
    if answers.kind == "binary":
        return told[:, 1], (answers.labels == 1).astype(np.float64)
    return told.max(axis=1), answers.hits
