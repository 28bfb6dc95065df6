"""The gate: whether a candidate may be published. Always one verdict, always with reasons that carry their numbers.

``compare`` measures how sure the difference between candidate and champion is; ``decide`` applies the job's rules to it.
Nothing here reads or writes files.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from refit.answers import Answers, Floats, Labels, Predictions
from refit.config import Bound, ChampionRule, GateConfig, TargetKind, nearest
from refit.errors import JobError, RequestError
from refit.metrics import METRICS, default_metric, metric_names
from refit.records import ChampionRecord, Comparison, EvaluationRecord, ExportRecord, GateRecord, Metrics, Reason, Verdict
from refit.weighing import Counts

METHOD = "paired bootstrap, percentile interval, {num_resamples} resamples, seed {seed}"
REMEDY_FORCE = "`refit promote RUN --force --reason TEXT` publishes it all the same."

# ---- the job's rules


def check_gate(config: GateConfig, kind: TargetKind) -> None:
    """See that the gate's rules can be applied; called before any work.

    Raises:
        JobError: a metric that is unknown or not computed for this kind of target, or limits that exclude each other.
    """
    faults = list(_gate_faults(config, kind))
    if len(faults) == 1:
        raise JobError(faults[0])
    if faults:
        raise JobError("\n".join([f"{len(faults)} faults in the gate:", *(f"  - {fault}" for fault in faults)]))


def _gate_faults(config: GateConfig, kind: TargetKind) -> Iterator[str]:
    known = metric_names(kind)
    named = {f"gate.require.{name}": name for name in config.require}
    if config.champion.metric is not None:
        named["gate.champion.metric"] = config.champion.metric
    for path, name in named.items():
        if name not in known:
            yield f'{path}: "{name}" is no metric of a {kind} target.{nearest(name, known)}'
    for name, bound in config.require.items():
        if bound.at_least is not None and bound.at_most is not None and bound.at_least > bound.at_most:
            yield f"gate.require.{name}: at_least {bound.at_least:g} is above at_most {bound.at_most:g}: no model could pass"


# ---- the comparison


def compare(
    metric: str,
    kind: TargetKind,
    labels: Labels,
    candidate: Predictions,
    champion: Predictions,
    *,
    confidence: float,
    seed: int,
    num_resamples: int = 1000,
) -> Comparison:
    """Candidate minus champion on the same rows, with a percentile interval of the paired bootstrap.

    Both are measured on the same resampled rows. Memory is a few numbers a row; a million rows take seconds.

    Args:
        metric: one of ``metric_names(kind)``.
        kind: of the target.
        labels: ``[n]``, as ``compute_metrics`` takes them.
        candidate: predictions of the candidate, as ``compute_metrics`` takes them.
        champion: those of the champion, on the same rows in the same order.
        confidence: two-sided, e.g. 0.95.
        seed: of the resampling.
        num_resamples: how often rows are drawn.

    Returns:
        The difference in the metric's own direction: for an error, below zero is better. Numbers are NaN where the rows or
        the predictions do not define the metric.

    Raises:
        RequestError: the metric is not computed for this kind of target.

    Source:
        Efron & Tibshirani (1993), An Introduction to the Bootstrap, section 13.3, https://doi.org/10.1201/9780429246593
    """
    if metric not in metric_names(kind):
        raise RequestError(f'"{metric}" is no metric of a {kind} target.{nearest(metric, metric_names(kind))}')
    spec = METRICS[metric]
    both = [Answers(kind, labels, predictions) for predictions in (candidate, champion)]
    values = [_measure(metric, answers) for answers in both]
    low = high = math.nan
    if np.isfinite(values).all():
        weighers = [spec.weigh(answers) for answers in both]
        differences = _resample(*weighers, num_rows=len(labels), seed=seed, num_resamples=num_resamples)
        low, high = _interval(differences, confidence)
    return Comparison(
        metric=metric,
        candidate=values[0],
        champion=values[1],
        difference=values[0] - values[1],
        low=low,
        high=high,
        confidence=confidence,
        num_rows=len(labels),
        method=METHOD.format(num_resamples=num_resamples, seed=seed),
    )


def _measure(metric: str, answers: Answers) -> float:
    if not METRICS[metric].is_defined(answers) or not np.isfinite(answers.predictions).all():
        return math.nan
    return METRICS[metric].weigh(answers)(np.ones(len(answers), np.uint8))


def _resample(
    candidate: Callable[[Counts], float], champion: Callable[[Counts], float], *, num_rows: int, seed: int, num_resamples: int
) -> Floats:
    """Differences over resamples. How often a row is drawn is Poisson(1), which for many rows is drawing with replacement.

    Source: Hanley & MacGibbon (2006), https://doi.org/10.1016/j.cmpb.2006.04.006
    """
    generator, frequencies = np.random.default_rng(seed), _poisson_table()
    differences = np.empty(num_resamples)
    for index in range(num_resamples):
        counts = frequencies[generator.integers(0, len(frequencies), num_rows, dtype=np.uint16)]
        differences[index] = candidate(counts) - champion(counts)
    return differences


def _poisson_table() -> Counts:
    """65,536 numbers of which each is equally likely: Poisson(1) to 1e-5, eight times as fast to draw as numpy's own."""
    probabilities = [math.exp(-1) / math.factorial(count) for count in range(12)]
    levels = (np.arange(2**16) + 0.5) / 2**16
    return np.searchsorted(np.cumsum(probabilities), levels).astype(np.uint8)


