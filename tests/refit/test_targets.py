"""Targets: what is read from labels, what the graph makes of them, and what the SavedModel says."""

from functools import partial

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from pydantic import ValidationError

from refit.config import TargetConfig
from refit.contract import check_builder
from refit.errors import DataError, JobError
from refit.evaluation import evaluate
from refit.export import export_model, find_threshold
from refit.features import build_target
from refit.fitting import fit_model, load_fitted
from refit.records import SIDES
from refit.shaping import TargetScale, Unscale
from refit.signatures import outputs_of
from refit.splits import read_rows
from refit.targets import encode_labels, plan_target
from refit.validation import validate_snapshot
from tests.refit.small import job_of, keep, plan_of, snapshot_of, stored

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=400).astype(np.float32)
MANY = {"target__kind": "multilabel", "model__build": "models.dense:build_model"}
FIT = {"fit__epochs": 30, "fit__early_stopping": None, "fit__optimizer": {"learning_rate": 0.02}}


def planned(labels, **more):
    job, table = job_of("y", **more), stored(x=X[: len(labels)], y=labels)
    return plan_target(job, snapshot_of(table), table["y"])


def fitted(folder, job, table):
    """A fit on three quarters of the rows; the model, its plan, and the export."""
    sides = np.where(np.arange(len(table)) % 4 == 0, SIDES.index("test"), 0)
    small = keep(folder, job, table, sides)
    run = small.layout.run("small", "run")
    fit = fit_model(job, small.plan, small.open("train"), None, run)
    model = load_fitted(job, small.plan, run)
    test = read_rows(small.snapshot, small.layout, run, "test", [*(f.name for f in small.plan.features), "y"])
    exported = export_model(model, small.plan, test, small.layout, run)
    return model, fit, exported, partial(tf.saved_model.load(str(run.saved_model)).signatures["serving_default"]), test


# ---- quantities


@pytest.mark.parametrize("scale", [TargetScale(), TargetScale(-3.5, 0.02), TargetScale(11.2, 1.7, log=True)])
def test_a_scale_is_inverted(scale) -> None:
    values = np.array([-2e5, -1.0, 0.0, 1e-3, 7.0, 3e6], np.float32)
    np.testing.assert_allclose(scale.invert(scale.apply(values)), values, rtol=2e-5, atol=1e-5)


def test_the_scale_is_that_of_the_train_split() -> None:
    plan = planned([1.0, 3.0, 5.0], target__kind="regression")
    assert (plan.mean, plan.deviation, plan.log) == (3.0, pytest.approx(np.std([1, 3, 5])), False)
    logged = planned([0.0, np.expm1(2.0), -np.expm1(2.0)], target={"column": "y", "kind": "regression", "log": True})
    assert (logged.mean, logged.deviation) == (pytest.approx(0), pytest.approx(np.std([0, 2, -2])))
    bare = planned([1.0, 3.0, 5.0], target={"column": "y", "kind": "regression", "scale": "none"})
    assert build_target(bare).scale is None


def test_a_constant_quantity_has_the_deviation_one() -> None:
    assert planned([4.0, 4.0], target__kind="regression").deviation == 1.0


@pytest.mark.parametrize("log", [False, True])
def test_prices_of_millions_are_learned_with_the_usual_rate_and_told_in_their_unit(tmp_path, log) -> None:
    prices = 4e6 * np.exp(0.5 * X) if log else 4e6 + 1e6 * X
    job = job_of("y", target={"column": "y", "kind": "regression", "log": log}, **FIT)
    model, fit, _, predict, test = fitted(tmp_path, job, stored(x=X, y=prices))
    assert fit.history["loss"][-1] < 0.05  # of the variance
    assert fit.history["mae"][-1] > 1e4  # in the target's unit
    told = predict(x=tf.constant(test.table["x"].to_numpy()))["prediction"].numpy()
    labels = test.table["y"].to_numpy()
    assert np.sqrt(np.mean((told - labels) ** 2)) < 0.25 * labels.std()
    assert any(isinstance(layer, Unscale) for layer in model.layers)


