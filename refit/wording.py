"""Numbers, lists and differences as the report tells them to people."""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from math import floor, isfinite, isnan, log10

from refit.records import Column, Comparison, WarmStart

_SCORES = re.compile(r"accuracy|auc|precision|recall|f1")
_LOSSES = re.compile(r"loss|error|deviance|\b(?:rmse|mae|mse|mape|msle|brier|ece)\b")
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MAX_LISTED = 12
_MAX_NAMED = 4
_MAX_CHARACTERS = 40
_LARGEST_WRITTEN_OUT = 1e12

ABSENT = "\N{EN DASH}"
TIMES = " \N{MULTIPLICATION SIGN} "
NBSP = "\N{NO-BREAK SPACE}"


def typeset(number: str) -> str:
    """A real minus sign in place of the hyphen."""
    return number.replace("-", "\N{MINUS SIGN}")


def format_number(value: float | None) -> str:
    """Three decimals or four significant digits, thousands apart; NaN in words."""
    if value is None:
        return ABSENT
    if not isfinite(value):
        return "not a number" if isnan(value) else "∞" if value > 0 else typeset("-∞")
    size = abs(value)
    if 0 < size < 0.001 or size >= _LARGEST_WRITTEN_OUT:
        return _format_power(value)
    decimals = 3 if size < 10 else max(0, 3 - floor(log10(size)))
    return typeset(f"{value:,.{decimals}f}")


