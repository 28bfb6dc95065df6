"""The metrics that refit computes: which target each is for, which direction is better, and two forms of each.

``measure`` takes rows and gives the value. ``weigh`` prepares the same rows once and then gives the value again and again
for rows that count a given number of times each, which is what a bootstrap needs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from refit import weighing
from refit.answers import HALF, Answers, Labels, Predictions
from refit.config import TargetKind
from refit.weighing import Weigh, mean_of, measure_once

Measure = Callable[[Answers], float]


def _has_rows(answers: Answers) -> bool:
    return len(answers) > 0


@dataclass(frozen=True)
class MetricSpec:
    """One metric.

    ``measure(answers)`` is its value, NaN where the rows do not define it. ``weigh(answers)(counts)`` is the value of the rows
    repeated ``counts`` times, ``[n]``, without repeating them. ``is_defined`` says whether the rows have a value at all.
    """

    kinds: tuple[TargetKind, ...]
    higher_is_better: bool
    measure: Measure
    weigh: Weigh
    is_defined: Callable[[Answers], bool] = _has_rows


def compute_metrics(kind: TargetKind, labels: Labels, predictions: Predictions, *, threshold: float = HALF) -> dict[str, float]:
    """All metrics of the kind of target.

    Args:
        kind: of the target.
        labels: ``[n]``, multilabel ``[n, k]``, as ``Answers`` has them.
        predictions: ``[n, k]`` probabilities or ``[n]`` values, as ``Answers`` has them.
        threshold: probability above which a binary target is positive, or a label of a multilabel one holds.

    Returns:
        Values by name. A metric that the rows do not define is left out: AUC with one class, R² with one value, the percentage
        error where a label is 0, all without rows. Every value is NaN where a prediction is not finite.
    """
    answers = Answers(kind, labels, predictions, threshold)
    names = [name for name in metric_names(kind) if METRICS[name].is_defined(answers)]
    if not np.isfinite(predictions).all():
        return dict.fromkeys(names, math.nan)
    return {name: METRICS[name].measure(answers) for name in names}


def metric_names(kind: TargetKind) -> list[str]:
    """Names of the metrics of a kind of target, those that people ask for first in front."""
    return [name for name, spec in METRICS.items() if kind in spec.kinds]


def default_metric(kind: TargetKind) -> str:
    """The metric that is compared where the job names none."""
    names: dict[TargetKind, str] = {"classes": "accuracy", "binary": "auc", "regression": "rmse", "multilabel": "log_loss"}
    return names[kind]


# ---- what rows must have


def _has_two_values(answers: Answers) -> bool:
    return len(answers) > 1 and bool((answers.labels != answers.labels[0]).any())


def _has_a_label(answers: Answers) -> bool:
    return len(answers) > 0 and (answers.kind != "multilabel" or bool(answers.labels.any()))


def _has_a_divided_label(answers: Answers) -> bool:
    return any(map(_has_two_values, answers.by_label()))


def _occurs(answers: Answers) -> bool:
    return bool(answers.labels.any() or answers.chosen.any())


def _has_no_zero(answers: Answers) -> bool:
    return len(answers) > 0 and bool((answers.labels != 0).all())


def _has_more_classes_than(num_best: int, answers: Answers) -> bool:
    return len(answers) > 0 and answers.num_classes > num_best


# ---- scikit-learn's own; imported late, for that takes more than a second


def _decided(name: str, **options: Any) -> Measure:  # noqa: ANN401 -- what scikit-learn's function takes
    """scikit-learn's metric of that name, of labels and decisions."""

    def measure(answers: Answers) -> float:
        import sklearn.metrics

        return float(getattr(sklearn.metrics, name)(answers.labels, answers.chosen, **options))

    return measure


def _scored(name: str) -> Measure:
    """scikit-learn's metric of that name, of labels and the probability of the positive class."""

    def measure(answers: Answers) -> float:
        import sklearn.metrics

        return float(getattr(sklearn.metrics, name)(answers.labels, answers.scores))

    return measure


def _valued(name: str) -> Measure:
    """scikit-learn's metric of that name, of a regression."""

    def measure(answers: Answers) -> float:
        import sklearn.metrics

        return float(getattr(sklearn.metrics, name)(answers.labels, answers.predictions.astype(np.float64)))

    return measure


def _measure_balanced_accuracy(answers: Answers) -> float:
    """Its own function warns where a class is given that no label has."""
    return _decided("recall_score", labels=np.unique(answers.labels), average="macro")(answers)


def _mean_over_labels(measure: Measure, is_defined: Callable[[Answers], bool]) -> Measure:
    """Mean of a binary target's metric over the labels that have it."""
    return lambda answers: float(np.mean([measure(label) for label in answers.by_label() if is_defined(label)]))


