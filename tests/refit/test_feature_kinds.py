"""Every kind of feature and every option, as real graphs, against values known from elsewhere."""

import datetime as dt
import math

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import KBinsDiscretizer, RobustScaler, StandardScaler

from refit.batches import Position, read_batches
from refit.config import Job
from refit.errors import DataError, JobError
from refit.export import export_model
from refit.feature_plans import fit_plans, plan_crosses, resolve_features
from refit.features import build_inputs, build_target, choose_dimension
from refit.fitting import assemble_model
from refit.layers import DecodeImages, TimeParts
from refit.layout import Layout
from refit.records import BatchesRecord, FeaturePlan
from refit.report import describe_feature
from refit.schema import MISSING_INTEGER, check_names, signature_name, to_numpy
from refit.splits import Rows
from refit.validation import option_fault
from refit.wording import ABSENT
from tests.refit.small import job_of, keep, packed, plan_of, snapshot_of, stored

DAY = 86_400_000_000


class Built:
    """Features of a table as a model that gives all that a builder receives."""

    def __init__(self, table: pa.Table, **features: dict):
        job = job_of("y", features=features)
        snapshot = snapshot_of(table)
        self.plans = fit_plans(resolve_features(job, snapshot), snapshot, Rows("train", table))
        self.plan = {plan.name: plan for plan in self.plans}
        made = build_inputs(self.plans, plan_crosses(job))
        self.made = made
        outputs = {**made.categories, **made.images, **made.texts, **made.sequences, "vector": made.vector()}
        outputs |= {f"{name}.index": index for name, index in made.indices.items()}
        outputs |= {"numeric": made.numeric} if made.numeric is not None else {}
        self.model = keras.Model(made.inputs, outputs)

    def tensors(self, table: pa.Table) -> dict[str, tf.Tensor]:
        return {plan.name: tf.constant(to_numpy(table[plan.name], plan)) for plan in self.plans}

    def __call__(self, table: pa.Table) -> dict[str, np.ndarray]:
        return {name: np.asarray(values) for name, values in self.model(self.tensors(table)).items()}


def build(train, feature, asked=None):
    """What becomes of one column ``x``, by the output that holds it."""
    built = Built(stored(x=train, y=np.arange(len(train)) * 1.0), x=feature)
    rows = train if asked is None else asked
    return built(stored(x=rows, y=np.arange(len(rows)) * 1.0))


def numbers_of(count=500, seed=0):
    return np.random.default_rng(seed).lognormal(2, 1.5, count).astype(np.float32).astype(np.float64)


@pytest.fixture
def mixed_bfloat16():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(before)


# ---- numbers


def test_standard_is_what_scikit_learn_does():
    values = numbers_of()
    expected = StandardScaler().fit_transform(values[:, None])
    np.testing.assert_allclose(build(values, {"kind": "numeric"})["numeric"], expected, rtol=1e-4, atol=1e-5)


def test_robust_is_what_scikit_learn_does():
    values = numbers_of()
    expected = RobustScaler(unit_variance=True).fit_transform(values[:, None])
    np.testing.assert_allclose(build(values, {"kind": "numeric", "scale": "robust"})["numeric"], expected, rtol=1e-3, atol=1e-4)


def test_robust_of_a_column_whose_quartiles_are_equal_divides_by_its_deviation():
    values = [0.0] * 90 + [1.0] * 10
    found = build(values, {"kind": "numeric", "scale": "robust"})["numeric"]
    np.testing.assert_allclose(found[:, 0], np.array(values) / np.std(values), rtol=1e-5)


def test_none_leaves_numbers_as_they_are():
    values = [1.5, -2.0, 1e6]
    np.testing.assert_array_equal(build(values, {"kind": "numeric", "scale": "none"})["numeric"][:, 0], values)


def test_the_logarithm_is_taken_before_numbers_are_scaled_and_keeps_their_sign():
    values = numbers_of() * np.where(np.arange(500) % 3, 1, -1)
    logged = np.sign(values) * np.log1p(np.abs(values))
    found = build(values, {"kind": "numeric", "log": True})["numeric"]
    np.testing.assert_allclose(found, StandardScaler().fit_transform(logged[:, None]), rtol=1e-4, atol=1e-5)


def test_clip_holds_scaled_numbers_and_no_others():
    table = stored(x=[*range(99), 10_000], z=[*range(99), 10_000], y=np.arange(100.0))
    built = Built(table, x={"kind": "numeric", "clip": 1.5}, z={"kind": "numeric"})
    found = built(table)["numeric"]
    assert found[-1, 0] == 1.5
    assert found[-1, 1] > 9
    np.testing.assert_allclose(found[:-1, 0], found[:-1, 1])


