"""A fit that starts from the champion: what is taken over means the same, what cannot is named, and a killed one starts from the same."""

import shutil
from functools import partial

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from refit.dependents import find_trained
from refit.errors import JobError
from refit.export import _write_saved_model
from refit.fitting import assemble_model, load_fitted
from refit.lineage import trace_learning
from refit.probes import draw_rows
from refit.progress import FitProgress
from refit.records import FitRecord, WarmStart
from refit.signatures import outputs_of
from refit.splits import count_shared
from refit.stages import forget_stages, read_stage
from refit.warm_start import _describe, _match
from tests.refit.champions import FEATURES, ROWS, Shop, table
from tests.refit.small import job_of, plan_of, stored

STILL = {"name": "sgd", "learning_rate": 1e-12}
WARM = {"fit__warm_start": "champion", "fit__optimizer": STILL}
EMBEDDING = "colour>embedding/embeddings"
OUTPUT = {"refit->output/kernel", "refit->output/bias"}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A home in which the run ``one`` serves."""
    shop = Shop(tmp_path_factory.mktemp("served"))
    shop.run("one")
    shop.publish("one")
    return shop


@pytest.fixture
def shop(served, tmp_path):
    """A copy of it; its source is the copy's own."""
    copy = Shop(tmp_path)
    shutil.copytree(served.layout.home, copy.layout.home)
    return copy


def warm(shop, **changes):
    """A run that starts from the champion and learns nothing; what it took, and its weights."""
    record = shop.run("two", **{**WARM, **changes})
    return record.warm_start, shop.weights("two", **{**WARM, **changes})


def is_same(first, second):
    return np.allclose(first, second, rtol=1e-5, atol=1e-7)


def test_a_fit_of_the_same_model_on_the_same_data_starts_from_all_weights_of_the_champion(shop):
    start, weights = warm(shop, seed=1)
    assert (start.version, start.run, start.why_not, start.fresh, start.tokens, start.shifted) == (1, "one", None, (), {}, ())
    assert (start.num_taken, start.num_taken_parameters, start.num_seen_validation) == (7, start.num_parameters, 0)
    assert len(start.weights_sha256) == 64
    before = shop.weights("one")
    assert all(is_same(weights[path], before[path]) for path in before)


def test_without_it_a_fit_starts_afresh(shop):
    record = shop.run("two", seed=1, fit__optimizer=STILL)
    assert record.warm_start is None
    assert not is_same(shop.weights("two", seed=1)["dense/kernel"], shop.weights("one")["dense/kernel"])


def test_rows_of_an_embedding_follow_their_tokens_and_new_tokens_start_afresh(shop):
    shop.write(table("bbbbggyr", num_rows=320))
    start, weights = warm(shop, seed=1)
    before, old, new = shop.weights("one"), *(list(shop.plan(name).features[1].vocabulary) for name in ("one", "two"))
    assert (old, sorted(new), new[0]) == (["r", "g", "b"], ["b", "g", "r", "y"], "b")
    for row, token in enumerate(new, start=2):
        if token in old:
            assert is_same(weights[EMBEDDING][row], before[EMBEDDING][2 + old.index(token)])
    assert is_same(weights[EMBEDDING][:2], before[EMBEDDING][:2])  # missing and unseen
    assert not any(is_same(weights[EMBEDDING][2 + new.index("y")], row) for row in before[EMBEDDING])
    assert start.tokens == {EMBEDDING: (5, 6)}
    assert (start.fresh, start.num_parameters - start.num_taken_parameters, start.shifted) == ((), 3, ("x",))
    assert is_same(weights["dense/kernel"], before["dense/kernel"])


def test_a_layer_that_sees_one_hot_tokens_in_another_order_starts_afresh(tmp_path):
    shop = Shop(tmp_path)
    one_hot = {"features": {**FEATURES, "colour": {"kind": "category"}}}
    shop.run("one", **one_hot)
    shop.publish("one")
    shop.write(table("bbbbggr"))
    start, weights = warm(shop, **one_hot)
    assert weights["dense/kernel"].shape == shop.weights("one", **one_hot)["dense/kernel"].shape
    assert start.fresh == ("dense/kernel", "dense/bias")
    assert is_same(weights["dense_1/kernel"], shop.weights("one", **one_hot)["dense_1/kernel"])


