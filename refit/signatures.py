"""What a SavedModel takes and tells: raw columns by name, or serialized examples, to named outputs; and the description beside it."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from refit.answers import HALF
from refit.records import BatchesRecord, FeaturePlan
from refit.schema import MISSING_INTEGER, is_encoded, raw_input, signature_name

EXAMPLES = "examples"
DESCRIPTION = Path("assets.extra") / "refit.json"  # a folder that servers leave alone
_OUTPUTS = {
    "probabilities": "of each class or label, in the order of classes",
    "label": "the most probable class; of several labels those above the threshold, joined as in the data",
    "score": "probability of the second class",
    "prediction": "the value, in the target's unit",
}


def input_specs(plan: BatchesRecord) -> dict[str, tf.TensorSpec]:
    """The raw columns by name, each named in the signature as ``signature_name`` has it."""
    return {f.name: tf.TensorSpec([None, *raw_input(f)[1]], raw_input(f)[0], name=signature_name(f.name)) for f in plan.features}


def outputs_of(model: keras.Model, plan: BatchesRecord, inputs: dict[str, tf.Tensor], threshold: float = HALF) -> dict[str, tf.Tensor]:
    """Named outputs of the signature.

    Returns:
        ``probabilities`` ``[batch, classes]`` and ``label`` ``[batch]`` in the target's own type (multilabel: names joined as in the
        data); for a binary target also ``score`` ``[batch]``, the probability of the second class; for a regression ``prediction``
        ``[batch]``.
    """
    predicted = tf.cast(model(inputs, training=False), tf.float32)
    if plan.target.kind == "regression":
        return {"prediction": predicted[:, 0]}
    classes = tf.constant(list(plan.target.classes or ()), tf.string if plan.target.column.type == "string" else tf.int64)
    if plan.target.kind == "classes":
        return {"probabilities": predicted, "label": tf.gather(classes, tf.argmax(predicted, axis=1))}
    if plan.target.kind == "multilabel":
        return {"probabilities": predicted, "label": _join_labels(classes, predicted > threshold, plan.target.separator or "")}
    score = predicted[:, 0]
    return {
        "probabilities": tf.stack([1 - score, score], axis=1),
        "label": tf.gather(classes, tf.cast(score > threshold, tf.int32)),
        "score": score,
    }


def _join_labels(names: tf.Tensor, has_label: tf.Tensor, separator: str) -> tf.Tensor:
    """Names ``[batch]`` of each row's labels ``[batch, labels]`` bool."""
    begun = tf.cumsum(tf.cast(has_label, tf.int32), axis=1) > 1  # all but the first have the separator before them
    words = tf.where(begun, tf.strings.join([separator, names])[None], names[None])
    return tf.strings.reduce_join(tf.where(has_label, words, ""), axis=1)


# ---- serialized examples


def example_specs(plan: BatchesRecord) -> dict[str, tf.io.FixedLenFeature] | None:
    """How the features are found in a ``tf.train.Example``, by column; None where one, a decoded image, has no usual form there.

    Source: https://www.tensorflow.org/api_docs/python/tf/io/parse_example
    """
    if any(feature.kind == "image" and not is_encoded(feature.column) for feature in plan.features):
        return None
    return {feature.name: _example_spec(feature) for feature in plan.features}


def _example_spec(feature: FeaturePlan) -> tf.io.FixedLenFeature:
    dtype, shape = raw_input(feature)
    wide = tf.string if dtype == "string" else tf.float32 if tf.as_dtype(dtype).is_floating else tf.int64
    if shape or feature.kind == "image":
        return tf.io.FixedLenFeature(shape, wide)  # must be there
    return tf.io.FixedLenFeature((), wide, default_value=missing_value(feature))


def parse_examples(texts: tf.Tensor, plan: BatchesRecord) -> dict[str, tf.Tensor]:
    """Raw columns of serialized examples ``[batch]``; what an example lacks is missing."""
    parsed = tf.io.parse_example(texts, example_specs(plan))
    return {name: tf.cast(parsed[name], spec.dtype) for name, spec in input_specs(plan).items()}


def missing_value(feature: FeaturePlan) -> str | float | int:
    """What stands for a missing value of a feature that is one number or string."""
    dtype, _ = raw_input(feature)
    if dtype == "string":
        return ""
    return MISSING_INTEGER if dtype == "int64" else math.nan


# ---- the description


def tell_shape(dtype: str, shape: Iterable[int | None]) -> str:
    """``float32 [batch, 3]``."""
    return f"{dtype} [{', '.join(['batch', *map(str, shape)])}]"


def write_description(plan: BatchesRecord, saved_model: Path) -> None:
    """Write what goes in, what comes out and what the classes are called into the folder of a SavedModel, as JSON."""
    path = saved_model / DESCRIPTION
    path.parent.mkdir()
    path.write_text(json.dumps(_describe(plan), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _describe(plan: BatchesRecord) -> dict[str, Any]:
    target = plan.target
    outputs = {"regression": ["prediction"], "binary": ["probabilities", "label", "score"]}.get(target.kind, ["probabilities", "label"])
    return {
        "target": {"column": target.name, "kind": target.kind, "classes": list(target.classes or ())},
        "inputs": {signature_name(feature.name): _describe_input(feature) for feature in plan.features},
        "outputs": {name: _OUTPUTS[name] for name in outputs},
        "signatures": ["serving_default", *([EXAMPLES] if example_specs(plan) is not None else [])],
    }


def _describe_input(feature: FeaturePlan) -> dict[str, Any]:
    dtype, shape = raw_input(feature)
    told: dict[str, Any] = {"column": feature.name, "kind": feature.kind, "tensor": tell_shape(dtype, shape)}
    if not shape and feature.kind != "image":
        missing = missing_value(feature)
        told["missing"] = missing if missing == missing else "NaN"
    if feature.kind == "timestamp":
        told["unit"] = "microseconds since 1970-01-01 UTC"
    if feature.vocabulary is not None:
        told["known"] = list(feature.vocabulary)
    return told
