"""Losses and metrics whose labels get the shape of predictions, and the scale on which quantities are learned."""

from dataclasses import asdict, dataclass
from typing import Any

import keras


@dataclass(frozen=True)
class TargetScale:
    """How a loss sees a quantity: by its mean and deviation, of its signed logarithm where ``log`` is true."""

    mean: float = 0.0
    deviation: float = 1.0
    log: bool = False

    def apply(self, values: Any) -> Any:  # noqa: ANN401 -- backend tensors
        """Values in the target's unit -> on the scale."""
        logged = keras.ops.sign(values) * keras.ops.log1p(keras.ops.abs(values)) if self.log else values
        return (logged - self.mean) / self.deviation

    def invert(self, scaled: Any) -> Any:  # noqa: ANN401 -- backend tensors
        """Values on the scale -> in the target's unit."""
        values = scaled * self.deviation + self.mean
        return keras.ops.sign(values) * keras.ops.expm1(keras.ops.abs(values)) if self.log else values


@keras.saving.register_keras_serializable(package="refit")
class Unscale(keras.layers.Layer):  # type: ignore[misc]
    """Predictions ``[batch, 1]`` on a target's scale -> in its unit.

    Args:
        mean: as ``TargetScale`` has it.
        deviation: likewise.
        log: likewise.
    """

    def __init__(self, mean: float, deviation: float, log: bool, **kwargs: Any) -> None:  # noqa: ANN401 -- Keras's own
        """Keep the constants; the layer has no weights."""
        super().__init__(**kwargs)
        self.scale = TargetScale(mean, deviation, log)

    def call(self, inputs: Any) -> Any:  # noqa: ANN401 -- a backend tensor
        """Invert the scale."""
        return self.scale.invert(inputs)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """As it is."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Constants for saving."""
        return {**super().get_config(), **asdict(self.scale)}


def shape_labels(labels: Any, predictions: Any) -> Any:  # noqa: ANN401 -- backend tensors
    """Labels ``[batch]`` or ``[batch, units]`` -> float32 ``[batch, units]``, as predictions are: indices of classes become one-hot."""
    if len(labels.shape) == len(predictions.shape):
        return keras.ops.cast(labels, predictions.dtype)
    units = predictions.shape[-1]
    if units == 1:
        return keras.ops.cast(labels[:, None], predictions.dtype)
    return keras.ops.one_hot(keras.ops.cast(labels, "int32"), units, dtype=predictions.dtype)


@keras.saving.register_keras_serializable(package="refit")
class ShapedLoss(keras.losses.Loss):  # type: ignore[misc]
    """A loss of labels in the shape of predictions, both on the target's scale.

    Args:
        loss: what is computed.
        scale: of a quantity; None: values are compared as they are.
    """

    def __init__(self, loss: keras.losses.Loss, scale: TargetScale | None = None, **kwargs: Any) -> None:  # noqa: ANN401 -- Keras's own
        """Keep both, and reduce as the loss does."""
        super().__init__(**{"name": loss.name, "reduction": loss.reduction, **kwargs})
        self.loss, self.scale = loss, scale

    def call(self, y_true: Any, y_pred: Any) -> Any:  # noqa: ANN401 -- backend tensors
        """Losses ``[batch]``."""
        y_true = shape_labels(y_true, y_pred)
        if self.scale is not None:
            y_true, y_pred = self.scale.apply(y_true), self.scale.apply(y_pred)
        return self.loss.call(y_true, y_pred)

    def get_config(self) -> dict[str, Any]:
        """The loss and the scale for saving."""
        scale = None if self.scale is None else asdict(self.scale)
        return {**super().get_config(), "loss": keras.losses.serialize(self.loss), "scale": scale}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ShapedLoss":
        """Made anew from what was saved."""
        loss, scale = keras.losses.deserialize(config.pop("loss")), config.pop("scale")
        return cls(loss, None if scale is None else TargetScale(**scale), **config)


@keras.saving.register_keras_serializable(package="refit")
class ShapedMetric(keras.metrics.Metric):  # type: ignore[misc]
    """A metric of labels in the shape of predictions.

    Args:
        metric: what is counted.
    """

    def __init__(self, metric: keras.metrics.Metric, **kwargs: Any) -> None:  # noqa: ANN401 -- Keras's own
        """Keep the metric, whose variables are this one's."""
        super().__init__(**{"name": metric.name, **kwargs})
        self.metric = metric

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:  # noqa: ANN401 -- backend tensors
        """Count a batch."""
        self.metric.update_state(shape_labels(y_true, y_pred), y_pred, sample_weight=sample_weight)

    def result(self) -> Any:  # noqa: ANN401 -- a backend tensor
        """Value over the batches counted."""
        return self.metric.result()

    def reset_state(self) -> None:
        """Begin anew."""
        self.metric.reset_state()

    def get_config(self) -> dict[str, Any]:
        """The metric for saving."""
        return {**super().get_config(), "metric": keras.metrics.serialize(self.metric)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ShapedMetric":
        """Made anew from what was saved."""
        return cls(keras.metrics.deserialize(config.pop("metric")), **config)