def test_columns_in_another_order_make_the_first_layer_start_afresh(shop):
    two = {"features": {**FEATURES, "value": {"kind": "numeric"}}}
    shop.run("wide", **two)
    shop.publish("wide")
    start, _ = warm(shop, features=dict(reversed(two["features"].items())))
    assert (start.version, start.fresh) == (2, ("dense/kernel", "dense/bias"))


def test_of_another_shape_only_what_is_the_same_is_taken(shop):
    start, weights = warm(shop, model__options={"hidden_units": [8, 6], "dropout": 0.5})
    assert set(start.fresh) == {"dense_1/kernel", "dense_1/bias", "refit->output/kernel"}
    assert is_same(weights["dense/kernel"], shop.weights("one")["dense/kernel"])


@pytest.mark.parametrize(
    ("labels", "kind"), [("bc", None), ("ba", "classes"), ("abc", None)], ids=["other classes", "another kind", "more classes"]
)
def test_layers_before_another_target_start_afresh(labels, kind, shop):
    shop.write(table(labels=labels))
    start, _ = warm(shop, target__kind=kind)
    assert set(start.fresh) == OUTPUT


def test_without_a_champion_the_fit_starts_afresh_and_says_why(tmp_path):
    record = Shop(tmp_path).run("two", **WARM)
    assert record.warm_start == WarmStart(why_not="no version serves yet")


@pytest.mark.parametrize("lost", ["model/weights.weights.h5", "stages/convert.json", "run.json", "."])
def test_where_the_champions_run_is_gone_the_fit_starts_afresh_and_says_why(lost, shop):
    path = shop.paths("one").root / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    start = shop.run("two", **WARM).warm_start
    assert (start.version, start.run, start.num_taken) == (1, "one", 0)
    assert "version 1" in start.why_not


def test_weights_that_cannot_be_read_are_no_crash(shop):
    shop.paths("one").weights.write_bytes(b"nothing")
    assert "cannot be built again" in shop.run("two", **WARM).warm_start.why_not


@pytest.mark.parametrize("is_same", [True, False], ids=["to the same effect", "to another"])
def test_code_of_builders_may_change_where_it_still_builds_what_serves(is_same, shop):
    stage = shop.paths("one").stage("build")
    stage.write_text(stage.read_text().replace('"builder_sha256": "', '"builder_sha256": "0'))
    served = Shop(shop.file.parent / "another") if not is_same else shop
    if not is_same:
        served.run("one", seed=1)
    model, plan = load_fitted(served.job(), served.plan("one"), served.paths("one")), served.plan("one")
    version = shop.layout.model("shop").version(1)
    shutil.rmtree(version)
    _write_saved_model(model, plan, partial(outputs_of, model, plan), version)
    start = shop.run("two", **WARM).warm_start
    assert (start.num_taken, start.why_not is None) == ((7, True) if is_same else (0, False))
    assert is_same or "what it builds now is another model than version 1" in start.why_not


def test_rows_can_be_drawn_of_every_kind_of_feature():
    generator = np.random.default_rng(0)
    columns = {
        "number": generator.normal(size=60),
        "bins": generator.normal(size=60),
        "word": generator.choice(["a", "b"], 60),
        "whole": generator.integers(0, 3, 60),
        "text": ["some words here"] * 30 + ["other words"] * 30,
        "vector": generator.normal(size=(60, 3)).astype(np.float32),
        "image": generator.integers(0, 255, (60, 4, 4, 1)).astype(np.uint8),
        "moment": np.arange(60).astype("datetime64[D]").astype("datetime64[us]"),
        "y": generator.integers(0, 2, 60),
    }
    kinds = {"whole": "category", "bins": "numeric", "word": "category", "moment": "timestamp", "number": "numeric"}
    features = {name: {"kind": kinds.get(name, name)} for name in columns if name != "y"}
    job = job_of("y", features={**features, "bins": {"kind": "numeric", "scale": "bins", "bins": 3}})
    plan = plan_of(job, stored(**columns))
    outputs = assemble_model(job, plan)({name: tf.constant(values) for name, values in draw_rows(plan.features).items()})
    assert np.isfinite(outputs).all()
    assert len(np.unique(outputs)) > 100


