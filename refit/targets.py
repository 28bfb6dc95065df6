"""The target: what is predicted, on which scale it is learned, and labels as numbers."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refit.config import Job, TargetConfig, nearest
from refit.errors import DataError
from refit.labels import target_kind
from refit.records import Column, SnapshotRecord, TargetPlan
from refit.schema import numbers_to_numpy


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
    if job.target.kind == "multilabel":
        return _plan_labels(job.target, column, labels)
    distinct = sorted(pc.unique(labels).drop_null().to_pylist())
    kind = target_kind(job, column, len(distinct))
    if kind == "regression":
        return _plan_quantity(job.target, column, labels)
    if kind == "binary" and len(distinct) != 2:
        raise DataError(
            f'"{column.name}" has {len(distinct)} values in the train split, a binary target has two.',
            where="target",
            received=", ".join(map(repr, distinct[:5])),
            remedy="Declare it as classes, or mend the data.",
        )
    if len(distinct) < 2:
        raise DataError(
            f'"{column.name}" has one value only in the train split.',
            where="target",
            received=", ".join(map(repr, distinct)),
            remedy="Mend the data, or divide them otherwise (split.by: stratified).",
        )
    if column.type != "string" and any(value != int(value) for value in distinct):
        raise DataError(
            f'"{column.name}" has fractions, classes are whole numbers or text.', where="target", remedy="Declare a regression."
        )
    classes = tuple(str(v) for v in distinct) if column.type == "string" else tuple(int(v) for v in distinct)
    if job.target.positive is not None:
        classes = _with_last(classes, job.target.positive)
    return TargetPlan(name=column.name, kind=kind, column=column, classes=classes)


def _with_last(classes: tuple[str, ...] | tuple[int, ...], positive: str | int) -> tuple[str, ...] | tuple[int, ...]:
    if positive not in classes:
        raise DataError(
            f'"{positive}" is no value of the target.{nearest(str(positive), map(str, classes))}',
            where="target.positive",
            expected=", ".join(map(repr, classes)),
        )
    return classes if classes[1] == positive else (classes[1], classes[0])  # type: ignore[return-value]  # both of one type


def _plan_quantity(config: TargetConfig, column: Column, labels: pa.ChunkedArray) -> TargetPlan:
    plan = TargetPlan(name=column.name, kind="regression", column=column, log=config.log)
    if config.scale == "none":
        return plan if not config.log else plan.model_copy(update={"mean": 0.0, "deviation": 1.0})
    values = numbers_to_numpy(labels).astype(np.float64)
    if config.log:
        values = np.sign(values) * np.log1p(np.abs(values))
    values = values[np.isfinite(values)]  # others are refused where they are encoded
    return plan.model_copy(update={"mean": float(values.mean()), "deviation": float(values.std()) or 1.0})


def _plan_labels(config: TargetConfig, column: Column, labels: pa.ChunkedArray) -> TargetPlan:
    plan = TargetPlan(name=column.name, kind="multilabel", column=column, separator=config.separator)
    classes = tuple(sorted(filter(None, pc.unique(_split_labels(labels, plan).flatten()).to_pylist())))
    if len(classes) < 2:
        raise DataError(
            f'"{column.name}" has fewer than two labels in the train split.',
            where="target",
            received=", ".join(map(repr, classes)),
            remedy=f'Look at target.separator, which is "{config.separator}".',
        )
    return plan.model_copy(update={"classes": classes})


def _split_labels(texts: pa.ChunkedArray, target: TargetPlan) -> pa.ListArray:
    """The labels of each row, some of them empty; a missing text has none."""
    split = pc.split_pattern(texts.cast(pa.string()).combine_chunks().fill_null(""), target.separator)
    return pa.ListArray.from_arrays(split.offsets, pc.utf8_trim_whitespace(split.values))


def encode_labels(labels: pa.ChunkedArray, target: TargetPlan) -> np.ndarray:
    """Labels as numbers.

    Returns:
        ``[rows]``: float32 values of a regression, or int32 positions among the classes; of a multilabel target uint8
        ``[rows, classes]``, 1 for each label that a row has.

    Raises:
        DataError: a label is missing, or was never seen in the train split.
    """
    if target.kind == "regression":
        return numbers_to_numpy(labels)
    if target.kind == "multilabel":
        return _encode_labels(labels, target)
    plain = labels.cast(pa.string() if target.column.type == "string" else pa.int64())
    positions = _find(plain, pa.array(target.classes, plain.type), target)
    return np.asarray(positions.to_numpy(), dtype=np.int32)


def _encode_labels(labels: pa.ChunkedArray, target: TargetPlan) -> np.ndarray:
    split = _split_labels(labels, target)
    names, rows = split.flatten(), np.asarray(pc.list_parent_indices(split))
    is_there = np.asarray(pc.not_equal(names, ""))
    positions = _find(names.filter(pa.array(is_there)), pa.array(target.classes, pa.string()), target)
    encoded = np.zeros((len(labels), len(target.classes or ())), dtype=np.uint8)
    encoded[rows[is_there], np.asarray(positions)] = 1
    return encoded


def _find(values: pa.Array | pa.ChunkedArray, classes: pa.Array, target: TargetPlan) -> pa.Array | pa.ChunkedArray:
    positions = pc.index_in(values, value_set=classes)
    if positions.null_count:
        unseen = pc.unique(values.filter(pc.is_null(positions))).to_pylist()
        raise DataError(
            f'{positions.null_count} rows have a "{target.name}" that does not occur in the train split.',
            where="target",
            received=", ".join(map(repr, unseen[:5])),
            remedy="Add rows of these classes, or filter them with data.where.",
        )
    return positions
