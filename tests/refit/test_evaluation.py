"""Candidate and champion on the same rows: scikit-learn's numbers, and reasons where a champion cannot be asked."""

from datetime import UTC, datetime

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, r2_score, roc_auc_score, root_mean_squared_error
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from refit import registry
from refit.evaluation import IncompatibleError, evaluate, read_scores, score_rows
from refit.layout import Layout
from refit.records import Column, ExportRecord
from refit.splits import Rows, membership_path
from refit.stages import run_stage
from tests.refit.small import job_of, plan_of, stored

AT = datetime(2026, 11, 23, tzinfo=UTC)
ROWS = 1500  # more than one batch of scoring


def save_model(path, kind, *, weight=1.0, num_classes=3, inputs=("x",), dtype=tf.float32):
    """A SavedModel with the signature that refit exports: a logit that rises with the first column."""
    specs = {name: tf.TensorSpec([None], dtype, name=name) for name in inputs}

    def predict(**columns):
        x = tf.cast(columns[inputs[0]], tf.float32) * weight
        if kind == "regression":
            return {"prediction": x}
        logits = tf.stack([tf.zeros_like(x), *(x * n for n in range(1, num_classes))], axis=1)
        return {"probabilities": tf.nn.softmax(logits)}

    module = tf.Module()
    module.predict = tf.function(predict).get_concrete_function(**specs)
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.predict})
    return path


def table_of(kind, seed=0, num_rows=ROWS):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=num_rows).astype(np.float32)
    y = {
        "binary": (x + generator.normal(size=num_rows) > 0).astype(np.int64),
        "classes": np.clip(np.round(x + generator.normal(size=num_rows)), -1, 1).astype(np.int64),
        "regression": (2 * x + generator.normal(size=num_rows)).astype(np.float64),
    }[kind]
    return stored(x=x, z=x.astype(np.float64), y=y)


class Case:
    """A run that has a plan and an exported candidate."""

    def __init__(self, home, kind):
        self.layout, self.kind = Layout(home), kind
        self.run = self.layout.run("small", "20261123-000000-aaaa")
        self.table = table_of(kind)
        features = {"x": {"kind": "numeric"}, "z": {"kind": "numeric"}}
        self.plan = plan_of(job_of("y", features=features, target__kind=kind), self.table)
        save_model(self.run.saved_model, kind, num_classes=2 if kind == "binary" else 3)
        told = {"digest": "", "num_bytes": 0, "inputs": {}, "outputs": {}, "proof_rows": 1, "max_difference": 0}
        path = self.layout.relative(self.run.saved_model)
        self.exported = ExportRecord.model_validate({**told, "path": path, "latency_p50_ms": 1, "latency_p99_ms": 1})
        self.set_members(self.run, test=[1, 2, 3])

    def set_members(self, run, **sides):
        run.split_dir.mkdir(parents=True, exist_ok=True)
        for side in ("train", "validation", "test"):
            np.save(membership_path(run, side), np.array(sides.get(side, []), np.uint64))

    def publish(self, source, run=None, metrics=None):
        return registry.publish(
            self.layout,
            "small",
            source,
            run=run,
            verdict="first",
            reason="",
            metrics=metrics or {},
            expected_champion=registry.champion(self.layout, "small"),
            keep_versions=9,
            by="test",
            at=AT,
        )

    def evaluate(self, rank_by=None):
        validation, test = Rows("validation", self.table.slice(0, 300)), Rows("test", self.table)
        return evaluate("small", self.plan, self.exported, validation, test, self.layout, self.run, rank_by=rank_by)

    def publish_scored(self, **runs):
        """A version for each run, with the accuracy that its test rows gave; its model's logit rises by that number."""
        for run, accuracy in runs.items():
            self.set_members(self.layout.run("small", run))
            model = save_model(self.layout.home / run, self.kind, weight=accuracy)
            self.publish(model, run=run, metrics={"accuracy": accuracy, "log_loss": accuracy})


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path, "classes")


