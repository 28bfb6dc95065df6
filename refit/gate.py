"""The gate: whether a candidate may be published. Always one verdict, always with reasons that carry their numbers.

``compare`` measures how sure the difference between candidate and champion is; ``decide`` applies the job's rules to it.
Nothing here reads or writes files.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np

from refit.answers import HALF, Answers, Labels, Predictions
from refit.config import Bound, ChampionRule, GateConfig, TargetKind, nearest
from refit.errors import JobError, RequestError
from refit.metrics import METRICS, default_metric, metric_names
from refit.paired_tests import PairedTest, bootstrap, delong, detectable, mcnemar, rows_needed
from refit.records import ChampionRecord, Comparison, EvaluationRecord, ExportRecord, GateRecord, Metrics, Reason, Verdict
from refit.rulings import BEST, SERVES, budgeted, holds, improvement, is_finite, label, number, spoken, tell
from refit.weighing import hits, top_hits

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
    thresholds: tuple[float, float] = (HALF, HALF),
) -> Comparison:
    """Candidate minus champion on the same rows, and how sure that is.

    Shares of right answers are compared by McNemar's test, AUCs by DeLong's, every other metric by a paired bootstrap.

    Args:
        metric: one of ``metric_names(kind)``.
        kind: of the target.
        labels: as ``Answers`` has them.
        candidate: predictions of the candidate, as ``Answers`` has them.
        champion: those of the champion, on the same rows in the same order.
        confidence: two-sided, e.g. 0.95.
        seed: of the resampling.
        thresholds: of the candidate's decisions and of the champion's.

    Returns:
        The difference in the metric's own direction: for an error, below zero is better. Numbers are NaN where the rows or
        the predictions do not define the metric.

    Raises:
        RequestError: the metric is not computed for this kind of target.
    """
    if metric not in metric_names(kind):
        raise RequestError(f'"{metric}" is no metric of a {kind} target.{nearest(metric, metric_names(kind))}')
    both = [Answers(kind, labels, told, threshold) for told, threshold in zip((candidate, champion), thresholds, strict=True)]
    values = [_measure(metric, answers) for answers in both]
    test = _test(metric, *both, confidence=confidence, seed=seed) if np.isfinite(values).all() else _UNDEFINED
    difference, found = values[0] - values[1], detectable(test.standard_error, confidence=confidence)
    return Comparison(
        metric=metric,
        candidate=values[0],
        champion=values[1],
        difference=difference,
        low=test.low,
        high=test.high,
        confidence=confidence,
        num_rows=len(labels),
        method=test.method,
        p_value=test.p_value,
        detectable=found,
        rows_needed=rows_needed(difference, found, len(labels)) if difference and math.isfinite(found) else None,
    )


_UNDEFINED = PairedTest(math.nan, math.nan, math.nan, math.nan, math.nan, "none: the rows or the predictions do not define the metric")
_SAME = PairedTest(0.0, 0.0, 0.0, 1.0, 0.0, "none: the predictions are the same")
_HITS = {"accuracy": hits, "subset_accuracy": hits, "top_3_accuracy": top_hits(3), "top_5_accuracy": top_hits(5)}


def _measure(metric: str, answers: Answers) -> float:
    if not METRICS[metric].is_defined(answers) or not np.isfinite(answers.predictions).all():
        return math.nan
    return METRICS[metric].weigh(answers)(np.ones(len(answers), np.uint8))


def _test(metric: str, candidate: Answers, champion: Answers, *, confidence: float, seed: int) -> PairedTest:
    """The test that fits the metric."""
    if candidate.threshold == champion.threshold and np.array_equal(candidate.predictions, champion.predictions):
        return _SAME
    if metric in _HITS:
        return mcnemar(*(_HITS[metric](answers) == 1 for answers in (candidate, champion)), confidence=confidence)
    if metric == "auc":
        return delong(candidate.labels, candidate.scores, champion.scores, confidence=confidence)
    weighed = [METRICS[metric].weigh(answers) for answers in (candidate, champion)]
    num_rows, row_size = len(candidate), candidate.predictions.size // len(candidate)
    return bootstrap(*weighed, num_rows=num_rows, row_size=row_size, confidence=confidence, seed=seed)


# ---- the verdict


def decide(
    config: GateConfig,
    kind: TargetKind,
    evaluation: EvaluationRecord,
    export: ExportRecord,
    comparison: Comparison | None,
    *,
    best: Comparison | None = None,
    num_parameters: int | None = None,
    is_held: bool = False,
) -> GateRecord:
    """Reach the verdict.

    Args:
        config: the job's rules, accepted by ``check_gate``.
        kind: of the target.
        evaluation: metrics of the candidate on the test rows, and what is known of the champion.
        export: for the measured latency and the size.
        comparison: with the champion, by the metric that the rules name; none where there is no champion to compare with.
        best: with the best of the earlier versions, where the rule is ``not_be_worse`` and there is one to compare with.
        num_parameters: of the candidate.
        is_held: whether a rollback stopped automatic promotion of this model.

    Returns:
        One verdict. Its reasons are every rule that was applied, met or not.
    """
    metrics, champion = evaluation.metrics.get("test", {}), evaluation.champion
    absolute = [
        *_finite_reasons(metrics),
        *_requirement_reasons(config.require, metrics),
        *_budget_reasons(config, export, num_parameters),
    ]
    relative = _champion_reason(config.champion, kind, champion, comparison)
    earlier = [*_best_reasons(config.champion, evaluation.best, best, comparison), *([_HELD] if is_held else [])]
    return GateRecord(
        verdict=_verdict(champion, absolute, relative, earlier),
        reasons=(*absolute, relative, *earlier),
        comparison=comparison,
        best=best,
        judged_against=champion.version if champion else None,
    )


_HELD = Reason(
    code="held",
    ok=False,
    text="Automatic promotion of this model is held since a rollback. `refit promote RUN` publishes this run; "
    "`refit rollback NAME --release` ends the hold for the runs to come.",
)
_NOT_COMPARABLE = ("incompatible", "shared_rows", "not_compared")


def _verdict(champion: ChampionRecord | None, absolute: Iterable[Reason], relative: Reason, earlier: Iterable[Reason]) -> Verdict:
    """A missed requirement decides first, then whether there is anything to compare with, then the comparisons and the hold."""
    if not all(reason.ok for reason in absolute):
        return "keep"
    if relative.code in _NOT_COMPARABLE:
        return "incompatible"
    if not all(reason.ok for reason in (relative, *earlier)):
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
            text = f"{label(name)} is required, but the test rows do not define it (too few rows or classes, or a label of 0)."
            yield Reason(code=f"require.{name}", ok=False, text=text)
            continue
        if bound.at_least is not None:
            yield _bound_reason(name, value, bound.at_least, "at least", ok=value >= bound.at_least)
        if bound.at_most is not None:
            yield _bound_reason(name, value, bound.at_most, "at most", ok=value <= bound.at_most)


def _bound_reason(name: str, value: float, limit: float, relation: str, *, ok: bool) -> Reason:
    text = f"{label(name)} on the test rows is {number(value)}; required is {relation} {number(limit)}: {'met' if ok else 'missed'}."
    return Reason(code=f"require.{name}", ok=ok and math.isfinite(value), text=text)


def _budget_reasons(config: GateConfig, export: ExportRecord, num_parameters: int | None) -> Iterator[Reason]:
    """What the model may cost those who run it."""
    parameters = math.nan if num_parameters is None else num_parameters
    budgets = (
        ("latency_p50_ms", config.latency_p50_ms, export.latency_p50_ms, "Half of the one-row predictions took at most", "ms"),
        ("latency_p99_ms", config.latency_p99_ms, export.latency_p99_ms, "99 of 100 one-row predictions took at most", "ms"),
        ("max_model_mb", config.max_model_mb, export.num_bytes / 1e6, "The exported model takes", "MB"),
        ("max_parameters", config.max_parameters, parameters, "The model has", "parameters"),
    )
    for code, limit, value, told, unit in budgets:
        if limit is not None:
            ok = math.isfinite(value) and value <= limit
            text = f"{told} {budgeted(value)} {unit}; allowed is {budgeted(limit)} {unit}: {'met' if ok else 'missed'}."
            yield Reason(code=code, ok=ok, text=text)


# ---- against the champion and the best version


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
        text = f"No comparison by {spoken(metric)} with version {champion.version}, which serves, was made. {REMEDY_FORCE}"
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
    if not is_finite(comparison):
        text = (
            f"{label(comparison.metric)} of the new model ({number(comparison.candidate)}) and of version {version}, {SERVES} "
            f"({number(comparison.champion)}), cannot be compared on {comparison.num_rows:,} test rows: not all the numbers are defined. "
            f"Look at the test rows and the predictions. {REMEDY_FORCE}"
        )
        return Reason(code="champion", ok=False, text=text)
    return Reason(code="champion", ok=holds(rule, comparison), text=tell(rule, version, SERVES, comparison))


def _best_reasons(
    rule: ChampionRule, best: ChampionRecord | None, with_best: Comparison | None, with_champion: Comparison | None
) -> Iterator[Reason]:
    """Not being shown to be worse than the last version allows a small loss each time; losses that add up show against the best.

    A model that is shown to be better than the champion adds none.
    """
    if rule.must != "not_be_worse" or best is None or with_best is None or not is_finite(with_best):
        return
    text, is_gain = tell(rule, best.version, BEST, with_best), with_champion is not None and improvement(with_champion)[1] > 0
    ok = holds(rule, with_best)
    more = "" if ok else " It is better than the version that serves, though." if is_gain else " Small losses have added up since then."
    yield Reason(code="best_version", ok=ok or is_gain, text=text + more)
