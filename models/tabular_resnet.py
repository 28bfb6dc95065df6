"""A residual network for tables, with periodic embeddings of numbers where wanted.

Source: Gorishniy et al. 2021, https://arxiv.org/abs/2106.11959, and 2022 for the embeddings, https://arxiv.org/abs/2203.05556
"""

from typing import Any

import keras

from models.layers import PeriodicEmbedding, ResidualBlock
from models.options import check_counts, check_not_negative, check_positive, check_share
from refit.features import Features, Target


def build_model(
    features: Features,
    target: Target,
    *,
    width: int = 128,
    blocks: int = 2,
    hidden_factor: float = 2.0,
    dropout: float = 0.2,
    residual_dropout: float = 0.0,
    frequencies: int = 0,
    embedding_width: int = 8,
    sigma: float = 0.1,
    l2: float = 0.0,
) -> keras.Model:
    """Build a residual network over the vector of all features.

    Args:
        features: any; of images and other features together, the images are left out.
        target: gives the output layer.
        width: of the stream that the blocks add to.
        blocks: how many.
        hidden_factor: hidden width of a block over ``width``.
        dropout: share of hidden activations dropped, in training only.
        residual_dropout: share of what a block adds dropped, in training only.
        frequencies: for each number, embed it by so many sines and cosines; 0: numbers as they are.
        embedding_width: of an embedded number.
        sigma: spread of the first frequencies; tune it, from 0.01 to 100.
        l2: factor of the first layer's squared weights in the loss.
    """
    check_counts(width=width, blocks=blocks, embedding_width=embedding_width)
    check_counts(0, frequencies=frequencies)
    check_share(dropout=dropout, residual_dropout=residual_dropout)
    check_positive(hidden_factor=hidden_factor, sigma=sigma)
    check_not_negative(l2=l2)
    x = _embedded(features, PeriodicEmbedding(frequencies, embedding_width, sigma=sigma)) if frequencies else features.vector()
    x = keras.layers.Dense(width, kernel_regularizer=keras.regularizers.L2(l2) if l2 else None)(x)
    for _ in range(blocks):
        x = ResidualBlock(max(1, round(width * hidden_factor)), dropout=dropout, residual_dropout=residual_dropout)(x)
    x = keras.layers.BatchNormalization(momentum=0.9)(x)
    x = keras.layers.Activation("relu")(x)
    return keras.Model(features.inputs, target.head(x), name="tabular_resnet")


def _embedded(features: Features, embedding: keras.layers.Layer) -> Any:  # noqa: ANN401 -- a Keras tensor
    """Embedded numbers and one-hot encodings side by side."""
    if features.numeric is None:
        raise ValueError("frequencies are for numbers, and no feature is one; set frequencies: 0")
    parts = [keras.layers.Flatten()(embedding(features.numeric)), *features.encodings().values()]
    return parts[0] if len(parts) == 1 else keras.layers.Concatenate()(parts)