def expected_metrics(kind, labels, predictions):
    if kind == "regression":
        return {
            "rmse": root_mean_squared_error(labels, predictions),
            "mae": mean_absolute_error(labels, predictions),
            "r2": r2_score(labels, predictions),
        }
    wide = predictions.astype(np.float64)
    found = {
        "accuracy": accuracy_score(labels, predictions.argmax(axis=1)),
        "log_loss": log_loss(labels, wide / wide.sum(1, keepdims=True)),
    }
    return found | ({"auc": roc_auc_score(labels, predictions[:, 1])} if kind == "binary" else {})


def assert_agree(found, expected):
    assert {name: found[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["binary", "classes", "regression"])
def test_metrics_are_those_of_scikit_learn_for_both_models(kind, tmp_path):
    case = Case(tmp_path, kind)
    case.publish(save_model(tmp_path / "old", kind, weight=0.3, num_classes=2 if kind == "binary" else 3), run=None)
    record = case.evaluate()
    scores = read_scores(case.run)
    assert_agree(record.metrics["test"], expected_metrics(kind, scores.labels, scores.candidate))
    assert_agree(record.champion.metrics, expected_metrics(kind, scores.labels, scores.champion))
    part = slice(0, 300)
    assert_agree(record.metrics["validation"], expected_metrics(kind, scores.labels[part], scores.candidate[part]))
    assert (record.num_rows, record.champion.version, record.champion.incompatible) == (ROWS, 1, None)


def test_scores_come_back_as_both_models_gave_them(case):
    case.publish(save_model(case.layout.home / "old", "classes", weight=0.3), run=None)
    case.evaluate()
    scores = read_scores(case.run)
    x = case.table["x"].to_numpy()
    np.testing.assert_array_equal(scores.labels, case.table["y"].to_numpy() + 1)
    for told, weight in ((scores.candidate, 1.0), (scores.champion, np.float32(0.3))):
        logits = np.stack([np.zeros_like(x), x * weight, 2 * x * weight], axis=1)
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        assert (told.shape, told.dtype) == ((ROWS, 3), np.float32)
        np.testing.assert_allclose(told, expected, rtol=1e-4)


def test_without_a_champion_there_is_none(case):
    assert case.evaluate().champion is None
    assert read_scores(case.run).champion is None


def test_rows_that_the_champion_was_trained_on_are_counted(case):
    case.set_members(case.layout.run("small", "old"), train=[2, 9], validation=[3], test=[1])
    case.publish(save_model(case.layout.home / "old", "classes"), run="old")
    assert case.evaluate().champion.num_shared_rows == 2


def test_a_champion_that_wants_fewer_columns_in_another_order_is_asked(case):
    case.publish(save_model(case.layout.home / "old", "classes", inputs=("z", "x")), run=None)
    assert case.evaluate().champion.metrics == pytest.approx(case.evaluate().metrics["test"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"inputs": ("x", "gone")}, 'wants the column "gone", which the data no longer have'),
        ({"dtype": tf.int64}, 'wants "x" as int64 [], it is float32 [] now'),
        ({"num_classes": 4}, "it knows 4 classes, there are 3 now"),
        ({"kind": "regression"}, 'has no output "probabilities": it predicts another kind of target'),
    ],
)
def test_a_champion_that_cannot_be_asked_is_incompatible_with_a_reason(options, told, case):
    case.publish(save_model(case.layout.home / "old", **{"kind": "classes", **options}), run=None)
    record = case.evaluate()
    assert told in record.champion.incompatible
    assert record.champion.metrics == {}
    assert read_scores(case.run).champion is None
    assert record.metrics["test"]  # the candidate is judged all the same


def test_a_champion_with_as_many_but_other_classes_is_incompatible(case):
    plan = case.plan.model_copy(update={"target": case.plan.target.model_copy(update={"classes": (5, 6, 7)})})
    run_stage(case.layout.run("small", "old"), "convert", type(plan), lambda: plan)
    case.set_members(case.layout.run("small", "old"))
    case.publish(save_model(case.layout.home / "old", "classes"), run="old")
    assert case.evaluate().champion.incompatible == "it predicts classes 5, 6, 7, the target is classes -1, 0, 1 now"


