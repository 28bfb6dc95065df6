"""A small residual network for images, as for CIFAR-10.

Source: He et al. 2016, section 4.2, https://arxiv.org/abs/1512.03385
"""

from collections.abc import Sequence
from typing import Any

import keras

from models.augmentation import augment
from models.options import check_counts, check_not_negative, check_share, check_widths
from refit.features import Features, Target


def build_model(
    features: Features,
    target: Target,
    *,
    widths: Sequence[int] = (16, 32, 64),
    blocks: int = 2,
    dropout: float = 0.0,
    l2: float = 1e-4,
    flip: bool = False,
    shift: float = 0.0,
    crop: float = 0.0,
    rotation: float = 0.0,
    zoom: float = 0.0,
    contrast: float = 0.0,
    cutout: float = 0.0,
) -> keras.Model:
    """Build a residual network over all image features, with the vector of the others before the output.

    Args:
        features: at least one image ``[batch, height, width, channels]``.
        target: gives the output layer.
        widths: channels of each stage; every stage but the first halves height and width.
        blocks: of two convolutions each, in each stage; 3, 5, 9 with three stages are the paper's 20, 32, 56 layers.
        dropout: share of activations dropped before the output, in training only.
        l2: factor of the convolutions' squared weights in the loss.
        flip: mirror images left to right at random; this and the six below in training only, see ``models.augmentation``.
        shift: move images by up to this share of their height and width.
        crop: pad images with zeros by this share and cut the old size out at random.
        rotation: turn images by up to this share of a full turn.
        zoom: enlarge or shrink images by up to this share.
        contrast: stretch or press the contrast by up to this share.
        cutout: set a square with this share of height and width to zero.
    """
    if not features.images:
        raise ValueError("models.resnet needs an image feature; for tables take models.tabular_resnet")
    check_widths(1, widths=widths)
    check_counts(blocks=blocks)
    check_share(dropout=dropout)
    check_not_negative(l2=l2)
    branches = []
    for image in features.images.values():
        x = augment(image, flip=flip, shift=shift, crop=crop, rotation=rotation, zoom=zoom, contrast=contrast, cutout=cutout)
        x = keras.layers.Activation("relu")(_normalise(_convolve(x, widths[0], l2=l2)))
        for stage, width in enumerate(widths):
            for block in range(blocks):
                x = _residual(x, width, stride=2 if stage and not block else 1, l2=l2)
        branches.append(keras.layers.GlobalAveragePooling2D()(x))
    if features.has_others:
        branches.append(features.vector())
    x = branches[0] if len(branches) == 1 else keras.layers.Concatenate()(branches)
    return keras.Model(features.inputs, target.head(keras.layers.Dropout(dropout)(x)), name="resnet")


def _residual(x: Any, width: int, *, stride: int, l2: float) -> Any:  # noqa: ANN401 -- Keras tensors
    """Two convolutions and a way around them, which is a convolution of side 1 where the shape changes."""
    around = x if stride == 1 and x.shape[-1] == width else _normalise(_convolve(x, width, kernel_size=1, stride=stride, l2=l2))
    y = keras.layers.Activation("relu")(_normalise(_convolve(x, width, stride=stride, l2=l2)))
    # The block begins as the way around it. Source: Goyal et al. 2017, section 5.1, https://arxiv.org/abs/1706.02677
    y = _normalise(_convolve(y, width, l2=l2), gamma="zeros")
    return keras.layers.Activation("relu")(keras.layers.Add()([around, y]))


def _convolve(x: Any, width: int, *, l2: float, kernel_size: int = 3, stride: int = 1) -> Any:  # noqa: ANN401 -- Keras tensors
    return keras.layers.Conv2D(
        width,
        kernel_size,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        kernel_regularizer=keras.regularizers.L2(l2) if l2 else None,
    )(x)


def _normalise(x: Any, *, gamma: str = "ones") -> Any:  # noqa: ANN401 -- Keras tensors
    return keras.layers.BatchNormalization(momentum=0.9, gamma_initializer=gamma)(x)