@pytest.mark.parametrize(("fill", "expected"), [(None, 4.0), ("mean", 4.0), ("median", 2.0), (-1.0, -1.0), (0.0, 0.0)])
def test_a_missing_number_becomes_what_the_job_says(fill, expected):
    found = build([1.0, 2.0, 9.0, None], {"kind": "numeric", "scale": "none", "fill": fill})["numeric"]
    np.testing.assert_allclose(found, [[1, 0], [2, 0], [9, 0], [expected, 1]])


def test_a_missing_number_is_filled_before_its_logarithm_is_taken():
    found = build([1.0, 5.0, None], {"kind": "numeric", "scale": "none", "log": True, "fill": 7.0})["numeric"]
    np.testing.assert_allclose(found[2], [math.log(8), 1], rtol=1e-6)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), 1e39])
def test_a_number_that_is_infinite_counts_as_missing(value):
    found = build([1.0, 3.0, value], {"kind": "numeric"})["numeric"]
    np.testing.assert_allclose(found, [[-1, 0], [1, 0], [0, 1]], atol=1e-6)


def test_an_infinite_number_at_serving_becomes_the_mean():
    assert build([1.0, 3.0], {"kind": "numeric"}, [float("inf"), None])["numeric"].tolist() == [[0], [0]]


@pytest.mark.parametrize("factor", [1e-30, 1e-9, 1.0, 1e17, 1e30])
def test_numbers_of_any_size_are_scaled(factor):
    values = np.array([1.0, 2.0, 6.0]) * factor
    found = build(values, {"kind": "numeric"})["numeric"]
    np.testing.assert_allclose(found[:, 0], np.array([-2, -1, 3]) / np.sqrt(14 / 3), rtol=1e-4)


@pytest.mark.usefixtures("mixed_bfloat16")
def test_large_numbers_keep_their_last_digits_under_mixed_precision():
    values = [1234566.0, 1234567.0, 1234568.0]
    np.testing.assert_allclose(build(values, {"kind": "numeric"})["numeric"][:, 0], np.array([-1, 0, 1]) * 1.5**0.5, rtol=1e-5)
    found = build(values, {"kind": "numeric", "scale": "bins", "bins": 3})["x"]
    np.testing.assert_array_equal(found.argmax(axis=1), [1, 2, 3])
    vectors = np.array([values, values[::-1]]).T
    np.testing.assert_allclose(build(vectors, {"kind": "vector"})["numeric"][:, 0], np.array([-1, 0, 1]) * 1.5**0.5, rtol=1e-5)


def test_bins_are_those_of_scikit_learn():
    values = numbers_of(2000)
    binner = KBinsDiscretizer(n_bins=8, encode="onehot-dense", strategy="quantile", quantile_method="linear", subsample=None)
    expected = binner.fit_transform(values[:, None])
    found = build(values, {"kind": "numeric", "scale": "bins", "bins": 8})["x"]
    assert found.shape == (2000, 9)
    np.testing.assert_array_equal(found[:, 0], 0)
    assert (found[:, 1:].argmax(axis=1) != expected.argmax(axis=1)).mean() < 2e-3  # a bound that float32 rounds


def test_a_missing_number_has_a_bin_of_its_own_and_extremes_are_in_the_outer_ones():
    found = build([1.0, 2.0, 3.0, 4.0], {"kind": "numeric", "scale": "bins", "bins": 2}, [None, float("nan"), -1e30, 1e30])["x"]
    np.testing.assert_array_equal(found, np.eye(3)[[0, 0, 1, 2]])


def test_equal_bounds_of_bins_are_joined():
    built = Built(stored(x=[0.0] * 85 + [1.0] * 13 + [9.0] * 2, y=np.arange(100.0)), x={"kind": "numeric", "scale": "bins", "bins": 10})
    assert built.plan["x"].boundaries == (1.0,)
    rare = Built(stored(x=[0.0] * 99 + [9.0], y=np.arange(100.0)), x={"kind": "numeric", "scale": "bins", "bins": 4})
    assert len(rare.plan["x"].boundaries) == 1
    assert 0 < rare.plan["x"].boundaries[0] < 9


@settings(deadline=None, max_examples=15)
@given(st.lists(st.one_of(st.none(), st.floats(width=32, allow_nan=False)), min_size=3, max_size=30), st.integers(2, 6))
def test_every_number_is_in_one_bin(values, bins):
    present = {v for v in values if v is not None and math.isfinite(v)}
    if len(present) < 2:
        return
    found = build(values, {"kind": "numeric", "scale": "bins", "bins": bins})["x"]
    np.testing.assert_array_equal(found.sum(axis=1), 1)
    np.testing.assert_array_equal(found[:, 0] == 1, [v is None or not math.isfinite(v) for v in values])


# ---- categories


