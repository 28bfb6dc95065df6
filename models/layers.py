"""Custom layers of the builders: weights and a regulariser by hand, a residual block, embeddings of numbers, a class token.

A layer of your own needs four things: a registered name (or the model's file cannot be loaded), weights made in ``build``, ``call`` in
Keras operations, and a ``get_config`` with every argument of ``__init__``.
"""

import math
from typing import Any

import keras

Shape = tuple[int | None, ...]


@keras.saving.register_keras_serializable(package="models")
class PlainDense(keras.layers.Layer):  # type: ignore[misc]  # Keras is untyped
    """A dense layer written by hand: ``activation(inputs @ kernel + bias)``.

    Input ``[..., columns]``; output ``[..., units]``.

    Args:
        units: width of the output.
        activation: name of a Keras activation; None: none.
        use_bias: whether a bias is added.
        kernel_initializer: of the kernel; the bias begins with zeros.
        kernel_regularizer: what the kernel adds to the loss.
    """

    def __init__(
        self,
        units: int,
        *,
        activation: str | None = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",  # noqa: ANN401 -- what Keras takes
        kernel_regularizer: Any = None,  # noqa: ANN401 -- what Keras takes
        **kwargs: Any,  # noqa: ANN401 -- Keras's own
    ) -> None:
        """Keep the arguments; weights are made when the input's width is known."""
        super().__init__(**kwargs)
        self.units = int(units)
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def build(self, input_shape: Shape) -> None:
        """Make the weights; what the regulariser gives joins the model's losses by itself."""
        self.kernel = self.add_weight(
            name="kernel",
            shape=(input_shape[-1], self.units),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
        )
        self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros") if self.use_bias else None

    def call(self, inputs: Any) -> Any:  # noqa: ANN401 -- backend tensors
        """Compute the output."""
        x = keras.ops.matmul(inputs, self.kernel)
        return self.activation(x if self.bias is None else x + self.bias)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """The last axis becomes ``units``."""
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        """Arguments for saving."""
        return {
            **super().get_config(),
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }


@keras.saving.register_keras_serializable(package="models")
class ResidualBlock(keras.layers.Layer):  # type: ignore[misc]  # Keras is untyped
    """The residual block for tables: ``x + dropout(dense(dropout(relu(dense(batch_norm(x))))))``.

    Input and output ``[batch, width]``. Source: Gorishniy et al. 2021, section 3.2, https://arxiv.org/abs/2106.11959

    Args:
        hidden_units: width of the first dense layer.
        dropout: share of the hidden activations dropped in training.
        residual_dropout: share of what the block adds dropped in training.
    """

    def __init__(
        self,
        hidden_units: int,
        *,
        dropout: float = 0.0,
        residual_dropout: float = 0.0,
        **kwargs: Any,  # noqa: ANN401 -- Keras's own
    ) -> None:
        """Keep the arguments and make the layers that do not depend on the input's width."""
        super().__init__(**kwargs)
        self.hidden_units = int(hidden_units)
        self.dropout = float(dropout)
        self.residual_dropout = float(residual_dropout)
        self.norm = keras.layers.BatchNormalization(momentum=0.9, dtype=self.dtype_policy)
        self.widen = keras.layers.Dense(self.hidden_units, activation="relu", dtype=self.dtype_policy)
        self.drop = keras.layers.Dropout(self.dropout, dtype=self.dtype_policy)
        self.drop_residual = keras.layers.Dropout(self.residual_dropout, dtype=self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        """Build the layers within, as saved weights need them."""
        hidden = (*input_shape[:-1], self.hidden_units)
        self.narrow = keras.layers.Dense(input_shape[-1], dtype=self.dtype_policy)
        self.norm.build(input_shape)
        self.widen.build(input_shape)
        self.narrow.build(hidden)

    def call(self, inputs: Any, training: bool | None = None) -> Any:  # noqa: ANN401 -- backend tensors
        """Add to the input what the block makes of it."""
        x = self.widen(self.norm(inputs, training=training))
        x = self.narrow(self.drop(x, training=training))
        return inputs + self.drop_residual(x, training=training)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """That of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Arguments for saving."""
        own = {"hidden_units": self.hidden_units, "dropout": self.dropout, "residual_dropout": self.residual_dropout}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="models")
