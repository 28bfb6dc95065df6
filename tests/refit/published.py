"""Small models, trained on small tables and published, all stages but Prefect's part: what the tests of predictions ask."""

import csv
import datetime as dt
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refit import registry
from refit.batches import open_side, plan_batches
from refit.config import parse_job
from refit.export import export_model
from refit.fitting import fit_model, load_fitted
from refit.ingestion import ingest
from refit.layout import Layout
from refit.records import BatchesRecord, SnapshotRecord
from refit.runs import Run, adopt_or_begin
from refit.splits import read_rows, read_sides, split_rows
from refit.stages import run_stage

AT = datetime(2026, 11, 23, tzinfo=UTC)
FIT = {"epochs": 1, "batch_size": 32, "early_stopping": None}
SALES = ["id", "Total Price", "cost", "shop", "zip", "words", "sold", "state"]


@dataclass(frozen=True)
class Published:
    """A model that serves, and the run that made it."""

    run: Run
    snapshot: SnapshotRecord
    plan: BatchesRecord

    @property
    def layout(self) -> Layout:
        """All paths."""
        return self.run.layout


def publish(tree: dict[str, Any], home: Path) -> Published:
    """Train a job and publish its model."""
    job, layout = parse_job(tree), Layout(home)
    run, _ = adopt_or_begin(job, layout)
    snapshot = run_stage(run.paths, "ingest", SnapshotRecord, lambda: ingest(job, layout))
    split_rows(snapshot, job, layout, run.paths)
    sides, read = read_sides(run.paths), partial(read_rows, snapshot, layout, run.paths)
    plan = run_stage(run.paths, "convert", BatchesRecord, lambda: plan_batches(job, snapshot, layout, sides, read))
    fit_model(job, plan, *(open_side(snapshot, plan, layout, sides, side) for side in ("train", "validation")), run.paths)
    export_model(load_fitted(job, plan, run.paths), plan, read("test", [feature.name for feature in plan.features]), layout, run.paths)
    told: dict[str, Any] = {"verdict": "first", "reason": "", "metrics": {}, "expected_champion": registry.champion(layout, job.name)}
    registry.publish(layout, job.name, run.paths.saved_model, run=run.id, keep_versions=3, by="test", at=AT, **told)
    return Published(run, snapshot, plan)


def sale(number: int, draw: np.random.Generator) -> list[object]:
    """A row of ``SALES``; now and then a value is missing."""
    price, shop = draw.lognormal(3, 1), draw.choice(["Köln", "Malmö", 'a "b", c'])
    sold = dt.datetime(2024, 1, 1, tzinfo=UTC) + dt.timedelta(hours=int(draw.integers(0, 9000)))
    words = " ".join(draw.choice(["good", "broken", "late", "blue"], 3))
    told: list[object] = [f"{price:.2f}", f"{price * draw.uniform(0.2, 1.2):.2f}", shop, f"0{draw.integers(1000, 1020)}", words]
    told += [f"{sold:%Y-%m-%d %H:%M:%S}"]
    told = ["NA" if (number + at) % 23 == 0 else value for at, value in enumerate(told)]
    return [number, *told, "back" if "broken" in words or shop == "Köln" else "sold"]


def write_sales(path: Path, *, num_rows: int = 400, first: int = 0, seed: int = 0, delimiter: str = ";") -> Path:
    """Sales as their shop tells them: semicolons, NA for what is missing, texts with quotes and commas."""
    draw = np.random.default_rng(seed)
    with path.open("w", newline="", encoding="latin-1") as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerow(SALES)
        rows.writerows(sale(first + number, draw) for number in range(num_rows))
    return path


def publish_sales(folder: Path) -> Published:
    """A binary model with derived features and a derived target, over text in an encoding of its own."""
    source = {"kind": "csv", "path": str(write_sales(folder / "sales.csv")), "delimiter": ";", "null_values": ["NA"], "encoding": "latin-1"}
    data = {
        "sources": [source],
        "key": ["id"],
        "derive": {"profit": '"Total Price" - cost', "margin": 'profit / nullif("Total Price", 0)', "returned": "state = 'back'"},
        "where": "coalesce(\"Total Price\", 0) < 1000 and state <> ''",
    }
    features = {
        "Total Price": {"kind": "numeric", "log": True},
        "margin": {"kind": "numeric"},
        "shop": {"kind": "category"},
        "zip": {"kind": "category"},
        "words": {"kind": "text", "ngrams": 1},
        "sold": {"kind": "timestamp"},
    }
    tree = {"name": "sales", "data": data, "features": features, "target": {"column": "returned"}, "fit": FIT}
    return publish(tree, folder / "home")


def tensors(values: np.ndarray) -> pa.Array:
    """An Arrow array of tensors."""
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))


def pictures(num_rows: int, seed: int = 0) -> pa.Table:
    """Pictures that are bright on one of three sides, and a number."""
    draw = np.random.default_rng(seed)
    kinds = draw.integers(0, 3, num_rows)
    images = draw.integers(0, 60, (num_rows, 8, 8, 1)).astype(np.uint8)
    for row, kind in enumerate(kinds):
        images[row, 2 * kind : 2 * kind + 2] += 150
    side = np.array(["top", "middle", "low"])[kinds]
    return pa.table({"n": np.arange(num_rows), "Raw": draw.normal(size=num_rows), "side": side, "picture": tensors(images)})


def publish_pictures(folder: Path) -> Published:
    """A model of classes over images and a number that the job's ``select`` makes."""
    pq.write_table(pictures(300), folder / "pictures.parquet")
    data = {
        "sources": [{"kind": "parquet", "path": str(folder / "pictures.parquet")}],
        "select": ["side", "picture", '"Raw" * 2 + extra AS number'],
        "derive": {"extra": "n * 0.5"},
    }
    features = {"picture": {"kind": "image"}, "number": {"kind": "numeric"}}
    tree = {"name": "pictures", "data": data, "features": features, "target": {"column": "side"}, "fit": FIT}
    return publish(
        {**tree, "model": {"build": "models.convnet:build_model", "options": {"filters": [4], "hidden_units": 8}}}, folder / "home"
    )


def publish_prices(folder: Path) -> Published:
    """A regression over two numbers, one of which may be missing."""
    draw = np.random.default_rng(0)
    size, rooms = draw.normal(100, 20, 300).round(1), draw.integers(1, 6, 300)
    table = pa.table({"size": size, "rooms": rooms, "price": size * 2 + rooms})
    pq.write_table(table, folder / "prices.parquet")
    data = {"sources": [{"kind": "parquet", "path": str(folder / "prices.parquet")}], "optional": ["rooms"]}
    tree = {
        "name": "prices",
        "data": data,
        "target": {"column": "price"},
        "features": {"size": {"kind": "numeric"}, "rooms": {"kind": "numeric"}},
    }
    return publish({**tree, "fit": FIT}, folder / "home")
