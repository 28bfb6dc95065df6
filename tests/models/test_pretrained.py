"""A model from a file: its layers are used, frozen and let go as the options say."""

import hashlib

import keras
import numpy as np
import pytest

from models.options import check_counts, check_not_negative, check_positive, check_share, check_widths
from refit.contract import make_features
from refit.errors import CodeError
from refit.fitting import assemble_model, load_initial_weights
from tests.refit.small import job_of, plan_of, stored

NUM_ROWS = 24
SHAPE = (6, 5, 2)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("pretrained") / "backbone.keras"
    image = keras.Input(SHAPE)
    x = keras.layers.Conv2D(4, 3, activation="relu", name="first")(image)
    x = keras.layers.BatchNormalization(name="norm", moving_mean_initializer="ones")(x)
    x = keras.layers.Conv2D(6, 3, activation="relu", name="second")(x)
    keras.Model(image, keras.layers.Dense(7, name="old_head")(keras.layers.Flatten(name="flat")(x))).save(path)
    return path


def table():
    images = np.random.default_rng(0).integers(0, 256, (NUM_ROWS, *SHAPE), dtype=np.uint8)
    return stored(image=images, other=images, number=np.arange(NUM_ROWS, dtype=float), y=np.arange(NUM_ROWS) % 3)


def assembled(columns=("image",), **options):
    features = {name: {"kind": "numeric" if name == "number" else "image"} for name in columns}
    model = {"build": "models.pretrained:build_model", "options": {k: str(v) if k == "path" else v for k, v in options.items()}}
    job = job_of("y", features=features, model=model, target__kind="classes", fit__batch_size=8)
    plan = plan_of(job, table())
    return assemble_model(job, plan), make_features(plan)


def trainable(model):
    return sorted(v.path for v in model.trainable_variables)


def test_a_frozen_model_is_the_files_and_only_its_head_learns(path):
    model, rows = assembled(path=path)
    assert trainable(model) == ["refit->output/bias", "refit->output/kernel"]
    loaded = keras.saving.load_model(path)
    expected = keras.Model(loaded.input, loaded.get_layer("flat").output)(np.asarray(rows["image"]) / np.float32(255))
    np.testing.assert_allclose(model.get_layer("backbone")(np.asarray(rows["image"]) / np.float32(255)), expected, rtol=1e-5)
    before = [np.asarray(v) for v in model.get_layer("backbone").variables]
    model.train_on_batch(rows, np.arange(16) % 3)
    assert all(np.array_equal(a, b) for a, b in zip(before, map(np.asarray, model.get_layer("backbone").variables), strict=True))


def test_the_second_stage_goes_on_from_the_first(path, tmp_path):
    first, rows = assembled(path=path)
    first.train_on_batch(rows, np.arange(16) % 3)
    expected = np.asarray(first(rows))
    weights, whole = tmp_path / "first.weights.h5", tmp_path / "first.keras"
    first.save_weights(weights)
    first.save(whole)
    for file in (weights, whole):
        second, _ = assembled(path=path, frozen=False)
        load_initial_weights(second, file)
        np.testing.assert_allclose(second(rows), expected, rtol=1e-5)
        assert {name.split("/")[-2] for name in trainable(second)} == {"first", "second", "refit->output"}


def test_so_many_layers_stay_frozen_and_batch_norm_with_them(path):
    assert {name.split("/")[-2] for name in trainable(assembled(path=path, frozen=2)[0])} == {"second", "refit->output"}
    model, rows = assembled(path=path, frozen=2, freeze_batch_norm=False)
    assert {name.split("/")[-2] for name in trainable(model)} == {"norm", "second", "refit->output"}
    before = np.asarray(model.get_layer("backbone").get_layer("norm").moving_mean)
    model.train_on_batch(rows, np.arange(16) % 3)
    assert (before != np.asarray(model.get_layer("backbone").get_layer("norm").moving_mean)).any()


def test_a_layer_is_cut_at_and_other_features_join_before_the_head(path):
    model, rows = assembled(("image", "number"), path=path, cut="first")
    assert model.get_layer("refit->output").kernel.shape == (4 + 1, 3)
    assert model(rows).shape == (16, 3)


def test_raw_images_reach_a_file_that_scales_them_itself(path):
    model, rows = assembled(path=path, raw=True, hidden_units=[4])
    assert model.get_layer("backbone").input.dtype == "float32"
    assert model(rows).shape == (16, 3)


def test_the_files_digest_is_checked(path):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert assembled(path=path, sha256=digest)
    with pytest.raises(CodeError, match=rf"another file than sha256 says\. Received: {digest}"):
        assembled(path=path, sha256="0" * 64)


@pytest.mark.parametrize(
    ("columns", "options", "fault"),
    [
        (["image"], {"path": "nowhere.keras"}, r"path is a \.keras file that exists\. Received: 'nowhere.keras'"),
        (["image", "other"], {}, r"feature names one image out of: image, other\. Received: None"),
        (["number"], {}, r"feature names one image out of: none"),
        (["image"], {"cut": "nothing"}, r"cut names a layer of the file's model, the last of which are: .*second, flat, old_head"),
        (["image"], {"frozen": 99}, r"frozen is true, false or a number up to 5"),
        (["image"], {"frozen": -1}, r"frozen is a whole number, 0 at least\. Received: -1"),
        (["image"], {"dropout": 1}, r"dropout is a share, from 0 to below 1\. Received: 1"),
    ],
)
def test_what_does_not_fit_is_told(path, columns, options, fault):
    with pytest.raises(CodeError, match=fault):
        assembled(columns, **{"path": path, **options})


def test_an_image_of_another_shape_is_refused(tmp_path):
    keras.Sequential([keras.Input((8, 8, 2)), keras.layers.Flatten(), keras.layers.Dense(1)]).save(tmp_path / "other.keras")
    with pytest.raises(CodeError, match=r"takes \(None, 8, 8, 2\), and the feature is \(None, 6, 5, 2\)"):
        assembled(path=tmp_path / "other.keras")


def test_a_model_of_vectors_gets_the_vector(tmp_path):
    keras.Sequential([keras.Input((1,)), keras.layers.Dense(3, name="hidden"), keras.layers.Dense(1)]).save(tmp_path / "vector.keras")
    model, rows = assembled(["number"], path=tmp_path / "vector.keras")
    assert model(rows).shape == (16, 3)
    assert model.get_layer("refit->output").kernel.shape == (3, 3)


# ---- options


@pytest.mark.parametrize(
    ("check", "value", "fault"),
    [
        (check_share, 1.0, "a share, from 0 to below 1"),
        (check_share, "0.5", "a share"),
        (check_share, True, "a share"),
        (check_not_negative, -0.1, "0 or more"),
        (check_not_negative, float("nan"), "0 or more"),
        (check_positive, 0, "above 0"),
        (check_counts, 0, "a whole number, 1 at least"),
        (check_counts, 2.0, "a whole number"),
        (check_widths, [8, 0], "a list of whole numbers above 0"),
        (check_widths, 8, "a list of whole numbers above 0"),
        (check_widths, "88", "a list of whole numbers above 0"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(check, value, fault):
    with pytest.raises(ValueError, match=f"^size is {fault}.*Received: "):
        check(size=value)


def test_options_within_range_pass():
    check_share(size=0)
    check_not_negative(size=0.0)
    check_positive(size=1e-9)
    check_counts(size=1)
    check_counts(0, size=0)
    check_widths(size=[])
    with pytest.raises(ValueError, match="1 at least"):
        check_widths(1, size=[])
