"""Keras layers that refit's own graphs need and Keras does not have."""

from typing import Any

import keras
import numpy as np


@keras.saving.register_keras_serializable(package="refit")
class FillMissing(keras.layers.Layer):  # type: ignore[misc]
    """Replace missing numbers (NaN) by a value a column, and append an indicator for the columns that had missing ones.

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
        missing = keras.ops.isnan(inputs)
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
