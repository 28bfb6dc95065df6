"""The run's record, its page, and what Prefect shows of it."""

import time

from prefect import task
from prefect.artifacts import create_markdown_artifact

from refit.records import RunRecord
from refit.runs import Run, complete_run, write_run
from tasks.policy import STAGE


@task(**STAGE)
def report(run: Run) -> RunRecord:
    """Write ``report.html``, then ``run.json``: with it the run is complete."""
    from refit import report as reporting

    started = time.perf_counter()
    record = complete_run(run)
    path = reporting.write_report(run.layout, record)
    create_markdown_artifact(markdown=_summary(record), key=f"verdict-{run.key}", description=f"Run {record.run}")
    seconds = {**record.seconds, "report": round(time.perf_counter() - started, 3)}
    return write_run(run, record.model_copy(update={"seconds": seconds, "report": run.layout.relative(path)}))


def _summary(record: RunRecord) -> str:
    champion = record.champion.metrics if record.champion else {}
    rows = [f"| {name} | {value:.4f} | {_number(champion.get(name))} |" for name, value in record.metrics.get("test", {}).items()]
    lines = [f"# {record.job}: {record.verdict}", "", *(f"- {reason}" for reason in record.reasons), ""]
    return "\n".join([*lines, "| test metric | candidate | champion |", "|---|---|---|", *rows, "", f"Report: `{record.report}`"])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
