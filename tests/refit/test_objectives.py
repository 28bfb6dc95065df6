"""Losses and metrics that a job names: what they compute is what Keras computes of labels in the right shape."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from refit import references
from refit.config import FitConfig
from refit.errors import CodeError, JobError
from refit.features import Target
from refit.fitting import fit_model
from refit.objectives import build_loss, build_metrics
from refit.runs import check_references
from refit.shaping import ShapedLoss, TargetScale
from tests.refit.small import job_of, keep, stored

DRAW = np.random.default_rng(0)
BINARY = Target("y", "binary", 2)
CLASSES = Target("y", "classes", 3)
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], np.float32)


def loss_of(said, target):
    return build_loss(FitConfig(loss=said), target)


def test_label_smoothing_of_classes_takes_them_one_hot() -> None:
    said = {"use": "keras.losses:CategoricalCrossentropy", "options": {"label_smoothing": 0.1}}
    expected = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)(np.eye(3)[[0, 1]], PROBABILITIES)
    assert float(loss_of(said, CLASSES)(np.array([0, 1], np.int32), PROBABILITIES)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("said", ["keras.losses:SparseCategoricalCrossentropy", {"use": "keras.losses:CategoricalCrossentropy"}])
def test_the_same_loss_of_indices_and_of_one_hot_labels(said) -> None:
    labels = np.array([2, 1], np.int32)
    default = build_loss(FitConfig(), CLASSES)
    assert float(loss_of(said, CLASSES)(labels, PROBABILITIES)) == pytest.approx(float(default(labels, PROBABILITIES)), rel=1e-6)


def test_a_focal_loss_of_binary_labels_does_not_broadcast() -> None:
    scores, labels = np.array([[0.9], [0.4], [0.2]], np.float32), np.array([1, 0, 1], np.int32)
    expected = keras.losses.BinaryFocalCrossentropy(gamma=3.0)(labels[:, None].astype(np.float32), scores)
    found = loss_of({"use": "keras.losses:BinaryFocalCrossentropy", "options": {"gamma": 3.0}}, BINARY)(labels, scores)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_quantities_are_compared_on_their_scale_and_counted_in_their_unit() -> None:
    target = Target("y", "regression", 0, TargetScale(100.0, 10.0))
    labels, told = np.array([110.0, 90.0], np.float32), np.array([[120.0], [90.0]], np.float32)
    assert float(build_loss(FitConfig(), target)(labels, told)) == pytest.approx(0.5)
    assert float(loss_of("keras.losses:MeanAbsoluteError", target)(labels, told)) == pytest.approx(0.5)
    metric = build_metrics(FitConfig(metrics=["keras.metrics:MeanAbsoluteError"]), target)[0]
    metric.update_state(labels, told)
    assert float(metric.result()) == 5.0


def test_a_metric_of_classes_is_counted_over_batches_with_weights() -> None:
    said = {"use": "keras.metrics:F1Score", "options": {"average": "macro"}}
    found, expected = build_metrics(FitConfig(metrics=[said]), CLASSES)[0], keras.metrics.F1Score(average="macro")
    assert found.name == "f1_score"
    for _ in range(3):
        labels = DRAW.integers(0, 3, 8).astype(np.int32)
        told, weights = DRAW.random((8, 3)).astype(np.float32), DRAW.random(8).astype(np.float32)
        found.update_state(labels, told, sample_weight=weights)
        expected.update_state(np.eye(3, dtype=np.float32)[labels], told, sample_weight=weights)
    assert float(found.result()) == float(expected.result())
    found.reset_state()
    assert not any(np.asarray(variable).any() for variable in found.variables)


def test_a_loss_survives_its_saving() -> None:
    loss = loss_of("keras.losses:LogCosh", Target("y", "regression", 0, TargetScale(1.0, 2.0, log=True)))
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert isinstance(again, ShapedLoss)
    labels, told = np.array([3.0, 90.0], np.float32), np.array([[1.0], [2.0]], np.float32)
    assert float(again(labels, told)) == float(loss(labels, told))


# ---- what cannot be one


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("keras.losses:Hubber", r'fit\.loss\.use: "Hubber" does not exist in keras\.losses\. Did you mean "Huber"\?'),
        ("keras.utils:get_file", r"fit\.loss\.use: the module of .* is not among those that a job may name"),
        ({"use": "refit.shaping:ShapedLos"}, r'fit\.loss\.use: "ShapedLos" does not exist'),
    ],
)
def test_a_loss_that_is_not_there_is_told_without_tensorflow(said, told) -> None:
    with pytest.raises(CodeError, match=told):
        check_references(job_of("y", fit__loss=said))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("keras.losses:deserialize", r'"keras\.losses:deserialize" is no class of losses\.loss\. Expected: a keras Loss'),
        ("keras.metrics:AUC", "a keras Loss"),
        ({"use": "keras.losses:Huber", "options": {"delt": 1}}, r'"keras\.losses:Huber" cannot be made: .*delt'),
    ],
)
def test_what_is_no_loss_is_refused(said, told) -> None:
    with pytest.raises(CodeError, match=told):
        loss_of(said, BINARY)


def test_two_metrics_of_one_name_are_refused() -> None:
    said = {"use": "keras.metrics:AUC", "options": {"name": "auc"}}
    with pytest.raises(JobError, match=r'fit\.metrics\.1: "auc" is logged already'):
        build_metrics(FitConfig(metrics=[said, {**said, "options": {"name": "auc", "curve": "PR"}}]), BINARY)


def test_only_a_job_s_objectives_may_come_from_keras() -> None:
    with pytest.raises(CodeError, match="is not among those that a job may name"):
        references.load("keras.losses:Huber")


# ---- in a fit


def test_a_fit_logs_and_watches_what_it_was_told(tmp_path) -> None:
    x = DRAW.normal(size=240).astype(np.float32)
    job = job_of(
        "y",
        fit__loss={"use": "keras.losses:BinaryCrossentropy", "options": {"label_smoothing": 0.1}},
        fit__metrics=[{"use": "keras.metrics:AUC", "options": {"curve": "PR", "name": "pr_auc"}}, "keras.metrics:Recall"],
        fit__early_stopping={"monitor": "val_pr_auc", "mode": "max"},
        fit__epochs=2,
    )
    small = keep(tmp_path, job, stored(x=x, y=np.where(x > 0, "b", "a")), np.arange(240) % 4 == 0)
    record = fit_model(job, small.plan, small.open(), small.open("validation"), small.layout.run("small", "run"))
    assert list(record.history) == ["loss", "pr_auc", "recall", "val_loss", "val_pr_auc", "val_recall", "learning_rate"]
    loaded = keras.saving.load_model(small.layout.run("small", "run").keras_model, safe_mode=True)
    assert loaded.predict({"x": tf.constant(x[:3])}, verbose=0).shape == (3, 1)


def test_a_monitor_that_the_job_s_own_metrics_do_not_log_is_told(tmp_path) -> None:
    job = job_of("y", fit__metrics=["keras.metrics:Recall"], fit__early_stopping={"monitor": "val_auc"})
    small = keep(tmp_path, job, stored(x=np.arange(64.0, dtype=np.float32), y=["a", "b"] * 32), np.arange(64) % 4 == 0)
    with pytest.raises(JobError, match=r'no value "val_auc" is logged.*val_recall'):
        fit_model(job, small.plan, small.open(), small.open("validation"), small.layout.run("small", "run"))
