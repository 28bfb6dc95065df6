"""Runs and models as people read them in a terminal."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from deployments.output import new_table, say
from refit.headline import Facts, read_stages, warn_of_baselines, write_headline
from refit.layout import Layout, home_layout
from refit.ownership import is_owned
from refit.records import RunRecord
from refit.registry import VersionRecord
from refit.wording import format_number, format_seconds, format_time, tell_start

_COLOURS = {"good": "green", "warn": "yellow", "bad": "red", "calm": "cyan"}


def show_outcome(console: Console, record: RunRecord) -> None:
    """The verdict in one sentence, and where everything lies."""
    layout = home_layout()
    _show_headline(console, record, layout)
    places = [("run", layout.run(record.job, record.run).root)]
    if record.model_version is not None:
        places.append(("model", layout.model(record.job).version(record.model_version)))
    elif record.saved_model:
        places.append(("candidate", layout.resolve(record.saved_model)))
    if record.report:
        places.append(("report", layout.resolve(record.report)))
    for name, path in places:
        say(console, f"  {name:<12}{path}")
    say(console, f"  {'curves':<12}make board, or refit board: TensorBoard over {layout.runs_dir}")


def _show_headline(console: Console, record: RunRecord, layout: Layout) -> None:
    headline = write_headline(Facts(record, read_stages(layout.run(record.job, record.run))))
    colour = _COLOURS[headline.tone]
    console.print(f"[bold {colour}]{headline.badge}[/]  ", end="")
    say(console, headline.sentence)


def show_runs(console: Console, records: list[RunRecord], layout: Layout) -> None:
    """A line a run."""
    if not records:
        say(console, f"There is no run under {layout.runs_dir} yet. refit run deployments/digits.yaml makes one.")
        return
    table = new_table("run", "started", "status", "verdict", "version", "test", "seconds")
    for record in records:
        metrics = ", ".join(f"{name} {format_number(value)}" for name, value in list(record.metrics.get("test", {}).items())[:2])
        seconds = (record.ended - record.started).total_seconds() if record.ended else None
        version = str(record.model_version) if record.model_version and record.verdict != "skipped" else ""
        cells = [f"{record.job}/{record.run}", format_time(record.started), _status(record, layout), record.verdict or "", version, metrics]
        table.add_row(*cells, format_seconds(seconds) if seconds is not None else "")
    console.print(table)


def _status(record: RunRecord, layout: Layout) -> str:
    """As recorded; a run whose process was killed could not say so."""
    if record.status == "running" and not is_owned(layout, record.job):
        return "interrupted, resumable"
    return f"{record.status}, resumable" if record.status == "cancelled" else record.status


def show_run(console: Console, record: RunRecord) -> None:
    """What happened, why, and the numbers."""
    layout = home_layout()
    facts = Facts(record, read_stages(layout.run(record.job, record.run)))
    console.print(f"[bold]{record.job}[/]  run {record.run}, {format_time(record.started)}", highlight=False)
    _show_headline(console, record, layout)
    for reason in record.reasons:
        say(console, f"  - {reason}")
    if record.error:
        say(console, f"  {record.error}")
    if record.metrics:
        console.print(_metrics_table(facts))
    if no_better := warn_of_baselines(facts):
        say(console, f"  {no_better}")
    if facts.stages.fit and facts.stages.fit.warm_start:
        say(console, f"  {tell_start(facts.stages.fit.warm_start)}")
    if record.report:
        say(console, f"  report  {layout.resolve(record.report)}")


def _metrics_table(facts: Facts) -> Table:
    champion = facts.champion.metrics if facts.champion else {}
    beside = {**({"champion, same rows": champion} if champion else {}), **facts.baselines}
    table = new_table("metric", "validation", "test", *beside)
    for name, value in facts.test.items():
        cells = [facts.validation.get(name), value, *(metrics.get(name) for metrics in beside.values())]
        table.add_row(name, *map(format_number, cells))
    return table


def show_models(console: Console, found: dict[str, list[VersionRecord]], held: set[str], layout: Layout) -> None:
    """The line of versions of each model, the one that serves first."""
    if not found:
        say(console, f"No model is published under {layout.models_dir} yet.")
    for name, versions in found.items():
        hold = "  [yellow]promotion is held[/]" if name in held else ""
        console.print(f"[bold]{name}[/]{hold}", highlight=False)
        table = new_table("version", "", "run", "published", "by", "verdict", "test")
        for version in sorted(versions, key=lambda v: v.version, reverse=True):
            table.add_row(*_version_cells(version))
        console.print(table)


def _version_cells(version: VersionRecord) -> Iterable[str]:
    standing = "serves" if version.serving else "withdrawn" if version.withdrawn else ""
    metrics = ", ".join(f"{name} {format_number(value)}" for name, value in list(version.metrics.items())[:2])
    how = f"rollback to {version.restores}" if version.restores else version.verdict or ""
    return (
        str(version.version),
        standing,
        version.run or "",
        format_time(version.at) if version.at else "",
        version.by or "",
        how,
        metrics,
    )