def test_a_champion_whose_column_had_another_type_is_incompatible(case):
    moments = case.plan.features[0].model_copy(update={"kind": "timestamp", "column": Column(name="x", type="timestamp[us]")})
    plan = case.plan.model_copy(update={"features": (moments, *case.plan.features[1:])})
    run_stage(case.layout.run("small", "old"), "convert", type(plan), lambda: plan)
    case.set_members(case.layout.run("small", "old"))
    case.publish(save_model(case.layout.home / "old", "classes"), run="old")
    assert "a column is of another type now" in case.evaluate().champion.incompatible


def test_a_champion_that_cannot_be_loaded_is_incompatible(case):
    broken = case.layout.home / "broken"
    broken.mkdir()
    (broken / "saved_model.pb").write_bytes(b"no graph")
    case.publish(broken, run=None)
    assert "it cannot be loaded" in case.evaluate().champion.incompatible


def test_strings_where_numbers_are_wanted_are_told(tmp_path, case):
    with pytest.raises(IncompatibleError, match=r'it wants "x" as float32 \[\], it is string \[\] now'):
        score_rows(case.run.saved_model, {"x": np.array(["a"], dtype=object)}, case.plan.target)


@pytest.mark.parametrize(("rank_by", "version"), [("accuracy", 2), ("log_loss", 3), ("r2", None), (None, None)])
def test_the_best_of_the_earlier_versions_is_asked_about_the_same_rows(case, rank_by, version):
    case.publish_scored(a=0.8, b=0.9, c=0.7, d=0.95)
    record = case.evaluate(rank_by)
    assert record.champion.version == 4
    assert (record.best.version if record.best else None) == version
    scores = read_scores(case.run)
    if version is None:
        assert scores.best is None
    else:
        assert_agree(record.best.metrics, expected_metrics("classes", scores.labels, scores.best))
        assert not np.array_equal(scores.best, scores.champion)


def test_of_equally_good_versions_the_newest_is_asked(case):
    case.publish_scored(a=0.8, b=0.8, c=0.7)
    assert case.evaluate("accuracy").best.version == 2


def test_a_version_that_was_withdrawn_and_copies_of_the_champion_and_of_the_candidate_are_not_asked(case):
    case.publish_scored(a=0.7, b=0.8, c=0.99)
    registry.rollback(case.layout, "small", to=2, by="test", at=AT, reason="")  # version 4 is version 2, version 3 is withdrawn
    assert case.evaluate("accuracy").best.version == 1
    case.publish_scored(**{case.run.root.name: 0.98, "e": 0.5})
    assert case.evaluate("accuracy").best.version == 4


def test_a_version_that_cannot_be_asked_or_has_seen_the_rows_gives_way_to_the_next_best(case):
    case.publish_scored(a=0.6, b=0.7)
    broken = save_model(case.layout.home / "broken", "classes", num_classes=4)
    case.publish(broken, run="broken", metrics={"accuracy": 0.9})
    case.publish_scored(seen=0.8, serving=0.5)
    case.set_members(case.layout.run("small", "seen"), train=[2])
    assert case.evaluate("accuracy").best.version == 2


def test_versions_are_not_asked_where_the_champion_cannot_be(case):
    case.publish_scored(a=0.6)
    case.publish(save_model(case.layout.home / "old", "classes", num_classes=4), run=None)
    record = case.evaluate("accuracy")
    assert record.champion.incompatible
    assert record.best is None


def test_the_test_metrics_stand_in_tensorboard(case):
    record = case.evaluate()
    events = EventAccumulator(str(case.run.tensorboard_dir / "evaluation")).Reload()
    found = {tag: tf.make_ndarray(events.Tensors(tag)[0].tensor_proto).item() for tag in events.Tags()["tensors"]}
    assert found == pytest.approx({f"test_{name}": value for name, value in record.metrics["test"].items()})
