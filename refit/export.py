"""The SavedModel that serves: one graph from raw columns to named outputs, proved in a process that has only TensorFlow."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import keras
import numpy as np
import pyarrow as pa
import tensorflow as tf

from refit import proof
from refit.answers import HALF
from refit.config import TargetKind, ThresholdName
from refit.contract import make_features
from refit.errors import ProofError
from refit.layout import Layout, RunLayout
from refit.records import BatchesRecord, ExportRecord, FeaturePlan, sync_path
from refit.registry import digest_folder
from refit.schema import signature_name, to_numpy
from refit.signatures import EXAMPLES, example_specs, input_specs, outputs_of, parse_examples, tell_shape, write_description
from refit.splits import Rows
from refit.targets import encode_labels
from refit.thresholds import LimitRule, choose_threshold

PROOF_ROWS, ODD_ROWS = 256, 16
LATENCY_CALLS = 200
_THRESHOLD_ROWS = 1024
Tensors = dict[str, tf.Tensor]
# Largest difference between a prediction in the training process and from the SavedModel, as ``proof.measure_difference`` has it; both
# compute in float32.
TOLERANCE = 1e-5


def raw_columns(table: pa.Table, features: tuple[FeaturePlan, ...]) -> dict[str, np.ndarray]:
    """Raw columns as the exported signature takes them; strings as objects."""
    return {plan.name: to_numpy(table[plan.name], plan) for plan in features}


def export_model(
    model: keras.Model, plan: BatchesRecord, rows: Rows, layout: Layout, run: RunLayout, *, threshold: float = HALF
) -> ExportRecord:
    """Write the SavedModel of a fitted model into the run's folder and prove it.

    Args:
        model: with its final weights.
        plan: features and target.
        rows: raw rows to prove it on; the first ``PROOF_ROWS`` are used, and others with missing and unseen values.
        layout: for the record's relative path.
        run: the run's paths.
        threshold: above which a label is told (binary, multilabel).

    Raises:
        ProofError: it cannot be loaded without this repository, or predicts something else.
    """
    with _judge() as judge, tempfile.TemporaryDirectory(dir=run.model_dir, prefix=".export.") as folder:
        aside = Path(folder) / "saved_model"
        tell = partial(outputs_of, model, plan, threshold=threshold)
        _write_saved_model(model, plan, tell, aside)
        inputs = _add_odd_rows(raw_columns(rows.table.slice(0, PROOF_ROWS), plan.features), plan)
        expected = {name: values.numpy() for name, values in tell(_tensors(inputs)).items()}
        reply = _prove(judge, aside, inputs, expected, Path(folder), _tie_at(plan.target.kind, threshold))
        shutil.rmtree(run.saved_model, ignore_errors=True)
        aside.rename(run.saved_model)
    sync_path(run.model_dir)
    return ExportRecord(
        path=layout.relative(run.saved_model),
        digest=digest_folder(run.saved_model),
        num_bytes=sum(path.stat().st_size for path in run.saved_model.rglob("*") if path.is_file()),
        inputs={str(spec.name): tell_shape(spec.dtype.name, spec.shape[1:]) for spec in input_specs(plan).values()},
        outputs={name: tell_shape("string" if v.dtype == object else v.dtype.name, v.shape[1:]) for name, v in expected.items()},
        proof_rows=len(rows.table.slice(0, PROOF_ROWS)),
        proof_odd_rows=ODD_ROWS,
        max_difference=reply["difference"],
        threshold=threshold,
        latency_p50_ms=round(reply["latency_p50_ms"], 3),
        latency_p99_ms=round(reply["latency_p99_ms"], 3),
    )


def _write_saved_model(model: keras.Model, plan: BatchesRecord, tell: Callable[[Tensors], Tensors], path: Path) -> None:
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serving_default", tell, input_signature=[input_specs(plan)])
    if example_specs(plan) is not None:
        spec = tf.TensorSpec([None], tf.string, name=EXAMPLES)
        archive.add_endpoint(EXAMPLES, lambda texts: tell(parse_examples(texts, plan)), input_signature=[spec])
    archive.write_out(str(path), verbose=False)
    write_description(plan, path)


def _add_odd_rows(columns: dict[str, np.ndarray], plan: BatchesRecord) -> dict[str, np.ndarray]:
    odd = make_features(plan, num_rows=ODD_ROWS)
    return {name: np.concatenate([values, odd[name].numpy()]) for name, values in columns.items()}


def _tensors(inputs: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    return {name: tf.constant(values) for name, values in inputs.items()}


# ---- the proof


@dataclass(frozen=True)
class _Judge:
    """The process, and the file that takes what it writes to stderr."""

    process: "subprocess.Popen[str]"
    stderr: IO[str]

    def last_words(self) -> str:
        self.stderr.seek(0)
        lines = self.stderr.read().strip().splitlines()
        return lines[-1] if lines else "it said nothing"


@contextlib.contextmanager
def _judge() -> Iterator["_Judge"]:
    """A process that has only TensorFlow. It is started early, so that its import runs while the model is written."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "")}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stderr:
        process = subprocess.Popen(  # noqa: S603 -- our own script with our own interpreter
            [sys.executable, "-I", proof.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
        )
        try:
            yield _Judge(process, stderr)
        finally:
            if process.stdin:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


def _prove(
    judge: "_Judge", saved_model: Path, inputs: dict[str, np.ndarray], expected: dict[str, np.ndarray], folder: Path, ties: float | None
) -> dict[str, Any]:
    given, told = folder / "inputs.npz", folder / "outputs.npz"
    encoded = {f"of {signature_name(name)}": np.array([*map(_as_bytes, v)]) if v.dtype == object else v for name, v in inputs.items()}
    np.savez(given, **encoded)  # type: ignore[arg-type]
    request = {
        "saved_model": str(saved_model),
        "inputs": str(given),
        "outputs": str(told),
        "batch_sizes": [64, 1],
        "latency_calls": LATENCY_CALLS,
    }
    reply = _ask(judge, request)
    if "error" in reply:
        raise ProofError(
            f"the exported model cannot be served without this repository: {reply['error']}.",
            where=str(saved_model.name),
            remedy="Let the model use Keras and TensorFlow operations only, no Python functions.",
        )
    difference = max(_difference(expected, told, ties), reply["batch_differences"])
    if not difference <= TOLERANCE:
        raise ProofError(
            "the exported model predicts something else than the model that was trained.",
            where="export",
            expected=f"a difference of at most {TOLERANCE:g}",
            received=f"{difference:.3g}",
            remedy="Look for layers whose results depend on the batch or on Python state.",
        )
    return {**reply, "difference": difference}


def _as_bytes(value: str | bytes) -> bytes:
    """With a sign at the end, for NumPy takes zero bytes there for padding."""
    return (value.encode() if isinstance(value, str) else value) + b"."


def _ask(judge: "_Judge", request: dict[str, Any]) -> dict[str, Any]:
    process = judge.process
    if process.stdin is None or process.stdout is None:
        raise TypeError("the process has no pipes")
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
    line = process.stdout.readline()
    return dict(json.loads(line)) if line else {"error": f"the process ended with status {process.wait()}: {judge.last_words()}"}


def _difference(expected: dict[str, np.ndarray], path: Path, ties: float | None) -> float:
    """As of ``proof.measure_difference``; infinite where another label is told though the probabilities do not tie."""
    with np.load(path, allow_pickle=False) as stored:
        told = {name: stored[name] for name in stored.files}
    if told.keys() != expected.keys():
        return float("inf")
    if "label" in expected:
        labels = expected["label"].astype("S") if expected["label"].dtype == object else expected["label"]
        if np.any((labels != told["label"]) & ~_is_tie(expected["probabilities"], ties)):
            return float("inf")
    floats = [name for name in expected if expected[name].dtype.kind == "f"]
    return max(proof.measure_difference(told[name], expected[name]) for name in floats)


def _tie_at(kind: TargetKind, threshold: float) -> float | None:
    """The probability by which labels are told; None: the highest one tells."""
    return None if kind == "classes" else threshold


def _is_tie(probabilities: np.ndarray, threshold: float | None) -> np.ndarray:
    """Rows ``[rows]`` with a probability that is closer to the threshold, or with two highest that are closer, than can be told."""
    if threshold is not None:
        return np.asarray((np.abs(probabilities - threshold) <= TOLERANCE).any(axis=1))
    highest = np.sort(probabilities, axis=1)
    return np.asarray(highest[:, -1] - highest[:, -2] <= 2 * TOLERANCE)


def find_threshold(model: keras.Model, plan: BatchesRecord, rule: ThresholdName | LimitRule, rows: Rows) -> float:
    """The threshold of a binary target that is best on rows which the model was not fitted to; ``choose_threshold`` says how."""
    columns, labels = raw_columns(rows.table, plan.features), encode_labels(rows.table[plan.target.name], plan.target)
    tell = tf.function(partial(outputs_of, model, plan), reduce_retracing=True)
    firsts = range(0, len(labels), _THRESHOLD_ROWS)
    parts = [tell(_tensors({name: v[first : first + _THRESHOLD_ROWS] for name, v in columns.items()}))["score"] for first in firsts]
    return choose_threshold(labels, np.concatenate(parts) if parts else np.zeros(0), rule)