def test_a_model_file_tells_the_unit_too(tmp_path) -> None:
    job = job_of("y", target={"column": "y", "kind": "regression", "log": True}, **FIT)
    model, *_ = fitted(tmp_path, job, stored(x=X, y=1e3 * np.exp(X)))
    loaded = keras.saving.load_model(next(tmp_path.rglob("model.keras")), safe_mode=True)  # with its loss
    given = {"x": tf.constant(X[:9])}
    np.testing.assert_array_equal(loaded(given), model(given))


# ---- classes


def test_the_positive_value_is_the_one_that_is_named() -> None:
    assert planned(["good", "bad", "bad"], target__kind="binary").classes == ("bad", "good")
    plan = planned(["good", "bad", "bad"], target={"column": "y", "kind": "binary", "positive": "bad"})
    assert plan.classes == ("good", "bad")
    assert encode_labels(pa.chunked_array([["bad", "good"]]), plan).tolist() == [1, 0]
    assert planned([3, 4, 4], target={"column": "y", "kind": "binary", "positive": 3}).classes == (4, 3)


def test_a_positive_value_that_is_none_is_refused() -> None:
    with pytest.raises(DataError, match=r'target\.positive: "baad" is no value of the target\. Did you mean "bad"\?'):
        planned(["good", "bad"], target={"column": "y", "kind": "binary", "positive": "baad"})


def test_a_train_split_of_one_class_is_refused() -> None:
    with pytest.raises(DataError, match=r"one value only in the train split.*'good'"):
        planned(["good", "good"], target__kind="classes")


@pytest.mark.parametrize("said", [{"positive": "a"}, {"kind": "classes", "log": True}, {"kind": "regression", "separator": ","}])
def test_what_belongs_to_another_kind_is_refused(said) -> None:
    with pytest.raises(ValidationError, match=r"is for kind: \w+ only, which must be said"):
        TargetConfig(column="y", **said)


# ---- several labels a row


SETS = ["red|round", "", "red", None, " round | soft ", "soft|red|round"]


def test_labels_are_split_and_may_be_none() -> None:
    plan = planned(SETS, **MANY)
    assert plan.classes == ("red", "round", "soft")
    encoded = encode_labels(pa.chunked_array([SETS[:2], [], SETS[2:]], pa.string()), plan)
    assert encoded.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 1], [1, 1, 1]]
    assert encode_labels(pa.chunked_array([], pa.string()), plan).shape == (0, 3)


def test_a_label_that_was_never_seen_is_refused() -> None:
    plan = planned(SETS, **MANY)
    with pytest.raises(DataError, match=r"2 rows have a \"y\" that does not occur.*'sharp'"):
        encode_labels(pa.chunked_array([["red|sharp", "sharp"]]), plan)


def test_another_separator_than_the_datas_is_told() -> None:
    with pytest.raises(DataError, match=r"fewer than two labels.*target\.separator"):
        planned(["a,b", "a,b"], **MANY)
    target = {"column": "y", "kind": "multilabel", "separator": ", "}
    assert planned(["a, b", "b", "c"], target=target).classes == ("a", "b", "c")


def test_labels_are_learned_and_told_in_the_form_of_the_data(tmp_path) -> None:
    sets = ["|".join(name for name, is_there in (("high", x > 0), ("far", abs(x) > 0.7)) if is_there) for x in X]
    job = job_of("y", **MANY, **FIT)
    _, fit, exported, predict, test = fitted(tmp_path, job, stored(x=X, y=sets))
    assert set(fit.history) >= {"loss", "binary_accuracy", "auc"}
    assert exported.outputs == {"probabilities": "float32 [batch, 2]", "label": "string [batch]"}
    told = predict(x=tf.constant(test.table["x"].to_numpy()))
    expected = ["|".join(sorted(filter(None, text.split("|")))) for text in test.table["y"].to_pylist()]
    found = [text.decode() for text in told["label"].numpy()]
    assert np.mean([a == b for a, b in zip(found, expected, strict=True)]) > 0.9
    assert {"", "far", "high", "far|high"} == set(found)