def _interval(differences: Floats, confidence: float) -> tuple[float, float]:
    """Percentiles over the resamples that define the metric (one that drew a single class has no AUC)."""
    defined = differences[np.isfinite(differences)]
    if len(defined) == 0:
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


# ---- the verdict


def decide(
    config: GateConfig,
    kind: TargetKind,
    evaluation: EvaluationRecord,
    export: ExportRecord,
    comparison: Comparison | None,
    *,
    is_held: bool = False,
) -> GateRecord:
    """Reach the verdict.

    Args:
        config: the job's rules, accepted by ``check_gate``.
        kind: of the target.
        evaluation: metrics of the candidate on the test rows, and what is known of the champion.
        export: for the measured latency.
        comparison: with the champion, by the metric that the rules name; none where there is no champion to compare with.
        is_held: whether a rollback stopped automatic promotion of this model.

    Returns:
        One verdict. Its reasons are every rule that was applied, met or not.
    """
    metrics, champion = evaluation.metrics.get("test", {}), evaluation.champion
    absolute = [*_finite_reasons(metrics), *_requirement_reasons(config.require, metrics), *_latency_reasons(config, export)]
    relative = [_champion_reason(config.champion, kind, champion, comparison)]
    held = [_HELD] if is_held else []
    return GateRecord(
        verdict=_verdict(champion, absolute, relative[0], is_held=is_held),
        reasons=(*absolute, *relative, *held),
        comparison=comparison,
        judged_against=champion.version if champion else None,
    )


_HELD = Reason(
    code="held",
    ok=False,
    text="Automatic promotion of this model is held since a rollback. `refit promote RUN` publishes this run; "
    "`refit rollback NAME --release` ends the hold for the runs to come.",
)
_NOT_COMPARABLE = ("incompatible", "shared_rows", "not_compared")


def _verdict(champion: ChampionRecord | None, absolute: Iterable[Reason], relative: Reason, *, is_held: bool) -> Verdict:
    """A missed requirement decides first, then whether there is anything to compare with, then the comparison and the hold."""
    if not all(reason.ok for reason in absolute):
        return "keep"
    if relative.code in _NOT_COMPARABLE:
        return "incompatible"
    if is_held or not relative.ok:
        return "keep"
    return "promote" if champion else "first"


def _finite_reasons(metrics: Metrics) -> Iterator[Reason]:
    wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
    if wrong:
        text = f"The new model's predictions give no number for {', '.join(wrong)}: some of them are infinite or not a number."
        yield Reason(code="not_finite", ok=False, text=text)


def _requirement_reasons(require: dict[str, Bound], metrics: Metrics) -> Iterator[Reason]:
    for name, bound in require.items():
        value = metrics.get(name)
        if value is None:
            text = f"{_label(name)} is required, but the test rows do not define it (too few rows or classes, or a label of 0)."
            yield Reason(code=f"require.{name}", ok=False, text=text)
            continue
        if bound.at_least is not None:
            yield _bound_reason(name, value, bound.at_least, "at least", ok=value >= bound.at_least)
        if bound.at_most is not None:
            yield _bound_reason(name, value, bound.at_most, "at most", ok=value <= bound.at_most)


def _bound_reason(name: str, value: float, limit: float, relation: str, *, ok: bool) -> Reason:
    text = f"{_label(name)} on the test rows is {_number(value)}; required is {relation} {_number(limit)}: {'met' if ok else 'missed'}."
    return Reason(code=f"require.{name}", ok=ok and math.isfinite(value), text=text)


def _latency_reasons(config: GateConfig, export: ExportRecord) -> Iterator[Reason]:
    limit, value = config.latency_p99_ms, export.latency_p99_ms
    if limit is None:
        return
    ok = math.isfinite(value) and value <= limit
    text = f"99 of 100 one-row predictions took at most {value:.3g} ms; allowed is {limit:g} ms: {'met' if ok else 'missed'}."
    yield Reason(code="latency_p99_ms", ok=ok, text=text)


# ---- against the champion


