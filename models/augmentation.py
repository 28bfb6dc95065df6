"""Random changes to images, in training only: what the builders for images share.

Each layer draws from a generator of its own, seeded by the job's seed and saved with the checkpoints: a fit that is resumed goes on with
the same changes. They compute in float32 under any precision.
"""

from collections.abc import Iterator
from typing import Any

import keras

from models.options import check_share

_NO_LIMIT = (-1e30, 1e30)


def augment(
    image: Any,  # noqa: ANN401 -- a Keras tensor
    *,
    flip: bool = False,
    shift: float = 0.0,
    crop: float = 0.0,
    rotation: float = 0.0,
    zoom: float = 0.0,
    contrast: float = 0.0,
    cutout: float = 0.0,
) -> Any:  # noqa: ANN401 -- a Keras tensor
    """Change images at random in training; pass them on as they are in inference.

    Args:
        image: ``[batch, height, width, channels]`` float.
        flip: mirror left to right, every other image.
        shift: move by up to this share of height and width; the edge is repeated.
        crop: pad with zeros by this share of height and width and cut the old size out at a random place, by whole pixels.
        rotation: turn by up to this share of a full turn.
        zoom: enlarge or shrink by up to this share.
        contrast: stretch or press the distance from the image's mean by up to this share; values are not clipped.
        cutout: set a square with this share of height and width to zero, at a random place in each image.
            Source: https://arxiv.org/abs/1708.04552

    Returns:
        A Keras tensor of the same shape.

    Raises:
        ValueError: a share is not from 0 to below 1.
    """
    check_share(shift=shift, crop=crop, rotation=rotation, zoom=zoom, contrast=contrast, cutout=cutout)
    layers = (*_moves(flip=flip, shift=shift, crop=crop, rotation=rotation, zoom=zoom), *_changes(contrast=contrast, cutout=cutout))
    for layer in layers:
        image = layer(image)
    return image


def _moves(*, flip: bool, shift: float, crop: float, rotation: float, zoom: float) -> Iterator[keras.layers.Layer]:
    if flip:
        yield keras.layers.RandomFlip("horizontal", dtype="float32")
    if shift:
        yield keras.layers.RandomTranslation(shift, shift, fill_mode="nearest", dtype="float32")
    if crop:
        yield keras.layers.RandomTranslation(crop, crop, fill_mode="constant", interpolation="nearest", dtype="float32")
    if rotation:
        yield keras.layers.RandomRotation(rotation, fill_mode="nearest", dtype="float32")
    if zoom:
        yield keras.layers.RandomZoom(zoom, fill_mode="nearest", dtype="float32")


def _changes(*, contrast: float, cutout: float) -> Iterator[keras.layers.Layer]:
    if contrast:
        yield keras.layers.RandomContrast(contrast, value_range=_NO_LIMIT, dtype="float32")
    if cutout:
        area = (cutout**2, cutout**2)  # Keras takes its root for each side
        yield keras.layers.RandomErasing((1.0, 1.0), scale=area, fill_value=0.0, value_range=_NO_LIMIT, dtype="float32")
