"""Features and target: inferred where the job is silent, with statistics of the train split, which become constants of layers.

``fit_plans`` accepts nothing but rows of the train split.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refit.config import (
    CategoryFeature,
    CrossFeature,
    Feature,
    ImageFeature,
    Job,
    NumericFeature,
    TextFeature,
    TimestampFeature,
    VectorFeature,
)
from refit.errors import DataError
from refit.features import split_text
from refit.records import Column, CrossPlan, FeaturePlan, SnapshotRecord
from refit.schema import MISSING_INTEGER, is_number, moments_to_numpy, numbers_to_numpy, tensor_to_numpy
from refit.splits import Rows
from refit.validation import fits, option_fault

_TEXT_ROWS = 8192
_ZERO = "\0"  # Keras keeps vocabularies in NumPy's arrays of strings, which lose it at the end: such values are unseen
_QUARTILES_OF_A_DEVIATION = 1.349  # a normal distribution's quartiles lie so many deviations apart


_Counted = NumericFeature | CategoryFeature | TextFeature | VectorFeature | TimestampFeature


class ConstantColumnError(DataError):
    """Every row of the train split has the same value: nothing can be learned of it."""


# ---- which


def resolve_features(job: Job, snapshot: SnapshotRecord) -> dict[str, Feature]:
    """The job's features that are columns, or one for every column but target and key that a feature can be made of.

    Raises:
        DataError: no column is left.
    """
    if job.features is not None:
        return job.feature_columns
    taken = {job.target.column, *job.data.key, *job.split.named_columns, job.fit.sample_weight}
    inferred = {column.name: _infer_feature(column) for column in snapshot.columns if column.name not in taken}
    found = {name: feature for name, feature in inferred.items() if feature is not None}
    if not found:
        raise DataError("no column is left to predict from.", where="features", remedy="Declare them under features.")
    return found


def _infer_feature(column: Column) -> Feature | None:
    if fits(column, "image") and column.shape is not None:
        return ImageFeature(kind="image")
    if fits(column, "vector"):
        return VectorFeature(kind="vector")
    if is_number(column):
        return NumericFeature(kind="numeric")
    return CategoryFeature(kind="category") if column.type == "string" else None


def plan_crosses(job: Job) -> tuple[CrossPlan, ...]:
    """The job's combinations of categories."""
    crosses = {name: feature for name, feature in (job.features or {}).items() if isinstance(feature, CrossFeature)}
    return tuple(CrossPlan(name=name, of=tuple(cross.of), bins=cross.bins) for name, cross in crosses.items())


# ---- statistics


def fit_plans(features: Mapping[str, Feature], snapshot: SnapshotRecord, rows: Rows) -> tuple[FeaturePlan, ...]:
    """Statistics for every feature, from the train split.

    Raises:
        ValueError: ``rows`` are not the train split.
        DataError: a column has no value at all, or the same in every row.
    """
    if rows.side != "train":
        raise ValueError(f"statistics come from the train split only, not from {rows.side}")
    return tuple(_plan_column(name, feature, snapshot.column(name), rows.table[name]) for name, feature in features.items())


def _plan_column(name: str, feature: Feature, column: Column, values: pa.ChunkedArray) -> FeaturePlan:
    if isinstance(feature, CrossFeature):
        raise TypeError(f"{name} is a cross and no column")
    if values.null_count == len(values):
        raise _empty(name)
    if isinstance(feature, ImageFeature):
        return plan_image(name, feature, column)
    _check_options(column, feature)
    return _plan(FeaturePlan(name=name, kind=feature.kind, column=column, feature=feature, num_missing=values.null_count), feature, values)


def _check_options(column: Column, feature: Feature) -> None:
    fault = option_fault(column, feature)
    if fault:
        raise DataError(f"{fault}.", where=f"features.{column.name}", remedy="Mend the job.")