def _measure_macro_f1(answers: Answers) -> float:
    if answers.kind == "multilabel":
        return _mean_over_labels(_decided("f1_score"), _occurs)(answers)
    return _decided("f1_score", average="macro")(answers)


def _measure_micro_f1(answers: Answers) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(answers.labels.ravel(), answers.chosen.ravel()))


def _measure_log_loss(answers: Answers) -> float:
    from sklearn.metrics import log_loss

    told = answers.probabilities
    if not np.isfinite(told).all():
        return math.nan
    if answers.kind == "multilabel":
        return float(log_loss(answers.labels.ravel(), told.ravel(), labels=[0, 1]))
    return float(log_loss(answers.labels, told, labels=np.arange(answers.num_classes)))


def _measure_top(num_best: int, answers: Answers) -> float:
    from sklearn.metrics import top_k_accuracy_score

    return float(top_k_accuracy_score(answers.labels, answers.predictions, k=num_best, labels=np.arange(answers.num_classes)))


def _top(num_best: int) -> MetricSpec:
    weigh, is_defined = mean_of(weighing.top_hits(num_best)), partial(_has_more_classes_than, num_best)
    return MetricSpec(("classes",), True, partial(_measure_top, num_best), weigh, is_defined)


_BINARY: tuple[TargetKind, ...] = ("binary",)
_CLASSES: tuple[TargetKind, ...] = ("binary", "classes")
_LABELS: tuple[TargetKind, ...] = ("multilabel",)
_VALUES: tuple[TargetKind, ...] = ("regression",)

METRICS: dict[str, MetricSpec] = {
    "accuracy": MetricSpec(_CLASSES, True, _decided("accuracy_score"), mean_of(weighing.hits)),
    "subset_accuracy": MetricSpec(_LABELS, True, _decided("accuracy_score"), mean_of(weighing.hits)),
    "auc": MetricSpec(_BINARY, True, _scored("roc_auc_score"), weighing.weigh_auc, _has_two_values),
    "log_loss": MetricSpec((*_CLASSES, *_LABELS), False, _measure_log_loss, mean_of(weighing.surprises)),
    "balanced_accuracy": MetricSpec(_CLASSES, True, _measure_balanced_accuracy, weighing.weigh_balanced_accuracy, _has_two_values),
    "pr_auc": MetricSpec(_BINARY, True, _scored("average_precision_score"), weighing.weigh_pr_auc, _has_two_values),
    "f1": MetricSpec(_BINARY, True, _decided("f1_score"), weighing.weigh_f1, _has_two_values),
    "precision": MetricSpec(_BINARY, True, _decided("precision_score", zero_division=0), weighing.weigh_precision, _has_two_values),
    "recall": MetricSpec(_BINARY, True, _decided("recall_score"), weighing.weigh_recall, _has_two_values),
    "micro_f1": MetricSpec(_LABELS, True, _measure_micro_f1, weighing.weigh_micro_f1, _has_a_label),
    "macro_f1": MetricSpec(("classes", *_LABELS), True, _measure_macro_f1, weighing.weigh_macro_f1, _has_a_label),
    "macro_auc": MetricSpec(
        _LABELS, True, _mean_over_labels(_scored("roc_auc_score"), _has_two_values), weighing.weigh_macro_auc, _has_a_divided_label
    ),
    "top_3_accuracy": _top(3),
    "top_5_accuracy": _top(5),
    "hamming_loss": MetricSpec(_LABELS, False, _decided("hamming_loss"), mean_of(weighing.wrong_labels)),
    "brier": MetricSpec(_CLASSES, False, measure_once(mean_of(weighing.brier_scores)), mean_of(weighing.brier_scores)),
    "ece": MetricSpec(_CLASSES, False, measure_once(weighing.weigh_ece), weighing.weigh_ece),
    "rmse": MetricSpec(_VALUES, False, _valued("root_mean_squared_error"), weighing.weigh_rmse),
    "mae": MetricSpec(_VALUES, False, _valued("mean_absolute_error"), mean_of(weighing.absolute_errors)),
    "r2": MetricSpec(_VALUES, True, _valued("r2_score"), weighing.weigh_r2, _has_two_values),
    "mape": MetricSpec(_VALUES, False, _valued("mean_absolute_percentage_error"), mean_of(weighing.relative_errors), _has_no_zero),
    "median_absolute_error": MetricSpec(_VALUES, False, _valued("median_absolute_error"), weighing.weigh_quantile(0.5)),
    "absolute_error_p90": MetricSpec(_VALUES, False, measure_once(weighing.weigh_quantile(0.9)), weighing.weigh_quantile(0.9)),
}