def test_another_model_has_nothing_to_take(shop):
    start = shop.run(
        "two", **WARM, model__build="models.linear:build_model", model__options={}, features={"x": {"kind": "numeric"}}
    ).warm_start
    assert start.why_not == "no weight of version 1 fits the model"


# ---- a fair exam


def by_size(where=None, **sides):
    """A split by the column ``size``."""
    values = {size: side for side, size in sides.items()}
    return {"split__by": "column", "split__column": "size", "split__values": values, "split__where": where}


def test_a_champion_that_was_trained_on_test_rows_gives_nothing(shop):
    start = shop.run("two", **WARM, **by_size(train="small", validation="huge", test="large")).warm_start
    assert (start.version, start.num_taken) == (1, 0)
    assert "was trained on" in start.why_not
    assert "test rows of this run" in start.why_not


@pytest.mark.slow
def test_what_an_earlier_champion_was_trained_on_counts_too(tmp_path):
    """The champion's own train rows are no test rows; those of the one that it started from are."""
    shop, first = Shop(tmp_path), {"train": "small", "validation": "huge", "test": "large"}
    shop.run("one", **by_size(**first))
    shop.publish("one")
    shop.run("heir", **WARM, **by_size("id % 2 = 0", **first))
    shop.publish("heir")
    assert read_stage(shop.paths("heir"), "fit", FitRecord).warm_start.num_taken == 7
    odd = by_size("id % 2 = 1", train="large", validation="huge", test="small")
    assert "or one that it started from, was trained on" in shop.run("two", **WARM, **odd).warm_start.why_not
    two, heir = shop.paths("two"), shop.paths("heir")
    assert count_shared(two, heir) == 0 < count_shared(two, *trace_learning(shop.layout, "shop", "heir"))
    shutil.rmtree(shop.paths("one").root)
    assert "run one was trained on is not known any more" in shop.run("three", **WARM, **odd).warm_start.why_not


def test_what_was_learned_of_forgotten_rows_is_not_handed_on(shop):
    shop.run("two", **WARM)
    shop.publish("two")
    forgotten = np.load(shop.paths("one").split_dir / "train.keys.npy")[:1]
    np.save(shop.layout.dataset("shop").forgotten, forgotten)
    assert [(run.run, run.num_rows) for run in find_trained(shop.layout, "shop")] == [("one", 1), ("two", 1)]
    assert "was trained on rows that are forgotten since" in shop.run("three", **WARM).warm_start.why_not


def test_validation_rows_that_the_champion_learned_from_are_counted(shop):
    stage = shop.paths("one").stage("split")
    stage.write_text(stage.read_text().replace('"learns_from": "train"', '"learns_from": "pool"'))
    start = shop.run("two", **WARM).warm_start
    assert start.num_seen_validation == len(np.load(shop.paths("two").split_dir / "validation.keys.npy")) > 0


# ---- interruptions


class StopError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [0, 1], ids=["before the first checkpoint", "from a checkpoint"])
def test_a_fit_that_goes_on_started_from_the_same_champion_though_another_serves(epoch, shop):
    undisturbed = Shop(shop.file.parent / "undisturbed")
    shutil.copytree(shop.layout.home, undisturbed.layout.home)
    whole = undisturbed.run("two", fit__warm_start="champion")

    def stop(progress: FitProgress) -> None:
        if progress.epoch == epoch:
            raise StopError

    with pytest.raises(StopError):
        shop.run("two", stop, fit__warm_start="champion")
    shop.run("three", seed=3)
    shop.publish("three")
    shutil.rmtree(shop.paths("one").root)
    record = shop.run("two", fit__warm_start="champion")
    assert [at.epoch for at in record.resumed_at] == [1] * epoch
    assert (record.warm_start, record.weights_sha256, record.history) == (whole.warm_start, whole.weights_sha256, whole.history)