def test_values_that_are_rare_are_unseen():
    built = Built(stored(x=["a", "a", "b", "c", "c"], y=np.arange(5.0)), x={"kind": "category", "min_count": 2})
    assert built.plan["x"].vocabulary == ("a", "c")
    assert built(stored(x=["b", "a", None], y=np.arange(3.0)))["x.index"].tolist() == [1, 2, 0]
    with pytest.raises(DataError, match=r"no value of .x. has 3 rows in the train split"):
        build(["a", "a", "b"], {"kind": "category", "min_count": 3})


@pytest.mark.parametrize(("values", "missing"), [(["a", "b", "c", "a"], ""), ([1, 2, 3, 1], MISSING_INTEGER)])
def test_hashed_values_need_no_vocabulary(values, missing):
    built = Built(stored(x=values, y=np.arange(4.0)), x={"kind": "category", "hash_bins": 5})
    assert built.plan["x"].vocabulary is None
    asked = [*values, None, missing, *([f"new {i}" for i in range(50)] if missing == "" else range(100, 150))]
    found = built(stored(x=asked, y=np.arange(len(asked)) * 1.0))
    assert found["x"].shape == (len(asked), 6)
    index = found["x.index"]
    assert index[0] == index[3]
    assert index[4] == index[5] == 0
    assert set(index[6:]) == {1, 2, 3, 4, 5}
    assert built.made.num_tokens == {"x": 6}


def test_an_embedding_has_a_vector_for_missing_unseen_and_each_value():
    built = Built(stored(x=["a", "b", "b"], y=np.arange(3.0)), x={"kind": "category", "encoding": "embedding", "dimension": 3})
    (weights,) = [w for w in built.model.weights if "embedding" in w.path]
    assert weights.shape == (4, 3)
    found = built(stored(x=["b", "a", "new", None], y=np.arange(4.0)))["x"]
    np.testing.assert_array_equal(found, weights.numpy()[[2, 3, 1, 0]])


@pytest.mark.parametrize(("num_tokens", "expected"), [(2, 2), (3, 3), (10, 6), (100, 21), (1000, 64), (10**6, 64)])
def test_the_width_of_an_embedding_grows_with_its_values(num_tokens, expected):
    assert choose_dimension(num_tokens) == expected


def test_a_value_that_keras_means_for_unseen_is_a_value():
    found = build(["[UNK]", "a", "[UNK]"], {"kind": "category"}, ["[UNK]", "a", "new", None])["x"]
    np.testing.assert_array_equal(found.argmax(axis=1)[1:], [found.shape[1] - 1, 1, 0])
    assert found[0].argmax() not in (0, 1)


def test_a_cross_tells_pairs_apart_and_takes_what_is_missing_or_unseen():
    table = stored(word=["a", "a", "b", None], number=[1, 2, 1, 2], y=np.arange(4.0))
    cross = {"kind": "cross", "of": ["word", "number"], "bins": 512}
    built = Built(table, word={"kind": "category"}, number={"kind": "category"}, pair=cross)
    found = built(table)["pair"]
    assert found.shape == (4, 512)
    np.testing.assert_array_equal(found.sum(axis=1), 1)
    assert len(set(found.argmax(axis=1))) == 4
    later = built(stored(word=["a", "new", None], number=[1, 99, None], y=np.arange(3.0)))["pair"]
    assert later[0].argmax() == found[0].argmax()


# ---- texts

TEXTS = [
    "The quick brown fox, the lazy dog!",
    "the Quick fox's dog -- a dog",
    "Fußgänger über die Straße; Äpfel, äpfel",
    "東京 タワー 東京",
    "naïve café 🦊 café",
    "",
    None,
    "  white   space\tand\nlines  ",
    "don't (stop) [unk] [UNK] a_b a-b",
]


@pytest.mark.parametrize(
    "options",
    [
        {"encoding": "tf_idf"},
        {"encoding": "tf_idf", "ngrams": 1},
        {"encoding": "count", "ngrams": 3},
        {"encoding": "binary", "split": "characters"},
        {"encoding": "tf_idf", "split": "characters", "ngrams": 1},
        {"encoding": "sequence", "length": 4},
        {"encoding": "sequence", "split": "characters", "length": 7},
    ],
    ids=str,
)
def test_tokens_and_weights_are_those_that_keras_finds_in_the_same_rows(options):
    built = Built(stored(x=TEXTS, y=np.arange(9.0)), x={"kind": "text", "min_count": 1, **options})
    told = options["encoding"]
    mode = {"tf_idf": "tf_idf", "count": "count", "binary": "multi_hot", "sequence": "int"}[told]
    ngrams = None if told == "sequence" else options.get("ngrams", 2)
    reference = keras.layers.TextVectorization(
        output_mode=mode, split="character" if options.get("split") == "characters" else "whitespace", ngrams=ngrams
    )
    texts = tf.constant([text or "" for text in TEXTS])
    reference.adapt(texts)
    known = reference.get_vocabulary(include_special_tokens=False)
    mine = built.plan["x"].vocabulary
    assert sorted(mine) == sorted(known)
    assert len(mine) == len(set(mine))
    found, expected = built(stored(x=TEXTS, y=np.arange(9.0)))["x"], reference(texts).numpy()
    if told == "sequence":
        first = 2
        assert found.shape == (9, options["length"])
        words = np.array(["", "[UNK]", *known])[expected][:, : options["length"]]
        np.testing.assert_array_equal(np.array(["", "[UNK]", *mine])[found][:, : words.shape[1]], words)
    else:
        first = 1
        order = [known.index(token) + first for token in mine]
        np.testing.assert_allclose(found[:, first:], expected[:, order], rtol=1e-6)
        assert found.dtype == np.float32


