"""What stands beside a candidate: constants and linear models are those of scikit-learn, made once, and never the end of a run."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, root_mean_squared_error

from refit import baselines
from refit.baselines import score_baselines
from tests.refit.small import job_of, keep, stored

NUM_TRAIN, NUM_TEST = 600, 200
SIDES = np.repeat([0, 1, 2], [NUM_TRAIN - 50, 50, NUM_TEST])
FEATURES = {"a": {"kind": "numeric"}, "b": {"kind": "numeric"}, "c": {"kind": "category"}}


def columns(num_rows=NUM_TRAIN + NUM_TEST):
    """Two numbers in odd units and a word; labels of each kind that a linear model tells better than a constant."""
    generator = np.random.default_rng(0)
    a, b, noise = generator.normal(size=(3, num_rows))
    c = generator.choice(["red", "green", "blue"], num_rows)
    score = a - 2 * b + (c == "red") + 0.5 * noise
    return {
        "a": 1e4 * a + 5e4,
        "b": b / 100,
        "c": c,
        "binary": (score > 0.5).astype(np.int64),
        "classes": np.array(["low", "mid", "top"])[np.digitize(score, [-1, 1.5])],
        "value": 250_000 + 80_000 * score,
    }


def score(folder, target, sides=SIDES, **changes):
    """The record, and what scikit-learn is given of the same rows: inputs and labels of the train and the test split."""
    data = columns()
    job = job_of(target, **{"features": FEATURES, "fit__batch_size": 32, **changes})
    small = keep(folder, job, stored(**data), sides)
    record = score_baselines(job, small.snapshot, small.plan, small.layout, small.layout.run("small", "run"))
    numbers = np.stack([data["a"], data["b"]], 1)
    train = sides == 0
    numbers = (numbers - numbers[train].mean(0)) / numbers[train].std(0)
    inputs = np.hstack([numbers, data["c"][:, None] == np.array(["red", "green", "blue"])])
    parts = {
        name: values for side, name in ((0, "train"), (2, "test")) for values in [(inputs[sides == side], data[target][sides == side])]
    }
    return record, SimpleNamespace(**parts)


@pytest.mark.parametrize("target", ["binary", "classes"])
def test_of_classes_they_are_the_prior_and_logistic_regression(target, tmp_path):
    record, rows = score(tmp_path, target)
    for name, model, tolerance in [
        ("constant", DummyClassifier(strategy="prior"), 1e-6),
        ("linear", LogisticRegression(C=1 / (2 * baselines._L2 * len(rows.train[0])), max_iter=1000), 1e-3),
    ]:
        predicted = model.fit(*rows.train).predict_proba(rows.test[0])
        assert record.metrics[name]["log_loss"] == pytest.approx(log_loss(rows.test[1], predicted), abs=tolerance)
        accuracy = accuracy_score(rows.test[1], model.classes_[predicted.argmax(1)])
        assert record.metrics[name]["accuracy"] == pytest.approx(accuracy, abs=tolerance + (name == "linear") / NUM_TEST)
    assert record.why_not == {}
    assert record.num_train_rows == {"constant": NUM_TRAIN - 50, "linear": NUM_TRAIN - 50}


def test_of_a_regression_they_are_the_mean_and_ridge_regression_in_the_unit_of_the_target(tmp_path):
    record, rows = score(tmp_path, "value")
    for name, model in [("constant", DummyRegressor()), ("linear", Ridge(alpha=baselines._L2 * len(rows.train[0])))]:
        predicted = model.fit(*rows.train).predict(rows.test[0])
        assert record.metrics[name]["rmse"] == pytest.approx(root_mean_squared_error(rows.test[1], predicted), rel=2e-3)
        assert record.metrics[name]["mae"] == pytest.approx(mean_absolute_error(rows.test[1], predicted), rel=2e-3)
    assert record.metrics["linear"]["r2"] > 0.9


def test_the_same_run_has_the_same_baselines(tmp_path):
    assert score(tmp_path / "a", "classes")[0] == score(tmp_path / "b", "classes")[0]


def test_the_linear_one_can_be_left_out(tmp_path):
    record, _ = score(tmp_path, "binary", evaluation__baseline="constant")
    assert (list(record.metrics), record.why_not) == (["constant"], {})


def test_what_the_candidate_learned_from_is_what_they_learn_from(tmp_path):
    record, _ = score(tmp_path, "binary", split__resplit_each_epoch=True)
    assert record.num_train_rows == {"constant": NUM_TRAIN, "linear": NUM_TRAIN}


def test_of_many_rows_some_are_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "_MAX_ROWS", 100)
    record, _ = score(tmp_path, "binary")
    assert record.num_train_rows == {"constant": NUM_TRAIN - 50, "linear": 100}
    assert record.metrics["linear"]["accuracy"] > record.metrics["constant"]["accuracy"]


def test_too_many_weights_are_told_and_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "_MAX_WEIGHTS", 10)
    record, _ = score(tmp_path, "classes")
    assert list(record.metrics) == ["constant"]
    assert "more than 10 weights" in record.why_not["linear"]


def test_a_linear_model_that_cannot_be_built_is_told_and_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("REFIT_CODE", "refit")
    record, _ = score(tmp_path, "classes", evaluation__baseline="linear")
    assert "not among those that a job may name" in record.why_not["linear"]


def test_texts_images_and_weights_of_rows_are_no_hindrance(tmp_path):
    generator = np.random.default_rng(0)
    label = generator.integers(0, 2, 200)
    images = (generator.integers(0, 50, (200, 4, 4, 1)) + 100 * label[:, None, None, None]).astype(np.uint8)
    for name, features, more in [
        ("image", {"image": {"kind": "image"}}, {"image": images}),
        ("text", {"text": {"kind": "text"}}, {"text": [f"word {'good' if y else 'bad'} thing" for y in label]}),
    ]:
        weights = {"fit__sample_weight": "w", "fit__class_weight": "balanced"}
        job = job_of("y", features=features, fit__batch_size=32, **weights)
        table = stored(**more, y=label, w=generator.random(200))
        small = keep(tmp_path / name, job, table, np.repeat([0, 1, 2], [120, 30, 50]))
        record = score_baselines(job, small.snapshot, small.plan, small.layout, small.layout.run("small", "run"))
        assert record.metrics["linear"]["accuracy"] > 0.95
