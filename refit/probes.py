"""Whether a model that was built again is the one that serves: both are asked about rows drawn from the statistics of features."""

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from refit.evaluation import IncompatibleError, score_rows
from refit.records import BatchesRecord, FeaturePlan
from refit.schema import raw_input
from refit.signatures import outputs_of

_ROWS = 128
_TOKENS = 8
_TOLERANCE = 1e-4


def is_same_model(model: keras.Model, plan: BatchesRecord, saved_model: Path) -> bool:
    """Whether a model and a SavedModel predict the same."""
    columns = draw_rows(plan.features)
    try:
        served = score_rows(saved_model, columns, plan.target)
    except IncompatibleError:
        return False
    outputs = outputs_of(model, plan, {name: tf.constant(values) for name, values in columns.items()})
    built = outputs["probabilities" if "probabilities" in outputs else "prediction"].numpy()
    return built.shape == served.shape and bool(np.allclose(built, served, rtol=_TOLERANCE, atol=_TOLERANCE))


def draw_rows(features: Sequence[FeaturePlan]) -> dict[str, np.ndarray]:
    """Raw columns ``[rows, *shape]`` with values as the train split has them, known and unknown ones; the same each time."""
    return {plan.name: _draw(plan, np.random.default_rng(number)) for number, plan in enumerate(features)}


def _draw(plan: FeaturePlan, generator: np.random.Generator) -> np.ndarray:
    dtype, shape = raw_input(plan)
    if dtype == "string":
        known = [*(plan.vocabulary or ()), "", "another"]
        num_words = _TOKENS if plan.kind == "text" else 1
        words = generator.integers(0, len(known), (_ROWS, num_words)) if plan.kind != "image" else np.full((_ROWS, 1), len(known) - 2)
        return np.array([" ".join(str(known[word]) for word in row) for row in words], object)
    if plan.vocabulary is not None:
        return generator.choice(np.array([*plan.vocabulary, -1], np.int64), _ROWS)
    if plan.kind == "image" and dtype == "uint8":
        return generator.integers(0, 256, (_ROWS, *shape), np.uint8)
    mean, deviation = (plan.mean or 0.0), np.sqrt(plan.variance or 1.0)
    means, deviations = (plan.means or mean), np.sqrt(plan.variances or deviation**2)
    values = np.asarray(means) + np.asarray(deviations) * generator.normal(size=(_ROWS, *shape))
    return values.astype(dtype)
