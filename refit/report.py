"""The report of a run: one HTML page that needs nothing but itself, from the records that the run has left."""

import re
from dataclasses import dataclass
from math import isclose, isfinite, sqrt
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from refit import figures
from refit.headline import Facts, name_champion, read_stages, write_headline
from refit.layout import Layout
from refit.records import Comparison, FeaturePlan, FitRecord, RunRecord, write_atomically
from refit.stages import STAGES
from refit.wording import (
    ABSENT,
    counted,
    format_bytes,
    format_column,
    format_differences,
    format_list,
    format_milliseconds,
    format_number,
    format_seconds,
    format_time,
    is_lower_better,
    is_score,
    spoken,
    tell_evidence,
)

_MAX_TILES = 2
_MAX_ROWS = 50
_COUNTS = ("read", "kept", "rejected", "filtered", "duplicate", "superseded")


# ---- tiles, tables, curves


@dataclass(frozen=True)
class Tile:
    """One key number."""

    label: str
    value: str
    note: str = ""


def lay_tiles(facts: Facts) -> list[Tile]:
    """The numbers that people ask for first, of those that are known."""
    return [*_metric_tiles(facts), *_rows_tiles(facts), *_fit_tiles(facts.stages.fit), *_export_tiles(facts)]


def _metric_tiles(facts: Facts) -> list[Tile]:
    main, comparison = facts.main_metric, facts.comparison
    names = sorted(facts.test, key=lambda name: name != main)[:_MAX_TILES]
    against = ""
    if comparison and comparison.metric == main:
        against = f"{_tell_difference(comparison.metric, comparison.difference, comparison)} against {name_champion(facts)}"
    return [Tile(f"Test {spoken(name)}", format_number(facts.test[name]), against if name == main else "") for name in names]


def _rows_tiles(facts: Facts) -> list[Tile]:
    if facts.rows:
        return [Tile("Rows", f"{sum(facts.rows.values()):,}", " · ".join(f"{side} {rows:,}" for side, rows in facts.rows.items()))]
    return [Tile("Rows", f"{facts.stages.ingest.num_rows:,}")] if facts.stages.ingest else []


def _fit_tiles(fit: FitRecord | None) -> list[Tile]:
    if fit is None:
        return []
    return [Tile("Epochs", f"{fit.num_epochs:,}", "" if fit.best_epoch is None else f"best: {fit.best_epoch + 1:,}")]


def _export_tiles(facts: Facts) -> list[Tile]:
    export, limit = facts.stages.export, facts.record.parameters.gate.latency_p99_ms
    if export is None:
        return []
    median = f"median {format_milliseconds(export.latency_p50_ms)}"
    note = f"{median}, limit {format_milliseconds(limit)}" if limit else median
    size = counted(facts.stages.build.num_parameters, "parameter") if facts.stages.build else ""
    return [
        Tile("Latency, p99", format_milliseconds(export.latency_p99_ms), note),
        Tile("Model", format_bytes(export.num_bytes), size),
    ]


@dataclass(frozen=True)
class MetricRow:
    """A metric of the candidate and of the champion. ``tone`` says whether the difference is good or bad."""

    name: str
    validation: float | None
    test: float | None
    champion: float | None
    difference: str
    tone: str
    is_compared: bool


def list_metrics(facts: Facts) -> list[MetricRow]:
    """All metrics, the main one first."""
    validation, champion = facts.validation, facts.champion.metrics if facts.champion else {}
    names = sorted({**facts.test, **validation, **champion}, key=lambda name: name != facts.main_metric)
    return [_metric_row(name, validation.get(name), facts.test.get(name), champion.get(name), facts.comparison) for name in names]


