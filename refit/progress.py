"""What an ingest and a fit tell while they run, and the bars that people see in a terminal."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@dataclass(frozen=True)
class FitProgress:
    """Where a fit is: counts of what is done, the newest values by name, and how fast it goes."""

    epoch: int
    num_epochs: int
    step: int
    steps_per_epoch: int
    values: dict[str, float]
    examples_per_second: float = 0.0
    is_stopped: bool = False

    @property
    def is_epoch_end(self) -> bool:
        """Whether the epoch's last step is done and its validation too."""
        return self.step == self.steps_per_epoch

    @property
    def is_fit_end(self) -> bool:
        """Whether no further epoch follows: all are done, or something stopped the fit early."""
        return self.is_epoch_end and (self.is_stopped or self.epoch + 1 == self.num_epochs)


OnProgress = Callable[[FitProgress], None]


@dataclass(frozen=True)
class IngestProgress:
    """Where an ingest is: ``done`` of ``total`` new inputs; rows read and rejected of the present one."""

    name: str
    done: int
    total: int
    num_read: int = 0
    num_rejected: int = 0


OnIngestProgress = Callable[[IngestProgress], None]


@dataclass(frozen=True)
class PredictionProgress:
    """Where a prediction is: rows done, of about ``total`` where that can be told, and rows rejected."""

    num_done: int
    num_rejected: int
    total: int | None
    rows_per_second: float


OnPredictionProgress = Callable[[PredictionProgress], None]


def ignore_progress(_: FitProgress) -> None:
    """Tell nobody."""


def describe(values: Mapping[str, float]) -> str:
    """``loss 0.0912 · val_loss 0.1034``."""
    return " · ".join(f"{name} {value:.4g}" for name, value in values.items())


@contextlib.contextmanager
def ingest_bar(console: Console) -> Iterator[OnIngestProgress]:
    """A bar over new inputs with the rows of the present one; silent where the console is no terminal."""
    columns = (
        TextColumn("[bold]ingest[/]"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[told]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("ingest", total=None, told="looking for new inputs")

        def show(progress: IngestProgress) -> None:
            rejected = f", {progress.num_rejected:,} rejected" if progress.num_rejected else ""
            told = f"{progress.name[-60:]}: {progress.num_read:,} rows{rejected}"
            bar.update(task, completed=progress.done, total=progress.total, told=escape(told))

        yield show


@contextlib.contextmanager
def terminal_bar(console: Console) -> Iterator[OnProgress]:
    """A bar over epochs and steps; silent where the console is no terminal."""
    columns = (
        TextColumn("[bold]fit[/]  epoch {task.fields[epoch]}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[told]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("fit", total=None, epoch="1", told="compiling the first step")

        def show(progress: FitProgress) -> None:
            done = progress.epoch * progress.steps_per_epoch + progress.step
            bar.update(
                task,
                completed=done,
                total=progress.num_epochs * progress.steps_per_epoch,
                epoch=f"{progress.epoch + 1}/{progress.num_epochs}",
                told=f"{progress.examples_per_second:,.0f} examples/s · {describe(progress.values)}",
            )

        yield show


@contextlib.contextmanager
def prediction_bar(console: Console) -> Iterator[OnPredictionProgress]:
    """A bar over rows; silent where the console is no terminal."""
    columns = (
        TextColumn("[bold]predict[/]"),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[told]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("predict", total=None, told="loading the model")

        def show(progress: PredictionProgress) -> None:
            rejected = f", {progress.num_rejected:,} rejected" if progress.num_rejected else ""
            told = f"{progress.num_done:,} rows{rejected} · {progress.rows_per_second:,.0f} rows/s"
            bar.update(task, completed=progress.num_done, total=progress.total, told=told)

        yield show
