"""Figures of the report: SVG that takes its colours and its font from the page, the same bytes for the same numbers."""

import io
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from math import isfinite, nan

import matplotlib as mpl
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from refit.records import Histogram
from refit.wording import format_ticks, typeset

Points = Sequence[tuple[float, float]]

WIDTH = 340
# Stand-ins for the page's CSS variables: Matplotlib takes no `var()`, so the variables are put in after it has drawn.
INK, MUTED, GRID = "#010203", "#020304", "#030405"
TRAIN, VALIDATION, GOOD, BAD = "#040506", "#050607", "#060708", "#070809"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    TRAIN: "--train",
    VALIDATION: "--validation",
    GOOD: "--good",
    BAD: "--bad",
}
_STYLE: dict[str, object] = {
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.xmargin": 0.03,
    "axes.ymargin": 0.1,
    "figure.constrained_layout.use": True,
    "font.size": 10.5,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
}
_PLOT_WIDTH, _PLOT_HEIGHT = 300, 72
_ROW_HEIGHT = 19
_LABEL_WIDTH = 112
_BARS_WIDTH = 108
_MAX_BARS = 8
_MAX_LABEL = 16.0
_MAX_TITLE = 200
_WIDE = frozenset("MWmw@%")
_STEPS = (1, 2, 2.5, 5, 10)  # of ticks; others put 1.05 on an axis of accuracy
# Few points are shown one by one, many as a line.
_MAX_MARKED_POINTS = 30
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
_NOISE = re.compile(
    r'<defs>\s*<style.*?</style>\s*</defs>|<metadata>.*?</metadata>| id="[a-zA-Z]+\d*[a-z]*(?:\.[a-z]+)?_\d+"| xmlns(?::\w+)?="[^"]*"',
    re.DOTALL,
)


def draw_curve(name: str, train: Points, validation: Points = (), *, best: float | None = None, from_zero: bool = False) -> str:
    """Draw a value over epochs.

    Args:
        name: makes the ids within the SVG differ from those of the page's other figures.
        train: (epoch, value), epochs counted from 1; a value that is not finite leaves a gap.
        validation: the same on the validation split, where it was measured.
        best: the epoch to mark.
        from_zero: whether the axis begins at 0 (a constant would look like noise otherwise).
    """
    with _axes(height=190) as axes:
        for points, colour in ((train, TRAIN), (validation, VALIDATION)):
            _draw_line(axes, points, colour)
        if best is not None:
            axes.axvline(best, color=INK, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
            chosen = [(x, y) for x, y in (validation or train) if x == best and isfinite(y)]
            axes.plot(*_columns(chosen), "o", color=VALIDATION if validation else TRAIN, markersize=7, clip_on=False)
        _set_epochs(axes, [x for x, _ in (*train, *validation)])
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        axes.yaxis.set_major_formatter(FuncFormatter(_tick))
        return _svg(axes, name)


def draw_interval(difference: float, low: float, high: float, *, threshold: float, is_lower_better: bool) -> str:
    """Draw a difference (candidate minus champion) with its interval against zero; the side that passes is tinted."""
    ends = [x for x in (low, high) if isfinite(x)] or [difference]
    reach = 1.25 * max(abs(x) for x in (*ends, difference, threshold)) or 1.0
    with _axes(height=96) as axes:
        axes.grid(visible=False)
        axes.axvspan(*((-reach, threshold) if is_lower_better else (threshold, reach)), color=GOOD, alpha=0.13, linewidth=0)
        axes.axvline(0, color=MUTED, linewidth=1)
        if threshold:
            axes.axvline(threshold, color=GOOD, linewidth=1, linestyle=(0, (3, 3)))
        axes.plot([min(ends), max(ends)], [0, 0], color=VALIDATION, linewidth=3, solid_capstyle="butt")
        axes.plot(ends, [0] * len(ends), "|", color=VALIDATION, markersize=13, markeredgewidth=2)
        axes.plot([difference], [0], "o", color=VALIDATION, markersize=9)
        for side, word in (("left", "worse"), ("right", "better")):
            shown = {"worse": "better", "better": "worse"}[word] if is_lower_better else word
            at = 0.01 if side == "left" else 0.99
            axes.text(at, 0.98, shown, transform=axes.transAxes, ha=side, va="top", color=MUTED)
        axes.set(xlim=(-reach, reach), ylim=(-1, 1.4), yticks=[])
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _tick(x, None) if x <= 0 else f"+{_tick(x, None)}"))
        return _svg(axes, "interval")


