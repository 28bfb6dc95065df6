"""Features and target: inferred where the job is silent, fitted on the train split, and turned into one Keras graph.

The graph goes from raw columns to encoded tensors, so that what serves is what was trained. Statistics are constants in
the layers, taken from one pass over the train split; ``fit_plans`` accepts nothing else.
"""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refit.config import CategoryFeature, Feature, ImageFeature, Job, NumericFeature, TargetKind
from refit.errors import DataError
from refit.labels import target_kind
from refit.layers import FillMissing
from refit.records import Column, FeaturePlan, SnapshotRecord, TargetPlan
from refit.schema import MISSING_INTEGER, is_number, is_whole, numbers_to_numpy, raw_input
from refit.splits import Rows
from refit.validation import fits

# ---- plans: what the job says or leaves to be inferred, with statistics of the train split


def resolve_features(job: Job, snapshot: SnapshotRecord) -> dict[str, Feature]:
    """The job's features, or one for every column but target and key that a feature can be made of.

    Raises:
        DataError: no column is left.
    """
    if job.features is not None:
        return dict(job.features)
    taken = {job.target.column, *job.data.key, *job.split.named_columns, job.fit.sample_weight}
    inferred = {column.name: _infer_feature(column) for column in snapshot.columns if column.name not in taken}
    found = {name: feature for name, feature in inferred.items() if feature is not None}
    if not found:
        raise DataError("no column is left to predict from.", where="features", remedy="Declare them under features.")
    return found


def _infer_feature(column: Column) -> Feature | None:
    if fits(column, "image"):
        return ImageFeature(kind="image")
    if is_number(column):
        return NumericFeature(kind="numeric")
    return CategoryFeature(kind="category") if column.type == "string" else None


def fit_plans(features: dict[str, Feature], snapshot: SnapshotRecord, rows: Rows) -> tuple[FeaturePlan, ...]:
    """Statistics for every feature, from the train split.

    Raises:
        ValueError: ``rows`` are not the train split.
        DataError: a column has no value at all.
    """
    if rows.side != "train":
        raise ValueError(f"statistics come from the train split only, not from {rows.side}")
    return tuple(_plan(name, feature, snapshot.column(name), rows.table[name]) for name, feature in features.items())


def _plan(name: str, feature: Feature, column: Column, values: pa.ChunkedArray) -> FeaturePlan:
    missing = values.null_count
    if missing == len(values):
        raise DataError(f'"{name}" has no value in the train split.', where="features", remedy="Leave the feature out.")
    if isinstance(feature, ImageFeature):
        return plan_image(name, feature, column)
    if isinstance(feature, CategoryFeature):
        return FeaturePlan(name=name, kind="category", column=column, vocabulary=_vocabulary(values, feature), num_missing=missing)
    numbers = numbers_to_numpy(values).astype(np.float64)
    present = numbers[np.isfinite(numbers)]
    if not len(present):
        raise DataError(f'"{name}" has no value in the train split.', where="features", remedy="Leave the feature out.")
    missing = int(np.isnan(numbers).sum())
    return FeaturePlan(
        name=name, kind="numeric", column=column, mean=float(present.mean()), variance=float(present.var()), num_missing=missing
    )


def plan_image(name: str, feature: ImageFeature, column: Column) -> FeaturePlan:
    """The plan of an image, which needs no statistics."""
    return FeaturePlan(name=name, kind="image", column=column, scale=feature.scale or (1 / 255 if column.dtype == "uint8" else 1.0))


def _vocabulary(values: pa.ChunkedArray, feature: CategoryFeature) -> tuple[str, ...] | tuple[int, ...]:
    """Values by falling frequency, then by value."""
    plain = values.cast(pa.string() if pa.types.is_string(values.type) else pa.int64()).drop_null()
    counted = [(item["counts"].as_py(), item["values"].as_py()) for item in pc.value_counts(plain.combine_chunks())]
    ordered = [value for _, value in sorted(counted, key=lambda pair: (-pair[0], pair[1])) if value not in ("", MISSING_INTEGER)]
    return tuple(ordered[: feature.max_tokens])


def plan_target(job: Job, snapshot: SnapshotRecord, labels: pa.ChunkedArray) -> TargetPlan:
    """Kind and classes of the target.

    Args:
        job: the job; its ``target.kind`` decides, where it is given.
        snapshot: the data.
        labels: the target's values in the train split.

    Raises:
        DataError: a binary target has not two values.
    """
    column = snapshot.column(job.target.column)
    distinct = sorted(pc.unique(labels).drop_null().to_pylist())
    kind = target_kind(job, column, len(distinct))
    if kind == "regression":
        return TargetPlan(name=column.name, kind=kind, column=column)
    if kind == "binary" and len(distinct) != 2:
        raise DataError(
            f'"{column.name}" has {len(distinct)} values in the train split, a binary target has two.',
            where="target",
            received=", ".join(map(repr, distinct[:5])),
            remedy="Declare it as classes, or mend the data.",
        )
    if column.type != "string" and any(value != int(value) for value in distinct):
        raise DataError(
            f'"{column.name}" has fractions, classes are whole numbers or text.', where="target", remedy="Declare a regression."
        )
    classes = tuple(str(v) for v in distinct) if column.type == "string" else tuple(int(v) for v in distinct)
    return TargetPlan(name=column.name, kind=kind, column=column, classes=classes)


