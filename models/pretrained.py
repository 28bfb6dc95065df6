"""A model from a file with a new head: fine-tuning in two stages.

First a job with ``frozen: true`` fits the head alone. Then a second job with ``frozen: false`` (or a number of layers), a learning rate
ten to a hundred times smaller and ``fit.initial_weights``, the ``weights.weights.h5`` of the first job's run, goes on with all layers.
Source: https://keras.io/guides/transfer_learning
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras

from models.options import check_counts, check_share, check_widths
from refit.features import Features, Target


def build_model(
    features: Features,
    target: Target,
    *,
    path: str,
    sha256: str | None = None,
    feature: str | None = None,
    raw: bool = False,
    cut: str | None = None,
    frozen: bool | int = True,
    freeze_batch_norm: bool = True,
    hidden_units: Sequence[int] = (),
    dropout: float = 0.0,
) -> keras.Model:
    """Build a new head over a model from a file.

    The file's layers keep the precision that they were saved with; the head has the job's.

    Args:
        features: the file's model gets one of them; the vector of the others joins before the head, where that one is an image.
        target: gives the output layer.
        path: a ``.keras`` file with one input: an image ``[batch, height, width, channels]`` or a vector ``[batch, n]``.
        sha256: digest of the file; another file is refused. Without it, nobody notices that the file has changed.
        feature: the image that the file's model gets; by default the only one. A file with a vector gets the vector of all features.
        raw: give it the image as it is stored and not scaled, for files that scale it themselves, such as ``model.keras`` of a run.
        cut: name of the layer of the file's model whose output is taken; by default what its last layer gets.
        frozen: true: all layers of the file stay as they are and compute as in inference; a number: the first so many in the order of
            ``model.layers``, the input among them; false: none.
        freeze_batch_norm: keep batch norm as in inference even in layers that are not frozen: small batches would spoil its statistics.
        hidden_units: widths of hidden layers in the head.
        dropout: share of activations dropped before each layer of the head, in training only.
    """
    check_widths(hidden_units=hidden_units)
    check_share(dropout=dropout)
    loaded = _load(path, sha256)
    given = _choose(features, feature, raw=raw, rank=len(loaded.inputs[0].shape))
    _check_shape(loaded.inputs[0].shape, given.shape)
    backbone = keras.Model(loaded.inputs[0], _end(loaded, cut), name="backbone")
    _freeze(backbone, frozen, freeze_batch_norm=freeze_batch_norm)
    x = _flat(backbone(given, training=False) if frozen is True else backbone(given))
    if len(given.shape) == 4 and features.has_others:
        x = keras.layers.Concatenate()([x, features.vector()])
    for units in hidden_units:
        x = keras.layers.Dropout(dropout)(x)
        x = keras.layers.Dense(units, activation="relu")(x)
    return keras.Model(features.inputs, target.head(keras.layers.Dropout(dropout)(x)), name="pretrained")


def _load(path: str, sha256: str | None) -> keras.Model:
    """The file's model, without code that the file might hold."""
    file = Path(path)
    if file.suffix != ".keras" or not file.is_file():
        raise ValueError(f"path is a .keras file that exists. Received: {path!r}")
    if sha256 is not None:
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != sha256.lower():
            raise ValueError(f"{path} is another file than sha256 says. Received: {found}")
    loaded = keras.saving.load_model(file, compile=False, safe_mode=True)
    inputs = getattr(loaded, "inputs", None)
    if not inputs or len(inputs) != 1:
        raise ValueError(f"the model in {path} must be functional or sequential and have one input. Received: {len(inputs or ())}")
    return loaded


def _choose(features: Features, name: str | None, *, raw: bool, rank: int) -> Any:  # noqa: ANN401 -- a Keras tensor
    """What the file's model gets."""
    if rank == 2 and name is None:
        return features.vector()
    names = [name] if name else list(features.images)
    if len(names) != 1 or names[0] not in features.images:
        raise ValueError(f"feature names one image out of: {', '.join(features.images) or 'none'}. Received: {name!r}")
    return (features.inputs if raw else features.images)[names[0]]


def _check_shape(expected: tuple[int | None, ...], given: tuple[int | None, ...]) -> None:
    fits = len(expected) == len(given) and all(None in (a, b) or a == b for a, b in zip(expected, given, strict=True))
    if not fits:
        raise ValueError(f"the file's model takes {expected}, and the feature is {given}; resize images in data.sources")


def _end(loaded: keras.Model, cut: str | None) -> Any:  # noqa: ANN401 -- a Keras tensor
    """Where the backbone ends."""
    if cut is None:
        end = loaded.layers[-1].input
    else:
        names = [layer.name for layer in loaded.layers]
        if cut not in names:
            raise ValueError(f"cut names a layer of the file's model, the last of which are: {', '.join(names[-5:])}. Received: {cut!r}")
        end = loaded.get_layer(cut).output
    if isinstance(end, list | tuple | dict):
        raise ValueError("the model is to be cut where it has one tensor; name another layer with cut")
    return end


def _freeze(backbone: keras.Model, frozen: bool | int, *, freeze_batch_norm: bool) -> None:
    """Set which layers learn; what the file said of that does not count."""
    backbone.trainable = frozen is not True
    if not isinstance(frozen, bool):
        check_counts(0, frozen=frozen)
        if frozen > len(backbone.layers):
            raise ValueError(f"frozen is true, false or a number up to {len(backbone.layers)}, the layers there are. Received: {frozen}")
        for layer in backbone.layers[:frozen]:
            layer.trainable = False
    if freeze_batch_norm:
        for layer in _within(backbone):
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False


def _within(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """All layers, those of models within a model too."""
    for layer in model.layers:
        yield from _within(layer) if isinstance(layer, keras.Model) else (layer,)


def _flat(x: Any) -> Any:  # noqa: ANN401 -- Keras tensors
    """``[batch, n]``: the mean over an image's places, or all values side by side."""
    if len(x.shape) == 2:
        return x
    return keras.layers.GlobalAveragePooling2D()(x) if len(x.shape) == 4 else keras.layers.Flatten()(x)
