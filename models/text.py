"""Texts: convolutions over sequences of tokens, or a perceptron over bags of n-grams, beside whatever else a row has.

Source: Kim 2014, https://arxiv.org/abs/1408.5882
"""

from collections.abc import Sequence

import keras

from models.options import check_counts, check_not_negative, check_share, check_widths
from refit.features import Features, Target


def build_model(
    features: Features,
    target: Target,
    *,
    embedding_width: int = 64,
    filters: int = 64,
    kernel_sizes: Sequence[int] = (2, 3, 4),
    hidden_units: Sequence[int] = (64,),
    dropout: float = 0.5,
    l2: float = 0.0,
) -> keras.Model:
    """Build a network over texts and the vector of the other features.

    Args:
        features: at least one text; images are left out.
        target: gives the output layer.
        embedding_width: of a token of a sequence.
        filters: of each convolution over a sequence.
        kernel_sizes: tokens that a convolution sees, one convolution each; the strongest answer of each filter counts.
        hidden_units: widths of the layers over all of it; empty: with bags of n-grams that is a linear model.
        dropout: share of activations dropped before each of them and before the output, in training only.
        l2: factor of the squared weights of these layers in the loss.
    """
    if not (features.texts or features.sequences):
        raise ValueError("models.text needs a text feature; for tables take models.dense")
    check_counts(embedding_width=embedding_width, filters=filters)
    check_widths(1, kernel_sizes=kernel_sizes)
    check_widths(hidden_units=hidden_units)
    check_share(dropout=dropout)
    check_not_negative(l2=l2)
    numbers = [] if features.numeric is None else [features.numeric]
    parts = [*numbers, *features.categories.values(), *features.texts.values()]
    for name, tokens in features.sequences.items():
        embedded = keras.layers.Embedding(features.num_tokens[name], embedding_width)(tokens)
        for size in kernel_sizes:
            x = keras.layers.Conv1D(filters, size, padding="same", activation="relu")(embedded)
            parts.append(keras.layers.GlobalMaxPooling1D()(x))
    x = parts[0] if len(parts) == 1 else keras.layers.Concatenate()(parts)
    for units in hidden_units:
        x = keras.layers.Dropout(dropout)(x)
        x = keras.layers.Dense(units, activation="relu", kernel_regularizer=keras.regularizers.L2(l2) if l2 else None)(x)
    return keras.Model(features.inputs, target.head(keras.layers.Dropout(dropout)(x)), name="text")
