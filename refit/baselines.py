"""What models that learn next to nothing score on the test rows: who is no better has learned nothing worth its weights.

``constant`` always gives the shares of the classes, or the mean, of the rows that the candidate learned from. ``linear`` is
``models.linear`` over all features, fitted to its optimum: the problem is convex, so that the result depends on no learning rate.
"""

import logging
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from scipy import optimize

from refit.assignments import NO_SIDE, TRAIN
from refit.batches import open_side, read_in_order
from refit.config import FitConfig, Job, ModelConfig
from refit.errors import DataError, RefitError
from refit.export import raw_columns
from refit.fitting import assemble_model
from refit.layout import Layout, RunLayout
from refit.metrics import compute_metrics
from refit.records import BaselinesRecord, BatchesRecord, Metrics, SnapshotRecord, TargetPlan
from refit.signatures import outputs_of
from refit.splits import Draw, read_rows, read_sides
from refit.targets import encode_labels

CONSTANT, LINEAR = "constant", "linear"
_BUILD = "models.linear:build_model"
_LAYER = "logits"
_L2 = 1e-4  # so that there is one optimum, also where classes can be told apart without a fault
_MAX_ROWS = 100_000
_MAX_WEIGHTS = 1_000_000
_MAX_PRODUCTS = 200_000_000  # of rows, inputs and units: some hundredths of a second on two cores
_MAX_ITERATIONS = 100
_BATCH_ROWS = 1024
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Exam:
    """The test rows: raw columns and labels."""

    columns: dict[str, np.ndarray]
    labels: np.ndarray

    def grade(self, predictions: np.ndarray, target: TargetPlan) -> Metrics:
        return compute_metrics(target.kind, self.labels, predictions)


def score_baselines(job: Job, snapshot: SnapshotRecord, plan: BatchesRecord, layout: Layout, run: RunLayout) -> BaselinesRecord:
    """Fit the baselines on what the candidate learned from, and score them on the test rows.

    A linear model that cannot be made is no error: the record says why there is none.
    """
    draw: Draw = "pool" if job.split.resplit_each_epoch or job.split.k_fold else "split"
    test = read_rows(snapshot, layout, run, "test", [*(feature.name for feature in plan.features), plan.target.name]).table
    exam = _Exam(raw_columns(test, plan.features), encode_labels(test[plan.target.name], plan.target))
    learned = read_rows(snapshot, layout, run, "train", [plan.target.name], draw=draw).table[plan.target.name]
    constant = _predict_constant(encode_labels(learned, plan.target), plan.target, len(test))
    found, num_rows = {CONSTANT: exam.grade(constant, plan.target)}, {CONSTANT: len(learned)}
    if job.evaluation.baseline == CONSTANT:
        return BaselinesRecord(metrics=found, num_train_rows=num_rows)
    try:
        found[LINEAR], num_rows[LINEAR] = _score_linear(job, snapshot, plan, layout, read_sides(run, draw), exam)
    except Exception as error:  # whatever it is, the candidate can be judged without
        _log.warning("the linear baseline cannot be made: %s", error)
        why = error.what if isinstance(error, RefitError) else f"{type(error).__name__}: {error}".partition("\n")[0]
        return BaselinesRecord(metrics=found, num_train_rows=num_rows, why_not={LINEAR: why.rstrip(".")})
    return BaselinesRecord(metrics=found, num_train_rows=num_rows)


def _predict_constant(labels: np.ndarray, target: TargetPlan, num_rows: int) -> np.ndarray:
    """The same for each row: the mean of the labels, or how often each class occurs among them."""
    if target.classes is None or labels.ndim > 1:
        told = labels.mean(axis=0, dtype=np.float64)
    else:
        told = np.bincount(labels, minlength=len(target.classes)) / len(labels)
    return np.broadcast_to(told, (num_rows, *np.shape(told)))


# ---- the linear model