@pytest.mark.slow
def test_a_checkpoint_of_a_fit_that_started_elsewhere_is_not_gone_on_from(shop):
    whole = shop.run("two", **WARM)
    forget_stages(shop.paths("two"), "fit", "start")
    shop.run("three", seed=3)
    shop.publish("three")
    again = shop.run("two", **WARM)
    assert (again.warm_start.version, again.resumed_at) == (2, ())
    assert again.weights_sha256 != whole.weights_sha256


def test_a_fit_starts_from_one_set_of_weights():
    with pytest.raises(JobError, match="from one set of weights"):
        job_of("y", fit__warm_start="champion", fit__initial_weights="a.keras")


def test_the_rows_of_these_tests_differ():
    assert len(set(map(str, table().to_pylist()))) == ROWS
    assert isinstance(table(), pa.Table)


# ---- builders


def mixed_plan(words="aab"):
    """Every kind of encoding that has a vocabulary, and numbers."""
    generator = np.random.default_rng(0)
    columns = {
        "number": generator.normal(size=60),
        "word": list(words * 20),
        "other": list("ddefg" * 12),
        "text": ["some words here"] * 30 + ["other words"] * 30,
        "story": ["once upon a time"] * 40 + ["a time"] * 20,
        "y": generator.integers(0, 3, 60),
    }
    features = {
        "number": {"kind": "numeric"},
        "word": {"kind": "category"},
        "other": {"kind": "category", "encoding": "embedding"},
        "text": {"kind": "text"},
        "story": {"kind": "text", "encoding": "sequence"},
        "pair": {"kind": "cross", "of": ["word", "other"], "bins": 8},
    }
    return columns, features


FIRST = {"dense/kernel", "dense/bias"}
SEES_THE_WORD = {
    "dense": FIRST,
    "linear": {"logits/kernel", "logits/bias"},
    "wide_deep": {"dense/kernel", "wide/kernel"},
    "tabular_resnet": FIRST,
    "ft_transformer": FIRST,
    "text": FIRST,
    "subclassed": {*FIRST, "dense_1/kernel", "dense_1/bias", *OUTPUT},  # a model within the model
}


def fresh_of(old, new):
    return {path for path, variable in new.items() if _match(old.get(path), variable) is None}


@pytest.mark.parametrize("builder", SEES_THE_WORD)
def test_a_model_takes_all_weights_of_its_own_kind_and_none_of_what_sees_other_tokens(builder):
    found = []
    for words in ("aab", "aab", "bba"):
        columns, features = mixed_plan(words)
        job = job_of("y", features=features, model__build=f"models.{builder}:build_model")
        plan = plan_of(job, stored(**columns))
        found.append(_describe(assemble_model(job, plan), plan))
    first, again, others = found
    assert fresh_of(first, again) == set()
    assert fresh_of(first, others) == SEES_THE_WORD[builder]


def test_a_layer_over_others_that_changed_places_starts_afresh(served):
    def build(order):
        inputs = {name: keras.Input((2,), name=name) for name in "ab"}
        parts = [keras.layers.Dense(3, name=f"of_{name}")(inputs[name]) for name in order]
        x = keras.layers.Dense(4, name="top")(keras.layers.BatchNormalization(name="norm")(keras.layers.Concatenate()(parts)))
        return keras.Model(inputs, keras.layers.Dense(1, name="out")(x))

    plan = served.plan("one")
    one, same, swapped = (_describe(build(order), plan) for order in ("ab", "ab", "ba"))
    assert fresh_of(one, same) == set()
    assert {path.partition("/")[0] for path in fresh_of(one, swapped)} == {"norm", "top"}
