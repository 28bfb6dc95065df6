"""Candidate, champion and the best earlier version on the same rows, each from its own SavedModel and from raw columns."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from refit.answers import HALF
from refit.export import raw_columns
from refit.layout import Layout, RunLayout
from refit.lineage import trace_learning
from refit.metrics import METRICS, compute_metrics
from refit.records import BatchesRecord, ChampionRecord, EvaluationRecord, ExportRecord, Metrics, TargetPlan
from refit.registry import VersionRecord, champion_record, versions
from refit.schema import signature_name
from refit.splits import Rows, count_shared
from refit.stages import read_stage
from refit.targets import encode_labels

BATCH_ROWS = 1024


@dataclass(frozen=True)
class Scores:
    """Labels ``[rows]`` and each model's predictions, ``[rows, classes]`` probabilities or ``[rows]`` values; None: it was not asked."""

    labels: np.ndarray
    candidate: np.ndarray
    champion: np.ndarray | None = None
    best: np.ndarray | None = None


class IncompatibleError(ValueError):
    """A model cannot be asked about these rows; the text says why."""


def score_rows(saved_model: Path, columns: dict[str, np.ndarray], target: TargetPlan) -> np.ndarray:
    """Predictions of a SavedModel for raw rows.

    Args:
        saved_model: with ``serving_default`` over raw columns; it may want fewer columns than are given.
        columns: raw columns, ``[rows, *shape]``.
        target: what the caller expects to be predicted.

    Raises:
        IncompatibleError: it wants a column that is not there, of another type or shape, or knows other classes.
    """
    try:
        model = tf.saved_model.load(str(saved_model))
    except (OSError, ValueError) as error:
        raise IncompatibleError(f"it cannot be loaded: {error}") from error
    predict = model.signatures["serving_default"]
    columns = {signature_name(name): values for name, values in columns.items()}
    wanted = dict(predict.structured_input_signature[1])
    _check_inputs(wanted, columns)
    output = "prediction" if target.kind == "regression" else "probabilities"
    _check_output(predict.structured_outputs, output, target)
    num_rows = len(next(iter(columns.values())))
    parts = [
        predict(**{name: tf.constant(columns[name][start : start + BATCH_ROWS], spec.dtype) for name, spec in wanted.items()})[
            output
        ].numpy()
        for start in range(0, num_rows, BATCH_ROWS)
    ]
    return np.concatenate(parts)


def _check_inputs(wanted: dict[str, tf.TensorSpec], columns: dict[str, np.ndarray]) -> None:
    for name, spec in wanted.items():
        if name not in columns:
            raise IncompatibleError(f'it wants the column "{name}", which the data no longer have as a feature')
        values = columns[name]
        received = "string" if values.dtype == object else values.dtype.name
        if received != spec.dtype.name or not spec.shape.is_compatible_with(values.shape):
            raise IncompatibleError(
                f'it wants "{name}" as {spec.dtype.name} {spec.shape.as_list()[1:]}, it is {received} {list(values.shape[1:])} now'
            )


def _check_output(outputs: dict[str, tf.TensorSpec], name: str, target: TargetPlan) -> None:
    if name not in outputs:
        raise IncompatibleError(f'it has no output "{name}": it predicts another kind of target')
    if target.kind != "regression" and outputs[name].shape[1] != len(target.classes or ()):
        raise IncompatibleError(f"it knows {outputs[name].shape[1]} classes, there are {len(target.classes or ())} now")


def evaluate(
    model_name: str,
    plan: BatchesRecord,
    exported: ExportRecord,
    validation: Rows | None,
    test: Rows,
    layout: Layout,
    run: RunLayout,
    *,
    rank_by: str | None = None,
) -> EvaluationRecord:
    """Score the candidate on validation and test rows, and the versions that it is compared with on the same test rows.

    Writes labels and all predictions on the test rows to ``scores.parquet``.

    Args:
        model_name: of the published model.
        plan: features and target of the candidate.
        exported: the candidate.
        validation: None where the model learned from all rows.
        test: rows that no model has seen.
        layout: where models lie.
        run: of the candidate.
        rank_by: the metric by which the best earlier version is found; None: none is asked.
    """
    candidate = layout.resolve(exported.path)
    metrics: dict[str, Metrics] = {}
    for side, rows in (("validation", validation), ("test", test)):
        if rows is None:
            continue
        labels = encode_labels(rows.table[plan.target.name], plan.target)
        predictions = score_rows(candidate, raw_columns(rows.table, plan.features), plan.target)
        metrics[side] = compute_metrics(plan.target.kind, labels, predictions, threshold=exported.threshold)
    ask = partial(_evaluate_version, model_name, plan, test, labels, layout, run)
    serving = champion_record(layout, model_name)
    champion, champion_predictions = ask(serving) if serving else (None, None)
    rivals = _rank_earlier(model_name, layout, run, rank_by) if rank_by and champion_predictions is not None else []
    fair = ((best, told) for best, told in map(ask, rivals) if told is not None and not best.num_shared_rows)
    best, best_predictions = next(fair, (None, None))
    _write_scores(run, Scores(labels, predictions, champion_predictions, best_predictions))
    _write_board(run, metrics["test"])
    return EvaluationRecord.model_validate({"metrics": metrics, "champion": champion, "best": best, "num_rows": len(labels)})


