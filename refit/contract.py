"""The contract of builders: what a model must do to be fitted, resumed, saved and served. ``refit check --deep`` and the tests ask it.

It is put to the test on rows that are made up from the plan: numbers around their means, categories of the vocabulary with missing and
unseen ones, random images. One label is far more frequent than the others, so that every model has something to learn.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from refit import fitting
from refit.config import Job
from refit.errors import CodeError, RefitError
from refit.features import build_target
from refit.objectives import build_loss
from refit.records import BatchesRecord, FeaturePlan
from refit.schema import MISSING_INTEGER, is_encoded, raw_input, signature_name

NUM_ROWS = 16
BATCH_SIZES = (1, 7)
LEARNING_RATE = 0.01
MAX_STEPS = 60
# Largest difference between predictions that should be the same; coarse where a device or a precision computes with fewer digits.
TOLERANCE = 1e-4
COARSE_TOLERANCE = 2e-2
_RARE_EVERY = 8
_TOKENS, _SIDES = 5, (24, 20)  # of a text, of an encoded image


def check_builder(job: Job, plan: BatchesRecord) -> keras.Model:
    """Build the model of a job and see that it keeps the contract.

    It gives ``[batch, units]`` in float32, finite and, of classes, probabilities. Rows do not depend on each other, for batches of any
    size. Inference gives the same twice and changes nothing. A few steps of its own ``train_step``, in a graph, lower the loss. Weights
    loaded into a model built anew, the ``.keras`` file loaded in safe mode, and the SavedModel predict the same.

    Args:
        job: ``model``, ``fit.precision`` and ``seed`` count; the contract has an optimizer of its own.
        plan: features and target.

    Returns:
        The model, fitted for some steps on rows that mean nothing.

    Raises:
        CodeError: the model breaks the contract; which part of it, and what to do.
        JobError: the job watches a value that is not logged.
    """
    model = fitting.assemble_model(job, plan)
    reference = fitting.choose_builder(job, has_images=any(f.kind == "image" for f in plan.features))
    subject = _Subject(job, plan, reference, make_features(plan, seed=job.seed), make_labels(plan, NUM_ROWS))
    _compile(subject, model)
    _check_output(subject, model)
    _check_inference(subject, model)
    _check_batch_sizes(subject, model)
    _check_learning(subject, model)
    with tempfile.TemporaryDirectory(prefix="refit-contract-") as folder:
        _check_weights(subject, model, Path(folder) / "model.weights.h5")
        _check_saved_model(subject, model, Path(folder) / "saved_model")
        _check_keras_file(subject, model, Path(folder) / "model.keras")
    return model


# ---- rows that are made up


def make_features(plan: BatchesRecord, *, num_rows: int = NUM_ROWS, seed: int = 0) -> dict[str, tf.Tensor]:
    """Raw columns as the model's inputs take them, with missing and unseen values among them."""
    generator = np.random.default_rng(seed)
    return {feature.name: tf.constant(_column(feature, num_rows, generator), raw_input(feature)[0]) for feature in plan.features}


def make_labels(plan: BatchesRecord, num_rows: int) -> tf.Tensor:
    """Labels ``[num_rows]`` as batches hold them, not evenly distributed."""
    is_rare = np.arange(num_rows) % _RARE_EVERY == 0
    if plan.target.kind == "regression":
        return tf.constant(1.0 + is_rare, tf.float32)
    if plan.target.kind == "multilabel":
        return tf.constant(np.tile(is_rare[:, None], len(plan.target.classes or ())), tf.uint8)
    return tf.constant(np.where(is_rare, 0, len(plan.target.classes or ()) - 1), tf.int32)


def _column(feature: FeaturePlan, num_rows: int, generator: np.random.Generator) -> np.ndarray:
    dtype, shape = raw_input(feature)
    if feature.kind == "image" and is_encoded(feature.column):
        return np.array([b"", *(_encode_image(generator) for _ in range(num_rows - 1))], dtype=object)
    if feature.kind == "image":
        top = 256 if dtype == "uint8" else 1 / (feature.scale or 1.0)
        return (generator.random((num_rows, *shape)) * top).astype(dtype)
    if feature.kind == "numeric":
        numbers = (feature.mean or 0.0) + (feature.variance or 1.0) ** 0.5 * generator.normal(size=num_rows)
        numbers[1::7] = np.nan
        return np.asarray(numbers.astype(np.float32))
    if feature.kind == "vector":
        mean, variance = np.array(feature.means or 0.0), np.array(feature.variances or 1.0)
        return np.asarray((mean + variance**0.5 * generator.normal(size=(num_rows, *shape))).astype(dtype))
    if feature.kind == "timestamp":
        moments = np.asarray((feature.mean or 0.0) + (feature.variance or 1.0) ** 0.5 * generator.normal(size=num_rows), dtype=np.int64)
        moments[1::7] = MISSING_INTEGER
        return moments
    if feature.kind == "text":
        tokens = feature.vocabulary or ("",)
        texts = [" ".join(str(tokens[at]) for at in generator.integers(0, len(tokens), _TOKENS)) for _ in range(num_rows - 2)]
        return np.array(["", "\N{FOX FACE} never seen", *texts], dtype=object)
    odd = (MISSING_INTEGER, MISSING_INTEGER + 2) if dtype == "int64" else ("", "\N{FOX FACE} never seen")
    return np.resize(
        np.array([*(feature.vocabulary or ())[: num_rows - 2], *odd], dtype=np.int64 if dtype == "int64" else object), num_rows
    )


