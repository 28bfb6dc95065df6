"""Keras layers that refit's own graphs need and Keras does not have."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf


@keras.saving.register_keras_serializable(package="refit")
class FillMissing(keras.layers.Layer):  # type: ignore[misc]
    """Replace missing and infinite numbers by a value a column, and append an indicator for the columns that had missing ones.

    Input ``[batch, columns]`` float; output ``[batch, columns + indicators]`` float: the filled columns, then 1.0 where a
    value was missing for each column with an indicator.

    Args:
        values: what stands for a missing value, a number a column.
        indicators: positions of the columns that get an indicator.
    """

    def __init__(self, values: list[float], indicators: list[int], **kwargs: Any) -> None:  # noqa: ANN401 -- Keras's own
        """Keep the constants; the layer has no weights."""
        super().__init__(**kwargs)
        self.values = [float(value) for value in values]
        self.indicators = [int(position) for position in indicators]

    def call(self, inputs: Any) -> Any:  # noqa: ANN401 -- a backend tensor
        """Fill and mark."""
        missing = keras.ops.logical_not(keras.ops.isfinite(inputs))
        filled = keras.ops.where(missing, np.asarray(self.values, dtype=self.compute_dtype), inputs)
        if not self.indicators:
            return filled
        marks = keras.ops.cast(keras.ops.take(missing, np.asarray(self.indicators), axis=-1), self.compute_dtype)
        return keras.ops.concatenate([filled, marks], axis=-1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The columns and their indicators."""
        return (*input_shape[:-1], len(self.values) + len(self.indicators))

    def get_config(self) -> dict[str, Any]:
        """Constants for saving."""
        return {**super().get_config(), "values": self.values, "indicators": self.indicators}


@keras.saving.register_keras_serializable(package="refit")
class SignedLog(keras.layers.Layer):  # type: ignore[misc]
    """Take sign(x) log(1 + |x|) of some columns of ``[batch, columns]``; the others stay.

    Args:
        columns: positions.
    """

    def __init__(self, columns: list[int], **kwargs: Any) -> None:  # noqa: ANN401 -- Keras's own
        """Keep the positions; the layer has no weights."""
        super().__init__(**kwargs)
        self.columns = [int(position) for position in columns]

    def call(self, inputs: Any) -> Any:  # noqa: ANN401 -- a backend tensor
        """Change the columns."""
        is_chosen = np.isin(np.arange(inputs.shape[-1]), self.columns)
        logged = keras.ops.sign(inputs) * keras.ops.log1p(keras.ops.abs(inputs))
        return keras.ops.where(is_chosen, logged, inputs)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """As it is."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Constants for saving."""
        return {**super().get_config(), "columns": self.columns}


@keras.saving.register_keras_serializable(package="refit")
class ClipColumns(keras.layers.Layer):  # type: ignore[misc]
    """Hold some columns of ``[batch, columns]`` between -limit and limit.

    Args:
        limits: by position.
    """

    def __init__(self, limits: dict[int, float], **kwargs: Any) -> None:  # noqa: ANN401 -- Keras's own
        """Keep the limits; the layer has no weights."""
        super().__init__(**kwargs)
        self.limits = {int(position): float(limit) for position, limit in limits.items()}

    def call(self, inputs: Any) -> Any:  # noqa: ANN401 -- a backend tensor
        """Clip."""
        limits = np.array([self.limits.get(position, np.inf) for position in range(inputs.shape[-1])], dtype=self.compute_dtype)
        return keras.ops.minimum(keras.ops.maximum(inputs, -limits), limits)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """As it is."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Constants for saving."""
        return {**super().get_config(), "limits": {str(position): limit for position, limit in self.limits.items()}}


_SECOND, _DAY = 1_000_000, 86_400_000_000


