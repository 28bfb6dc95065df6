"""The SavedModel predicts from raw columns what the fitted model predicts, where only TensorFlow is installed."""

import json
import math
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from refit import export, proof
from refit.errors import ProofError
from refit.export import ODD_ROWS, PROOF_ROWS, TOLERANCE, export_model, raw_columns
from refit.fitting import assemble_model, fit_model, load_fitted
from refit.layout import Layout
from refit.registry import digest_folder
from refit.signatures import outputs_of
from refit.splits import Rows
from tests.refit.small import job_of, packed, plan_of, stored

ROWS = 300
WORDS = ["Zürich", "東京", None, "a"]
LABELS = {
    "classes": [["früh", "spät", "🦊"][i % 3] for i in range(ROWS)],
    "binary": [10 + 5 * (i % 2) for i in range(ROWS)],
    "regression": [float(i % 7) for i in range(ROWS)],
}
COLUMNS = "number whole word image"
LOAD = """
import json, sys
import numpy as np, tensorflow as tf
assert not any(name.split(".")[0] in ("refit", "models", "tasks") for name in sys.modules)
answers = {}
for path in sys.argv[1:]:
    predict = tf.saved_model.load(path).signatures["serving_default"]
    rows = dict(
        number=tf.constant([1.5, float("nan")]),
        whole=tf.constant([3, 99], tf.int64),
        word=tf.constant(["東京", "never seen"]),
        image=tf.constant(np.arange(32).reshape(2, 4, 4, 1).astype(np.uint8)),
    )
    found = predict(**rows)
    answers[path] = {n: [v.decode() if isinstance(v, bytes) else v for v in t.numpy().tolist()] for n, t in found.items()}
print(json.dumps(answers))
"""


def table_of(kind):
    generator = np.random.default_rng(0)
    return stored(
        number=[None if i % 11 == 0 else float(v) for i, v in enumerate(generator.normal(3, 2, ROWS))],
        whole=[None if i % 13 == 0 else i % 4 for i in range(ROWS)],
        word=[WORDS[i % 4] for i in range(ROWS)],
        image=generator.integers(0, 256, (ROWS, 4, 4, 1), dtype=np.uint8),
        y=LABELS[kind],
    )


def job_for(kind):
    features = {"number": {"kind": "numeric"}, "whole": {"kind": "category"}, "word": {"kind": "category"}, "image": {"kind": "image"}}
    fit = {"epochs": 1, "batch_size": 64, "early_stopping": None}
    return job_of("y", features=features, target__kind=kind, fit=fit, model__options={"filters": [4], "hidden_units": 8})


class Exported:
    """A model of one kind, exported and proved."""

    def __init__(self, home, kind, *, fitted):
        self.layout = Layout(home)
        self.run = self.layout.run("small", kind)
        self.run.model_dir.mkdir(parents=True)
        job, table = job_for(kind), table_of(kind)
        self.plan, train, validation = packed(job, table, table)
        if fitted:
            fit_model(job, self.plan, train, validation, self.run)
        self.model = load_fitted(job, self.plan, self.run) if fitted else assemble_model(job, self.plan)
        self.table = table
        self.record = export_model(self.model, self.plan, Rows("test", table), self.layout, self.run)

    def expected(self, rows):
        return {name: values.numpy() for name, values in outputs_of(self.model, self.plan, rows).items()}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    return Exported(tmp_path_factory.mktemp("classes"), "classes", fitted=True)


@pytest.fixture(scope="module")
def exported(fitted, tmp_path_factory):
    others = {kind: Exported(tmp_path_factory.mktemp(kind), kind, fitted=False) for kind in ("binary", "regression")}
    return {"classes": fitted, **others}


@pytest.fixture(scope="module")
def answers(exported):
    """What a fresh process that has only TensorFlow says, by kind."""
    paths = {kind: str(found.run.saved_model) for kind, found in exported.items()}
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOAD, *paths.values()],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = json.loads(done.stdout)
    return {kind: found[path] for kind, path in paths.items()}


