"""What a SavedModel takes besides raw columns, and what is told of it."""

import datetime as dt
import json

import numpy as np
import pytest
import tensorflow as tf

from refit.export import export_model, raw_columns
from refit.fitting import fit_model, load_fitted
from refit.signatures import DESCRIPTION, example_specs
from refit.splits import read_rows
from tests.refit.small import job_of, keep, plan_of, stored

ROWS = 96
DRAW = np.random.default_rng(0)
MOMENTS = [None if n % 9 == 0 else dt.datetime(2024, 1, 1, tzinfo=dt.UTC) + dt.timedelta(hours=7 * n) for n in range(ROWS)]
TABLE = stored(
    number=[None if n % 7 == 0 else float(n) for n in range(ROWS)],
    shop=[None if n % 5 == 0 else ["Köln", "東京"][n // 4 % 2] for n in range(ROWS)],
    code=[None if n % 11 == 0 else n % 4 for n in range(ROWS)],
    words=[["good day", "bad day", ""][n % 3] for n in range(ROWS)],
    sold=MOMENTS,
    place=DRAW.normal(size=(ROWS, 3)).astype(np.float32),
    counts=DRAW.integers(0, 9, (ROWS, 2)).astype(np.uint8),
    y=[["no", "yes"][n // 2 % 2] for n in range(ROWS)],
)
FEATURES = {
    "number": {"kind": "numeric"},
    "shop": {"kind": "category"},
    "code": {"kind": "category"},
    "words": {"kind": "text", "min_count": 1},
    "sold": {"kind": "timestamp"},
    "place": {"kind": "vector"},
    "counts": {"kind": "vector"},
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The plan, the folder of the SavedModel, and the rows."""
    job = job_of("y", features=FEATURES, fit__epochs=1, fit__early_stopping=None)
    small = keep(tmp_path_factory.mktemp("examples"), job, TABLE, np.arange(ROWS) % 2 * 2)
    run = small.layout.run("small", "run")
    fit_model(job, small.plan, small.open(), None, run)
    test = read_rows(small.snapshot, small.layout, run, "test", TABLE.column_names)
    export_model(load_fitted(job, small.plan, run), small.plan, test, small.layout, run)
    return small.plan, run.saved_model, test.table


def as_example(row):
    """A row as whoever writes TFRecords has it: what is missing is left out."""

    def feature(value):
        values = np.atleast_1d(value)
        if isinstance(value, str):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode()]))
        if values.dtype.kind == "f":
            return tf.train.Feature(float_list=tf.train.FloatList(value=values))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    return tf.train.Example(features=tf.train.Features(feature={name: feature(v) for name, v in row.items() if v is not None}))


def test_serialized_examples_are_predicted_as_raw_columns_are(exported) -> None:
    plan, path, table = exported
    model, columns = tf.saved_model.load(str(path)), raw_columns(table, plan.features)
    rows = []
    for n in range(len(table)):
        row = {name: table[name][n].as_py() for name in ("number", "shop", "code", "words")}
        moment = table["sold"][n].as_py()
        row["sold"] = None if moment is None else round(moment.timestamp() * 1e6)
        rows.append(as_example({**row, "place": columns["place"][n], "counts": columns["counts"][n]}).SerializeToString())
    found = model.signatures["examples"](examples=tf.constant(rows))
    expected = model.signatures["serving_default"](**{name: tf.constant(values) for name, values in columns.items()})
    assert found.keys() == expected.keys() == {"label", "probabilities", "score"}
    np.testing.assert_allclose(found["probabilities"], expected["probabilities"], atol=1e-6)


def test_an_example_without_a_vector_is_refused_by_name(exported) -> None:
    predict = tf.saved_model.load(str(exported[1])).signatures["examples"]
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"place|counts"):
        predict(examples=tf.constant([as_example({"number": 1.0}).SerializeToString()]))


def test_decoded_images_have_no_usual_form_in_examples() -> None:
    images = stored(image=np.zeros((32, 4, 4, 1), np.uint8) + np.arange(32, dtype=np.uint8)[:, None, None, None], y=["a", "b"] * 16)
    assert example_specs(plan_of(job_of("y"), images)) is None


def test_what_goes_in_and_comes_out_is_described_beside_the_model(exported) -> None:
    told = json.loads((exported[1] / DESCRIPTION).read_text(encoding="utf-8"))
    assert told["target"] == {"column": "y", "kind": "binary", "classes": ["no", "yes"]}
    assert told["signatures"] == ["serving_default", "examples"]
    assert told["inputs"]["shop"] == {
        "column": "shop",
        "kind": "category",
        "tensor": "string [batch]",
        "missing": "",
        "known": ["東京", "Köln"],
    }
    assert told["inputs"]["number"]["missing"] == "NaN"
    assert told["inputs"]["sold"]["missing"] == -(2**63)
    assert told["inputs"]["counts"] == {"column": "counts", "kind": "vector", "tensor": "uint8 [batch, 2]"}
    signature = tf.saved_model.load(str(exported[1])).signatures["serving_default"]
    assert signature.structured_outputs.keys() == told["outputs"].keys()
    assert signature.structured_input_signature[1].keys() == told["inputs"].keys()
