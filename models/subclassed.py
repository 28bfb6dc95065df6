"""A ``keras.Model`` of its own kind with its own ``train_step``: a perceptron that is trained on mixtures of rows (mixup).

To copy where layers, loss and callbacks are not enough. What refit needs of such a model: inputs and outputs that are known before it is
called (a functional graph inside), a registered class with ``get_config`` and ``from_config``, and random numbers from Keras generators
that the model holds, so that checkpoints keep their state.

Source: Zhang et al. 2018, https://arxiv.org/abs/1710.09412
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import keras
import tensorflow as tf

from models.options import check_positive, check_share, check_widths
from refit.features import Features, Target

_MAX_ODDS = 1e30  # beyond them the share is 1 in float32


@keras.saving.register_keras_serializable(package="models")
class MixupModel(keras.Model):  # type: ignore[misc]  # Keras is untyped
    """Trains on ``share * row + (1 - share) * another row`` of encoded features, with their labels' losses in the same shares.

    The share is drawn for each batch from Beta(alpha, alpha), and the larger part is a row's own: metrics of the train split compare the
    prediction for the mixture with the row's own label, so they look worse than those of validation, which mixes nothing.

    Args:
        encoder: from raw columns to ``[batch, n]`` float.
        trunk: from there to predictions ``[batch, units]``.
        alpha: the nearer to 0, the less is mixed.
    """

    def __init__(self, encoder: keras.Model, trunk: keras.Model, *, alpha: float, **kwargs: Any) -> None:  # noqa: ANN401 -- Keras's own
        """Join the two parts into one functional graph."""
        super().__init__(inputs=encoder.input, outputs=trunk(encoder.output), **kwargs)
        self.encoder = encoder
        self.trunk = trunk
        self.alpha = float(alpha)
        self.generator = keras.random.SeedGenerator()

    def train_step(self, data: Any) -> dict[str, Any]:  # noqa: ANN401 -- what Keras hands over
        """One step on a mixed batch; does what Keras's own step does for weights of rows, precision, devices and metrics."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        share = self._draw_share()
        with tf.GradientTape() as tape:
            encoded = self.encoder(x, training=True)
            mixed = _mix(encoded, tf.cast(share, encoded.dtype))
            predicted = self.trunk(mixed, training=True)
            own = self.compute_loss(x, y, predicted, sample_weight, training=True)
            others = self.compute_loss(x, _others(y), predicted, _others(sample_weight), training=True)
            loss = share * own + (1 - share) * others  # penalties on weights are in both, so they count once
            scaled = self.optimizer.scale_loss(loss)  # for float16
        self.optimizer.apply_gradients(zip(tape.gradient(scaled, self.trainable_weights), self.trainable_weights, strict=True))
        replicas = tf.distribute.get_strategy().num_replicas_in_sync  # Keras divides a loss by their number
        next(m for m in self.metrics if m.name == "loss").update_state(loss * replicas, sample_weight=tf.shape(encoded)[0])
        return dict(self.compute_metrics(x, y, predicted, sample_weight=sample_weight))

    def _draw_share(self) -> Any:  # noqa: ANN401 -- a float32 scalar
        """The larger of two shares; drawn from uniform numbers alone, which XLA can do.

        Source: Devroye 1996, symmetric beta, https://doi.org/10.1145/256562.256623
        """
        first, second = keras.random.uniform((), seed=self.generator), keras.random.uniform((), seed=self.generator)
        odds = tf.minimum(first ** (-1 / self.alpha), _MAX_ODDS) - 1
        return 0.5 + 0.5 / tf.sqrt(1 + 1 / (odds * tf.cos(2 * math.pi * second) ** 2))

    def get_config(self) -> dict[str, Any]:
        """Both parts and the argument, for saving."""
        parts = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in ("encoder", "trunk")}
        return {"name": self.name, "trainable": self.trainable, **parts, "alpha": self.alpha}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Self:
        """The model of a saved configuration."""
        parts = {name: keras.saving.deserialize_keras_object(config[name], custom_objects) for name in ("encoder", "trunk")}
        return cls(**{**config, **parts})


def build_model(
    features: Features,
    target: Target,
    *,
    alpha: float = 0.2,
    hidden_units: Sequence[int] = (64, 32),
    activation: str = "relu",
    dropout: float = 0.1,
) -> keras.Model:
    """Build a perceptron over the vector of all features that trains on mixtures of rows.

    Args:
        features: any; of images and other features together, the images are left out.
        target: gives the output layer.
        alpha: how much is mixed; 0.1 to 0.4 in the paper for images, 1: any share is as likely as another.
        hidden_units: widths of the hidden layers.
        activation: of the hidden layers.
        dropout: share of activations dropped after each hidden layer, in training only.
    """
    check_positive(alpha=alpha)
    check_widths(hidden_units=hidden_units)
    check_share(dropout=dropout)
    vector = features.vector()
    encoder = keras.Model(features.inputs, vector, name="encoder")
    x = mixed = keras.Input(vector.shape[1:], dtype=vector.dtype, name="mixed")
    for units in hidden_units:
        x = keras.layers.Dense(units, activation=activation)(x)
        x = keras.layers.Dropout(dropout)(x)
    return MixupModel(encoder, keras.Model(mixed, target.head(x), name="trunk"), alpha=alpha, name="subclassed")


def _mix(rows: Any, share: Any) -> Any:  # noqa: ANN401 -- tensors
    return share * rows + (1 - share) * _others(rows)


def _others(rows: Any) -> Any:  # noqa: ANN401 -- a tensor or None
    """Each row's partner: the one before it. Batches are shuffled, so that is any row."""
    return None if rows is None else tf.roll(rows, 1, axis=0)
