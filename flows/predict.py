"""Predict the rows of a file with a published model: what `refit predict` does, on a schedule."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from refit.layout import home_layout
from refit.served import Request, check_request, find_served
from tasks.credentials import credentials
from tasks.predict import predict_rows


@flow(name="predict", flow_run_name="{name}", persist_result=False)
def predict(
    name: str,
    input: str,
    output: str,
    version: int | None = None,
    kind: str | None = None,
    options: dict[str, Any] | None = None,
    max_rejected_fraction: float | None = None,
    force: bool = False,
) -> State[str]:
    """Predict the rows of a file.

    Args:
        name: of the model.
        input: raw rows: a file, a glob, or an address of an object store.
        output: where they go with their predictions: .parquet, .csv or .jsonl.
        version: of the model; by default the one that serves when the run starts.
        kind: csv, parquet, json, images or idx; by default told by the input's ending.
        options: of the source, such as ``{"delimiter": ";"}``; by default those of the job's own source.
        max_rejected_fraction: a larger share of bad rows fails; by default the job's.
        force: replace an output that is there, as a schedule does that always writes the same one.

    Returns:
        A completed state that says how many rows were predicted; its result is the path of the output.
    """
    request = Request(input, Path(output), kind, options or {}, max_rejected_fraction, force)
    served = find_served(home_layout(), name, version)
    check_request(served, request)
    with credentials(served.job):
        told = predict_rows(served, request)
    return Completed(name="Predicted", message=told, data=output)
