"""Every builder in ``models`` keeps the contract, over each shape of rows and kind of target that it takes."""

import importlib
import pkgutil

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

import models
from refit.config import Job
from refit.contract import check_builder, make_features
from refit.errors import CodeError
from refit.fitting import assemble_model, describe_model
from tests.refit.small import job_of, plan_of, stored

NUM_ROWS = 48
LABELS = {
    "binary": np.arange(NUM_ROWS) % 2,
    "classes": np.arange(NUM_ROWS) % 3,
    "multilabel": np.arange(NUM_ROWS) % 3,
    "regression": (np.arange(NUM_ROWS) % 5).astype(np.float64),
}
SETS = np.array(["", "low", "high|low"])  # what a row has, by its label
AUGMENTED = {"flip": True, "shift": 0.1, "crop": 0.1, "rotation": 0.02, "zoom": 0.1, "contrast": 0.2, "cutout": 0.3}
MODULES = [f"models.{module.name}" for module in pkgutil.iter_modules(models.__path__)]
BUILDERS = [f"{name}:build_model" for name in MODULES if hasattr(importlib.import_module(name), "build_model")]
BACKBONE = "backbone.keras"  # the name of a file in the test's folder
# Shapes of rows that a builder takes, the first with every kind of target; and options, the first with every shape.
CASES = {
    "models.convnet:build_model": (
        ("image", "mixed"),
        [
            {"filters": [4], "hidden_units": 8},
            {"filters": [4, 4, 4, 4], "hidden_units": 8, "l2": 1e-4, "dropout": 0},
            {"filters": [4], "hidden_units": 8, **AUGMENTED},
        ],
    ),
    "models.dense:build_model": (
        ("table", "image", "mixed"),
        [{"hidden_units": [16]}, {"hidden_units": [], "l1": 1e-4}, {"hidden_units": [8, 8], "batch_norm": True}],
    ),
    "models.ft_transformer:build_model": (("table", "mixed"), [{"width": 8, "heads": 2, "blocks": 1}, {"width": 8, "heads": 2}]),
    "models.linear:build_model": (("table", "image"), [{}, {"l1": 1e-4, "l2": 1e-4}]),
    "models.pretrained:build_model": (
        ("image", "mixed"),
        [{"path": BACKBONE}, {"path": BACKBONE, "frozen": False, "freeze_batch_norm": False, "cut": "middle", "hidden_units": [4]}],
    ),
    "models.resnet:build_model": (("image", "mixed"), [{"widths": [4, 6], "blocks": 1}, {"widths": [4], "blocks": 1, **AUGMENTED}]),
    "models.subclassed:build_model": (("table", "image"), [{"hidden_units": [16]}]),
    "models.tabular_resnet:build_model": (
        ("table", "mixed"),
        [{"width": 8, "blocks": 1}, {"width": 8, "blocks": 1, "frequencies": 3, "embedding_width": 2, "l2": 1e-4}],
    ),
    "models.text:build_model": (
        ("text",),
        [{"embedding_width": 4, "filters": 4, "hidden_units": [4]}, {"embedding_width": 4, "filters": 2, "hidden_units": [], "l2": 1e-4}],
    ),
    "models.wide_deep:build_model": (
        ("table", "mixed"),
        [{"hidden_units": [8]}, {"hidden_units": [8], "crosses": [["word", "code"]], "cross_bins": 10, "l1": 1e-4, "l2": 1e-4}],
    ),
}
OWN_HEADS = [f"models.{name}:build_model" for name in ("linear", "wide_deep", "subclassed")]


