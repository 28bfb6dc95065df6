"""Everything that refit raises on purpose.

::

    RefitError                     1   shown as one paragraph, never as a traceback
    ├── RequestError               2   the request itself was wrong (ValueError)
    │   ├── JobError                   the job: unknown keys, wrong types, impossible combinations, overrides
    │   ├── CodeError                  a "module:attribute" that cannot be used, or options that it does not take
    │   ├── UnknownNameError           a run, model or version that does not exist (LookupError)
    │   └── HomeError                  REFIT_HOME cannot be used (OSError)
    ├── DataError                  1   the data do not allow what was asked (ValueError)
    │   ├── SourceError                a source that is missing or cannot be read
    │   │   ├── NothingThereError          a path that names no file
    │   │   └── RefusedError               one input that cannot be read at all; the others go on without it
    │   └── SchemaMismatchError        columns or types differ from what was pinned or declared
    ├── AlreadyRunningError        1   another process owns the job (RuntimeError)
    ├── FitError                   1   training diverged or cannot go on (ArithmeticError)
    │   ├── DivergedError              its loss is not finite
    │   └── StorageError               its state or model cannot be written; the next start of the job goes on (OSError)
    ├── ProofError                 1   the exported model does not predict what the trained one predicts (RuntimeError)
    ├── PromotionError             1   a version cannot be published (RuntimeError)
    │   └── ChampionMovedError         the champion is not the one that the candidate was judged against
    └── CorruptRecordError         1   a record on disk cannot be read (ValueError)

The number is the exit status of the command. A rejected candidate is a verdict and not an error.
"""

from typing import Any, ClassVar, Self


class RefitError(Exception):
    """An error that says what is wrong, where, what was expected, what was received, and what to do."""

    exit_status: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", expected: str = "", received: str = "", remedy: str = "") -> None:
        """Keep the five parts; ``str`` joins those that are given into one paragraph."""
        super().__init__(what)
        self.what = what
        self.where = where
        self.expected = expected
        self.received = received
        self.remedy = remedy

    def __str__(self) -> str:
        """One paragraph: where, what, expected, received, remedy."""
        text = f"{self.where}: {self.what}" if self.where else self.what
        if self.expected:
            text += f" Expected: {self.expected}."
        if self.received:
            text += f" Received: {self.received}."
        return f"{text} {self.remedy}" if self.remedy else text

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with all parts, so that a worker process can hand the error over."""
        parts = {"where": self.where, "expected": self.expected, "received": self.received, "remedy": self.remedy}
        return type(self)._rebuild, (self.what, parts)

    @classmethod
    def _rebuild(cls, what: str, parts: dict[str, str]) -> Self:
        return cls(what, **parts)


class RequestError(RefitError, ValueError):
    """The request itself was wrong: file, option or name."""

    exit_status = 2


class JobError(RequestError):
    """A job that cannot be run as it is written; all its faults are listed together."""


class CodeError(RequestError):
    """Code named as ``module:attribute`` is not allowed, not importable, or does not take its options."""


class UnknownNameError(RequestError, LookupError):
    """A run, model, version or deployment of that name does not exist."""


class HomeError(RequestError, OSError):
    """The folder for artifacts cannot be written."""

    # OSError defines __str__ and __reduce__ over errno; ours come first in the method resolution order.


class DataError(RefitError, ValueError):
    """The data do not allow what was asked of them."""


class SourceError(DataError):
    """A source that is missing, empty or cannot be read."""


class NothingThereError(SourceError):
    """A path, glob or folder in which there is nothing to read."""


class RefusedError(SourceError):
    """An input that cannot be read at all: truncated, of another kind, empty, not decodable."""


class SchemaMismatchError(DataError):
    """Columns or types differ from what was pinned or declared."""


class AlreadyRunningError(RefitError, RuntimeError):
    """Another process owns this job at the moment."""


class FitError(RefitError, ArithmeticError):
    """Training diverged or cannot go on."""


class DivergedError(FitError):
    """The loss is not finite. ``epoch`` and ``step``, both from 0, say where."""

    epoch = step = 0

    def at(self, epoch: int, step: int) -> Self:
        """The error with the place."""
        self.epoch, self.step = epoch, step
        return self


class StorageError(FitError, OSError):
    """A fit's state or model cannot be written. What was written before is whole, and the next start of the job goes on from there."""

    # OSError defines __str__ and __reduce__ over errno; ours come first in the method resolution order.


class ProofError(RefitError, RuntimeError):
    """The exported model does not give the predictions of the model that was trained."""


class PromotionError(RefitError, RuntimeError):
    """A version cannot be published."""


class ChampionMovedError(PromotionError):
    """The champion changed between judgement and publication."""


class CorruptRecordError(RefitError, ValueError):
    """A record on disk cannot be read."""