def draw_seconds(seconds: Mapping[str, float], labels: Sequence[str]) -> str:
    """Draw a bar for each stage, the first on top, with its label beside it."""
    values = [x if isfinite(x) else 0.0 for x in seconds.values()]
    with _axes(height=22 * len(values) + 12) as axes:
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        bars = axes.barh(range(len(values)), values, height=0.62, color=VALIDATION)
        axes.bar_label(bars, labels=labels, padding=5, color=MUTED)
        axes.set_yticks(range(len(values)), labels=list(seconds), color=INK)
        axes.set(xticks=[], xlim=(0, 1.3 * max(values, default=0) or 1), ylim=(len(values) - 0.5, -0.5))
        return _svg(axes, "seconds")


# ---- histograms, by hand: a page holds hundreds, and each of Matplotlib's would be ten times as large


def draw_histogram(histogram: Histogram, tell: Callable[[Sequence[float]], list[str]] = format_ticks) -> str:
    """Draw shares of old rows (grey) and new rows (blue): steps over the bins, or a pair of bars for each label.

    Args:
        histogram: a side without values is left out; a share that is not finite counts as none.
        tell: writes numbers of the axis for people.

    Returns:
        SVG without ids, about 1 kB; empty where neither side has values.
    """
    if not histogram.old and not histogram.new:
        return ""
    return _draw_bars(histogram) if histogram.labels else _draw_steps(histogram, tell)


def _draw_steps(histogram: Histogram, tell: Callable[[Sequence[float]], list[str]]) -> str:
    places = _places(histogram.edges)
    if len(places) < 2:
        return ""
    sides = [_densities(shares, places) for shares in (histogram.old, histogram.new)]
    highest = max((y for side in sides for y in side), default=0.0) or 1.0
    old, new = ([y / highest for y in side] for side in sides)
    parts = [
        _path(_steps(places, old), "fill: var(--train); opacity: .5"),
        _path(_steps(places, new), "fill: var(--validation); fill-opacity: .13; stroke: var(--validation); stroke-width: 1.6"),
        _path(f"M0 {_PLOT_HEIGHT}H{_PLOT_WIDTH}", "stroke: var(--line)"),
        _group(_axis(histogram.edges, tell), "--muted"),
    ]
    return _picture(_PLOT_HEIGHT + 17, parts)


def _places(edges: Sequence[float]) -> list[float]:
    """Edges from 0 to 1; equally far from each other where they do not ascend or are not finite."""
    reach = edges[-1] - edges[0] if edges else 0.0
    ascends = all(low < high for low, high in itertools.pairwise(edges))
    if ascends and isfinite(reach) and reach > 0:
        return [(edge - edges[0]) / reach for edge in edges]
    return [index / max(1, len(edges) - 1) for index in range(len(edges))]


def _densities(shares: Sequence[float], places: Sequence[float]) -> list[float]:
    widths = [max(high - low, 1e-6) for low, high in itertools.pairwise(places)]
    return [_finite(share) / width for share, width in zip(shares, widths, strict=False)]


def _finite(share: float) -> float:
    return min(max(share, 0.0), 1.0) if isfinite(share) else 0.0


def _steps(places: Sequence[float], heights: Sequence[float]) -> str:
    if not heights:
        return ""
    steps = (f"V{_round(_PLOT_HEIGHT * (1 - y))}H{_round(_PLOT_WIDTH * x)}" for y, x in zip(heights, places[1:], strict=False))
    return f"M0 {_PLOT_HEIGHT}{''.join(steps)}V{_PLOT_HEIGHT}"


def _axis(edges: Sequence[float], tell: Callable[[Sequence[float]], list[str]]) -> Iterator[str]:
    """Both ends and the middle. Bins of whole numbers end halfway between two: told are the numbers within."""
    half = 0.5 if all(isfinite(edge) and edge % 1 == 0.5 for edge in edges) else 0.0
    low, high = edges[0] + half, edges[-1] - half
    if low == high:
        yield _text(_PLOT_WIDTH / 2, _PLOT_HEIGHT + 14, tell([low])[0], "middle")
        return
    labels = tell([low, low / 2 + high / 2, high])
    for x, label, anchor in zip((0, _PLOT_WIDTH / 2, _PLOT_WIDTH), labels, ("start", "middle", "end"), strict=True):
        yield _text(x, _PLOT_HEIGHT + 14, label, anchor)