def table_of(shape, kind):
    """Rows whose columns tell the label."""
    label = LABELS[kind]
    generator = np.random.default_rng(0)
    image = np.clip(generator.integers(0, 30, (NUM_ROWS, 6, 5, 2)) + label[:, None, None, None] * 45, 0, 255).astype(np.uint8)
    number = [None if i % 9 == 0 else float(label[i]) + 0.1 * generator.normal() for i in range(NUM_ROWS)]
    word = [None if i % 8 == 0 else f"w{int(label[i])}" for i in range(NUM_ROWS)]
    tables = {"table": {"number": number, "word": word, "code": [i % 4 for i in range(NUM_ROWS)]}, "image": {"image": image}}
    tables["mixed"] = {**tables["table"], **tables["image"]}
    texts = [f"see {'no' if i % 5 else 'any'} word{int(value)} here" for i, value in enumerate(label)]
    tables["text"] = {"bag": texts, "sequence": [None, *texts[1:]], "number": number}
    days = pa.array([1_000_000 * i if i % 6 else None for i in range(NUM_ROWS)], pa.timestamp("us"))
    vector = generator.normal(size=(NUM_ROWS, 3)).astype(np.float32)
    tables["every kind"] = {**tables["mixed"], **tables["text"], "moment": days, "vector": vector}
    return stored(**tables[shape], y=SETS[label] if kind == "multilabel" else label)


def job_for(builder, options, kind, shape, **fit):
    kinds = {"number": "numeric", "word": "category", "code": "category", "image": "image", "vector": "vector"}
    said = {name: {"kind": kind} for name, kind in kinds.items()}
    said["bag"] = {"kind": "text", "min_count": 1}
    said["sequence"] = {"kind": "text", "encoding": "sequence", "length": 5, "min_count": 1}
    said["moment"] = {"kind": "timestamp", "elapsed": True}
    said["both"] = {"kind": "cross", "of": ["word", "code"], "bins": 8}
    columns = {
        "table": ["number", "word", "code"],
        "image": ["image"],
        "mixed": ["number", "word", "code", "image"],
        "text": ["number", "bag", "sequence"],
        "every kind": list(said),
    }
    features = {name: said[name] for name in columns[shape]}
    return job_of("y", features=features, model={"build": builder, "options": options}, target__kind=kind, fit={"batch_size": 16, **fit})


def cases():
    """Every shape and every set of options of each builder, each with a kind of target; not their product. All but one of each are slow.

    Regression and several labels are left out where the builder leaves the last layer to ``target.head``: the others show the rest.
    """
    for place, (builder, (shapes, options)) in enumerate(CASES.items()):
        kinds = ["binary", "classes", "regression", "multilabel"] if builder in OWN_HEADS or len(options) > 2 else ["binary", "classes"]
        for number, kind in enumerate(kinds):
            picked, shape = options[number % len(options)], shapes[number % len(shapes)]
            name = f"{builder.removeprefix('models.').partition(':')[0]}-{kind}-{shape}"
            marks = () if number == place % len(kinds) else pytest.mark.slow
            yield pytest.param(builder, picked, kind, shape, id=name, marks=marks)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A file with a small fitted network for images of the tests' shape."""
    path = tmp_path_factory.mktemp("pretrained") / BACKBONE
    image = keras.Input((6, 5, 2))
    x = keras.layers.BatchNormalization(name="norm")(keras.layers.Conv2D(4, 3, activation="relu", name="first")(image))
    x = keras.layers.GlobalAveragePooling2D(name="middle")(keras.layers.Conv2D(6, 3, activation="relu", name="second")(x))
    x = keras.layers.Dense(5, activation="relu", name="upper")(x)
    model = keras.Model(image, keras.layers.Dense(7, name="old_head")(x))
    model.save(path)
    return str(path)


@pytest.fixture
def located(backbone):
    """Options with the file's name made whole."""
    return lambda options: {**options, "path": backbone} if "path" in options else options


def test_every_builder_is_put_to_the_test():
    assert sorted(BUILDERS) == sorted(CASES)


@pytest.mark.parametrize(("builder", "options", "kind", "shape"), cases())
def test_the_contract(builder, options, kind, shape, located):
    job = job_for(builder, located(options), kind, shape)
    model = check_builder(job, plan_of(job, table_of(shape, kind)))
    assert model.output_shape == (None, {"binary": 1, "classes": 3, "multilabel": 2, "regression": 1}[kind])