def test_tokens_are_counted_over_all_parts_of_a_long_column():
    texts = [f"word{i % 7} rare{i}" for i in range(20_000)]
    plan = Built(stored(x=texts, y=np.arange(20_000.0)), x={"kind": "text", "ngrams": 1, "min_count": 2}).plan["x"]
    assert plan.vocabulary == tuple(f"word{i}" for i in range(7))
    np.testing.assert_allclose(plan.idf, np.log1p(20_000 / (1 + np.bincount(np.arange(20_000) % 7))))


def test_max_tokens_keeps_the_most_frequent_tokens():
    plan = Built(stored(x=["b a", "b c", "b a"], y=np.arange(3.0)), x={"kind": "text", "ngrams": 1, "max_tokens": 2}).plan["x"]
    assert plan.vocabulary == ("b", "a")


def test_a_text_without_tokens_is_zeros_and_one_without_known_ones_is_unseen():
    found = build(["a b", "a b"], {"kind": "text", "encoding": "count", "ngrams": 1}, ["", None, "new words", "a a"])["x"]
    np.testing.assert_array_equal(found, [[0, 0, 0], [0, 0, 0], [2, 0, 0], [0, 2, 0]])
    found = build(["a b", "a b"], {"kind": "text", "encoding": "sequence", "length": 3}, ["", None, "new a", "a b a b"])
    np.testing.assert_array_equal(found["x"], [[0, 0, 0], [0, 0, 0], [1, 2, 0], [2, 3, 2]])
    assert np.isfinite(found["vector"]).all()


def test_a_text_in_which_no_token_repeats_is_refused():
    with pytest.raises(DataError, match=r"features.x.min_count: no token of .x. occurs 2 times"):
        build(["a", "b"], {"kind": "text"})


@settings(deadline=None, max_examples=10)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1, max_size=12))
def test_tokens_are_those_that_keras_finds_in_any_text(texts):
    texts = ["a", *texts]
    reference = keras.layers.TextVectorization(output_mode="tf_idf", ngrams=2)
    reference.adapt(tf.constant(texts))
    known = reference.get_vocabulary(include_special_tokens=False)
    plan = Built(stored(x=texts, y=np.arange(len(texts)) * 1.0), x={"kind": "text", "min_count": 1}).plan["x"]
    assert sorted(plan.vocabulary) == sorted(known)
    weights = dict(zip(reference.get_vocabulary(), np.asarray(reference._lookup_layer.idf_weights), strict=True))
    np.testing.assert_allclose(plan.idf, [weights[token] for token in plan.vocabulary], rtol=1e-5)


# ---- vectors


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int32, np.int64])
def test_vectors_of_any_dtype_are_standardised_by_position(dtype):
    values = np.random.default_rng(0).integers(0, 200, (50, 3)).astype(dtype)
    values[:, 2] = 7
    found = build(values, {"kind": "vector"})["numeric"]
    np.testing.assert_allclose(found, StandardScaler().fit_transform(values.astype(np.float64)), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(build(values, {"kind": "vector", "scale": "none"})["numeric"], values)


def test_vectors_with_numbers_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="has numbers that are not finite"):
        build(np.array([[1.0, np.nan], [2.0, 3.0]], np.float32), {"kind": "vector"})


# ---- moments


def circle(share):
    return [math.sin(2 * math.pi * share), math.cos(2 * math.pi * share)]


def parts_of(moment):
    """By Python's own calendar; days of the year and months count from March 1st."""
    march = dt.date(moment.year - (moment.month < 3), 3, 1)
    second = moment.hour * 3600 + moment.minute * 60 + moment.second
    return [
        *circle(moment.minute / 60),
        *circle(second / 86_400),
        *circle(moment.weekday() / 7),
        *circle((moment.day - 1) / 31),
        *circle((moment.month - 3) % 12 / 12),
        *circle((moment.date() - march).days / 366),
    ]


PARTS = ["minute", "hour", "weekday", "day", "month", "year_day"]
EDGES = [(1, 3, 1), (1582, 10, 15), (1600, 2, 29), (1900, 2, 28), (1900, 3, 1), (1969, 12, 31), (1970, 1, 1), (2000, 2, 29), (2100, 3, 1)]
EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 -- moments are stored without a zone
MOMENTS = st.datetimes(EPOCH.replace(year=1, month=3), EPOCH.replace(year=9999, month=12, day=31))


