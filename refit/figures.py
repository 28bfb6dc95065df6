"""Figures of the report: SVG that takes its colours and its font from the page, the same bytes for the same numbers."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite, nan

import matplotlib as mpl
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from refit.wording import typeset

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
        axes.yaxis.set_major_locator(MaxNLocator(5))
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
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=2))
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
