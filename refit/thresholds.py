"""Which probability makes a row of a binary target positive: a threshold from the validation rows, by a stated rule.

A row is positive where its score is above the threshold. Between two neighbouring scores the threshold lies half way, as far as
their own precision can tell, so that a graph that compares in float32 decides the same.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refit.answers import HALF, Floats, Labels
from refit.config import LimitName, ThresholdName
from refit.errors import RequestError

LimitRule = Mapping[LimitName, float]
Scores = npt.NDArray[np.floating]


@dataclass(frozen=True)
class _Cuts:
    """Every way to cut the rows in two by their score, from all positive to none: thresholds, and who is above them, ``[cuts]`` each."""

    thresholds: Scores
    found: Floats
    wrong: Floats

    @property
    def num_positive(self) -> float:
        return float(self.found[0])

    @property
    def num_negative(self) -> float:
        return float(self.wrong[0])

    @property
    def recall(self) -> Floats:
        return self.found / self.num_positive

    @property
    def precision(self) -> Floats:
        """0 where no row is above the threshold."""
        above = self.found + self.wrong
        return np.divide(self.found, above, out=np.zeros(len(above)), where=above > 0)


def choose_threshold(labels: Labels, scores: Scores, rule: ThresholdName | LimitRule = "half") -> float:
    """The threshold that is best on rows that the model was not fitted to.

    Of thresholds that are equally good by the rule the one nearest to 0.5 is taken, of two as near the lower one.

    Args:
        labels: 0 or 1, ``[n]``.
        scores: probability of the positive class, ``[n]``.
        rule: ``half``: 0.5, whatever the rows; ``f1``, ``accuracy``, ``balanced_accuracy``: where that metric is highest;
            ``{"recall_at_least": x}``: where precision is highest of those that find so large a share of the positive rows;
            ``{"precision_at_least": x}``: where recall is highest of those that are right so often, and where none is, or finds any
            row, the threshold of the highest precision: whether the limit holds is for the gate to say.

    Returns:
        The threshold. It may be below 0, where every row is to be positive, and is 0.5 where the rows say nothing: without rows,
        with one class only, or with a score that is not finite.

    Raises:
        RequestError: there is no such rule.
    """
    _check_rule(rule)
    positive = labels == 1
    if rule == "half" or positive.all() or not positive.any() or not np.isfinite(scores).all():
        return HALF
    cuts = _cut(positive, scores)
    worth = _worth(cuts, rule)
    best = np.flatnonzero(worth >= worth.max() - 1e-12)
    distance = np.abs(cuts.thresholds[best].astype(np.float64) - HALF)
    return float(cuts.thresholds[best[int(np.argmin(distance))]])


def _check_rule(rule: ThresholdName | LimitRule) -> None:
    if rule in ("half", "f1", "balanced_accuracy", "accuracy"):
        return
    if isinstance(rule, Mapping) and len(rule) == 1:
        ((name, limit),) = rule.items()
        if name in ("recall_at_least", "precision_at_least") and 0 < limit <= 1:
            return
    raise RequestError(
        "there is no such rule for a threshold.",
        expected="half, f1, balanced_accuracy, accuracy, {recall_at_least: x} or {precision_at_least: x} with x above 0 and up to 1",
        received=repr(rule),
    )


def _cut(positive: npt.NDArray[np.bool_], scores: Scores) -> _Cuts:
    levels, which = np.unique(scores, return_inverse=True)
    per_level = [np.bincount(which, kind, len(levels)) for kind in (positive, ~positive)]
    found, wrong = (np.append(np.cumsum(counts[::-1])[::-1], 0.0) for counts in per_level)
    middle = levels[:-1] + (levels[1:] - levels[:-1]) / 2
    between = np.where(middle < levels[1:], middle, levels[:-1])
    lowest = levels[:1] / 2 if levels[0] > 0 else levels[:1] - 1
    highest = np.maximum(levels[-1:] / 2 + HALF, levels[-1:])
    return _Cuts(np.concatenate([lowest, between, highest]).astype(scores.dtype), found, wrong)


def _worth(cuts: _Cuts, rule: ThresholdName | LimitRule) -> Floats:
    """How good each threshold is by the rule; the best has the highest."""
    if isinstance(rule, Mapping):
        return _worth_within(cuts, rule)
    worths: dict[str, Floats] = {
        "accuracy": cuts.found - cuts.wrong,
        "balanced_accuracy": cuts.recall - cuts.wrong / cuts.num_negative,
        "f1": 2 * cuts.found / (cuts.num_positive + cuts.found + cuts.wrong),
    }
    return worths[rule]


def _worth_within(cuts: _Cuts, rule: LimitRule) -> Floats:
    recall, precision = cuts.recall, cuts.precision
    if "recall_at_least" in rule:
        return np.where(recall >= rule["recall_at_least"] - 1e-12, precision, -math.inf)
    is_right = (precision >= rule["precision_at_least"] - 1e-12) & (recall > 0)
    return np.where(is_right, recall, -math.inf) if is_right.any() else precision