@settings(deadline=None, max_examples=60)
@given(st.lists(MOMENTS, min_size=1, max_size=50))
def test_parts_of_moments_are_those_of_pythons_calendar(moments):
    moments = [*moments, *(EPOCH.replace(year=year, month=month, day=day) for year, month, day in EDGES)]
    since = pa.array(moments, pa.timestamp("us")).cast(pa.int64()).to_numpy()
    found = np.asarray(TimeParts(PARTS)(tf.constant(since)))
    np.testing.assert_allclose(found, [parts_of(moment) for moment in moments], atol=2e-6)


def test_elapsed_time_is_standardised_and_keeps_its_seconds():
    moments = [EPOCH.replace(year=2024) + dt.timedelta(seconds=i) for i in range(100)]
    found = build(pa.array(moments, pa.timestamp("us")), {"kind": "timestamp", "parts": [], "elapsed": True})["numeric"]
    np.testing.assert_allclose(found[:, 0], StandardScaler().fit_transform(np.arange(100.0)[:, None])[:, 0], atol=1e-4)


def test_a_missing_moment_is_zeros_and_says_so():
    moments = pa.array([0, DAY, None], pa.timestamp("us"))
    found = build(moments, {"kind": "timestamp", "elapsed": True})["numeric"]
    np.testing.assert_array_equal(found[2], [0] * 7 + [1])
    np.testing.assert_allclose(found[:2, :2], [[0, 1], [0, 1]])
    later = build(moments[:2], {"kind": "timestamp"}, pa.array([None], pa.timestamp("us")))["numeric"]
    np.testing.assert_array_equal(later, np.zeros((1, 6)))


def test_a_date_has_no_hour():
    days = pa.array([0, 400, 800], pa.date32())
    assert build(days, {"kind": "timestamp"})["numeric"].shape == (3, 4)
    with pytest.raises(DataError, match=r"features.x: a date has no hour"):
        build(days, {"kind": "timestamp", "parts": ["hour"]})


# ---- images

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)


def test_images_become_grey_and_coloured_and_of_another_size():
    grey = build(PIXELS, {"kind": "image", "color": "grey"})["x"]
    np.testing.assert_allclose(grey, tf.image.rgb_to_grayscale(PIXELS / np.float32(255)), atol=1e-5)
    rgb = build(PIXELS[..., :1], {"kind": "image", "color": "rgb"})["x"]
    np.testing.assert_allclose(rgb, np.repeat(PIXELS[..., :1] / 255, 3, axis=-1), atol=1e-6)
    small = build(PIXELS, {"kind": "image", "resize": [3, 4]})["x"]
    np.testing.assert_allclose(small, tf.image.resize(PIXELS / np.float32(255), (3, 4)), atol=1e-5)


def test_a_colour_for_images_of_two_channels_is_refused():
    with pytest.raises(DataError, match="color is for images of 1 or 3 channels, these have 2"):
        build(PIXELS[..., :2], {"kind": "image", "color": "grey"})


def files_of(pixels, encode=tf.io.encode_png):
    return pa.array([encode(image).numpy() for image in pixels], pa.binary())


@pytest.mark.parametrize("encode", [tf.io.encode_png, tf.io.encode_jpeg])
def test_encoded_images_are_decoded_in_the_graph(encode):
    files = files_of(PIXELS, encode)
    decoded = np.stack([tf.io.decode_image(content).numpy() for content in files.to_pylist()])
    found = build(files, {"kind": "image", "resize": [6, 8]})
    np.testing.assert_allclose(found["x"], decoded / 255, atol=1e-6)
    small = build(files, {"kind": "image", "resize": [3, 3], "scale": 1.0})["x"]
    np.testing.assert_allclose(small, tf.image.resize(decoded, (3, 3)), atol=1e-3)
    assert build(files, {"kind": "image", "resize": [3, 3], "color": "grey"})["x"].shape == (4, 3, 3, 1)


def test_encoded_images_may_have_different_sizes_and_none_is_black():
    layer = DecodeImages(2, 2, 3)
    contents = [tf.io.encode_png(np.full((size, 3, 1), 200, np.uint8)).numpy() for size in (1, 5)]
    found = layer(tf.constant([*contents, b""])).numpy()
    np.testing.assert_allclose(found, np.array([200, 200, 0])[:, None, None, None] * np.ones((3, 2, 2, 3)))


def test_encoded_images_need_a_size():
    with pytest.raises(DataError, match=r"features.x: images stored encoded have any size: say resize: \[height, width\]"):
        build(files_of(PIXELS), {"kind": "image"})


# ---- what the report says

