"""What a model answered to rows whose labels are known: its probabilities or values, and what it decides by them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from refit.config import TargetKind

Labels = npt.NDArray[np.int64] | npt.NDArray[np.float64]
Predictions = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

HALF = 0.5


@dataclass(frozen=True)
class Answers:
    """Labels and one model's predictions of the same rows.

    Attributes:
        kind: of the target.
        labels: ``[n]``; the index of the class (binary: 0 or 1), or the value of a regression; multilabel: ``[n, k]`` of 0 and 1.
        predictions: ``[n, k]`` probabilities (binary: k = 2 and column 1 is the positive class); ``[n]`` for a regression.
        threshold: a binary target is positive, and a label of a multilabel one holds, where the probability is above it.
    """

    kind: TargetKind
    labels: Labels
    predictions: Predictions
    threshold: float = HALF

    def __len__(self) -> int:
        """Rows."""
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Columns of the predictions."""
        return int(self.predictions.shape[1])

    @property
    def scores(self) -> Predictions:
        """Probability of the positive class of a binary target, ``[n]``."""
        return self.predictions[:, 1]

    def by_label(self) -> Iterator["Answers"]:
        """Each label of a multilabel target as a binary one of its own."""
        for labels, told in zip(self.labels.T, self.predictions.T, strict=True):
            yield Answers("binary", labels, np.stack([1 - told, told], axis=1), self.threshold)

    @cached_property
    def chosen(self) -> Integers:
        """The decision: the index of the class, ``[n]``; multilabel: 0 and 1, ``[n, k]``."""
        told = self.scores if self.kind == "binary" else self.predictions
        is_above = told.astype(np.float64) > self.threshold
        chosen: Integers = (told.argmax(axis=1) if self.kind == "classes" else is_above).astype(np.int64)
        return chosen

    @cached_property
    def hits(self) -> Floats:
        """1 where the decision is right (multilabel: in all labels), else 0, ``[n]``."""
        right = self.chosen == self.labels
        hits: Floats = (right if right.ndim == 1 else right.all(axis=1)).astype(np.float64)
        return hits

    @cached_property
    def probabilities(self) -> Floats:
        """In float64; of classes each row is scaled to sum to 1, from which float32 is off by its rounding."""
        wide: Floats = self.predictions.astype(np.float64)
        if self.kind == "multilabel":
            return wide
        with np.errstate(invalid="ignore"):
            scaled: Floats = wide / wide.sum(axis=1, keepdims=True)
        return scaled

    @cached_property
    def errors(self) -> Floats:
        """Prediction minus label of a regression, ``[n]``."""
        errors: Floats = self.predictions.astype(np.float64) - self.labels
        return errors
