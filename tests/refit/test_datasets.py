"""Real data sets become snapshots with as many rows as they are known to have. Skipped where REFIT_DATA does not name them."""

import os
from pathlib import Path

import pyarrow.compute as pc
import pytest

from refit.config import parse_job
from refit.ingestion import ingest
from refit.layout import Layout
from refit.shards import read_table

ADULT = [
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education_num",
    "marital_status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital_gain",
    "capital_loss",
    "hours_per_week",
    "country",
    "income",
]
AUTO = ["mpg", "cylinders", "displacement", "horsepower", "weight", "acceleration", "model_year", "origin", "name"]


def folder(name: str) -> Path:
    root = os.environ.get("REFIT_DATA")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"REFIT_DATA names no folder with {name}")
    return Path(root) / name


class Case:
    """What a data set's job says of its data, and what comes out."""

    def __init__(self, target, source, **data) -> None:
        self.target, self.source, self.data = target, source, data


CASES = {
    "adult": Case("income", {"kind": "csv", "path": "adult.data", "header": False, "names": ADULT, "null_values": ["?"]}),
    "chicago_taxi": Case("big_tipper", {"kind": "csv", "path": "simple/data.csv"}, derive={"big_tipper": "tips > 0.2 * fare"}),
    "bike_sharing": Case("cnt", {"kind": "csv", "path": "bike_sharing_dataset.zip", "member": "hour.csv"}),
    "california_housing": Case("median_house_value", {"kind": "csv", "path": "housing.csv"}),
    "auto_mpg": Case(
        "mpg",
        {
            "kind": "csv",
            "path": "auto-mpg.data",
            "header": False,
            "names": AUTO,
            "widths": [7, 4, 11, 11, 11, 7, 4, 1, 60],
            "null_values": ["?"],
        },
    ),
    "sms_spam": Case(
        "label", {"kind": "csv", "path": "SMSSpamCollection", "delimiter": "\t", "quote": "", "header": False, "names": ["label", "text"]}
    ),
    "fashion_mnist": Case("label", {"kind": "idx", "path": "train-images-idx3-ubyte.gz", "labels": "train-labels-idx1-ubyte.gz"}),
    "cifar10_jpeg": Case("label", {"kind": "images", "path": "dev_subset", "shape": [32, 32, 3]}),
    "penguins": Case("species", {"kind": "csv", "path": "penguins.csv", "null_values": ["NA"]}),
}


def bring_in(name, home):
    case, root = CASES[name], folder(name)
    paths = {key: str(root / case.source[key]) for key in ("path", "labels") if key in case.source}
    job = parse_job({"name": name, "data": {"sources": [{**case.source, **paths}], **case.data}, "target": {"column": case.target}})
    layout = Layout(home)
    return ingest(job, layout), layout


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("adult", 32_561),
        ("chicago_taxi", 15_002),
        ("bike_sharing", 17_379),
        ("california_housing", 20_640),
        ("auto_mpg", 398),
        ("sms_spam", 5_574),
        ("fashion_mnist", 60_000),
        ("cifar10_jpeg", 1_000),
        ("penguins", 344),
    ],
)
def test_every_row_of_a_known_data_set_is_kept(tmp_path, name, rows) -> None:
    snapshot, _ = bring_in(name, tmp_path)
    assert snapshot.num_rows == rows
    for source in snapshot.sources:
        assert (source.num_rejected, source.num_filtered, source.refused) == (0, 0, None)


@pytest.mark.parametrize(
    ("name", "column", "missing"),
    [
        ("adult", "workclass", 1_836),
        ("adult", "country", 583),
        ("chicago_taxi", "company", 5_140),
        ("california_housing", "total_bedrooms", 207),
        ("auto_mpg", "horsepower", 6),
        ("penguins", "sex", 11),
    ],
)
def test_as_many_values_are_missing_as_are_known_to_be(tmp_path, name, column, missing) -> None:
    snapshot, layout = bring_in(name, tmp_path)
    assert read_table(snapshot, layout, [column])[column].null_count == missing


@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("adult", {"age": "int64", "workclass": "string", "income": "string"}),
        ("chicago_taxi", {"fare": "double", "trip_start_timestamp": "int64", "company": "string", "big_tipper": "bool"}),
        ("bike_sharing", {"dteday": "date32[day]", "temp": "double", "cnt": "int64"}),
        ("auto_mpg", {"mpg": "double", "horsepower": "double", "name": "string", "origin": "int64"}),
        ("penguins", {"bill_length_mm": "double", "species": "string", "year": "int64"}),
    ],
)
def test_types_are_inferred_as_people_would_declare_them(tmp_path, name, types) -> None:
    snapshot, _ = bring_in(name, tmp_path)
    assert {column: snapshot.column(column).type for column in types} == types


def test_images_keep_their_classes(tmp_path) -> None:
    snapshot, layout = bring_in("fashion_mnist", tmp_path)
    assert snapshot.column("image").shape == (28, 28, 1)
    assert {entry["counts"] for entry in pc.value_counts(read_table(snapshot, layout, ["label"])["label"]).to_pylist()} == {6_000}
