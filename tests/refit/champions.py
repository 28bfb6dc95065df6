"""Runs without Prefect, from Parquet files to a fitted model, and versions that serve: what the tests of warm starts need."""

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refit import registry, warm_start
from refit.batches import open_side, plan_batches
from refit.config import Job, parse_job
from refit.fitting import describe_model, fit_model, load_fitted
from refit.ingestion import ingest
from refit.layout import Layout, RunLayout
from refit.progress import OnProgress, ignore_progress
from refit.records import BatchesRecord, BuildRecord, CodeRecord, FitRecord, RunRecord, SplitRecord, WarmStart
from refit.splits import read_rows, read_sides, split_rows
from refit.stages import read_stage, run_stage

AT = datetime(2026, 1, 2, tzinfo=UTC)
ROWS = 300
FEATURES = {"x": {"kind": "numeric"}, "colour": {"kind": "category", "encoding": "embedding", "dimension": 3}}


def table(colours: str = "rrrrggb", num_rows: int = ROWS, labels: str = "ab") -> pa.Table:
    """A number and a colour that both tell the label; the commonest colours come first."""
    generator = np.random.default_rng(0)
    x, colour = generator.normal(size=num_rows), generator.choice(list(colours), num_rows)
    size = generator.choice(["small", "large", "huge"], num_rows, p=[0.6, 0.3, 0.1])
    y = np.array(list(labels))[((x + (colour == "r") > 0.5).astype(int) + (np.arange(num_rows) % 50 == 0)) % len(labels)]
    return pa.table({"id": np.arange(num_rows), "x": x, "colour": colour, "size": size, "y": y, "value": x})


class Shop:
    """One job, one home, one Parquet file; each call of ``run`` is a run of the job."""

    def __init__(self, folder: Path, content: pa.Table | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.layout, self.file = Layout(folder / "home"), folder / "rows.parquet"
        self.write(table() if content is None else content)

    def write(self, content: pa.Table) -> None:
        pq.write_table(content, self.file)

    def job(self, **changes: Any) -> Job:
        tree = {
            "name": "shop",
            "data": {"sources": [{"kind": "parquet", "path": str(self.file)}], "key": ["id"]},
            "features": FEATURES,
            "target": {"column": "y"},
            "model": {"build": "models.dense:build_model", "options": {"hidden_units": [8, 4], "dropout": 0.0}},
            "fit": {"epochs": 2, "batch_size": 16, "early_stopping": None, "optimizer": {"name": "sgd", "learning_rate": 0.1}},
        }
        return parse_job(tree, {key.replace("__", "."): value for key, value in changes.items()})

    def run(self, name: str, on_progress: OnProgress = ignore_progress, **changes: Any) -> FitRecord:
        """From rows to weights; what is complete is not done again."""
        job, paths = self.job(**changes), self.paths(name)
        snapshot = ingest(job, self.layout)
        run_stage(paths, "split", SplitRecord, lambda: split_rows(snapshot, job, self.layout, paths))
        sides, read = read_sides(paths), partial(read_rows, snapshot, self.layout, paths)
        plan = run_stage(paths, "convert", BatchesRecord, lambda: plan_batches(job, snapshot, self.layout, sides, read))
        run_stage(paths, "build", BuildRecord, lambda: describe_model(job, plan))
        start = None
        if job.fit.warm_start:
            start = run_stage(paths, "start", WarmStart, lambda: warm_start.take_over(job, plan, self.layout, paths))
        rows = (open_side(snapshot, plan, self.layout, sides, side) for side in ("train", "validation"))
        told: dict[str, Any] = {"config_digest": "", "inputs_digest": "", "versions": {}, "started": AT, "parameters": job}
        RunRecord(run=name, job="shop", status="completed", code=CodeRecord(git=None, builder_sha256=""), **told).write(paths.record)
        produce = partial(fit_model, job, plan, *rows, paths, start=start, on_progress=on_progress)
        return run_stage(paths, "fit", FitRecord, produce)

    def publish(self, name: str) -> int:
        """Make a run's model the version that serves, though nothing could serve it."""
        (self.paths(name).saved_model).mkdir(parents=True, exist_ok=True)
        (self.paths(name).saved_model / "saved_model.pb").touch()
        told = {"verdict": "first", "reason": "", "metrics": {}, "keep_versions": 9, "by": "test", "at": AT}
        expected = registry.champion(self.layout, "shop")
        return registry.publish(self.layout, "shop", self.paths(name).saved_model, run=name, expected_champion=expected, **told)

    def paths(self, name: str) -> RunLayout:
        return self.layout.run("shop", name)

    def plan(self, name: str) -> BatchesRecord:
        plan = read_stage(self.paths(name), "convert", BatchesRecord)
        assert plan is not None
        return plan

    def weights(self, name: str, **changes: Any) -> dict[str, np.ndarray]:
        """Weights of a fitted model by path."""
        model = load_fitted(self.job(**changes), self.plan(name), self.paths(name))
        return {variable.path: variable.numpy() for variable in model.weights}