NUMBERS = [*range(1, 100), None]
DESCRIBED = [
    (NUMBERS, {"kind": "numeric"}, "mean 50.00, deviation 28.58; 1 missing"),
    (
        NUMBERS,
        {"kind": "numeric", "scale": "robust", "clip": 3},
        "median 50.00, quartiles' deviation 36.32; at most 3 either side; 1 missing",
    ),
    (NUMBERS, {"kind": "numeric", "log": True}, "logarithm; mean 3.674, deviation 0.852; 1 missing"),
    (NUMBERS, {"kind": "numeric", "scale": "bins", "bins": 4}, "4 bins, bounds 25.50, 50.00, 74.50; 1 missing"),
    (NUMBERS, {"kind": "numeric", "scale": "none"}, "1 missing"),
    (["b", "a", "b"], {"kind": "category"}, "2 values: b, a"),
    (["b", "a", "b"], {"kind": "category", "encoding": "embedding"}, "2 values: b, a; embedding"),
    (["b", "a", None], {"kind": "category", "hash_bins": 1000}, "1,000 hash bins; 1 missing"),
    (["b a", "b"], {"kind": "text", "ngrams": 1, "min_count": 1}, "2 tokens: b, a; tf-idf"),
    (np.array([[1.0, 2.0], [3.0, 4.0]]), {"kind": "vector"}, "2 means and deviations"),
    (np.array([[1.0, 2.0], [3.0, 4.0]]), {"kind": "vector", "scale": "none"}, ABSENT),
    (pa.array([0, 2], pa.date32()), {"kind": "timestamp"}, "weekday, year_day"),
    (
        pa.array([0, 2], pa.date32()),
        {"kind": "timestamp", "parts": ["month"], "elapsed": True},
        "month; mean 1970-01-02, deviation 1.000 days",
    ),
    (
        np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3),
        {"kind": "image", "resize": [2, 2], "color": "grey"},
        "resized to 2 × 2; grey; scaled by 1/255",
    ),
]


@pytest.mark.parametrize(("values", "feature", "told"), DESCRIBED)
def test_what_each_feature_holds_is_told(values, feature, told) -> None:
    built = Built(stored(x=values, y=np.arange(len(values)) * 1.0), x=feature)
    assert describe_feature(built.plan["x"]) == told


# ---- options