def _rank_earlier(model_name: str, layout: Layout, run: RunLayout, rank_by: str) -> list[VersionRecord]:
    """Versions on disk that may be better than the champion, by what each scored on the test rows of its own time, best first.

    Those that a rollback took out of service are left out, and so are copies of the champion's model and of the candidate.
    """
    known = versions(layout, model_name)
    others = [version for version in known if rank_by in version.metrics and version.run not in (known[-1].run, run.root.name)]
    sign = 1 if METRICS[rank_by].higher_is_better else -1
    allowed = [version for version in others if not version.withdrawn]
    return sorted(allowed, key=lambda version: (sign * version.metrics[rank_by], version.version), reverse=True)


def _evaluate_version(
    model_name: str, plan: BatchesRecord, test: Rows, labels: np.ndarray, layout: Layout, run: RunLayout, version: VersionRecord
) -> tuple[ChampionRecord, np.ndarray | None]:
    shared = count_shared(run, *trace_learning(layout, model_name, version.run)) if version.run else None
    own = read_stage(layout.run(model_name, version.run), "export", ExportRecord) if version.run else None
    threshold = own.threshold if own else HALF
    base = ChampionRecord(version=version.version, run=version.run, metrics={}, num_shared_rows=shared or 0, threshold=threshold)
    try:
        columns = _own_columns(model_name, version.run, plan, test, layout)
        predictions = score_rows(layout.model(model_name).version(version.version), columns, plan.target)
    except IncompatibleError as error:
        return base.model_copy(update={"incompatible": str(error)}), None
    metrics = compute_metrics(plan.target.kind, labels, predictions, threshold=threshold)
    return base.model_copy(update={"metrics": metrics}), predictions


def _own_columns(model_name: str, run: str | None, plan: BatchesRecord, test: Rows, layout: Layout) -> dict[str, np.ndarray]:
    """Raw columns as the version's own features take them, where its run is still there.

    Raises:
        IncompatibleError: its classes are others, or in another order; or a column has another type.
    """
    own = read_stage(layout.run(model_name, run), "convert", BatchesRecord) if run else None
    if own is None:
        return raw_columns(test.table, plan.features)
    if (own.target.kind, own.target.classes) != (plan.target.kind, plan.target.classes):
        raise IncompatibleError(f"it predicts {_classes(own.target)}, the target is {_classes(plan.target)} now")
    try:
        return raw_columns(test.table, tuple(f for f in own.features if f.name in test.table.column_names))
    except (pa.ArrowException, ValueError) as error:
        raise IncompatibleError(f"a column is of another type now: {error}") from error


def _classes(target: TargetPlan) -> str:
    return target.kind if target.classes is None else f"{target.kind} {', '.join(map(str, target.classes[:12]))}"


def _write_scores(run: RunLayout, scores: Scores) -> None:
    told = {"label": scores.labels, "candidate": scores.candidate, "champion": scores.champion, "best": scores.best}
    columns = {name: _as_array(values) for name, values in told.items() if values is not None}
    aside = run.scores.with_suffix(".tmp")
    pq.write_table(pa.table(columns), aside)
    aside.replace(run.scores)


def _as_array(predictions: np.ndarray) -> pa.Array:
    if predictions.ndim == 1:
        return pa.array(predictions)
    return pa.FixedSizeListArray.from_arrays(pa.array(predictions.ravel()), predictions.shape[1])


def read_scores(run: RunLayout) -> Scores:
    """Labels and predictions on the test rows."""
    table = pq.read_table(run.scores)
    told = {name: _from_array(table[name]) for name in table.column_names}
    return Scores(told["label"], told["candidate"], told.get("champion"), told.get("best"))


def _from_array(values: pa.ChunkedArray) -> np.ndarray:
    combined = values.combine_chunks()
    if not pa.types.is_fixed_size_list(values.type):
        return np.asarray(combined.to_numpy())
    return np.asarray(combined.flatten().to_numpy()).reshape(len(combined), values.type.list_size)


def _write_board(run: RunLayout, metrics: Metrics) -> None:
    """One point a metric in TensorBoard, under the name that the fit uses."""
    writer = tf.summary.create_file_writer(str(run.tensorboard_dir / "evaluation"))
    with writer.as_default(step=0):
        for name, value in metrics.items():
            tf.summary.scalar(f"test_{name}", value)
    writer.close()