def _format_power(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return typeset(mantissa) + f"{TIMES}10" + str(int(exponent)).translate(_SUPERSCRIPTS)


def format_p_value(value: float) -> str:
    """As a number; what a double cannot tell from zero is not called zero."""
    return "below 10⁻³⁰⁰" if value == 0 else format_number(value)


def percent(share: float) -> str:
    """A share in a sentence: ``0.25 %``, ``34 %``; what is not all or nothing is not written as 100 or 0."""
    if 0 < share < 0.0001:
        return "below 0.01 %"
    if 0.9999 < share < 1:
        return "above 99.99 %"
    return f"{100 * share:.3g} %" if share < 0.99 else f"{100 * share:.4g} %"


def format_share(share: float) -> str:
    """A share in a table or beside a figure, as ``percent`` tells it: ``12.3 %``, ``< 0.01 %``."""
    if not isfinite(share):
        return format_number(share)
    return percent(share).replace("below", "<").replace("above", ">").replace(" %", f"{NBSP}%")


def format_ticks(values: Sequence[float]) -> list[str]:
    """Numbers of one axis, with as many decimals as tell them apart."""
    if not all(map(isfinite, values)):
        return [format_number(value) for value in values]
    size, span = max(map(abs, values)), max(values) - min(values)
    if size and not 1e-4 <= size < _LARGEST_WRITTEN_OUT:
        return [_format_power(value) if value else "0" for value in values]
    decimals = min(12, max(0, 1 - floor(log10(span)))) if span else 6
    return [_strip(f"{value:,.{decimals}f}") for value in values]


def _strip(number: str) -> str:
    """Without zeros at the end of its decimals, and without the sign of a zero."""
    short = number.rstrip("0").rstrip(".") if "." in number else number
    return "0" if short == "-0" else typeset(short)


def format_moments(seconds: Sequence[float]) -> list[str]:
    """Dates of one axis from seconds since 1970, with the time of day where they are less than three days apart."""
    form = "%Y-%m-%d" if max(seconds) - min(seconds) >= 3 * 86400 else "%m-%d %H:%M"
    try:
        return [datetime.fromtimestamp(value, UTC).strftime(form) for value in seconds]
    except (ValueError, OverflowError, OSError):
        return format_ticks(seconds)


def format_seconds(seconds: float | None) -> str:
    """Two units at most: ``0.8 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds is None or not isfinite(seconds):
        return ABSENT
    if seconds < 59.5:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 3599.5:
        return "{} min {} s".format(*divmod(round(seconds), 60))
    return "{} h {} min".format(*divmod(round(seconds / 60), 60))


def format_bytes(num_bytes: float) -> str:
    """Decimal units: ``1.4 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" or num_bytes >= 100 else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"


def format_time(moment: datetime) -> str:
    """Date and time in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def format_list(values: Iterable[object]) -> str:
    """The first few, and how many there are."""
    texts = [str(value) for value in values]
    if len(texts) <= _MAX_LISTED:
        return ", ".join(texts)
    return f"{', '.join(texts[:_MAX_LISTED])}, … ({len(texts):,} in all)"


def name_some(names: Sequence[str]) -> str:
    """``fare, age``; of many the first, and how many more there are."""
    listed = ", ".join(names[:_MAX_NAMED])
    return f"{listed} and {len(names) - _MAX_NAMED:,} more" if len(names) > _MAX_NAMED else listed


def shorten(text: str) -> str:
    """A value in quotes, its end left out where it is long."""
    return repr(text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + "…")


def counted(number: int, noun: str) -> str:
    """``1 row``, ``1,437 rows``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_column(column: Column) -> str:
    """Its type, or the dtype and shape of its tensors: ``double``, ``uint8`` with the sizes of its axes."""
    return column.type if column.shape is None else f"{column.dtype} {TIMES.join(map(str, column.shape))}"


def is_score(metric: str) -> bool:
    """Whether the metric lies between 0 and 1, so that differences are told in points (hundredths)."""
    return bool(_SCORES.search(metric))


def is_lower_better(metric: str) -> bool:
    """Whether less is better."""
    return bool(_LOSSES.search(metric.replace("_", " ")))


def format_differences(metric: str, values: Sequence[float]) -> list[str]:
    """Signed, in points for scores, all with as many decimals as show two digits of the widest."""
    scaled = [value * (100 if is_score(metric) else 1) for value in values]
    widest = max((abs(value) for value in scaled if isfinite(value)), default=0.0)
    decimals = min(6, max(0, 1 - floor(log10(widest)))) if widest else 1
    return [typeset(f"{value:+,.{decimals}f}") if isfinite(value) else format_number(value) for value in scaled]


def format_milliseconds(value: float) -> str:
    """``1.24 ms``: three significant digits."""
    return f"{value:.3g} ms" if isfinite(value) else format_number(value)


def spoken(metric: str) -> str:
    """A metric's name as people say it."""
    return metric.replace("_", " ")


def tell_evidence(comparison: Comparison) -> str:
    """A difference with its interval: ``+0.3 points, 95 % interval -0.5 to +1.1, 360 rows``."""
    difference, low, high = format_differences(comparison.metric, (comparison.difference, comparison.low, comparison.high))
    points = " points" if is_score(comparison.metric) else ""
    return f"{difference}{points}, {comparison.confidence * 100:g} % interval {low} to {high}, {counted(comparison.num_rows, 'row')}"


def tell_start(start: WarmStart) -> str:
    """What a fit took over from the version that served, or why it took nothing."""
    if start.why_not:
        return f"The fit started afresh: {start.why_not}."
    fresh = f"; fresh: {format_list(start.fresh)}" if start.fresh else ""
    num_taken = f"{start.num_taken} of {start.num_variables} weights"
    share = percent(start.num_taken_parameters / max(1, start.num_parameters))
    told = [f"Started from version {start.version}: {num_taken} ({share} of the parameters) taken over{fresh}."]
    told += [f"Of {name} the rows of {known:,} of {all_:,} tokens." for name, (known, all_) in start.tokens.items()]
    if start.shifted:
        told.append(f"Statistics have changed since, and with them what numbers mean: {format_list(start.shifted)}.")
    if start.num_seen_validation:
        rows = counted(start.num_seen_validation, "validation row")
        told.append(f"It had been trained on {rows}: what early stopping sees is too good.")
    return " ".join(told)