def _metric_row(
    name: str, validation: float | None, test: float | None, champion: float | None, comparison: Comparison | None
) -> MetricRow:
    is_compared = comparison is not None and comparison.metric == name
    difference = None if test is None or champion is None else test - champion
    gain = (difference or 0.0) * (-1 if is_lower_better(name) else 1)
    text = ABSENT if difference is None else _tell_difference(name, difference, comparison)
    tone = "good" if gain > 0 else "bad" if gain < 0 else ""
    return MetricRow(name, validation, test, champion, text, tone, is_compared)


def _tell_difference(metric: str, difference: float, comparison: Comparison | None) -> str:
    """With as many decimals as its interval has, where it has one: a number reads the same all over the page."""
    interval = [comparison.low, comparison.high] if comparison and comparison.metric == metric else []
    return format_differences(metric, [difference, *interval])[0] + (" points" if is_score(metric) else "")


@dataclass(frozen=True)
class Curve:
    """A figure over epochs. ``note`` stands where nothing can be drawn."""

    title: str
    svg: str
    has_validation: bool
    note: str = ""


def draw_curves(fit: FitRecord, metric: str | None) -> list[Curve]:
    """Loss, the main metric and the learning rate, as far as they were logged."""
    names = ["loss", _logged_metric(fit, metric), "learning_rate"]
    return [_curve(fit, name) for name in names if name and name in fit.history]


def _logged_metric(fit: FitRecord, metric: str | None) -> str | None:
    logged = [name for name in fit.history if name not in ("loss", "learning_rate") and not name.startswith("val_")]
    return metric if metric in logged else next(iter(logged), None)


def _curve(fit: FitRecord, name: str) -> Curve:
    train = list(enumerate(fit.history[name], start=1))
    validation = [(epoch + 1, value) for epoch, value in zip(fit.validation_epochs, fit.history.get(f"val_{name}", []), strict=False)]
    if not any(isfinite(value) for _, value in (*train, *validation)):
        return Curve(spoken(name), "", has_validation=False, note="No epoch has a finite value.")
    best = None if fit.best_epoch is None else fit.best_epoch + 1
    # The name of a metric is the user's: the ids within a figure are made of its place on the page.
    place = name if name in ("loss", "learning_rate") else "metric"
    svg = figures.draw_curve(place, train, validation, best=best, from_zero=name == "learning_rate")
    return Curve(spoken(name), svg, has_validation=bool(validation))


def list_reasons(facts: Facts) -> list[tuple[bool | None, str]]:
    """The gate's reasons with whether each held; of a run without a gate only their texts are known."""
    if facts.stages.gate:
        return [(reason.ok, reason.text) for reason in facts.stages.gate.reasons]
    return [(None, text) for text in facts.record.reasons]


def list_provenance(facts: Facts) -> list[tuple[str, str | None]]:
    """Digests and names by which the run can be repeated."""
    record = facts.record
    return [
        ("Job's digest", record.config_digest),
        ("Snapshot", record.snapshot),
        ("Split's digest", facts.stages.split.digest if facts.stages.split else None),
        ("Weights, SHA-256", record.weights_sha256 or (facts.stages.fit.weights_sha256 if facts.stages.fit else None)),
        ("SavedModel's digest", facts.stages.export.digest if facts.stages.export else None),
        ("Git commit", record.code.git),
        ("Builder, SHA-256", record.code.builder_sha256),
    ]


def draw_stages(seconds: dict[str, float]) -> str | None:
    """Seconds of the stages in their order; None where none was measured."""
    names = [*(name for name in STAGES if name in seconds), *sorted(set(seconds) - set(STAGES))]
    ordered = {name: seconds[name] for name in names}
    return figures.draw_seconds(ordered, [format_seconds(value) for value in ordered.values()]) if ordered else None


def draw_comparison(facts: Facts) -> str | None:
    """The interval of the compared metric, in the unit of the table; None where there is no finite difference."""
    comparison, rule = facts.comparison, facts.record.parameters.gate.champion
    if comparison is None or not isfinite(comparison.difference):
        return None
    unit, is_lower = 100 if is_score(comparison.metric) else 1, is_lower_better(comparison.metric)
    sign = (1 if rule.must == "be_better" else -1) * (-1 if is_lower else 1)
    difference, low, high = (unit * value for value in (comparison.difference, comparison.low, comparison.high))
    return figures.draw_interval(difference, low, high, threshold=sign * rule.margin * unit, is_lower_better=is_lower)