def _score_linear(
    job: Job, snapshot: SnapshotRecord, plan: BatchesRecord, layout: Layout, sides: np.ndarray, exam: _Exam
) -> tuple[Metrics, int]:
    """Metrics, and how many rows it learned from."""
    changes = {"model": ModelConfig(build=_BUILD, options={"l2": _L2}), "fit": FitConfig(precision="float32")}
    model = assemble_model(job.model_copy(update=changes), plan)
    vector = model.get_layer(_LAYER).input
    num_rows = _count_rows(inputs=vector.shape[-1], units=model.output.shape[-1])
    source = open_side(snapshot, plan, layout, _sample(sides, num_rows, job.seed), "train")
    encode = tf.function(keras.Model(model.input, vector), reduce_retracing=True)
    parts = [(encode(batch[0]).numpy(), batch[1].numpy()) for batch in read_in_order(source, batch_size=_BATCH_ROWS)]
    inputs, labels = (np.concatenate(values) for values in zip(*parts, strict=True))
    head = keras.Model(vector, model.output)
    head.compile(loss=model.loss)
    _minimise(head, inputs, labels)
    metrics = exam.grade(_predict(model, plan, exam.columns), plan.target)
    if not all(map(np.isfinite, metrics.values())):
        raise DataError("its predictions are not finite.")
    return metrics, len(labels)


def _count_rows(*, inputs: int, units: int) -> int:
    """How many rows it may learn from, so that it takes seconds.

    Raises:
        DataError: there are too many weights.
    """
    if inputs * units > _MAX_WEIGHTS:
        raise DataError(f"{inputs:,} inputs for {units:,} outputs are more than {_MAX_WEIGHTS:,} weights.")
    return min(_MAX_ROWS, _MAX_PRODUCTS // (inputs * units))


def _sample(sides: np.ndarray, num_rows: int, seed: int) -> np.ndarray:
    """Sides with at most so many train rows; the others are on no side."""
    train = np.flatnonzero(sides == TRAIN)
    chosen = np.random.default_rng(seed).permutation(train)[:num_rows]
    sampled = np.full_like(sides, NO_SIDE)
    sampled[chosen] = TRAIN
    return sampled


def _minimise(model: keras.Model, inputs: np.ndarray, labels: np.ndarray) -> None:
    """Give a compiled model the weights of the least loss over all rows at once.

    Source: Byrd et al. 1995, L-BFGS-B, https://doi.org/10.1137/0916069
    """
    x, y = tf.constant(inputs), tf.constant(labels)
    shapes = [tuple(variable.shape) for variable in model.trainable_weights]
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes])

    def assign(flat: np.ndarray) -> None:
        for variable, part, shape in zip(model.trainable_weights, np.split(flat, ends[:-1]), shapes, strict=True):
            variable.assign(part.reshape(shape))

    @tf.function  # type: ignore[untyped-decorator]
    def compute() -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            value = model.compute_loss(x, y, model(x, training=False))
        return value, tape.gradient(value, model.trainable_weights)

    def measure(flat: np.ndarray) -> tuple[float, np.ndarray]:
        assign(flat)
        value, gradients = compute()
        return float(value), np.concatenate([np.ravel(gradient.numpy()) for gradient in gradients]).astype(np.float64)

    best = optimize.minimize(measure, np.zeros(ends[-1]), jac=True, method="L-BFGS-B", options={"maxiter": _MAX_ITERATIONS})
    assign(best.x)


def _predict(model: keras.Model, plan: BatchesRecord, columns: dict[str, np.ndarray]) -> np.ndarray:
    """As the exported signature tells them: ``[rows, classes]`` probabilities, or ``[rows]`` values."""
    predict = tf.function(lambda inputs: outputs_of(model, plan, inputs), reduce_retracing=True)
    parts = []
    for start in range(0, len(next(iter(columns.values()))), _BATCH_ROWS):
        outputs = predict({name: tf.constant(values[start : start + _BATCH_ROWS]) for name, values in columns.items()})
        parts.append(outputs["probabilities" if "probabilities" in outputs else "prediction"].numpy())
    return np.concatenate(parts)
