"""``refit check --deep``: sources are read, the model is built and put to the test, in a folder that is thrown away."""

import tempfile
from functools import partial
from pathlib import Path

from refit import batches, contract, fitting, gate, ingestion, splits, validation
from refit.config import Job
from refit.layout import Layout


def check_deeply(job: Job) -> None:
    """Do what a run does before it fits, and see that the model keeps the contract of builders on rows that are made up.

    Raises:
        RefitError: what the run would fail with, early or late.
    """
    with tempfile.TemporaryDirectory(prefix="refit-check-") as folder:
        layout = Layout(Path(folder))
        run = layout.run(job.name, "check")
        snapshot = ingestion.ingest(job, layout)
        validation.raise_failed(validation.validate_snapshot(job, snapshot, layout), snapshot)
        splits.split_rows(snapshot, job, layout, run)
        read = partial(splits.read_rows, snapshot, layout, run, draw="pool" if job.split.resplit_each_epoch else "split")
        plan = batches.plan_batches(job, snapshot, layout, splits.read_sides(run), read)
        gate.check_gate(job.gate, plan.target.kind)
        fitting.describe_model(job, plan)
        contract.check_builder(job, plan)