def describe_feature(plan: FeaturePlan) -> str:
    """The statistics that the feature's layers hold."""
    parts = []
    if plan.mean is not None and plan.variance is not None:
        parts.append(f"mean {format_number(plan.mean)}, deviation {format_number(sqrt(max(plan.variance, 0.0)))}")
    if plan.vocabulary is not None:
        parts.append(f"{counted(len(plan.vocabulary), 'value')}: {format_list(plan.vocabulary)}")
    if plan.scale is not None:
        parts.append(f"scaled by {_fraction(plan.scale)}")
    if plan.num_missing:
        parts.append(f"{plan.num_missing:,} missing")
    return "; ".join(parts) or ABSENT


def _fraction(scale: float) -> str:
    """``1/255`` where it is one over a whole number."""
    inverse = 1 / scale
    return f"1/{inverse:.0f}" if inverse > 1 and isclose(inverse, round(inverse), rel_tol=1e-6) else format_number(scale)


def write_snippet(layout: Layout, facts: Facts) -> str | None:
    """Python that loads the model with TensorFlow alone and calls its signature; None where nothing was exported."""
    export = facts.stages.export
    if export is None:
        return None
    published = facts.stages.publish.path if facts.stages.publish else None
    path = layout.resolve(published or export.path)
    rows = [f"    {name!r}: {_example(spec)}," for name, spec in export.inputs.items()]
    call = f"predict = tf.saved_model.load({str(path)!r}).signatures[{'serving_default'!r}]"
    return "\n".join(["import tensorflow as tf", call, "rows = {", *rows, "}", "print(predict(**rows))"])


def _example(spec: str) -> str:
    """One row for an input described as ``float32 [batch, 8, 8]``."""
    dtype, _, axes = spec.partition(" ")
    shape = [1, *map(int, re.findall(r"\d+", axes))]
    return 'tf.constant([""])' if dtype == "string" else f"tf.zeros({shape}, {dtype!r})"


# ---- the page


def write_report(layout: Layout, record: RunRecord) -> Path:
    """Write the page of a run, whole or not at all; the same records give the same bytes.

    Raises:
        CorruptRecordError: a stage's record is there and cannot be read.
    """
    run = layout.run(record.job, record.run)
    page = render_page(layout, Facts(record, read_stages(run)))
    write_atomically(run.report, page.encode())
    return run.report


def render_page(layout: Layout, facts: Facts) -> str:
    """Lay the facts out as HTML."""
    record, fit = facts.record, facts.stages.fit
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            facts=facts,
            record=record,
            stages=facts.stages,
            headline=write_headline(facts),
            duration=(record.ended - record.started).total_seconds() if record.ended else None,
            tiles=lay_tiles(facts),
            reasons=list_reasons(facts),
            metrics=list_metrics(facts),
            interval=draw_comparison(facts),
            curves=draw_curves(fit, facts.main_metric) if fit else [],
            provenance=list_provenance(facts),
            resumed=record.resumed_at or (fit.resumed_at if fit else ()),
            seconds=draw_stages(record.seconds),
            snippet=write_snippet(layout, facts),
            job=yaml.safe_dump(record.parameters.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100),
            counts=_COUNTS,
            limit=_MAX_ROWS,
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        bytes=format_bytes,
        column=format_column,
        counted=counted,
        evidence=tell_evidence,
        feature=describe_feature,
        listed=format_list,
        milliseconds=format_milliseconds,
        number=format_number,
        seconds=format_seconds,
        spoken=spoken,
        thousands="{:,}".format,
        time=format_time,
    )
    return environment