def _champion_reason(rule: ChampionRule, kind: TargetKind, champion: ChampionRecord | None, comparison: Comparison | None) -> Reason:
    if champion is None:
        return Reason(code="no_champion", ok=True, text="No version of this model serves yet, so there is nothing to compare with.")
    if champion.incompatible is not None:
        why = champion.incompatible.rstrip(".")
        text = f"The new model cannot be compared with version {champion.version}, which serves: {why}. {REMEDY_FORCE}"
        return Reason(code="incompatible", ok=False, text=text)
    if champion.num_shared_rows > 0:
        return _shared_rows_reason(champion)
    if comparison is None:
        metric = rule.metric or default_metric(kind)
        text = f"No comparison by {_spoken(metric)} with version {champion.version}, which serves, was made. {REMEDY_FORCE}"
        return Reason(code="not_compared", ok=False, text=text)
    return _comparison_reason(rule, champion.version, comparison)


def _shared_rows_reason(champion: ChampionRecord) -> Reason:
    one = champion.num_shared_rows == 1
    text = (
        f"Version {champion.version}, which serves, was trained on {champion.num_shared_rows:,} of this run's test rows, so that it "
        f"would score too well on {'it' if one else 'them'} and the comparison would not be fair. "
        "Go back to the split that it was trained with, or, if the new split is meant to stay, let a person decide: "
        "`refit promote RUN --force --reason TEXT`."
    )
    return Reason(code="shared_rows", ok=False, text=text)


def _comparison_reason(rule: ChampionRule, version: int, comparison: Comparison) -> Reason:
    if not _is_finite(comparison):
        text = (
            f"{_label(comparison.metric)} of the new model ({_number(comparison.candidate)}) and of version {version}, which serves "
            f"({_number(comparison.champion)}), cannot be compared on {comparison.num_rows:,} test rows: not all the numbers are defined. "
            f"Look at the test rows and the predictions. {REMEDY_FORCE}"
        )
        return Reason(code="champion", ok=False, text=text)
    low, high = _improvement(comparison)
    ok = {"be_better": low > rule.margin, "not_be_worse": high >= -rule.margin, "prove_not_worse": low > -rule.margin}[rule.must]
    text = f"{_describe(version, comparison)} {_ruling(rule, ok=ok)}"
    return Reason(code="champion", ok=ok, text=text)


def _improvement(comparison: Comparison) -> tuple[float, float]:
    """The interval turned so that above zero is better, whatever the metric."""
    if METRICS[comparison.metric].higher_is_better:
        return comparison.low, comparison.high
    return -comparison.high, -comparison.low


def _is_finite(comparison: Comparison) -> bool:
    numbers = (comparison.candidate, comparison.champion, comparison.difference, comparison.low, comparison.high)
    return all(math.isfinite(number) for number in numbers)


def _describe(version: int, comparison: Comparison) -> str:
    better = "higher" if METRICS[comparison.metric].higher_is_better else "lower"
    return (
        f"{_label(comparison.metric)} of the new model is {_number(comparison.candidate)}, that of version {version}, which serves, "
        f"{_number(comparison.champion)} ({better} is better): a difference of {_signed(comparison.difference)}, with "
        f"{comparison.confidence * 100:g}% confidence between {_signed(comparison.low)} and {_signed(comparison.high)}, on "
        f"{comparison.num_rows:,} test rows."
    )


def _ruling(rule: ChampionRule, *, ok: bool) -> str:
    by = f" by more than {rule.margin:g}" if rule.margin else ""
    rulings = {
        "be_better": (f"So it is better{by}.", f"So it is not proved better{by}, as the job asks."),
        "not_be_worse": (f"So it is not shown to be worse{by}.", f"So it is worse{by}."),
        "prove_not_worse": (f"So it is proved not to be worse{by}.", f"So it is not proved that it is not worse{by}, as the job asks."),
    }
    return rulings[rule.must][0 if ok else 1]


# ---- words


_SPOKEN = {
    "auc": "AUC",
    "pr_auc": "PR AUC",
    "macro_auc": "macro AUC",
    "f1": "F1",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "top_3_accuracy": "top-3 accuracy",
    "top_5_accuracy": "top-5 accuracy",
    "brier": "Brier score",
    "ece": "calibration error",
    "rmse": "RMSE",
    "mae": "MAE",
    "mape": "MAPE",
    "r2": "R²",
    "absolute_error_p90": "the absolute error that 90 of 100 rows stay below",
}


def _spoken(metric: str) -> str:
    return _SPOKEN.get(metric, metric.replace("_", " "))


def _label(metric: str) -> str:
    name = _spoken(metric)
    return name[0].upper() + name[1:]


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "not a number" if math.isnan(value) else "infinite"


def _signed(value: float) -> str:
    return f"{value:+.3g}" if value else "0"