def _encode_image(generator: np.random.Generator) -> bytes:
    return bytes(tf.io.encode_png(generator.integers(0, 256, (*_SIDES, 3), dtype=np.uint8)).numpy())


# ---- the parts of the contract


@dataclass(frozen=True)
class _Subject:
    """What is put to the test, and on what."""

    job: Job
    plan: BatchesRecord
    reference: str
    features: dict[str, tf.Tensor]
    labels: tf.Tensor

    @property
    def tolerance(self) -> float:
        is_coarse = fitting.choose_precision(self.job.fit) != "float32" or tf.config.list_physical_devices("GPU")
        return COARSE_TOLERANCE if is_coarse else TOLERANCE

    def predict(self, model: keras.Model, num_rows: int = NUM_ROWS) -> np.ndarray:
        """Predictions in inference for the first rows."""
        with self.telling("in inference"):
            return np.asarray(model({name: values[:num_rows] for name, values in self.features.items()}, training=False))

    def broken(self, what: str, *, expected: str, received: str = "", remedy: str = "") -> CodeError:
        """The error that says which part of the contract is broken."""
        return CodeError(f'the model of "{self.reference}" {what}.', where="model", expected=expected, received=received, remedy=remedy)

    @contextlib.contextmanager
    def telling(self, when: str, remedy: str = "Mend the builder or its options.") -> Iterator[None]:
        """Turn what the model's own code raises into an error that says when.

        Raises:
            CodeError: it raised.
        """
        try:
            yield
        except RefitError:
            raise
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            raise CodeError(
                f'the model of "{self.reference}" fails {when}: {type(error).__name__}: {first}', where="model", remedy=remedy
            ) from error

    def compare(self, what: str, found: np.ndarray, expected: np.ndarray, remedy: str) -> None:
        """See that predictions are the same.

        Raises:
            CodeError: they are not.
        """
        if found.shape != expected.shape:
            raise self.broken(what, expected=str(expected.shape), received=str(found.shape), remedy=remedy)
        difference = float((np.abs(found - expected) / np.maximum(1, np.abs(expected))).max())
        if not difference <= self.tolerance:
            raise self.broken(what, expected=f"a difference of at most {self.tolerance:g}", received=f"{difference:.3g}", remedy=remedy)


def _compile(subject: _Subject, model: keras.Model) -> None:
    """Compile with an optimizer that learns fast whatever the job says, in the job's precision."""
    with fitting.computing_in(fitting.choose_precision(subject.job.fit)):
        model.compile(
            keras.optimizers.Adam(LEARNING_RATE), build_loss(subject.job.fit, build_target(subject.plan.target)), jit_compile=False
        )
    model.optimizer.build(model.trainable_variables)


def _check_output(subject: _Subject, model: keras.Model) -> None:
    target = build_target(subject.plan.target)
    predicted = subject.predict(model)
    wanted = ((NUM_ROWS, target.units), np.dtype(np.float32))
    remedy = "End the graph with target.head(x), or a layer with dtype float32."
    if (predicted.shape, predicted.dtype) != wanted:
        raise subject.broken(
            "gives another output", expected=_told(*wanted), received=_told(predicted.shape, predicted.dtype), remedy=remedy
        )
    if not np.isfinite(predicted).all():
        raise subject.broken(
            "predicts what is no number", expected="finite values", received=str(predicted.flat[~np.isfinite(predicted.flat)][0])
        )
    is_probability = target.kind == "regression" or (predicted.min() >= 0 and predicted.max() <= 1)
    if not is_probability or (target.kind == "classes" and np.abs(predicted.sum(axis=1) - 1).max() > COARSE_TOLERANCE):
        raise subject.broken("gives no probabilities", expected="values from 0 to 1, of classes with the sum 1", remedy=remedy)