@keras.saving.register_keras_serializable(package="refit")
class TimeParts(keras.layers.Layer):  # type: ignore[misc]
    """Moments as points on circles: sine and cosine of each part.

    Input int64 ``[batch]``, microseconds since 1970; output float ``[batch, 2 parts (+ 1) (+ 1)]``: the parts, the standardised time
    itself where ``elapsed`` is given, and whether there is no moment where ``is_marked``. Everything else is 0 for a missing moment.

    Args:
        parts: ``minute`` (of the hour), ``hour`` (of the day, with its minutes), ``weekday``, ``day`` (of the month), ``month``,
            ``year_day`` (from March 1st).
        elapsed: mean and deviation in microseconds.
        is_marked: whether missing moments are told.

    Source: https://howardhinnant.github.io/date_algorithms.html#civil_from_days
    """

    def __init__(self, parts: Sequence[str], elapsed: tuple[float, float] | None = None, *, is_marked: bool = False, **kwargs: Any) -> None:  # noqa: ANN401 -- Keras's own
        """Keep the constants; the layer has no weights."""
        super().__init__(**kwargs)
        self.parts, self.elapsed, self.is_marked = list(parts), tuple(elapsed) if elapsed else None, is_marked

    def call(self, inputs: Any) -> Any:  # noqa: ANN401 -- a backend tensor
        """Compute the parts, in whole numbers as far as possible."""
        ops = keras.ops
        missing = inputs == np.iinfo(np.int64).min
        moments = ops.where(missing, np.int64(0), inputs)
        shares = _shares(moments)
        columns = []
        for part in self.parts:
            angle = 2 * np.pi * ops.cast(shares[part], "float32")
            columns += [ops.sin(angle), ops.cos(angle)]
        if self.elapsed:
            columns.append(ops.cast(moments - np.int64(self.elapsed[0]), "float32") / self.elapsed[1])
        columns = [ops.where(missing, 0.0, column) for column in columns]
        if self.is_marked:
            columns.append(ops.cast(missing, "float32"))
        return ops.cast(ops.stack(columns, axis=-1), self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The columns."""
        return (*input_shape, 2 * len(self.parts) + bool(self.elapsed) + self.is_marked)

    def compute_output_spec(self, inputs: Any) -> Any:  # noqa: ANN401 -- Keras's own
        """A float tensor of that shape."""
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Constants for saving."""
        return {**super().get_config(), "parts": self.parts, "elapsed": self.elapsed, "is_marked": self.is_marked}


def _shares(moments: Any) -> dict[str, Any]:  # noqa: ANN401 -- backend tensors
    """How much of each period is over at a moment: 0 to 1, float64; whole days for those of the calendar."""
    days = moments // _DAY
    z = days + 719_468  # since 0000-03-01
    of_era = z % 146_097
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    year_day = of_era - (365 * year + year // 4 - year // 100)  # since March 1st
    month = (5 * year_day + 2) // 153  # since March
    day = year_day - (153 * month + 2) // 5
    whole = {
        "minute": (moments // (60 * _SECOND) % 60, 60),
        "hour": (moments % _DAY // _SECOND, 86_400),
        "weekday": ((days + 3) % 7, 7),
        "day": (day, 31),
        "month": (month, 12),
        "year_day": (year_day, 366),
    }
    return {name: keras.ops.cast(number, "float64") / period for name, (number, period) in whole.items()}


@keras.saving.register_keras_serializable(package="refit")
class DecodeImages(keras.layers.Layer):  # type: ignore[misc]
    """Decode files of images (JPEG, PNG, GIF's first picture, BMP) and resize them.

    Input string ``[batch]``; output float32 ``[batch, height, width, channels]`` from 0 to 255; an empty string is black.

    Args:
        height: of what comes out.
        width: likewise.
        channels: 1 or 3.
    """

    def __init__(self, height: int, width: int, channels: int, **kwargs: Any) -> None:  # noqa: ANN401 -- Keras's own
        """Keep the shape; the layer has no weights."""
        super().__init__(**kwargs)
        self.shape = (int(height), int(width), int(channels))
        self.supports_jit = False

    def call(self, inputs: Any) -> Any:  # noqa: ANN401 -- a backend tensor
        """Decode one after another."""

        def decode(content: Any) -> Any:  # noqa: ANN401 -- tensors
            image = tf.io.decode_image(content, channels=self.shape[2], expand_animations=False)
            return tf.ensure_shape(tf.image.resize(image, self.shape[:2]), self.shape)

        def one(content: Any) -> Any:  # noqa: ANN401 -- tensors
            return tf.cond(tf.equal(content, ""), lambda: tf.zeros(self.shape), lambda: decode(content))

        return tf.map_fn(one, inputs, fn_output_signature=tf.TensorSpec(self.shape, tf.float32))

    def compute_output_spec(self, inputs: Any) -> Any:  # noqa: ANN401 -- Keras's own
        """A float tensor of that shape."""
        return keras.KerasTensor((*inputs.shape, *self.shape), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        """Constants for saving."""
        height, width, channels = self.shape
        return {**super().get_config(), "height": height, "width": width, "channels": channels}


@keras.saving.register_keras_serializable(package="refit")
class AverageTokens(keras.layers.Layer):  # type: ignore[misc]
    """The mean of a sequence's embeddings, zeros where it has no token; Keras's pooling divides by nothing there.

    Inputs: embeddings ``[batch, length, d]`` and tokens ``[batch, length]``, of which 0 is padding; output ``[batch, d]``.
    """

    def call(self, inputs: Any) -> Any:  # noqa: ANN401 -- backend tensors
        """Average."""
        embedded, tokens = inputs
        is_token = keras.ops.cast(keras.ops.not_equal(tokens, 0), embedded.dtype)
        total = keras.ops.sum(embedded * keras.ops.expand_dims(is_token, -1), axis=1)
        return total / keras.ops.maximum(keras.ops.sum(is_token, axis=1, keepdims=True), 1)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:  # noqa: ANN401 -- Keras's own
        """One vector a row."""
        return (input_shape[0][0], input_shape[0][-1])