class PeriodicEmbedding(keras.layers.Layer):  # type: ignore[misc]  # Keras is untyped
    """Embed each number by sines and cosines of learned frequencies, a dense layer of its own and a ReLU ("PLR").

    A perceptron over it fits functions of a number that go up and down. Input ``[batch, columns]``, standardised; output
    ``[batch, columns, width]``. Computes in float32: a high frequency needs the digits.
    Source: Gorishniy et al. 2022, section 3.3, https://arxiv.org/abs/2203.05556

    Args:
        num_frequencies: frequencies for each column.
        width: of a column's embedding.
        sigma: standard deviation of the first frequencies, in turns per deviation of the column; the paper tunes it from 0.01 to 100.
    """

    def __init__(
        self,
        num_frequencies: int,
        width: int,
        *,
        sigma: float = 0.1,
        **kwargs: Any,  # noqa: ANN401 -- Keras's own
    ) -> None:
        """Keep the arguments."""
        super().__init__(**{"dtype": "float32", **kwargs})
        self.num_frequencies = int(num_frequencies)
        self.width = int(width)
        self.sigma = float(sigma)

    def build(self, input_shape: Shape) -> None:
        """Make frequencies, kernel and bias of every column."""
        columns, waves = input_shape[-1], 2 * self.num_frequencies
        limit = 1 / math.sqrt(waves)
        uniform = keras.initializers.RandomUniform(-limit, limit)
        self.frequencies = self.add_weight(
            name="frequencies", shape=(columns, self.num_frequencies), initializer=keras.initializers.RandomNormal(stddev=self.sigma)
        )
        self.kernel = self.add_weight(name="kernel", shape=(columns, waves, self.width), initializer=uniform)
        self.bias = self.add_weight(name="bias", shape=(columns, self.width), initializer="zeros")

    def call(self, inputs: Any) -> Any:  # noqa: ANN401 -- backend tensors
        """Embed."""
        angles = 2 * math.pi * keras.ops.expand_dims(inputs, -1) * self.frequencies
        waves = keras.ops.concatenate([keras.ops.sin(angles), keras.ops.cos(angles)], axis=-1)
        return keras.ops.relu(keras.ops.einsum("bcw,cwd->bcd", waves, self.kernel) + self.bias)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """An axis for the embedding."""
        return (*input_shape, self.width)

    def get_config(self) -> dict[str, Any]:
        """Arguments for saving."""
        own = {"num_frequencies": self.num_frequencies, "width": self.width, "sigma": self.sigma}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="models")
class NumberTokenizer(keras.layers.Layer):  # type: ignore[misc]  # Keras is untyped
    """Make a token of each number: ``number * kernel + bias``, with weights of its own for each column.

    Input ``[batch, columns]``; output ``[batch, columns, width]``. Source: Gorishniy et al. 2021, section 3.3,
    https://arxiv.org/abs/2106.11959

    Args:
        width: of a token.
    """

    def __init__(self, width: int, **kwargs: Any) -> None:  # noqa: ANN401 -- Keras's own
        """Keep the width."""
        super().__init__(**kwargs)
        self.width = int(width)

    def build(self, input_shape: Shape) -> None:
        """Make kernel and bias of every column."""
        limit = 1 / math.sqrt(self.width)
        for name in ("kernel", "bias"):
            uniform = keras.initializers.RandomUniform(-limit, limit)
            setattr(self, name, self.add_weight(name=name, shape=(input_shape[-1], self.width), initializer=uniform))

    def call(self, inputs: Any) -> Any:  # noqa: ANN401 -- backend tensors
        """Make the tokens."""
        return keras.ops.expand_dims(inputs, -1) * self.kernel + self.bias

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """An axis for the token."""
        return (*input_shape, self.width)

    def get_config(self) -> dict[str, Any]:
        """Arguments for saving."""
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable(package="models")
class ClassToken(keras.layers.Layer):  # type: ignore[misc]  # Keras is untyped
    """Put a learned token before the others, from which the model predicts.

    Input ``[batch, tokens, width]``; output ``[batch, 1 + tokens, width]``.
    """

    def build(self, input_shape: Shape) -> None:
        """Make the token."""
        limit = 1 / math.sqrt(input_shape[-1] or 1)
        self.token = self.add_weight(
            name="token", shape=(1, 1, input_shape[-1]), initializer=keras.initializers.RandomUniform(-limit, limit)
        )

    def call(self, inputs: Any) -> Any:  # noqa: ANN401 -- backend tensors
        """Repeat the token for each row."""
        token = keras.ops.tile(keras.ops.cast(self.token, inputs.dtype), [keras.ops.shape(inputs)[0], 1, 1])
        return keras.ops.concatenate([token, inputs], axis=1)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """One token more."""
        batch, tokens, width = input_shape
        return (batch, None if tokens is None else tokens + 1, width)