def _told(shape: tuple[int, ...], dtype: np.dtype) -> str:
    return f"{dtype.name} {list(shape)}"


def _check_inference(subject: _Subject, model: keras.Model) -> None:
    """What is random, and what is counted, is so in training only."""
    before = [np.asarray(variable) for variable in model.variables]
    first, second = subject.predict(model), subject.predict(model)
    remedy = "Let layers that draw or count do so only where training is true."
    subject.compare("predicts something else the second time", second, first, remedy)
    changed = [v.path for v, old in zip(model.variables, before, strict=True) if not np.array_equal(np.asarray(v), old, equal_nan=True)]
    if changed:
        raise subject.broken("changes itself in inference", expected="no change", received=", ".join(changed[:5]), remedy=remedy)


def _check_batch_sizes(subject: _Subject, model: keras.Model) -> None:
    whole = subject.predict(model)
    for size in BATCH_SIZES:
        part = subject.predict(model, size)
        subject.compare(
            f"predicts something else in a batch of {size} than of {NUM_ROWS}",
            part,
            whole[:size],
            "Let no row depend on another, nor on the size of the batch.",
        )


def _check_learning(subject: _Subject, model: keras.Model) -> None:
    """Steps on one batch until the last three losses are below the first three in the mean; dropout makes single ones jump."""
    batch: list[object] = [subject.features, subject.labels]
    if subject.plan.sample_weight is not None or subject.plan.class_weights is not None:
        batch.append(tf.ones(NUM_ROWS))
    losses: list[float] = []
    with subject.telling("in a step of training", "See that train_step takes (features, label) or, with weights, a third part."):
        while len(losses) < MAX_STEPS and not _is_falling(losses):
            model.reset_metrics()  # or the loss told is the mean over all steps so far
            losses.append(float(model.train_on_batch(*batch, return_dict=True)["loss"]))
    if not np.isfinite(losses).all():
        raise subject.broken("has no finite loss", expected="a number", received=str(losses[-1]), remedy="Look at its last layer.")
    if not _is_falling(losses):
        raise subject.broken(
            f"does not learn: {MAX_STEPS} steps on one batch do not lower the loss",
            expected=f"a loss below {np.mean(losses[:3]):.4g}",
            received=f"{np.mean(losses[-3:]):.4g}",
            remedy="See that gradients reach its weights, and that some of them may be trained.",
        )


def _is_falling(losses: list[float]) -> bool:
    return len(losses) > 3 and float(np.mean(losses[-3:])) < float(np.mean(losses[:3]))


def _check_weights(subject: _Subject, model: keras.Model, path: Path) -> None:
    expected = subject.predict(model)
    rebuilt = fitting.assemble_model(subject.job, subject.plan)
    _compile(subject, rebuilt)
    with subject.telling("to be loaded from its weights", "Build the same layers each time; keep state in weights."):
        model.save_weights(path)
        rebuilt.load_weights(path)
    remedy = "Keep what is learnt in weights, not in attributes of Python, and build the same layers each time."
    subject.compare("predicts something else after its weights were loaded into a new one", subject.predict(rebuilt), expected, remedy)


def _check_saved_model(subject: _Subject, model: keras.Model, path: Path) -> None:
    expected = subject.predict(model)
    names = {f.name: signature_name(f.name) for f in subject.plan.features}
    specs = {f.name: tf.TensorSpec([None, *raw_input(f)[1]], raw_input(f)[0], name=names[f.name]) for f in subject.plan.features}
    with subject.telling("to be exported", "Use Keras and TensorFlow operations only, no Python functions."):
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serving_default", lambda columns: {"output": model(columns, training=False)}, input_signature=[specs])
        archive.write_out(str(path), verbose=False)
        columns = {names[name]: values for name, values in subject.features.items()}
        found = tf.saved_model.load(str(path)).signatures["serving_default"](**columns)["output"]
    subject.compare("predicts something else as a SavedModel", found.numpy(), expected, "Look for what depends on Python's state.")


def _check_keras_file(subject: _Subject, model: keras.Model, path: Path) -> None:
    expected = subject.predict(model)
    remedy = 'Register custom classes with @keras.saving.register_keras_serializable(package="models"), give them get_config, no lambdas.'
    with subject.telling("to be loaded from its .keras file", remedy):
        model.save(path)
        keras.backend.clear_session()
        loaded = keras.saving.load_model(path, compile=False, safe_mode=True)
    subject.compare("predicts something else after its .keras file was loaded", subject.predict(loaded), expected, remedy)
