"""FT-Transformer: every feature of a table becomes a token, and attention finds out which belong together.

Source: Gorishniy et al. 2021, section 3.3, https://arxiv.org/abs/2106.11959
"""

from typing import Any

import keras

from models.layers import ClassToken, NumberTokenizer
from models.options import check_counts, check_positive, check_share
from refit.features import Features, Target


def build_model(
    features: Features,
    target: Target,
    *,
    width: int = 64,
    blocks: int = 2,
    heads: int = 4,
    hidden_factor: float = 4 / 3,
    attention_dropout: float = 0.2,
    dropout: float = 0.1,
    residual_dropout: float = 0.0,
) -> keras.Model:
    """Build a transformer over the tokens of all features; its cost grows with the square of their number.

    Args:
        features: anything but images, which are left out.
        target: gives the output layer.
        width: of a token; ``heads`` must divide it.
        blocks: of attention and a gated perceptron each.
        heads: of the attention.
        hidden_factor: hidden width of the perceptron over ``width``.
        attention_dropout: share of the attention dropped, in training only, as the two below.
        dropout: share of the perceptron's hidden activations dropped.
        residual_dropout: share of what attention and perceptron add dropped.
    """
    if not features.has_others:
        raise ValueError("models.ft_transformer needs numbers or categories; for images take models.resnet")
    check_counts(width=width, blocks=blocks, heads=heads)
    check_positive(hidden_factor=hidden_factor)
    check_share(attention_dropout=attention_dropout, dropout=dropout, residual_dropout=residual_dropout)
    if width % heads:
        raise ValueError(f"heads must divide width. Received: width {width}, heads {heads}")
    x = _tokenize(features, width)
    for block in range(blocks):
        y = keras.layers.LayerNormalization()(x) if block else x  # the paper leaves the first one out
        attention = keras.layers.MultiHeadAttention(heads, width // heads, dropout=attention_dropout)
        x = keras.layers.Add()([x, keras.layers.Dropout(residual_dropout)(attention(y, y))])
        y = keras.layers.LayerNormalization()(x)
        y = keras.layers.Dropout(dropout)(_gated(y, max(1, round(width * hidden_factor))))
        x = keras.layers.Add()([x, keras.layers.Dropout(residual_dropout)(keras.layers.Dense(width)(y))])
    first = keras.layers.Flatten()(keras.layers.Cropping1D((0, x.shape[1] - 1))(x))
    first = keras.layers.Activation("relu")(keras.layers.LayerNormalization()(first))
    return keras.Model(features.inputs, target.head(first), name="ft_transformer")


def _tokenize(features: Features, width: int) -> Any:  # noqa: ANN401 -- a Keras tensor
    """The class token and one for each column: ``[batch, 1 + columns, width]``."""
    tokens = [] if features.numeric is None else [NumberTokenizer(width, name="number_tokens")(features.numeric)]
    tokens += [keras.layers.Reshape((1, width))(keras.layers.Dense(width)(encoding)) for encoding in features.encodings().values()]
    joined = tokens[0] if len(tokens) == 1 else keras.layers.Concatenate(axis=1)(tokens)
    return ClassToken(name="class_token")(joined)


def _gated(x: Any, units: int) -> Any:  # noqa: ANN401 -- Keras tensors
    """A gated hidden layer, ReGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""
    return keras.layers.Multiply()([keras.layers.Dense(units)(x), keras.layers.Dense(units, activation="relu")(x)])
