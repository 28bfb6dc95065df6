"""What a fit minimises and what it logs: what suits the target's kind, or classes of Keras's or the repository's own that the job names.

Classes that are named get labels in the shape of predictions, ``[batch, units]`` float32: one-hot for classes, unless they want indices.
"""

import inspect
from collections.abc import Callable
from typing import Any

import keras

from refit import references
from refit.config import FitConfig, ObjectiveConfig, TargetKind
from refit.errors import CodeError, JobError
from refit.features import Target
from refit.shaping import ShapedLoss, ShapedMetric

_LOSSES: dict[TargetKind, Callable[[], keras.losses.Loss]] = {
    "binary": keras.losses.BinaryCrossentropy,
    "classes": keras.losses.SparseCategoricalCrossentropy,
    "multilabel": keras.losses.BinaryCrossentropy,
    "regression": keras.losses.MeanSquaredError,
}


def build_loss(fit: FitConfig, target: Target) -> keras.losses.Loss:
    """The loss of labels as batches hold them and predictions ``[batch, units]``; quantities are compared on the target's scale.

    Raises:
        CodeError: the one that the job names cannot be had or made, or is no loss.
    """
    if fit.loss is None:
        loss = _LOSSES[target.kind]()
        return loss if target.scale is None else ShapedLoss(loss, scale=target.scale)
    loss = _make(fit.loss, keras.losses.Loss, "fit.loss")
    return loss if _takes_index(fit.loss, target) else ShapedLoss(loss, scale=target.scale)


def build_metrics(fit: FitConfig, target: Target) -> list[keras.metrics.Metric]:
    """What is logged besides the loss; quantities in the target's own unit.

    Raises:
        CodeError: one that the job names cannot be had or made, or is no metric.
        JobError: two have one name.
    """
    if fit.metrics is None:
        return _default_metrics(target)
    made = [_make(said, keras.metrics.Metric, f"fit.metrics.{number}") for number, said in enumerate(fit.metrics)]
    names = [metric.name for metric in made]
    for number, name in enumerate(names):
        if name in [*names[:number], "loss"]:
            raise JobError(
                f'"{name}" is logged already.', where=f"fit.metrics.{number}", remedy='Give it another name: options: {name: "…"}.'
            )
    return [
        metric if _takes_index(said, target) else ShapedMetric(metric, name=metric.name)
        for said, metric in zip(fit.metrics, made, strict=True)
    ]


def _default_metrics(target: Target) -> list[keras.metrics.Metric]:
    if target.kind == "multilabel":
        return [
            keras.metrics.BinaryAccuracy(name="binary_accuracy"),
            keras.metrics.AUC(name="auc", multi_label=True, num_labels=target.units),
        ]
    if target.kind == "regression":
        return [keras.metrics.RootMeanSquaredError(name="rmse"), keras.metrics.MeanAbsoluteError(name="mae")]
    if target.kind == "binary":
        return [keras.metrics.BinaryAccuracy(name="accuracy"), keras.metrics.AUC(name="auc")]
    return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]


def _takes_index(said: ObjectiveConfig, target: Target) -> bool:
    if target.kind != "classes":
        return False
    return said.use.partition(":")[2].startswith("Sparse") if said.labels is None else said.labels == "index"


def _make(said: ObjectiveConfig, kind: type, where: str) -> Any:  # noqa: ANN401 -- an object of ``kind``
    made = references.load(said.use, also=references.OBJECTIVES)
    if not (inspect.isclass(made) and issubclass(made, kind)):
        raise CodeError(
            f'"{said.use}" is no class of {kind.__module__.split(".src.")[-1]}.', where=where, expected=f"a keras {kind.__name__}"
        )
    try:
        return made(**said.options)
    except Exception as error:
        raise CodeError(
            f'"{said.use}" cannot be made: {type(error).__name__}: {error}'.rstrip(".") + ".",
            where=where,
            received=f"options {said.options}",
            remedy="Mend its options.",
        ) from error
