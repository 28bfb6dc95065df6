"""Real data sets train through splits and batches, by either engine. Skipped where REFIT_DATA does not name them."""

from functools import partial

import pytest

from refit.batches import open_side, plan_batches
from refit.config import parse_job
from refit.fitting import fit_model
from refit.ingestion import ingest
from refit.layout import Layout
from refit.progress import ignore_progress
from refit.splits import read_rows, read_sides, split_rows
from tests.refit.test_datasets import CASES, folder

TAXI = {"fare": "numeric", "trip_miles": "numeric", "trip_seconds": "numeric", "company": "category", "payment_type": "category"}
FIT = {"epochs": 1, "batch_size": 256, "early_stopping": None, "optimizer": {"learning_rate": 0.01}}


def train(name, home, on_progress=ignore_progress, **changes):
    """Plan and fit of one epoch."""
    case, root = CASES[name], folder(name)
    paths = {key: str(root / case.source[key]) for key in ("path", "labels") if key in case.source}
    tree = {"name": name, "data": {"sources": [{**case.source, **paths}], **case.data}, "target": {"column": case.target}, "fit": FIT}
    job = parse_job(tree, {key.replace("__", "."): value for key, value in changes.items()})
    layout = Layout(home)
    snapshot, run = ingest(job, layout), layout.run(name, "run")
    split_rows(snapshot, job, layout, run)
    sides = read_sides(run)
    plan = plan_batches(job, snapshot, layout, sides, partial(read_rows, snapshot, layout, run))
    rows = (open_side(snapshot, plan, layout, sides, side) for side in ("train", "validation"))
    return plan, fit_model(job, plan, *rows, run, on_progress=on_progress)


@pytest.mark.parametrize("engine", ["resident", "streaming"])
def test_adult_trains(tmp_path, engine) -> None:
    plan, fit = train("adult", tmp_path, split__by="stratified", batches__engine=engine)
    assert plan.engine == engine
    assert fit.history["val_accuracy"][-1] > 0.8  # 0.759 have the commoner label
    assert fit.history["val_auc"][-1] > 0.85


def test_taxi_trains_on_the_past(tmp_path) -> None:
    features = {name: {"kind": kind} for name, kind in TAXI.items()}
    derive = {"big_tipper": "tips > 0.2 * fare", "moment": "to_timestamp(trip_start_timestamp)::TIMESTAMP"}
    changes = {"data__derive": derive, "data__time": "moment", "split__by": "time", "features": features}
    _, fit = train("chicago_taxi", tmp_path, **changes)
    assert fit.history["val_auc"][-1] > 0.85


def test_fashion_mnist_trains_on_a_sample(tmp_path) -> None:
    plan, fit = train("fashion_mnist", tmp_path, batches__sample=0.2, fit__batch_size=64)
    assert 7_000 < plan.num_train < 8_600
    assert fit.history["val_accuracy"][-1] > 0.7