ASKED = {
    "number": np.array([1.5, np.nan], np.float32),
    "whole": np.array([3, 99]),
    "word": np.array(["東京", "never seen"], dtype=object),
    "image": np.arange(32).reshape(2, 4, 4, 1).astype(np.uint8),
}


@pytest.mark.parametrize("kind", ["classes", "binary", "regression"])
def test_a_process_with_only_tensorflow_predicts_what_the_model_predicts(kind, exported, answers):
    expected = exported[kind].expected({name: tf.constant(values) for name, values in ASKED.items()})
    received = answers[kind]
    assert received.keys() == expected.keys()
    for name, values in expected.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(received[name], values, atol=TOLERANCE)


def test_labels_are_in_the_type_of_the_target(answers):
    assert all(label in LABELS["classes"] for label in answers["classes"]["label"])
    assert all(label in (10, 15) for label in answers["binary"]["label"])
    best = [sorted(set(LABELS["classes"]))[int(np.argmax(p))] for p in answers["classes"]["probabilities"]]
    assert answers["classes"]["label"] == best


def test_a_binary_model_gives_a_score_which_is_the_second_class_probability(answers):
    found = answers["binary"]
    np.testing.assert_allclose(np.array(found["probabilities"])[:, 1], found["score"], rtol=1e-6)
    np.testing.assert_allclose(np.sum(found["probabilities"], axis=1), 1, rtol=1e-6)
    assert found["label"] == [15 if score > 0.5 else 10 for score in found["score"]]


def test_a_regression_gives_a_prediction(answers):
    assert list(answers["regression"]) == ["prediction"]
    assert np.shape(answers["regression"]["prediction"]) == (2,)


def test_the_record_tells_inputs_and_outputs_by_name(exported):
    inputs = {"number": "float32 [batch]", "whole": "int64 [batch]", "word": "string [batch]", "image": "uint8 [batch, 4, 4, 1]"}
    outputs = {
        "classes": {"probabilities": "float32 [batch, 3]"},
        "binary": {"probabilities": "float32 [batch, 2]", "score": "float32 [batch]", "label": "int64 [batch]"},
        "regression": {"prediction": "float32 [batch]"},
    }
    for kind, found in exported.items():
        assert found.record.inputs == inputs
        told = {name: text for name, text in found.record.outputs.items() if (kind, name) != ("classes", "label")}
        assert told == outputs[kind]


def test_the_record_tells_string_labels_as_strings(fitted):
    assert fitted.record.outputs["label"] == "string [batch]"


def test_the_signature_is_what_the_record_tells(fitted):
    signature = tf.saved_model.load(str(fitted.run.saved_model)).signatures["serving_default"]
    specs = signature.structured_input_signature[1]
    told = {name: f"{spec.dtype.name} {['batch', *spec.shape[1:]]}".replace("'", "") for name, spec in specs.items()}
    assert told == fitted.record.inputs
    assert signature.structured_outputs.keys() == fitted.record.outputs.keys()


def test_the_proof_is_recorded(fitted):
    record = fitted.record
    assert record.path == "runs/small/classes/model/saved_model"
    assert record.proof_rows == PROOF_ROWS < ROWS
    assert record.proof_odd_rows == ODD_ROWS
    assert 0 <= record.max_difference <= TOLERANCE
    assert 0 < record.latency_p50_ms <= record.latency_p99_ms
    assert record.digest == digest_folder(fitted.run.saved_model)
    assert record.num_bytes == sum(path.stat().st_size for path in fitted.run.saved_model.rglob("*") if path.is_file())
    assert not [path.name for path in fitted.run.model_dir.iterdir() if path.name.startswith(".")]


# ---- a proof that fails


def is_expected_side():
    return tf.executing_eagerly()  # the other side is traced


def skew(name, change):
    """``outputs_of`` whose expected side says something else."""

    def skewed(model, plan, inputs, threshold=0.5):
        outputs = outputs_of(model, plan, inputs)
        return {**outputs, name: change(outputs[name])} if is_expected_side() else outputs

    return skewed


