"""The report of a run: one HTML page that needs nothing but itself, from the records that the run has left."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isclose, isfinite, sqrt
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from refit import figures
from refit.config import CategoryFeature, ImageFeature, NumericFeature, TextFeature, TimestampFeature
from refit.headline import Facts, name_champion, read_stages, warn_of_baselines, warn_of_data, write_headline
from refit.layout import Layout
from refit.records import (
    Column,
    ColumnDrift,
    Comparison,
    DriftRecord,
    FeaturePlan,
    FitRecord,
    RunRecord,
    SnapshotRecord,
    SourceRecord,
    write_atomically,
)
from refit.schema import time_parts
from refit.stages import STAGES
from refit.wording import (
    ABSENT,
    TIMES,
    counted,
    format_bytes,
    format_column,
    format_differences,
    format_list,
    format_milliseconds,
    format_moments,
    format_number,
    format_p_value,
    format_seconds,
    format_share,
    format_ticks,
    format_time,
    is_lower_better,
    is_score,
    spoken,
    tell_evidence,
    tell_start,
)

_DAY_MICROSECONDS = 86_400e6
_MAX_TILES = 2
_MAX_ROWS = 50
_MAX_INPUTS = 20
_MAX_HELD = 8
_MAX_REASONS = 5
_MAX_REJECTS_FILES = 5
_MAX_SHOWN_COLUMNS = 24
_MAX_COLUMNS = 200
_FATES = ("kept", "rejected", "filtered", "duplicate", "superseded")
_ALWAYS_COUNTED = ("read", "kept", "rejected")


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
    """A metric of the candidate, the champion and the baselines. ``tone`` says whether the difference is good or bad."""

    name: str
    validation: float | None
    test: float | None
    champion: float | None
    difference: str
    tone: str
    is_compared: bool
    baselines: tuple[float | None, ...] = ()


def list_metrics(facts: Facts) -> list[MetricRow]:
    """All metrics, the main one first."""
    validation, champion = facts.validation, facts.champion.metrics if facts.champion else {}
    names = sorted({**facts.test, **validation, **champion}, key=lambda name: name != facts.main_metric)
    return [
        replace(
            _metric_row(name, validation.get(name), facts.test.get(name), champion.get(name), facts.comparison),
            baselines=tuple(metrics.get(name) for metrics in facts.baselines.values()),
        )
        for name in names
    ]


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
    parts = [*_describe_scale(plan), *_describe_tokens(plan)]
    if isinstance(plan.feature, TimestampFeature):
        parts.insert(0, ", ".join(time_parts(plan.column, plan.feature)))
    if plan.scale is not None:
        parts += [*_describe_shape(plan), f"scaled by {_fraction(plan.scale)}"]
    if plan.num_missing:
        parts.append(f"{plan.num_missing:,} missing")
    return "; ".join(part for part in parts if part) or ABSENT


def _describe_scale(plan: FeaturePlan) -> Iterator[str]:
    said = plan.feature if isinstance(plan.feature, NumericFeature) else NumericFeature(kind="numeric")
    if said.log:
        yield "logarithm"
    if plan.boundaries is not None:
        yield f"{counted(len(plan.boundaries) + 1, 'bin')}, bounds {format_list(map(format_number, plan.boundaries))}"
    if plan.means is not None:
        yield f"{len(plan.means):,} means and deviations"
    elif plan.kind == "timestamp":
        yield _describe_elapsed(plan)
    elif plan.mean is not None and plan.variance is not None:
        deviation = format_number(sqrt(max(plan.variance, 0.0)))
        middle, spread = ("median", "quartiles' deviation") if said.scale == "robust" else ("mean", "deviation")
        yield f"{middle} {format_number(plan.mean)}, {spread} {deviation}"
    if said.clip:
        yield f"at most {said.clip:g} either side"


def _describe_elapsed(plan: FeaturePlan) -> str:
    if plan.mean is None or not isinstance(plan.feature, TimestampFeature) or not plan.feature.elapsed:
        return ""
    days = sqrt(plan.variance or 0.0) / _DAY_MICROSECONDS
    return f"mean {np.datetime64(int(plan.mean), 'us').astype('datetime64[D]')}, deviation {format_number(days)} days"


def _describe_tokens(plan: FeaturePlan) -> Iterator[str]:
    if plan.vocabulary is not None:
        yield f"{counted(len(plan.vocabulary), 'token' if plan.kind == 'text' else 'value')}: {format_list(plan.vocabulary)}"
    if isinstance(plan.feature, CategoryFeature):
        yield f"{plan.feature.hash_bins:,} hash bins" if plan.feature.hash_bins else ""
        yield "embedding" if plan.feature.encoding == "embedding" else ""
    if isinstance(plan.feature, TextFeature):
        yield plan.feature.encoding.replace("_", "-")


def _describe_shape(plan: FeaturePlan) -> Iterator[str]:
    if isinstance(plan.feature, ImageFeature):
        yield f"resized to {TIMES.join(map(str, plan.feature.resize))}" if plan.feature.resize else ""
        yield plan.feature.color or ""


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


# ---- what came in


@dataclass(frozen=True)
class Inputs:
    """The inputs as a table: ``shown`` newest first, columns for ``counts``, rows by what became of them in ``fates``."""

    shown: list[SourceRecord]
    num_hidden: int
    num_refused: int
    num_vanished: int
    counts: list[str]
    fates: dict[str, int]
    notes: list[str]

    @property
    def num_lost(self) -> int:
        """Rows that were read and do not count."""
        return sum(self.fates.values()) - self.fates["kept"]


def list_inputs(snapshot: SnapshotRecord) -> Inputs:
    """The newest inputs; of many, those that were refused or have vanished are not the ones left out."""
    sources = snapshot.sources
    by_need = sorted(range(len(sources)), key=lambda n: (not sources[n].refused, not sources[n].is_vanished, -n))
    totals = {count: sum(_count(source, count) for source in sources) for count in ("read", *_FATES)}
    return Inputs(
        shown=[sources[n] for n in sorted(by_need[:_MAX_INPUTS], reverse=True)],
        num_hidden=max(0, len(sources) - _MAX_INPUTS),
        num_refused=sum(bool(source.refused) for source in sources),
        num_vanished=sum(source.is_vanished for source in sources),
        counts=[count for count, total in totals.items() if total or count in _ALWAYS_COUNTED],
        fates={fate: totals[fate] for fate in _FATES},
        notes=list(dict.fromkeys(note for source in reversed(sources) for note in source.notes)),
    )


def _count(source: SourceRecord, count: str) -> int:
    number: int = getattr(source, f"num_{count}")
    return number


def tell_refusal(source: SourceRecord) -> str:
    """Why an input was refused, without its name before it, which stands beside it."""
    return (source.refused or "").removeprefix(f"{source.name}: ")


@dataclass(frozen=True)
class Rejected:
    """Rows that could not be used. ``files`` are those that list them, newest first, with whether they are there.

    ``reasons`` are the commonest as (reason, column, rows), as far as those files could be read.
    """

    num_rows: int
    num_read: int
    files: list[tuple[str, bool]]
    num_more_files: int
    reasons: list[tuple[str, str, int]]


def find_rejected(layout: Layout, snapshot: SnapshotRecord) -> Rejected | None:
    """What the records and the rejects files say of the rows that were rejected; None where there are none."""
    sources = [source for source in snapshot.sources if source.num_rejected]
    if not sources:
        return None
    names = list(dict.fromkeys(source.rejects for source in reversed(sources) if source.rejects))
    paths = [layout.dataset(snapshot.dataset).rejects(name) for name in names[:_MAX_REJECTS_FILES]]
    reasons = sum((_count_reasons(path) for path in paths), Counter[tuple[str, str]]())
    ranked = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return Rejected(
        num_rows=sum(source.num_rejected for source in sources),
        num_read=sum(source.num_read for source in snapshot.sources),
        files=[(layout.relative(path), path.is_file()) for path in paths],
        num_more_files=len(names) - len(paths),
        reasons=[(reason, column, rows) for (reason, column), rows in ranked[:_MAX_REASONS]],
    )


def _count_reasons(path: Path) -> Counter[tuple[str, str]]:
    """Rows by reason and column; nothing where the file is gone or damaged: the page is written all the same."""
    found: Counter[tuple[str, str]] = Counter()
    try:
        with pq.ParquetFile(path, read_dictionary=["reason", "column"]) as file:
            for batch in file.iter_batches(columns=["reason", "column"]):
                pairs = pa.Table.from_batches([batch]).group_by(["reason", "column"]).aggregate([([], "count_all")])
                for row in pairs.to_pylist():
                    found[row["reason"] or "", row["column"] or ""] += row["count_all"]
    except (OSError, KeyError, pa.ArrowException):
        return Counter()
    return found


# ---- the columns


@dataclass(frozen=True)
class ColumnCard:
    """One column with its histogram. ``badge`` and ``told`` are the two parts of its verdict, empty where there is none."""

    name: str
    type: str
    is_target: bool
    tone: str
    badge: str
    told: str
    svg: str
    numbers: list[tuple[str, str]]


def list_columns(facts: Facts) -> list[ColumnCard]:
    """The columns as far as they are shown: drifted ones first, the most at the top, then the label, then the rest in their order."""
    drift, snapshot = facts.stages.validate.drift if facts.stages.validate else None, facts.stages.ingest
    if drift is None:
        return []
    types = {column.name: column for column in snapshot.columns} if snapshot else {}
    ordered = sorted(drift.columns, key=lambda c: (not c.has_drifted, -c.psi if c.has_drifted else 0.0, not c.is_target))
    return [_card(drift, column, types.get(column.name)) for column in ordered[:_MAX_COLUMNS]]


def _card(drift: DriftRecord, column: ColumnDrift, stored: Column | None) -> ColumnCard:
    is_time = stored is not None and stored.type.startswith(("date", "timestamp"))
    badge, told = ("", "") if drift.why_not else _split_verdict(column)
    return ColumnCard(
        name=column.name,
        type=format_column(stored) if stored else column.kind,
        is_target=column.is_target,
        tone="warn" if column.has_drifted else "good" if _is_judged(column) else "calm",
        badge=badge,
        told=told,
        svg=figures.draw_histogram(column.histogram, format_moments if is_time else format_ticks),
        numbers=_list_numbers(drift, column),
    )


def _split_verdict(column: ColumnDrift) -> tuple[str, str]:
    if column.has_drifted:
        return "drifted", column.verdict.removeprefix("drifted: ")
    badge, _, told = column.verdict.partition(": ")
    return badge, told


def _is_judged(column: ColumnDrift) -> bool:
    return column.has_drifted or column.verdict == "stable"


def _list_numbers(drift: DriftRecord, column: ColumnDrift) -> list[tuple[str, str]]:
    sides = [(drift.num_old, column.missing_old), (drift.num_new, column.missing_new)]
    numbers = [("Missing", " → ".join(format_share(missing) for rows, missing in sides if rows) or ABSENT)]
    if drift.why_not or column.test == "none":
        return numbers
    numbers += [("PSI", format_number(column.psi)), ("Test", f"{column.test}: {format_number(column.statistic)}")]
    return [*numbers, ("Corrected p", format_p_value(column.p_adjusted))] if _is_judged(column) else numbers


def count_open_columns(columns: Sequence[ColumnDrift]) -> int:
    """How many columns are shown at once: all that have drifted, and the first of the others."""
    return min(_MAX_COLUMNS, max(_MAX_SHOWN_COLUMNS, sum(column.has_drifted for column in columns)))


# ---- the page


def write_report(layout: Layout, record: RunRecord) -> Path:
    """Write the page of a run, whole or not at all; the same records and rejects files give the same bytes.

    Raises:
        CorruptRecordError: a stage's record is there and cannot be read.
    """
    run = layout.run(record.job, record.run)
    page = render_page(layout, Facts(record, read_stages(run)))
    write_atomically(run.report, page.encode())
    return run.report


def render_page(layout: Layout, facts: Facts) -> str:
    """Lay the facts out as HTML."""
    record, fit, snapshot = facts.record, facts.stages.fit, facts.stages.ingest
    drift = facts.stages.validate.drift if facts.stages.validate else None
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            facts=facts,
            record=record,
            stages=facts.stages,
            headline=write_headline(facts),
            warning=warn_of_data(facts),
            no_better=warn_of_baselines(facts),
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
            inputs=list_inputs(snapshot) if snapshot else None,
            rejected=find_rejected(layout, snapshot) if snapshot else None,
            drift=drift,
            columns=list_columns(facts),
            num_open=count_open_columns(drift.columns) if drift else 0,
            limit=_MAX_ROWS,
            max_held=_MAX_HELD,
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
        refusal=tell_refusal,
        seconds=format_seconds,
        share=format_share,
        spoken=spoken,
        start=tell_start,
        thousands="{:,}".format,
        time=format_time,
    )
    return environment
