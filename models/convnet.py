"""A small convolutional network for images: blocks of convolution and pooling, then one hidden layer."""

from collections.abc import Iterator, Sequence

import keras

from refit.features import Features, Target


def build_model(
    features: Features,
    target: Target,
    *,
    filters: Sequence[int] = (32, 64),
    kernel_size: int = 3,
    hidden_units: int = 128,
    dropout: float = 0.3,
    l2: float = 0.0,
    flip: bool = False,
    shift: float = 0.0,
    rotation: float = 0.0,
    zoom: float = 0.0,
) -> keras.Model:
    """Build a convolutional network over all image features and the vector of the others.

    Args:
        features: at least one image ``[batch, height, width, channels]``.
        target: gives the output layer.
        filters: channels of each block; a block halves height and width while they are above 1.
        kernel_size: side of the convolutions.
        hidden_units: width of the layer before the output.
        dropout: share of activations dropped before and after the hidden layer, in training only.
        l2: factor of the squared weights in the loss.
        flip: mirror images left to right at random, in training only, as the three below.
        shift: move images by up to this share of their height and width.
        rotation: turn images by up to this share of a full turn.
        zoom: enlarge or shrink images by up to this share.
    """
    if not features.images:
        raise ValueError("models.convnet needs an image feature; for tables take models.dense")
    regularizer = keras.regularizers.L2(l2) if l2 else None
    branches = []
    for image in features.images.values():
        x = image
        for layer in _augmentation(flip=flip, shift=shift, rotation=rotation, zoom=zoom):
            x = layer(x)
        for width in filters:
            x = keras.layers.Conv2D(width, kernel_size, padding="same", use_bias=False, kernel_regularizer=regularizer)(x)
            x = keras.layers.BatchNormalization(momentum=0.9)(x)
            x = keras.layers.Activation("relu")(x)
            x = keras.layers.MaxPooling2D(2, padding="same")(x)
        branches.append(keras.layers.Flatten()(x))
    if features.numeric is not None or features.categories:
        branches.append(features.vector())
    x = branches[0] if len(branches) == 1 else keras.layers.Concatenate()(branches)
    x = keras.layers.Dropout(dropout)(x)
    x = keras.layers.Dense(hidden_units, activation="relu", kernel_regularizer=regularizer)(x)
    x = keras.layers.Dropout(dropout)(x)
    return keras.Model(features.inputs, target.head(x), name="convnet")


def _augmentation(*, flip: bool, shift: float, rotation: float, zoom: float) -> Iterator[keras.layers.Layer]:
    if flip:
        yield keras.layers.RandomFlip("horizontal")
    if shift:
        yield keras.layers.RandomTranslation(shift, shift, fill_mode="nearest")
    if rotation:
        yield keras.layers.RandomRotation(rotation, fill_mode="nearest")
    if zoom:
        yield keras.layers.RandomZoom(zoom, fill_mode="nearest")
