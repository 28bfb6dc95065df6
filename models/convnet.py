"""A small convolutional network for images: blocks of convolution and pooling, then one hidden layer."""

from collections.abc import Sequence

import keras

from models.augmentation import augment
from models.options import check_counts, check_not_negative, check_share, check_widths
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
    crop: float = 0.0,
    rotation: float = 0.0,
    zoom: float = 0.0,
    contrast: float = 0.0,
    cutout: float = 0.0,
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
        flip: mirror images left to right at random; this and the six below in training only, see ``models.augmentation``.
        shift: move images by up to this share of their height and width.
        crop: pad images with zeros by this share and cut the old size out at random.
        rotation: turn images by up to this share of a full turn.
        zoom: enlarge or shrink images by up to this share.
        contrast: stretch or press the contrast by up to this share.
        cutout: set a square with this share of height and width to zero.
    """
    if not features.images:
        raise ValueError("models.convnet needs an image feature; for tables take models.dense")
    check_widths(1, filters=filters)
    check_counts(kernel_size=kernel_size, hidden_units=hidden_units)
    check_share(dropout=dropout)
    check_not_negative(l2=l2)
    regularizer = keras.regularizers.L2(l2) if l2 else None
    branches = []
    for image in features.images.values():
        x = augment(image, flip=flip, shift=shift, crop=crop, rotation=rotation, zoom=zoom, contrast=contrast, cutout=cutout)
        for width in filters:
            x = keras.layers.Conv2D(width, kernel_size, padding="same", use_bias=False, kernel_regularizer=regularizer)(x)
            x = keras.layers.BatchNormalization(momentum=0.9)(x)
            x = keras.layers.Activation("relu")(x)
            x = keras.layers.MaxPooling2D(2, padding="same")(x)
        branches.append(keras.layers.Flatten()(x))
    if features.has_others:
        branches.append(features.vector())
    x = branches[0] if len(branches) == 1 else keras.layers.Concatenate()(branches)
    x = keras.layers.Dropout(dropout)(x)
    x = keras.layers.Dense(hidden_units, activation="relu", kernel_regularizer=regularizer)(x)
    x = keras.layers.Dropout(dropout)(x)
    return keras.Model(features.inputs, target.head(x), name="convnet")
