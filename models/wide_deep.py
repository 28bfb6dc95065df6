"""Wide and deep: a linear part that remembers pairs of categories, and a perceptron over embeddings that generalises.

Source: Cheng et al. 2016, https://arxiv.org/abs/1606.07792
"""

from collections.abc import Sequence
from typing import Any

import keras

from models.options import check_counts, check_not_negative, check_share, check_widths
from refit.features import Features, Target


def build_model(
    features: Features,
    target: Target,
    *,
    crosses: Sequence[Sequence[str]] = (),
    cross_bins: int = 1000,
    embedding_width: int = 8,
    hidden_units: Sequence[int] = (64, 32),
    activation: str = "relu",
    dropout: float = 0.1,
    l1: float = 0.0,
    l2: float = 0.0,
) -> keras.Model:
    """Build the sum of a linear model and a perceptron.

    Args:
        features: anything but images, which are left out.
        target: gives the width and the activation of the output.
        crosses: pairs of categories, or more than two, whose combinations the linear part sees.
        cross_bins: combinations are hashed into so many bins, for each entry of ``crosses``.
        embedding_width: of each category in the perceptron.
        hidden_units: widths of the perceptron's layers.
        activation: of the perceptron's layers.
        dropout: share of activations dropped after each of them, in training only.
        l1: factor of the linear part's absolute weights in the loss.
        l2: factor of the perceptron's squared weights in the loss.
    """
    if not features.has_others:
        raise ValueError("models.wide_deep needs numbers or categories; for images take models.convnet or models.resnet")
    check_counts(cross_bins=cross_bins, embedding_width=embedding_width)
    check_widths(1, hidden_units=hidden_units)
    check_share(dropout=dropout)
    check_not_negative(l1=l1, l2=l2)
    numbers = [] if features.numeric is None else [features.numeric]
    crossed = [_cross(features, names, cross_bins) for names in crosses]
    encodings = features.encodings().values()
    wide = _join([*numbers, *encodings, *crossed])
    # Over a one-hot encoding, a dense layer without bias is an embedding.
    embeddings = [keras.layers.Dense(embedding_width, use_bias=False)(encoding) for encoding in encodings]
    deep = _join([*numbers, *embeddings])
    for units in hidden_units:
        deep = keras.layers.Dense(units, activation=activation, kernel_regularizer=keras.regularizers.L2(l2) if l2 else None)(deep)
        deep = keras.layers.Dropout(dropout)(deep)
    linear = keras.layers.Dense(
        target.units, use_bias=False, kernel_regularizer=keras.regularizers.L1(l1) if l1 else None, dtype="float32", name="wide"
    )
    logits = keras.layers.Add(dtype="float32")([linear(wide), keras.layers.Dense(target.units, dtype="float32", name="deep")(deep)])
    return keras.Model(features.inputs, target.finish(logits), name="wide_deep")


def _cross(features: Features, names: Sequence[str], bins: int) -> Any:  # noqa: ANN401 -- a Keras tensor
    """One-hot encoding ``[batch, bins]`` of a combination of raw values."""
    unknown = [name for name in names if name not in features.indices]
    if isinstance(names, str) or len(names) < 2 or unknown:
        known = ", ".join(features.indices) or "none"
        raise ValueError(f"crosses is a list of lists of two categories or more, out of: {known}. Received: {names!r}")
    columns = tuple(keras.layers.Reshape((1,), dtype=features.inputs[name].dtype)(features.inputs[name]) for name in names)
    return keras.layers.HashedCrossing(bins, output_mode="one_hot")(columns)


def _join(parts: Sequence[Any]) -> Any:  # noqa: ANN401 -- Keras tensors
    return parts[0] if len(parts) == 1 else keras.layers.Concatenate()(parts)