def check_refused(fitted, home, message):
    layout = Layout(home)
    run = layout.run("small", "refused")
    run.model_dir.mkdir(parents=True)
    with pytest.raises(ProofError, match=message):
        export_model(fitted.model, fitted.plan, Rows("test", fitted.table), layout, run)
    assert list(run.model_dir.iterdir()) == []


def test_a_planted_skew_fails_the_proof_and_leaves_nothing(fitted, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "outputs_of", skew("probabilities", lambda values: values + 1e-3))
    check_refused(fitted, tmp_path, r"predicts something else.*at most 1e-05.*Received: 0\.001")


def test_another_label_is_told_apart_unless_probabilities_tie(tmp_path):
    labels, other = np.array([b"a", b"b"], object), np.array([b"b", b"b"])
    for first, difference in [([0.9, 0.1], np.inf), ([0.5, 0.5], 0), ([0.500004, 0.499996], 0)]:
        probabilities = np.array([first, [0.2, 0.8]], np.float32)
        np.savez(tmp_path / "told.npz", probabilities=probabilities, label=other)
        assert export._difference({"probabilities": probabilities, "label": labels}, tmp_path / "told.npz", None) == difference


def test_another_set_of_labels_is_told_apart_unless_one_of_them_is_at_the_threshold(tmp_path):
    labels, other = np.array([b"a|b", b"b"], object), np.array([b"a", b"b"])
    for second, difference in [(0.9, np.inf), (0.500004, 0)]:
        probabilities = np.array([[0.9, second], [0.2, 0.8]], np.float32)
        np.savez(tmp_path / "told.npz", probabilities=probabilities, label=other)
        assert export._difference({"probabilities": probabilities, "label": labels}, tmp_path / "told.npz", 0.5) == difference


@pytest.mark.slow
def test_planted_labels_fail_the_proof(fitted, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "outputs_of", skew("label", lambda values: tf.roll(values, 1, axis=0)))
    check_refused(fitted, tmp_path, "predicts something else")


def test_a_model_that_needs_python_cannot_be_served(tmp_path):
    job, table = job_for("regression"), table_of("regression")
    plan = plan_of(job, table)
    inputs = {name: keras.Input(shape, dtype=dtype, name=name) for name, shape, dtype in INPUTS}
    called = tf.keras.layers.Lambda(lambda x: tf.ensure_shape(tf.py_function(lambda v: v * 2, [x], tf.float32), [None]))(inputs["number"])
    model = keras.Model(inputs, keras.layers.Reshape((1,))(called))
    layout = Layout(tmp_path)
    run = layout.run("small", "python")
    run.model_dir.mkdir(parents=True)
    with pytest.raises(ProofError, match="cannot be served without this repository"):
        export_model(model, plan, Rows("test", table), layout, run)


INPUTS = [("number", (), "float32"), ("whole", (), "int64"), ("word", (), "string"), ("image", (4, 4, 1), "uint8")]


def test_raw_columns_are_as_the_signature_takes_them(fitted):
    columns = raw_columns(fitted.table, fitted.plan.features)
    assert sorted(columns) == sorted(COLUMNS.split())
    assert np.isnan(columns["number"][0])
    assert columns["whole"][0] == -(2**63)
    assert columns["word"][:4].tolist() == ["Zürich", "東京", "", "a"]


def test_a_difference_is_a_share_of_the_value_or_of_the_usual_one_or_of_one():
    expected = np.array([0.5, -800.0, 200.0])
    assert proof.measure_difference(np.array([0.5, -800.0, 200.002]), expected) == pytest.approx(1e-5)
    assert proof.measure_difference(np.array([0.502, -800.0, 200.0]), expected) == pytest.approx(1e-5)
    assert proof.measure_difference(np.array([0.5, -800.008, 200.0]), expected) == pytest.approx(1e-5)
    assert proof.measure_difference(np.array([0.1, 0.3]), np.array([0.1, 0.2])) == pytest.approx(0.1)
    assert math.isnan(proof.measure_difference(np.array([math.nan]), np.array([1.0])))