def encode_labels(labels: pa.ChunkedArray, target: TargetPlan) -> np.ndarray:
    """Labels as numbers ``[rows]``: float32 values of a regression, int32 positions among the classes otherwise.

    Raises:
        DataError: a label is missing, or was never seen in the train split.
    """
    if target.kind == "regression":
        return numbers_to_numpy(labels)
    plain = labels.cast(pa.string() if target.column.type == "string" else pa.int64())
    positions = pc.index_in(plain, value_set=pa.array(target.classes, plain.type))
    if positions.null_count:
        unseen = pc.unique(plain.filter(pc.is_null(positions))).to_pylist()
        raise DataError(
            f'{positions.null_count} rows have a "{target.name}" that does not occur in the train split.',
            where="target",
            received=", ".join(map(repr, unseen[:5])),
            remedy="Add rows of these classes, or filter them with data.where.",
        )
    return np.asarray(positions.to_numpy(), dtype=np.int32)


# ---- graph: what a builder receives


@dataclass(frozen=True)
class Features:
    """Inputs of the graph and what refit made of them.

    Attributes:
        inputs: raw columns by name, as ``keras.Input``; pass them whole to ``keras.Model``.
        numeric: all numeric features, standardised: ``[batch, n]`` float32, or None.
        categories: one-hot encodings by name: ``[batch, 2 + vocabulary]``; position 0 is missing, 1 is unseen.
        images: images by name, scaled: ``[batch, height, width, channels]`` float32.
    """

    inputs: dict[str, Any]
    numeric: Any | None
    categories: dict[str, Any]
    images: dict[str, Any]

    def vector(self) -> Any:  # noqa: ANN401 -- a Keras tensor
        """All features that are no images, side by side: ``[batch, n]``; images are flattened where there is nothing else.

        Returns:
            A Keras tensor ``[batch, n]`` float32.
        """
        parts = [*([self.numeric] if self.numeric is not None else []), *self.categories.values()]
        parts = parts or [keras.layers.Flatten()(image) for image in self.images.values()]
        return parts[0] if len(parts) == 1 else keras.layers.Concatenate()(parts)


@dataclass(frozen=True)
class Target:
    """What a builder needs to know of the target, and the layer that ends its graph."""

    name: str
    kind: TargetKind
    num_classes: int

    @property
    def units(self) -> int:
        """Width of the output: classes, or 1."""
        return self.num_classes if self.kind == "classes" else 1

    def head(self, x: Any) -> Any:  # noqa: ANN401 -- a Keras tensor
        """The output layer over ``[batch, n]``: probabilities ``[batch, units]``, or a value ``[batch, 1]``; always float32."""
        activation = {"binary": "sigmoid", "classes": "softmax", "regression": "linear"}[self.kind]
        return keras.layers.Dense(self.units, activation=activation, dtype="float32", name="output")(x)


def build_inputs(plans: tuple[FeaturePlan, ...]) -> Features:
    """Raw inputs and their encodings."""
    inputs = {plan.name: _input(plan) for plan in plans}
    of_kind = {kind: [plan for plan in plans if plan.kind == kind] for kind in ("numeric", "category", "image")}
    return Features(
        inputs=inputs,
        numeric=_standardise(of_kind["numeric"], inputs) if of_kind["numeric"] else None,
        categories={plan.name: _one_hot(plan, inputs[plan.name]) for plan in of_kind["category"]},
        images={plan.name: keras.layers.Rescaling(plan.scale, name=f"{plan.name}_scaled")(inputs[plan.name]) for plan in of_kind["image"]},
    )


def build_target(plan: TargetPlan) -> Target:
    """The target as builders see it."""
    return Target(name=plan.name, kind=plan.kind, num_classes=len(plan.classes or ()))


def _input(plan: FeaturePlan) -> Any:  # noqa: ANN401 -- a Keras tensor
    dtype, shape = raw_input(plan)
    return keras.Input(shape=shape, dtype=dtype, name=plan.name)


def _standardise(plans: list[FeaturePlan], inputs: dict[str, Any]) -> Any:  # noqa: ANN401 -- a Keras tensor
    columns = [keras.layers.Reshape((1,), name=f"{plan.name}_column")(inputs[plan.name]) for plan in plans]
    joined = columns[0] if len(columns) == 1 else keras.layers.Concatenate(name="numeric")(columns)
    marked = [position for position, plan in enumerate(plans) if plan.num_missing]
    filled = FillMissing([plan.mean or 0.0 for plan in plans], marked, name="numeric_filled")(joined)
    mean = [plan.mean or 0.0 for plan in plans] + [0.0] * len(marked)
    variance = [plan.variance or 1.0 for plan in plans] + [1.0] * len(marked)
    return keras.layers.Normalization(mean=mean, variance=variance, name="numeric_scaled")(filled)


def _one_hot(plan: FeaturePlan, column: Any) -> Any:  # noqa: ANN401 -- Keras tensors
    vocabulary = list(plan.vocabulary or ())
    if is_whole(plan.column):
        lookup = keras.layers.IntegerLookup(
            vocabulary=vocabulary, mask_token=MISSING_INTEGER, oov_token=MISSING_INTEGER + 1, name=f"{plan.name}_index"
        )
    else:
        lookup = keras.layers.StringLookup(vocabulary=vocabulary, mask_token="", name=f"{plan.name}_index")
    return keras.layers.CategoryEncoding(num_tokens=len(vocabulary) + 2, output_mode="one_hot", name=f"{plan.name}_one_hot")(lookup(column))