@pytest.mark.parametrize(
    ("feature", "told"),
    [
        ({"kind": "numeric", "bins": 4}, "bins is for scale: bins"),
        ({"kind": "numeric", "scale": "bins", "clip": 1}, "clip is for scaled numbers"),
        ({"kind": "numeric", "clip": 0}, "greater than 0"),
        ({"kind": "numeric", "fill": "mode"}, "fill"),
        ({"kind": "category", "hash_bins": 9, "min_count": 2}, "leave max_tokens and min_count out"),
        ({"kind": "category", "dimension": 9}, "dimension is for encoding: embedding"),
        ({"kind": "category", "hash_bins": 1}, "greater than or equal to 2"),
        ({"kind": "text", "encoding": "sequence", "ngrams": 3}, "ngrams is not for sequences"),
        ({"kind": "text", "length": 3}, "length is for encoding: sequence"),
        ({"kind": "text", "ngrams": 6}, "less than or equal to 5"),
        ({"kind": "timestamp", "parts": []}, "at least one unless elapsed"),
        ({"kind": "timestamp", "parts": ["hour", "hour"]}, "each part once"),
        ({"kind": "timestamp", "parts": ["second"]}, "second"),
        ({"kind": "image", "resize": [0, 4]}, "greater than 0"),
        ({"kind": "cross", "of": ["x", "z"]}, "which is no feature of kind category"),
        ({"kind": "cross", "of": ["x"]}, "at least 2"),
        ({"kind": "sound"}, "sound"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused_where_the_job_is_read(feature, told):
    with pytest.raises(JobError, match=told):
        job_of("y", features={"x": feature, "z": {"kind": "numeric"}})


def test_a_cross_names_two_categories_and_stands_beside_a_column():
    category = {"kind": "category"}
    with pytest.raises(JobError, match="names a feature twice"):
        job_of("y", features={"x": category, "pair": {"kind": "cross", "of": ["x", "x"]}})
    job = job_of("y", features={"x": category, "z": category, "pair": {"kind": "cross", "of": ["x", "z"]}})
    assert list(job.feature_columns) == ["x", "z"]


def test_a_plan_with_every_option_survives_its_record():
    plan = whole_plan()
    assert BatchesRecord.model_validate_json(plan.model_dump_json()) == plan


def test_plans_of_earlier_releases_are_read():
    table = stored(x=[1.0, 2.0, None], y=np.arange(3.0))
    plan = Built(table, x={"kind": "numeric"}).plan["x"]
    old = FeaturePlan.model_validate(plan.model_dump(exclude={"feature", "fill"}))
    made = build_inputs([old])
    assert np.asarray(keras.Model(made.inputs, made.numeric)({"x": tf.constant([np.nan])})).tolist() == [[0, 1]]


# ---- names

NAMES = ["output", "numeric", "my column", "größe", "東京", "1st", "a.b-c (d) %", "Age", "x", "x.column", "refit"]


def test_columns_of_any_name_are_trained_saved_and_exported(tmp_path):
    rows = 40
    columns = {name: np.random.default_rng(at).normal(size=rows) for at, name in enumerate(NAMES)}
    table = stored(**columns, y=np.arange(rows) % 2)
    features = {name: {"kind": "numeric"} for name in NAMES[::2]} | {name: {"kind": "numeric", "scale": "bins"} for name in NAMES[1::2]}
    check_everywhere(tmp_path, job_of("y", features=features, target__kind="binary", fit__batch_size=8), table)


@pytest.mark.parametrize("names", [["a b", "a_b"], ["Age", "age"]])
def test_columns_that_would_be_one_input_are_refused(names):
    with pytest.raises(DataError, match=f'"{names[0]}" and "{names[1]}" would be one input of the model'):
        check_names(names)
    with pytest.raises(DataError, match="would be one input"):
        plan_of(job_of("y", fit__batch_size=1), stored(**{name: [1.0, 2.0] for name in names}, y=[1.0, 2.0]))


def test_a_column_with_a_slash_in_its_name_is_refused():
    with pytest.raises(DataError, match='"a/b" cannot be an input of a model'):
        check_names(["a/b"])


@given(st.text(min_size=1))
def test_an_input_of_a_signature_is_what_tensorflow_takes(name):
    assert signature_name(name).isidentifier()
    assert signature_name(name).isascii()
    assert signature_name(signature_name(name)) == signature_name(name)


# ---- everything, everywhere

FEATURES = {
    "number": {"kind": "numeric", "log": True, "clip": 3.0},
    "robust": {"kind": "numeric", "scale": "robust", "fill": 0.0},
    "binned": {"kind": "numeric", "scale": "bins", "bins": 5},
    "plain": {"kind": "numeric", "scale": "none"},
    "word": {"kind": "category"},
    "code": {"kind": "category", "encoding": "embedding"},
    "truth": {"kind": "category"},
    "many": {"kind": "category", "hash_bins": 16, "encoding": "embedding", "dimension": 4},
    "pair": {"kind": "cross", "of": ["word", "code"], "bins": 32},
    "text": {"kind": "text", "min_count": 1},
    "tale": {"kind": "text", "encoding": "sequence", "length": 5, "min_count": 1},
    "letters": {"kind": "text", "encoding": "binary", "split": "characters", "min_count": 1},
    "vector": {"kind": "vector"},
    "day": {"kind": "timestamp"},
    "moment": {"kind": "timestamp", "parts": ["minute", "hour", "weekday", "day", "month", "year_day"], "elapsed": True},
    "image": {"kind": "image", "resize": [4, 4], "color": "grey"},
    "file": {"kind": "image", "resize": [4, 4]},
}


def whole_table(rows=72):
    draw = np.random.default_rng(0)

    def holed(values):
        return [None if at % 7 == 3 else value for at, value in enumerate(values)]

    return stored(
        number=holed(draw.lognormal(2, 1, rows).tolist()),
        robust=holed(draw.normal(5, 2, rows).tolist()),
        binned=holed(draw.normal(5, 2, rows).tolist()),
        plain=draw.normal(size=rows),
        word=holed(draw.choice(["Zürich", "東京", "[UNK]"], rows).tolist()),
        code=holed(draw.integers(-2, 3, rows).tolist()),
        truth=holed((draw.integers(0, 2, rows) > 0).tolist()),
        many=holed([f"user {i}" for i in draw.integers(0, 40, rows)]),
        text=holed([TEXTS[i] for i in draw.integers(0, len(TEXTS), rows)]),
        tale=holed([TEXTS[i] for i in draw.integers(0, len(TEXTS), rows)]),
        letters=holed([TEXTS[i] for i in draw.integers(0, len(TEXTS), rows)]),
        vector=draw.normal(3, 2, (rows, 3)).astype(np.float32),
        day=pa.array(holed(draw.integers(-9000, 9000, rows).tolist()), pa.date32()),
        moment=pa.array(holed(draw.integers(-(10**15), 10**15, rows).tolist()), pa.timestamp("us")),
        image=draw.integers(0, 256, (rows, 6, 5, 3), dtype=np.uint8),
        file=files_of(draw.integers(0, 256, (rows, 5, 7, 3), dtype=np.uint8)),
        y=np.arange(rows) % 2,
    )


def whole_job(**more) -> Job:
    return job_of("y", features=FEATURES, target__kind="binary", fit={"batch_size": 8}, **more)


def whole_plan() -> BatchesRecord:
    return plan_of(whole_job(), whole_table())


def assemble(job, plan):
    """As builders do, but with every part: what the vector leaves out, too."""
    features = build_inputs(plan.features, plan.crosses)
    parts = [features.vector(), *(keras.layers.Flatten()(image) for image in features.images.values())]
    x = keras.layers.Concatenate()(parts) if len(parts) > 1 else parts[0]
    return keras.Model(features.inputs, build_target(plan.target).head(x))


def check_everywhere(folder, job, table):
    """One step of a fit, ``.keras`` in safe mode, and the SavedModel from raw columns agree."""
    plan, source, _ = packed(job, table, table)
    model = assemble(job, plan)
    model.compile(loss="binary_crossentropy", optimizer="sgd")
    features, label = next(iter(read_batches(source, batch_size=8, seed=0, start=Position(0, 0))))
    assert np.isfinite(model.train_on_batch(features, label))
    model.save(folder / "model.keras")
    again = keras.models.load_model(folder / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(model(features, training=False), again(features, training=False))
    layout = Layout(folder / "home")
    run = layout.run("small", "run")
    run.model_dir.mkdir(parents=True)
    record = export_model(model, plan, Rows("test", table), layout, run)
    assert record.max_difference < 1e-5
    assert list(record.inputs) == [signature_name(feature.name) for feature in plan.features]
    return record


def test_texts_that_end_in_zero_bytes_are_proved_as_they_are(tmp_path):
    table = stored(text=["a\0", "a", "b\0\0", ""] * 8, word=["a\0", "a"] * 16, y=np.arange(32) % 2)
    features = {"text": {"kind": "text", "ngrams": 1}, "word": {"kind": "category"}}
    check_everywhere(tmp_path, job_of("y", features=features, target__kind="binary", fit__batch_size=8), table)


def test_every_kind_is_trained_saved_and_exported(tmp_path):
    record = check_everywhere(tmp_path, whole_job(), whole_table())
    assert record.inputs["moment"] == "int64 [batch]"
    assert record.inputs["file"] == "string [batch]"
    assert record.inputs["vector"] == "float32 [batch, 3]"


@pytest.mark.usefixtures("mixed_bfloat16")
def test_every_kind_is_trained_under_mixed_precision():
    plan, source, _ = packed(whole_job(), whole_table(), whole_table())
    made = build_inputs(plan.features, plan.crosses)
    assert made.numeric.dtype == "float32"
    assert {values.dtype for values in made.texts.values()} == {"float32"}
    model = assemble(whole_job(), plan)
    model.compile(loss="binary_crossentropy", optimizer="sgd")
    assert np.isfinite(model.train_on_batch(*next(iter(read_batches(source, batch_size=8, seed=0, start=Position(0, 0))))))


def test_what_no_train_row_had_is_predicted_all_the_same():
    table = whole_table()
    plan = plan_of(whole_job(), table)
    model = assemble(whole_job(), plan)
    inputs = {feature.name: to_numpy(table[feature.name], feature)[:2] for feature in plan.features}
    nothing = {
        **inputs,
        **{name: np.array([np.nan, np.inf], np.float32) for name in ("number", "robust", "binned")},
        **{name: np.array(["never seen", ""], object) for name in ("word", "many", "text", "tale", "letters")},
        **{name: np.array([10**12, MISSING_INTEGER]) for name in ("code", "truth", "day", "moment")},
        "file": np.array([b"", inputs["file"][1]], object),
    }
    found = model({name: tf.constant(values) for name, values in nothing.items()})
    assert np.isfinite(np.asarray(found)).all()


@pytest.mark.parametrize("engine", ["resident", "streaming"])
def test_every_kind_travels_through_both_engines(tmp_path, engine):
    table = whole_table()
    small = keep(tmp_path, whole_job(batches__engine=engine), table, shard_rows=30, group_rows=11)
    assert small.plan.engine == engine
    features, _ = next(iter(read_batches(small.open(), batch_size=72, seed=0, start=Position(0, 0))))
    for plan in small.plan.features:
        expected = to_numpy(table[plan.name], plan)
        received = features[plan.name].numpy()
        if expected.dtype == object:
            expected = np.array([v.encode() if isinstance(v, str) else v for v in expected], object)
            assert sorted(received.tolist()) == sorted(expected.tolist())
        else:
            flat = received.reshape(72, -1), expected.reshape(72, -1)
            np.testing.assert_array_equal(np.sort(flat[0], axis=0), np.sort(flat[1], axis=0), err_msg=plan.name)


def test_models_dense_takes_every_kind(tmp_path):
    job = whole_job(model__build="models.dense:build_model")
    plan = whole_plan()
    assert assemble_model(job, plan).output_shape == (None, 1)


def test_option_faults_name_no_column_that_fits():
    plan = whole_plan()
    assert not any(option_fault(feature.column, feature.feature) for feature in plan.features)