@pytest.mark.parametrize("has", [[[1, 1, 1]], [[0, 0, 0]], [[0, 1, 1], [1, 0, 0], [1, 0, 1]]])
def test_labels_are_joined(has) -> None:
    plan = plan_of(job_of("y", **MANY), stored(x=X[:36], y=SETS * 6))
    given = keras.Input([3])
    label = outputs_of(keras.Model(given, given), plan, tf.constant(has, tf.float32))["label"].numpy()
    assert [text.decode() for text in label] == ["|".join(np.array(plan.target.classes)[np.array(row) > 0]) for row in has]


def test_every_label_is_checked(tmp_path) -> None:
    job = job_of("y", **MANY)
    small = keep(tmp_path, job, stored(x=X[:40], y=["a|b", "b|c", "", "b"] * 10))
    checks = {check.name: check for check in validate_snapshot(job, small.snapshot, small.layout).checks}
    assert checks["labels"].detail == "10 rows without any"
    assert all(checks[name].ok for name in ("labels", "labels differ", "number of labels", "label sizes", "target kind"))


@pytest.mark.parametrize("build", ["linear", "dense"])
@pytest.mark.parametrize("said", [MANY, {"target": {"column": "y", "kind": "regression", "log": True}}])
def test_builders_keep_the_contract(said, build) -> None:
    labels = SETS * 6 if said is MANY else np.exp(X[:36])
    job = job_of("y", **said | {"model__build": f"models.{build}:build_model"})
    check_builder(job, plan_of(job, stored(x=X[:36], y=labels)))


# ---- the threshold


def test_a_threshold_of_the_validation_rows_decides_what_is_told_and_counted(tmp_path) -> None:
    rare = np.where(X + DRAW.normal(size=len(X)) > 2, "yes", "no")
    sides = np.arange(len(X)) % 4 % 3
    job = job_of("y", target={"column": "y", "kind": "binary", "threshold": {"recall_at_least": 0.9}}, **FIT)
    small = keep(tmp_path, job, stored(x=X, y=rare), sides)
    run = small.layout.run("small", "run")
    fit_model(job, small.plan, small.open("train"), None, run)
    model = load_fitted(job, small.plan, run)
    rows = {side: read_rows(small.snapshot, small.layout, run, side, ["x", "y"]) for side in ("validation", "test")}
    threshold = find_threshold(model, small.plan, job.target.rule, rows["validation"])
    exported = export_model(model, small.plan, rows["test"], small.layout, run, threshold=threshold)
    found = evaluate("small", small.plan, exported, rows["validation"], rows["test"], small.layout, run)
    assert found.metrics["validation"]["recall"] >= 0.9
    assert exported.threshold == threshold < 0.3
    predict = tf.saved_model.load(str(run.saved_model)).signatures["serving_default"]
    told = predict(x=tf.constant(rows["test"].table["x"].to_numpy()))
    is_told = told["label"].numpy() == b"yes"
    np.testing.assert_array_equal(is_told, told["score"].numpy() > threshold)
    assert found.metrics["test"]["recall"] == pytest.approx(np.mean(is_told[rows["test"].table["y"].to_numpy() == "yes"]))


@pytest.mark.parametrize("split", [{"k_fold": {"folds": 3}}, {"resplit_each_epoch": True}])
def test_a_threshold_needs_rows_that_were_not_fitted(split) -> None:
    with pytest.raises(JobError, match="found on validation rows that the model was not fitted to"):
        job_of("y", target={"column": "y", "kind": "binary", "threshold": "f1"}, split=split)


@pytest.mark.parametrize("said", [{}, {"recall_at_least": 0.5, "precision_at_least": 0.5}])
def test_a_threshold_keeps_one_limit(said) -> None:
    with pytest.raises(JobError, match=r"either recall_at_least or precision_at_least"):
        job_of("y", target={"column": "y", "kind": "binary", "threshold": said})
