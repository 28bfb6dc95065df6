"""The run's record, its page, and what Prefect shows of it."""

import time
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact

from refit.headline import Facts, Headline, read_stages, write_headline
from refit.records import RunRecord
from refit.runs import Run, complete_run, write_run
from refit.wording import format_number, spoken
from tasks.policy import STAGE


@task(**STAGE)
def report(run: Run) -> RunRecord:
    """Write ``report.html``, then ``run.json``: with it the run is complete."""
    from refit import report as reporting

    started = time.perf_counter()
    record = complete_run(run)
    path = reporting.write_report(run.layout, record)
    headline = write_headline(Facts(record, read_stages(run.paths)))
    create_markdown_artifact(markdown=_summary(record, headline, path), key=f"verdict-{run.key}", description=headline.sentence)
    seconds = {**record.seconds, "report": round(time.perf_counter() - started, 3)}
    return write_run(run, record.model_copy(update={"seconds": seconds, "report": run.layout.relative(path)}))


def _summary(record: RunRecord, headline: Headline, page: Path) -> str:
    champion = record.champion if record.champion and record.champion.metrics else None
    names = ["Test metric", "Candidate", *([f"Version {champion.version}"] if champion else [])]
    lines = [f"# {record.job}: {headline.badge}", "", *(f"- {reason}" for reason in record.reasons), ""]
    lines += [_row(names), _row(["---", *["---:"] * (len(names) - 1)])]
    for metric, value in record.metrics.get("test", {}).items():
        values = [value, *([champion.metrics.get(metric)] if champion else [])]
        lines.append(_row([spoken(metric), *map(format_number, values)]))
    return "\n".join([*lines, "", f"Run `{record.run}`, report `{page}`"])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