def _draw_bars(histogram: Histogram) -> str:
    names, sides = _fold(histogram)
    highest = max((share for side in sides for share in side), default=0.0) or 1.0
    thick = 5 if all(sides) else 9
    tops = [3.5, 9] if all(sides) else [5, 5]
    bars = [
        "".join(
            f"M{_LABEL_WIDTH + 4} {_round(row * _ROW_HEIGHT + top)}h{_round(_BARS_WIDTH * share / highest)}v{thick}H{_LABEL_WIDTH + 4}z"
            for row, share in enumerate(side)
            if share
        )
        for side, top in zip(sides, tops, strict=True)
    ]
    shares = [" → ".join(_percent(side[row]) for side in sides if side) + " %" for row in range(len(names))]
    parts = [
        _path(bars[0], "fill: var(--train)"),
        _path(bars[1], "fill: var(--validation)"),
        _group((_text(0, row * _ROW_HEIGHT + 13, name) for row, name in enumerate(names)), "--ink"),
        _group((_text(_PLOT_WIDTH, row * _ROW_HEIGHT + 13, text, "end") for row, text in enumerate(shares)), "--muted"),
    ]
    return _picture(len(names) * _ROW_HEIGHT, parts)


def _fold(histogram: Histogram) -> tuple[list[str], list[list[float]]]:
    """The first labels, the rest together; both sides with a share for each, or with none at all."""
    shown = len(histogram.labels) if len(histogram.labels) <= _MAX_BARS else _MAX_BARS - 1
    names = list(histogram.labels[:shown])
    sides = [[_finite(share) for share in side] for side in (histogram.old, histogram.new)]
    if shown < len(histogram.labels):
        names.append("(others)")
        sides = [[*side[:shown], min(1.0, sum(side[shown:]))] if side else [] for side in sides]
    return names, [[*side, *[0.0] * (len(names) - len(side))][: len(names)] if side else [] for side in sides]


def _percent(share: float) -> str:
    return "<1" if 0 < share < 0.005 else f"{100 * share:.0f}"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    """A text that was cut short has all of it as its title."""
    readable = "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cs") else c for c in " ".join(text.split()))
    cut = _cut(readable or "(blank)")
    title = f"<title>{escape(readable[:_MAX_TITLE])}</title>" if cut != readable and readable else ""
    placed = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{_round(x)}" y="{_round(y)}"{placed}>{title}{escape(cut)}</text>'


def _cut(text: str) -> str:
    width = 0.0
    for index, character in enumerate(text):
        width += _width(character)
        if width > _MAX_LABEL:
            return text[: max(1, index - 1)].rstrip() + "…"
    return text


def _width(character: str) -> float:
    """In units of an ordinary letter."""
    if unicodedata.combining(character):
        return 0.0
    if unicodedata.east_asian_width(character) in "WF":
        return 2.0
    if character in _WIDE:
        return 1.75
    return 1.25 if character.isupper() else 1.0


def _round(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _path(steps: str, css: str) -> str:
    return f'<path d="{steps}" style="{css}"/>' if steps else ""


def _group(texts: Iterator[str], variable: str) -> str:
    return f'<g style="fill: var({variable}); font-size: 12px">{"".join(texts)}</g>'


def _picture(height: float, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {_PLOT_WIDTH} {_round(height)}">{"".join(parts)}</svg>'


# ---- Matplotlib


@contextmanager
def _axes(*, height: float) -> Iterator[Axes]:
    # The default style first, so that nobody's matplotlibrc changes the page.
    with style.context(["default", _STYLE]):
        yield Figure(figsize=(WIDTH / 72, height / 72)).add_subplot()


def _draw_line(axes: Axes, points: Points, colour: str) -> None:
    marker = "o" if len(points) <= _MAX_MARKED_POINTS else ""
    size = 3.2 if len(points) > 1 else 7
    axes.plot(*_columns([(x, y if isfinite(y) else nan) for x, y in points]), color=colour, linewidth=1.8, marker=marker, markersize=size)


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _set_epochs(axes: Axes, epochs: Sequence[float]) -> None:
    first, last = min(epochs, default=1), max(epochs, default=1)
    axes.set(xlim=(first - 0.5, last + 0.5), xticks=[first])
    if first < last:
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=_STEPS, integer=True, min_n_ticks=2))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.set_xlabel("epoch")


def _tick(value: float, _position: int | None) -> str:
    return typeset(f"{value:.6g}")


def _svg(axes: Axes, name: str) -> str:
    """Render without what an HTML page must not repeat: prologue, metadata, namespaces, style rules, unused ids."""
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        axes.get_figure(root=True).savefig(file, format="svg", metadata=_NO_METADATA, transparent=True)  # type: ignore[union-attr]
    text = file.getvalue()
    text = _NOISE.sub("", text[text.index("<svg") :])
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text