def _plan(plan: FeaturePlan, feature: _Counted, values: pa.ChunkedArray) -> FeaturePlan:
    match feature:
        case CategoryFeature():
            return _plan_category(plan, feature, values)
        case TextFeature():
            return _plan_text(plan, feature, values)
        case VectorFeature():
            return _plan_vector(plan, feature, values)
        case TimestampFeature():
            return _plan_timestamp(plan, values)
        case NumericFeature():
            return _plan_numeric(plan, feature, values)


def plan_image(name: str, feature: ImageFeature, column: Column) -> FeaturePlan:
    """The plan of an image, which needs no statistics.

    Raises:
        DataError: its options do not go with the column.
    """
    _check_options(column, feature)
    scale = feature.scale or (1.0 if column.dtype == "float32" else 1 / 255)
    return FeaturePlan(name=name, kind="image", column=column, feature=feature, scale=scale)


def _plan_numeric(plan: FeaturePlan, feature: NumericFeature, values: pa.ChunkedArray) -> FeaturePlan:
    numbers = numbers_to_numpy(values).astype(np.float64)
    present = numbers[np.isfinite(numbers)]
    if not len(present):
        raise _empty(plan.name)
    missing = len(numbers) - len(present)
    if present.min() == present.max() and not missing:
        raise _constant(plan.name, present[0])
    usual = "median" if feature.scale in ("robust", "bins") else "mean"
    fill = usual if feature.fill is None else feature.fill
    stands = fill if not isinstance(fill, str) else float(np.mean(present) if fill == "mean" else np.median(present))
    if feature.log:
        present = np.sign(present) * np.log1p(np.abs(present))
    changes: dict[str, object] = {"num_missing": missing, "fill": stands}
    if feature.scale == "bins":
        changes["boundaries"] = _boundaries(present, feature.bins)
    elif feature.scale != "none":
        changes["mean"], changes["variance"] = _center(present, is_robust=feature.scale == "robust")
    return plan.model_copy(update=changes)


def _center(present: np.ndarray, *, is_robust: bool) -> tuple[float, float]:
    """What is subtracted, and the square of what numbers are divided by; 1 where they do not vary."""
    low, middle, high = np.quantile(present, [0.25, 0.5, 0.75])
    spread = float(high - low) / _QUARTILES_OF_A_DEVIATION
    if is_robust and spread:
        return float(middle), spread**2
    return float(middle if is_robust else present.mean()), float(present.var()) or 1.0


def _boundaries(present: np.ndarray, bins: int) -> tuple[float, ...]:
    """Bounds between bins of as many rows each; float32, as the layer compares, and each once."""
    bounds = np.unique(np.quantile(present, np.arange(1, bins) / bins).astype(np.float32))
    return tuple(float(bound) for bound in bounds if bound > np.float32(present.min())) or (float(np.float32(present.mean())),)


def _plan_category(plan: FeaturePlan, feature: CategoryFeature, values: pa.ChunkedArray) -> FeaturePlan:
    counted = _count_values(values)
    if len(counted) == 1 and not plan.num_missing:
        raise _constant(plan.name, counted[0][0])
    if feature.hash_bins:
        return plan
    kept = [value for value, count in counted if count >= feature.min_count and not str(value).endswith(_ZERO)]
    if not kept:
        raise DataError(
            f'no value of "{plan.name}" has {feature.min_count} rows in the train split.',
            where=f"features.{plan.name}.min_count",
            received=f"at most {counted[0][1]}" if counted else "no value",
            remedy="Lower it, or leave the feature out.",
        )
    return plan.model_copy(update={"vocabulary": tuple(kept[: feature.max_tokens])})


def _count_values(values: pa.ChunkedArray) -> list[tuple[str | int, int]]:
    """Values and their rows by falling frequency, then by value; missing ones are left out."""
    plain = values.cast(pa.string() if pa.types.is_string(values.type) else pa.int64()).drop_null()
    counted = [(item["values"].as_py(), item["counts"].as_py()) for item in pc.value_counts(plain.combine_chunks())]
    return sorted((pair for pair in counted if pair[0] not in ("", MISSING_INTEGER)), key=lambda pair: (-pair[1], pair[0]))


