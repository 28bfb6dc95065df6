"""A fit that starts from the champion: what is taken over means the same, what cannot is named, and a killed one starts from the same."""

import shutil

import numpy as np
import pyarrow as pa
import pytest

from refit.dependents import find_trained
from refit.errors import JobError
from refit.lineage import trace_learning
from refit.progress import FitProgress
from refit.records import FitRecord, WarmStart
from refit.splits import count_shared
from refit.stages import forget_stages, read_stage
from tests.refit.champions import FEATURES, ROWS, Shop, table
from tests.refit.small import job_of

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


def test_a_builder_that_was_changed_is_told(shop):
    stage = shop.paths("one").stage("build")
    stage.write_text(stage.read_text().replace('"builder_sha256": "', '"builder_sha256": "0'))
    assert "code of builders has changed" in shop.run("two", **WARM).warm_start.why_not


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


@pytest.mark.parametrize("epoch", [0, pytest.param(1, marks=pytest.mark.slow)], ids=["before the first checkpoint", "from a checkpoint"])
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