@pytest.mark.parametrize("builder", [pytest.param(b, marks=() if "dense" in b else pytest.mark.slow) for b in CASES])
def test_every_builder_takes_every_kind_of_feature(builder, located):
    job = job_for(builder, located(CASES[builder][1][0]), "binary", "every kind")
    check_builder(job, plan_of(job, table_of("every kind", "binary")))


@pytest.mark.parametrize("builder", CASES)
def test_in_mixed_precision_predictions_are_float32_and_near_those_of_full_precision(builder, located):
    shapes, options = CASES[builder]
    full, mixed = (job_for(builder, located(options[-1]), "classes", shapes[0], precision=p) for p in ("float32", "mixed_bfloat16"))
    plan = plan_of(full, table_of(shapes[0], "classes"))
    rows = make_features(plan)
    expected = assemble_model(full, plan)(rows, training=False)
    model = assemble_model(mixed, plan)
    assert model.dtype_policy.name == "mixed_bfloat16"
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    found = model(rows, training=False)
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, expected, atol=0.02)


@pytest.mark.parametrize("builder", CASES)
def test_the_record_counts_parameters(builder, located):
    shapes, options = CASES[builder]
    job = job_for(builder, located(options[0]), "regression", shapes[0])
    plan = plan_of(job, table_of(shapes[0], "regression"))
    model = assemble_model(job, plan)
    counted = sum(int(np.prod(weight.shape)) for weight in model.weights)
    assert model.output_shape == (None, 1)
    assert describe_model(job, plan).num_parameters == counted > 0


@pytest.mark.parametrize("builder", ["models.convnet:build_model", "models.resnet:build_model"])
def test_images_change_at_random_in_training_and_alike_under_one_seed(builder):
    options = {**CASES[builder][1][-1], "dropout": 0.0}
    job = job_for(builder, options, "classes", "image")
    plan = plan_of(job, table_of("image", "classes"))
    rows = make_features(plan)
    drawn = [[np.asarray(model(rows, training=True)) for _ in range(2)] for model in (assemble_model(job, plan), assemble_model(job, plan))]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0][0] != drawn[0][1]).any()


# ---- what does not fit


def test_a_convnet_over_a_table_is_refused_with_the_way_out():
    table = table_of("table", "classes")
    job = job_for("models.convnet:build_model", {}, "classes", "table")
    with pytest.raises(CodeError, match=r"needs an image feature; for tables take models\.dense"):
        assemble_model(job, plan_of(job, table))


@pytest.mark.parametrize(("shape", "name"), [("table", "dense"), ("image", "convnet"), ("mixed", "convnet")])
def test_a_builder_is_chosen_by_the_features(shape, name):
    job = job_of("y", fit__batch_size=16)
    assert assemble_model(job, plan_of(job, table_of(shape, "classes"))).name == name


def test_an_option_that_the_builder_does_not_take_is_told_with_the_nearest():
    job = job_for("models.dense:build_model", {"hiden_units": [3]}, "classes", "table")
    with pytest.raises(CodeError, match=r'takes no option "hiden_units"\. Did you mean "hidden_units"\?'):
        assemble_model(job, plan_of(job, table_of("table", "classes")))


def test_the_same_job_builds_the_same_weights_each_time():
    job = job_of("y", fit__batch_size=16)
    plan = plan_of(job, table_of("mixed", "classes"))
    first, second = assemble_model(job, plan), assemble_model(job, plan)
    assert [v.path for v in first.variables] == [v.path for v in second.variables]
    for a, b in zip(first.variables, second.variables, strict=True):
        np.testing.assert_array_equal(tf.convert_to_tensor(a.value), tf.convert_to_tensor(b.value))


def test_another_seed_builds_other_weights():
    table = table_of("mixed", "classes")
    jobs: list[Job] = [job_of("y", fit__batch_size=16, seed=seed) for seed in (0, 1)]
    first, second = (assemble_model(job, plan_of(job, table)).trainable_variables[0].numpy() for job in jobs)
    assert (first != second).any()
