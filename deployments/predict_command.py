"""``refit predict``: raw rows in, rows with predictions out, by a model that is published here."""

import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from deployments.output import AsJson, print_json, say, stderr
from deployments.quiet import import_tensorflow

if TYPE_CHECKING:
    from rich.console import Console

    from refit.prediction import PredictionRecord
    from refit.records import DriftRecord


def predict(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model.")],
    source: Annotated[str, typer.Argument(metavar="INPUT", help="Raw rows: a file, a glob, or s3://…, gs://….")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Where they go with their predictions: .parquet, .csv or .jsonl.")],
    version: Annotated[int | None, typer.Option("--version", help="By default the version that serves.")] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="csv, parquet, json, images or idx; by default told by the input's ending.")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the source, such as 'delimiter=;'. Repeatable.")
    ] = None,
    max_rejected_fraction: Annotated[
        float | None, typer.Option("--max-rejected-fraction", min=0, max=1, help="A larger share of bad rows fails; by default the job's.")
    ] = None,
    batch_rows: Annotated[int | None, typer.Option("--batch-rows", min=1, help="Rows that the model is given at a time.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUTPUT if it is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Predict the rows of a file with a published model; needs no server."""
    from refit.layout import home_layout
    from refit.progress import prediction_bar
    from refit.served import Request, check_request, find_served

    layout = home_layout()
    served = find_served(layout, name, version)
    request = Request(
        source=source,
        output=output,
        kind=kind,
        options=_options(assignments or []),
        max_rejected_fraction=max_rejected_fraction,
        force=force,
        batch_rows=batch_rows,
    )
    check_request(served, request)
    signal.signal(signal.SIGTERM, _end)
    stderr().print("[dim]starting TensorFlow[/]")
    import_tensorflow()
    from refit import prediction

    with prediction_bar(stderr()) as show:
        record = prediction.predict(served, request, layout, on_progress=show)
    if as_json:
        print_json(record)
    else:
        _show(stderr(), record)


def _options(assignments: list[str]) -> dict[str, Any]:
    """Values as ``refit run --set`` takes them, but that a single sign is itself: YAML has a meaning of its own for ``,`` and ``|``."""
    from refit.jobfile import parse_assignments

    options: dict[str, Any] = {}
    for word in assignments:
        key, _, text = word.partition("=")
        options |= {key: text} if len(text) == 1 and not text.isalnum() else parse_assignments([word])
    return options


def _end(signum: int, _frame: FrameType | None) -> NoReturn:
    """Leave in order: what is not complete is removed."""
    raise SystemExit(128 + signum)


def _show(console: "Console", record: "PredictionRecord") -> None:
    from refit.wording import counted, format_list, format_seconds

    console.print("[green]✓[/] ", end="")
    took = f"{format_seconds(record.seconds)}, {record.num_scored / max(record.seconds, 1e-3):,.0f} rows/s"
    say(console, f"{counted(record.num_scored, 'row')} predicted by {record.model}, version {record.version} ({took})")
    lines = [("output", f"{record.output}: {format_list(record.predictions)}")]
    lines += [("renamed", f"{name} is {other}: the input has a column of that name") for name, other in record.renamed.items()]
    if record.left_out:
        lines.append(("left out", f"{format_list(record.left_out)}: the format cannot hold them"))
    if record.rejects:
        lines.append(("rejected", f"{record.num_rejected:,} of {counted(record.num_read, 'row')}: {record.rejects}"))
    lines += [("drift", text) for text in _drift_lines(record.drift)]
    for label, text in lines:
        say(console, f"  {label:<10}{text}")


def _drift_lines(drift: "DriftRecord") -> list[str]:
    if drift.why_not:
        return [drift.why_not]
    told = [f"{column.name}: {column.verdict}" for column in drift.drifted]
    return told or [f"none of {len(drift.columns)} columns, against the rows that the model learned from"]
