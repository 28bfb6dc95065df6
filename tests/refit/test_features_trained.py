"""Every kind of column from a CSV file, and encoded images from a folder, to a SavedModel that predicts; without Prefect."""

import csv
import datetime as dt
from functools import partial

import numpy as np
import pytest
import tensorflow as tf

from refit.batches import open_side, plan_batches
from refit.config import parse_job
from refit.evaluation import evaluate, score_rows
from refit.export import export_model, raw_columns
from refit.fitting import fit_model, load_fitted
from refit.ingestion import ingest
from refit.layout import Layout
from refit.splits import read_rows, read_sides, split_rows
from refit.validation import raise_failed, validate_snapshot

ROWS = 400
FIT = {"epochs": 12, "batch_size": 32, "early_stopping": None, "optimizer": {"learning_rate": 0.02}}
FEATURES = {
    "Total Price": {"kind": "numeric", "log": True},
    "shop": {"kind": "category"},
    "code": {"kind": "category", "encoding": "embedding"},
    "words": {"kind": "text", "ngrams": 1},
    "sold": {"kind": "timestamp", "elapsed": True},
    "shop and code": {"kind": "cross", "of": ["shop", "code"], "bins": 64},
}


def write_sales(path):
    """Returned goods: told by the weekday, by a word, and by shop and code together; every column lacks values."""
    draw = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "Total Price", "shop", "code", "words", "sold", "returned"])
        for number in range(ROWS):
            price, shop, code = draw.lognormal(3, 1), draw.choice(["Köln", "東京"]), int(draw.integers(1, 4))
            sold = dt.datetime(2024, 1, 1, tzinfo=dt.UTC) + dt.timedelta(hours=int(draw.integers(0, 9000)))
            words = " ".join(draw.choice(["good", "broken", "late", "blue"], 3))
            is_returned = "broken" in words or (shop == "Köln" and code == 2) or sold.weekday() == 6
            told = [f"{price:.2f}", shop, code, words, f"{sold:%Y-%m-%d %H:%M:%S}"]
            told = ["" if (number + at) % 23 == 0 else value for at, value in enumerate(told)]
            rows.writerow([number, *told, "yes" if is_returned else "no"])
    return path


def train(tree, home):
    """All stages up to the evaluation; the export proves that the SavedModel predicts what the model does."""
    job, layout = parse_job(tree), Layout(home)
    snapshot, run = ingest(job, layout), layout.run(tree["name"], "run")
    raise_failed(validate_snapshot(job, snapshot, layout), snapshot)
    split_rows(snapshot, job, layout, run)
    sides, read = read_sides(run), partial(read_rows, snapshot, layout, run)
    plan = plan_batches(job, snapshot, layout, sides, read)
    fit_model(job, plan, *(open_side(snapshot, plan, layout, sides, side) for side in ("train", "validation")), run)
    columns = [*(feature.name for feature in plan.features), plan.target.name]
    rows = {side: read(side, columns) for side in ("validation", "test")}
    exported = export_model(load_fitted(job, plan, run), plan, rows["test"], layout, run)
    found = evaluate(job.name, plan, exported, rows["validation"], rows["test"], layout, run)
    return plan, run, rows["test"], found


@pytest.mark.parametrize("engine", [pytest.param("resident", marks=pytest.mark.slow), "streaming"])
def test_a_table_with_every_kind_of_column_is_learned_and_served(tmp_path, engine) -> None:
    source = {"kind": "csv", "path": str(write_sales(tmp_path / "sales.csv"))}
    data = {"sources": [source], "key": ["id"]}
    tree = {"name": "sales", "data": data, "target": {"column": "returned"}, "features": FEATURES, "fit": FIT}
    plan, run, test, found = train({**tree, "batches": {"engine": engine}}, tmp_path / "home")
    assert plan.engine == engine
    assert found.metrics["test"]["auc"] > 0.9  # 0.5 without a word, a day and a pair
    predict = tf.saved_model.load(str(run.saved_model)).signatures["serving_default"]
    nothing = {
        "Total_Price": tf.constant([np.nan, 1e30]),
        "shop": tf.constant(["", "never seen"]),
        "code": tf.constant([-(2**63), 99], tf.int64),
        "words": tf.constant(["", "never seen"]),
        "sold": tf.constant([-(2**63), 0], tf.int64),
    }
    assert np.isfinite(predict(**nothing)["score"]).all()
    assert score_rows(run.saved_model, raw_columns(test.table, plan.features), plan.target).shape == (len(test.table), 2)


def test_encoded_images_of_any_size_are_learned_and_served(tmp_path) -> None:
    draw = np.random.default_rng(0)
    for number in range(120):
        kind = ["bright", "dark"][number % 2]
        path = tmp_path / "images" / kind / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = draw.integers(5, 20, 2)
        pixels = draw.integers(0, 90, (height, width, 3)) + (140 if kind == "bright" else 0)
        path.write_bytes(tf.io.encode_png(pixels.astype(np.uint8)).numpy())
    source = {"kind": "images", "path": str(tmp_path / "images"), "store": "encoded"}
    tree = {"name": "photos", "data": {"sources": [source]}, "target": {"column": "label"}, "fit": {**FIT, "epochs": 4, "batch_size": 16}}
    tree["features"] = {"image": {"kind": "image", "resize": [8, 8]}}
    _, run, test, found = train(tree, tmp_path / "home")
    assert found.metrics["test"]["accuracy"] == 1
    predict = tf.saved_model.load(str(run.saved_model)).signatures["serving_default"]
    image = test.table["image"][0].as_py()
    assert predict(image=tf.constant([image]))["label"].numpy()[0].decode() == test.table["label"][0].as_py()