def _plan_text(plan: FeaturePlan, feature: TextFeature, values: pa.ChunkedArray) -> FeaturePlan:
    occurrences, documents = _count_tokens(values, feature)
    kept = sorted(
        (t for t, count in occurrences.items() if count >= feature.min_count and not t.endswith(_ZERO.encode())),
        key=lambda t: (-occurrences[t], t),
    )
    if not kept:
        raise DataError(
            f'no token of "{plan.name}" occurs {feature.min_count} times in the train split.',
            where=f"features.{plan.name}.min_count",
            remedy="Lower it, or leave the feature out.",
        )
    vocabulary = tuple(token.decode() for token in kept[: feature.max_tokens])
    if feature.encoding != "tf_idf":
        return plan.model_copy(update={"vocabulary": vocabulary})
    weights = tuple(float(np.log1p(len(values) / (1 + documents[token]))) for token in kept[: feature.max_tokens])  # as Keras does
    return plan.model_copy(update={"vocabulary": vocabulary, "idf": weights})


def _count_tokens(values: pa.ChunkedArray, feature: TextFeature) -> tuple[Counter[bytes], Counter[bytes]]:
    """How often each token occurs, and in how many rows."""
    occurrences: Counter[bytes] = Counter()
    documents: Counter[bytes] = Counter()
    for first in range(0, len(values), _TEXT_ROWS):
        texts = values.slice(first, _TEXT_ROWS).cast(pa.string()).fill_null("").to_pylist()
        tokens = split_text(texts, feature)
        coded = pa.array(tokens.flat_values.numpy(), pa.binary()).dictionary_encode()
        words, codes = coded.dictionary.to_pylist(), coded.indices.to_numpy().astype(np.int64)
        once = np.unique(tokens.value_rowids().numpy() * len(words) + codes) % max(1, len(words))
        occurrences.update(dict(zip(words, np.bincount(codes, minlength=len(words)).tolist(), strict=True)))
        documents.update(dict(zip(words, np.bincount(once, minlength=len(words)).tolist(), strict=True)))
    return occurrences, documents


def _plan_vector(plan: FeaturePlan, feature: VectorFeature, values: pa.ChunkedArray) -> FeaturePlan:
    if feature.scale == "none":
        return plan
    numbers = tensor_to_numpy(values, plan.column).astype(np.float64)
    if not np.isfinite(numbers).all():
        raise DataError(f'"{plan.name}" has numbers that are not finite.', where=f"features.{plan.name}", remedy="Filter them: data.where.")
    variances = numbers.var(axis=0)
    if not variances.any():
        raise _constant(plan.name, "the same vector")
    spread = tuple(float(variance) or 1.0 for variance in variances)
    return plan.model_copy(update={"means": tuple(map(float, numbers.mean(axis=0))), "variances": spread})


def _plan_timestamp(plan: FeaturePlan, values: pa.ChunkedArray) -> FeaturePlan:
    moments = moments_to_numpy(values.drop_null())
    if moments.min() == moments.max() and not plan.num_missing:
        raise _constant(plan.name, values.drop_null()[0].as_py())
    return plan.model_copy(update={"mean": float(moments.mean()), "variance": float(moments.astype(np.float64).var()) or 1.0})


def _empty(name: str) -> DataError:
    return DataError(f'"{name}" has no value in the train split.', where="features", remedy="Leave the feature out.")


def _constant(name: str, value: object) -> ConstantColumnError:
    return ConstantColumnError(
        f'"{name}" has the same value in every row of the train split.',
        where=f"features.{name}",
        received=str(value),
        remedy="Leave the feature out, or mend the data.",
    )
