"""A multilayer perceptron for tables."""

from collections.abc import Sequence

import keras

from models.options import check_not_negative, check_share, check_widths
from refit.features import Features, Target


def build_model(
    features: Features,
    target: Target,
    *,
    hidden_units: Sequence[int] = (64, 32),
    activation: str = "relu",
    dropout: float = 0.1,
    l1: float = 0.0,
    l2: float = 0.0,
    batch_norm: bool = False,
) -> keras.Model:
    """Build a perceptron over the vector of all features.

    Args:
        features: any.
        target: gives the output layer.
        hidden_units: widths of the hidden layers; empty for a linear model.
        activation: of the hidden layers.
        dropout: share of activations dropped after each hidden layer, in training only.
        l1: factor of the absolute weights in the loss.
        l2: factor of the squared weights in the loss.
        batch_norm: normalise each hidden layer before its activation.
    """
    check_widths(hidden_units=hidden_units)
    check_share(dropout=dropout)
    check_not_negative(l1=l1, l2=l2)
    x = features.vector()
    for units in hidden_units:
        x = keras.layers.Dense(units, use_bias=not batch_norm, kernel_regularizer=keras.regularizers.L1L2(l1, l2))(x)
        if batch_norm:
            x = keras.layers.BatchNormalization(momentum=0.9)(x)
        x = keras.layers.Activation(activation)(x)
        x = keras.layers.Dropout(dropout)(x)
    return keras.Model(features.inputs, target.head(x), name="dense")
