"""The metrics that refit computes: which target each is for, which direction is better, and two forms of each.

``measure`` takes rows and gives the value. ``weigh`` prepares the same rows once and then gives the value again and again
for rows that count a given number of times each, which is what a bootstrap needs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refit.config import TargetKind

Labels = npt.NDArray[np.int64] | npt.NDArray[np.float64]
Predictions = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.uint8]
Measure = Callable[[Labels, Predictions], float]
Weigh = Callable[[Labels, Predictions], Callable[[Counts], float]]


@dataclass(frozen=True)
class MetricSpec:
    """One metric.

    ``measure(labels, predictions)`` is its value, NaN where the rows do not define it. ``weigh(labels, predictions)(counts)``
    is the value of the rows repeated ``counts`` times, ``[n]``, without repeating them.
    """

    kinds: tuple[TargetKind, ...]
    higher_is_better: bool
    measure: Measure
    weigh: Weigh


def compute_metrics(kind: TargetKind, labels: Labels, predictions: Predictions) -> dict[str, float]:
    """All metrics of the kind of target.

    Args:
        kind: of the target.
        labels: ``[n]``; the index of the class (binary: 0 or 1), or the value of a regression.
        predictions: ``[n, k]`` probabilities (binary: k = 2 and column 1 is the positive class); ``[n]`` for a regression.

    Returns:
        Values by name. A metric that the labels do not define is left out: AUC with one class, R² with one value, all without
        rows. Every value is NaN where a prediction is not finite.
    """
    names = [name for name in metric_names(kind) if _is_defined(name, labels)]
    if not np.isfinite(predictions).all():
        return dict.fromkeys(names, math.nan)
    return {name: METRICS[name].measure(labels, predictions) for name in names}


def metric_names(kind: TargetKind) -> list[str]:
    """Names of the metrics of a kind of target."""
    return [name for name, spec in METRICS.items() if kind in spec.kinds]


def default_metric(kind: TargetKind) -> str:
    """The metric that is compared where the job names none."""
    names: dict[TargetKind, str] = {"classes": "accuracy", "binary": "auc", "regression": "rmse"}
    return names[kind]


def _is_defined(name: str, labels: Labels) -> bool:
    if name in ("auc", "r2"):
        return len(labels) > 1 and bool((labels != labels[0]).any())
    return len(labels) > 0


# ---- means of one value a row


def _mean_of(rows: Callable[[Labels, Predictions], Floats]) -> Weigh:
    def weigh(labels: Labels, predictions: Predictions) -> Callable[[Counts], float]:
        values = rows(labels, predictions)
        return lambda counts: float(counts @ values) / float(counts.sum()) if counts.any() else math.nan

    return weigh


def _hits(labels: Labels, predictions: Predictions) -> Floats:
    hits: Floats = (predictions.argmax(axis=1) == labels).astype(np.float64)
    return hits


def _probabilities(predictions: Predictions) -> Floats:
    """In float64, each row scaled to sum to 1, from which float32 is off by its rounding."""
    wide: Floats = predictions.astype(np.float64)
    with np.errstate(invalid="ignore"):
        scaled: Floats = wide / wide.sum(axis=1, keepdims=True)
    return scaled


def _surprises(labels: Labels, predictions: Predictions) -> Floats:
    """Minus the log of the true class's probability; 0 counts as the smallest step of float64, as in scikit-learn.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.metrics.log_loss.html
    """
    chosen = _probabilities(predictions)[np.arange(len(labels)), labels.astype(np.int64)]
    smallest = np.finfo(np.float64).eps
    surprises: Floats = -np.log(np.clip(chosen, smallest, 1 - smallest))
    return surprises


def _absolute_errors(labels: Labels, predictions: Predictions) -> Floats:
    return np.abs(predictions.astype(np.float64) - labels)


def _squared_errors(labels: Labels, predictions: Predictions) -> Floats:
    return np.square(predictions.astype(np.float64) - labels)


# ---- functions of several means


def _weigh_rmse(labels: Labels, predictions: Predictions) -> Callable[[Counts], float]:
    mean = _mean_of(_squared_errors)(labels, predictions)
    return lambda counts: math.sqrt(mean(counts))


def _weigh_r2(labels: Labels, predictions: Predictions) -> Callable[[Counts], float]:
    """R² from sums over rows; labels are centred first, so that the variance loses no digits.

    Source: 1 - sum (y - f)^2 / sum (y - mean y)^2, https://en.wikipedia.org/wiki/Coefficient_of_determination
    """
    errors = _squared_errors(labels, predictions)
    wide = labels.astype(np.float64)
    centred = wide - wide.mean()
    squares = np.square(centred)

    def weighed(counts: Counts) -> float:
        spread = float(counts @ squares) - float(counts @ centred) ** 2 / max(float(counts.sum()), 1.0)
        return 1 - float(counts @ errors) / spread if spread > 0 else math.nan

    return weighed


def _weigh_auc(labels: Labels, predictions: Predictions) -> Callable[[Counts], float]:
    """Area under the ROC curve: the share of pairs whose positive scores above their negative, ties by half; scores are sorted once.

    Source: Mann & Whitney (1947), https://doi.org/10.1214/aoms/1177730491; Hanley & McNeil (1982), https://doi.org/10.1148/radiology.143.1.7063747
    """
    order = np.argsort(predictions[:, 1], kind="stable")
    positives, negatives = order[labels[order] == 1], order[labels[order] != 1]
    scores, rivals = predictions[positives, 1], predictions[negatives, 1]
    below, up_to = np.searchsorted(rivals, scores, side="left"), np.searchsorted(rivals, scores, side="right")
    num_rivals = np.zeros(len(negatives) + 1)

    def weighed(counts: Counts) -> float:
        np.cumsum(counts[negatives], dtype=np.float64, out=num_rivals[1:])
        weights = counts[positives].astype(np.float64)
        pairs = float(weights.sum()) * float(num_rivals[-1])
        return float(weights @ (num_rivals[below] + num_rivals[up_to])) / 2 / pairs if pairs > 0 else math.nan

    return weighed


# ---- scikit-learn's own; imported late, for that takes more than a second


def _measure_accuracy(labels: Labels, predictions: Predictions) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions.argmax(axis=1)))


def _measure_log_loss(labels: Labels, predictions: Predictions) -> float:
    from sklearn.metrics import log_loss

    probabilities = _probabilities(predictions)
    if not np.isfinite(probabilities).all():
        return math.nan
    return float(log_loss(labels, probabilities, labels=np.arange(predictions.shape[1])))


def _measure_auc(labels: Labels, predictions: Predictions) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, predictions[:, 1]))


def _measure_rmse(labels: Labels, predictions: Predictions) -> float:
    from sklearn.metrics import root_mean_squared_error

    return float(root_mean_squared_error(labels, predictions.astype(np.float64)))


def _measure_mae(labels: Labels, predictions: Predictions) -> float:
    from sklearn.metrics import mean_absolute_error

    return float(mean_absolute_error(labels, predictions.astype(np.float64)))


def _measure_r2(labels: Labels, predictions: Predictions) -> float:
    from sklearn.metrics import r2_score

    return float(r2_score(labels, predictions.astype(np.float64)))


METRICS: dict[str, MetricSpec] = {
    "accuracy": MetricSpec(("binary", "classes"), True, _measure_accuracy, _mean_of(_hits)),
    "auc": MetricSpec(("binary",), True, _measure_auc, _weigh_auc),
    "log_loss": MetricSpec(("binary", "classes"), False, _measure_log_loss, _mean_of(_surprises)),
    "rmse": MetricSpec(("regression",), False, _measure_rmse, _weigh_rmse),
    "mae": MetricSpec(("regression",), False, _measure_mae, _mean_of(_absolute_errors)),
    "r2": MetricSpec(("regression",), True, _measure_r2, _weigh_r2),
}
