"""What a comparison comes to under the job's rule: yes or no, and a sentence that a person understands."""

import math
from collections.abc import Iterator

from refit.config import ChampionRule
from refit.metrics import METRICS
from refit.paired_tests import rows_needed
from refit.records import Comparison

SERVES = "which serves"
BEST = "the best of the earlier ones"


def is_finite(comparison: Comparison) -> bool:
    """Whether all its numbers are defined."""
    numbers = (comparison.candidate, comparison.champion, comparison.difference, comparison.low, comparison.high)
    return all(math.isfinite(number) for number in numbers)


def holds(rule: ChampionRule, comparison: Comparison) -> bool:
    """Whether the interval allows what the rule asks."""
    _, low, high = improvement(comparison)
    return {"be_better": low > rule.margin, "not_be_worse": high >= -rule.margin, "prove_not_worse": low > -rule.margin}[rule.must]


def improvement(comparison: Comparison) -> tuple[float, float, float]:
    """The difference and its interval, turned so that above zero is better, whatever the metric."""
    if METRICS[comparison.metric].higher_is_better:
        return comparison.difference, comparison.low, comparison.high
    return -comparison.difference, -comparison.high, -comparison.low


def tell(rule: ChampionRule, version: int, role: str, comparison: Comparison) -> str:
    """The numbers, what they come to, and how many rows would tell more where they do not tell enough."""
    return " ".join([_describe(version, role, comparison), *_rule_on(rule, comparison)])


def _describe(version: int, role: str, comparison: Comparison) -> str:
    better = "higher" if METRICS[comparison.metric].higher_is_better else "lower"
    return (
        f"{label(comparison.metric)} of the new model is {number(comparison.candidate)}, that of version {version}, {role}, "
        f"{number(comparison.champion)} ({better} is better): a difference of {signed(comparison.difference)}, with "
        f"{comparison.confidence * 100:g}% confidence between {signed(comparison.low)} and {signed(comparison.high)}, on "
        f"{comparison.num_rows:,} test rows."
    )


def _rule_on(rule: ChampionRule, comparison: Comparison) -> Iterator[str]:
    """The job asks on which side of a limit the improvement lies: the interval is above it, below it, or has it inside."""
    difference, low, high = improvement(comparison)
    limit = rule.margin if rule.must == "be_better" else -rule.margin
    by = f" by more than {rule.margin:g}" if rule.margin else ""
    above, below, open_ended = {
        "be_better": (
            f"So it is better{by}.",
            f"So it is not better{by}, as the job asks.",
            f"So it is not proved better{by}, as the job asks.",
        ),
        "not_be_worse": (f"So it is not worse{by}.", f"So it is worse{by}.", f"So it is not shown to be worse{by}."),
        "prove_not_worse": (
            f"So it is proved not to be worse{by}.",
            f"So it is worse{by}.",
            f"So it is not proved that it is not worse{by}, as the job asks.",
        ),
    }[rule.must]
    if low > limit:
        yield above
    elif high < limit:
        yield below
    else:
        yield open_ended
        yield from _look_out(rule, difference - limit, comparison)


def _look_out(rule: ChampionRule, gap: float, comparison: Comparison) -> Iterator[str]:
    """How many rows would show what was seen; where that points the other way, what these rows can show."""
    found = comparison.detectable
    if found is None or not 0 < found < math.inf:
        return
    towards = -gap if rule.must == "not_be_worse" else gap
    if towards > 0:
        needed = max(rows_needed(towards, found, comparison.num_rows), comparison.num_rows + 1)
        more = needed - comparison.num_rows
        yield f"If the difference is what it seems, about {_rounded(needed)} test rows would tell, {_rounded(more)} more than there are."
    elif rule.must == "prove_not_worse":
        model = f"better by {number(found - rule.margin)}" if found > rule.margin else "as good"
        yield f"So many rows prove it of a model that is {model} 8 times in 10."
    else:
        sought = "gain" if rule.must == "be_better" else "loss"
        yield f"So many rows show a {sought} of {number(found + rule.margin)} or more 8 times in 10."


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
    "absolute_error_p90": "90th percentile of the absolute error",
}


def spoken(metric: str) -> str:
    """A metric's name within a sentence."""
    return _SPOKEN.get(metric, metric.replace("_", " "))


def label(metric: str) -> str:
    """A metric's name at the beginning of a sentence."""
    name = spoken(metric)
    return name[0].upper() + name[1:]


def number(value: float) -> str:
    """Four digits that count; what is none in words."""
    return f"{value:.4g}" if math.isfinite(value) else "not a number" if math.isnan(value) else "infinite"


def signed(value: float) -> str:
    """Three digits that count, with a sign."""
    return f"{value:+.3g}" if value else "0"


def budgeted(value: float) -> str:
    """A cost or its limit: ``1,048,576``, ``4.2``."""
    return f"{value:,.0f}" if math.isfinite(value) and value >= 1000 else f"{value:.3g}" if math.isfinite(value) else number(value)


def _rounded(value: int) -> str:
    """Two digits that count: ``2,000``, ``49``."""
    scale = 10 ** max(0, len(str(value)) - 2)
    return f"{round(value / scale) * scale:,}"
