"""Options of builders, checked: a ValueError names the option, what it may be, and what it was."""

from collections.abc import Sequence
from numbers import Integral, Real


def check_share(**options: float) -> None:
    """See that each is a share: from 0 to below 1.

    Raises:
        ValueError: one is not.
    """
    for name, value in options.items():
        if not _is_number(value) or not 0 <= value < 1:
            raise ValueError(f"{name} is a share, from 0 to below 1. Received: {value!r}")


def check_not_negative(**options: float) -> None:
    """See that each is 0 or more.

    Raises:
        ValueError: one is not.
    """
    for name, value in options.items():
        if not _is_number(value) or not 0 <= value < float("inf"):
            raise ValueError(f"{name} is 0 or more. Received: {value!r}")


def check_positive(**options: float) -> None:
    """See that each is above 0.

    Raises:
        ValueError: one is not.
    """
    for name, value in options.items():
        if not _is_number(value) or not 0 < value < float("inf"):
            raise ValueError(f"{name} is above 0. Received: {value!r}")


def check_counts(at_least: int = 1, /, **options: int) -> None:
    """See that each is a whole number, and so large.

    Raises:
        ValueError: one is not.
    """
    for name, value in options.items():
        if not _is_count(value, at_least):
            raise ValueError(f"{name} is a whole number, {at_least} at least. Received: {value!r}")


def check_widths(at_least: int = 0, /, **options: Sequence[int]) -> None:
    """See that each is a list of whole numbers above 0, with so many of them.

    Raises:
        ValueError: one is not.
    """
    for name, widths in options.items():
        is_list = isinstance(widths, Sequence) and not isinstance(widths, str)
        if not is_list or len(widths) < at_least or not all(_is_count(width, 1) for width in widths):
            needed = f", {at_least} at least" if at_least else ""
            raise ValueError(f"{name} is a list of whole numbers above 0{needed}. Received: {widths!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_count(value: object, at_least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= at_least
