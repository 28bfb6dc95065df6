"""How much a row counts in the loss: by its class, by a column, or both multiplied."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refit.config import nearest
from refit.errors import DataError, JobError
from refit.records import SnapshotRecord, TargetPlan
from refit.schema import is_number, numbers_to_numpy
from refit.targets import encode_labels


def class_weights(
    config: Literal["balanced"] | Mapping[str, float] | None, target: TargetPlan, labels: np.ndarray
) -> tuple[float, ...] | None:
    """Weight of each class in the order of ``target.classes``; None: all count alike.

    Args:
        config: ``balanced``: rows of each class add up to the same; or weights by label, 1 where none is named.
        target: the classes.
        labels: of the train split.

    Raises:
        JobError: the target has no classes, a label is no class, a weight is negative, or no row would count.
    """
    if config is None:
        return None
    if target.classes is None or target.kind == "multilabel":
        what = "is a quantity and has no classes" if target.classes is None else "has several labels a row, not one class,"
        raise JobError(f'"{target.name}" {what} to weigh.', where="fit.class_weight", remedy="Leave it out.")
    counts = np.bincount(encode_labels(labels, target), minlength=len(target.classes))
    if config == "balanced":
        return tuple(float(len(labels) / (len(counts) * count)) for count in counts)
    named = _weights_by_label(config, [str(label) for label in target.classes])
    if not np.dot(named, counts):
        raise JobError("no row of the train split would count: all weights are 0.", where="fit.class_weight")
    return tuple(named)


def _weights_by_label(config: Mapping[str, float], labels: Sequence[str]) -> list[float]:
    unknown = [label for label in config if label not in labels]
    if unknown:
        raise JobError(f'"{unknown[0]}" is no class of the target.{nearest(unknown[0], labels)}', where="fit.class_weight")
    negative = {label: weight for label, weight in config.items() if not weight >= 0 or weight == float("inf")}
    if negative:
        raise JobError(
            "a weight is a number that is not negative.",
            where="fit.class_weight",
            received=", ".join(f"{label}: {weight}" for label, weight in negative.items()),
        )
    return [float(config.get(label, 1.0)) for label in labels]


def check_weight_column(snapshot: SnapshotRecord, name: str) -> None:
    """See that a column can hold weights.

    Raises:
        JobError: there is no such column.
        DataError: it holds no numbers.
    """
    columns = {column.name: column for column in snapshot.columns}
    if name not in columns:
        raise JobError(f'"{name}" is no column of the data.{nearest(name, columns)}', where="fit.sample_weight")
    if not is_number(columns[name]):
        raise DataError(f'"{name}" holds no numbers, weights are.', where="fit.sample_weight", received=columns[name].type)


def sample_weights(values: pa.ChunkedArray, name: str) -> np.ndarray:
    """Weights of rows: float32 ``[rows]``.

    Raises:
        DataError: some are missing, negative or not finite.
    """
    weights = numbers_to_numpy(values)
    missing, negative = values.null_count, int((weights < 0).sum())
    infinite = int((~np.isfinite(weights)).sum()) - missing
    faults = {"missing": missing, "negative": negative, "not finite": infinite}
    if any(faults.values()):
        raise DataError(
            f'not all values of "{name}" can be weights.',
            where="fit.sample_weight",
            expected="finite numbers from 0 on",
            received=f"{len(weights):,} values, of which " + ", ".join(f"{count:,} {what}" for what, count in faults.items() if count),
            remedy="Filter these rows with data.where, or mend the column with data.select.",
        )
    return weights


def check_weights_count(values: pa.ChunkedArray, name: str, side: str) -> None:
    """See that some row of a side counts.

    Raises:
        DataError: all weights are 0, or a value is no weight.
    """
    sample_weights(values, name)
    if not pc.max(values).as_py():
        raise DataError(
            f'all values of "{name}" are 0 in the {side} split: no row would count.',
            where="fit.sample_weight",
            received=f"{len(values):,} values",
            remedy="Name another column, or leave it out.",
        )
