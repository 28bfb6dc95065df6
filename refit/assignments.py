"""Rules by which rows are divided, as pure functions of arrays: by hash, evenly by class, by time, and into folds.

A side is a small number: 0 train, 1 validation, 2 test, 3 no side; ``UNASSIGNED`` stands where none is known yet.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refit.config import SplitConfig, duration_seconds
from refit.records import SIDES, Side

Hashes = npt.NDArray[np.uint64]
Sides = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.int32]
Times = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

SIDE_CODES: dict[Side, int] = {side: code for code, side in enumerate(SIDES)}
TRAIN, VALIDATION, TEST = (SIDE_CODES[side] for side in SIDES)
NO_SIDE, UNASSIGNED, NO_FOLD = 3, 254, 255
CHUNK_ROWS = 1 << 17  # so that what is computed on the way stays small beside the rows


def chunks(num_rows: int) -> Iterator[slice]:
    """Slices of ``CHUNK_ROWS`` rows."""
    return (slice(start, min(start + CHUNK_ROWS, num_rows)) for start in range(0, num_rows, CHUNK_ROWS))


# ---- by hash


def assign_sides(hashes: Hashes, split: SplitConfig) -> Sides:
    """Side of each row by its hash.

    Args:
        hashes: uint64 ``[rows]``, uniform over the whole range.
        split: the shares. The lowest hashes are the test split, the next the validation split.

    Returns:
        uint8 ``[rows]``.
    """
    test, validation = float(split.test), float(split.validation)
    sides = np.full(len(hashes), TRAIN, dtype=np.uint8)
    sides[hashes < threshold(test + validation)] = VALIDATION
    sides[hashes < threshold(test)] = TEST
    return sides


def threshold(share: float) -> np.uint64:
    """The number below which this share of all hashes lies."""
    return np.uint64(min(round(share * 2**64), 2**64 - 1))


def assign_folds(hashes: Hashes, num_folds: int) -> Sides:
    """Fold of each row by its hash, mixed anew: those of one side are no longer uniform over the whole range.

    Returns:
        uint8 ``[rows]`` below ``num_folds``.
    """
    folds = np.empty(len(hashes), dtype=np.uint8)
    for rows in chunks(len(hashes)):
        folds[rows] = (_mix(hashes[rows]) >> np.uint64(32)) * np.uint64(num_folds) >> np.uint64(32)
    return folds


def _mix(words: Hashes) -> Hashes:
    """SplitMix64's output function. Source: Steele, Lea, Flood (2014), https://doi.org/10.1145/2660193.2660195."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


# ---- evenly by class


def unite_classes(keys: Hashes, classes: Codes) -> Codes:
    """Give rows with one key one class, the least of theirs, so that they stay together; the array is changed in place.

    Args:
        keys: uint64 ``[rows]``.
        classes: int32 ``[rows]``.
    """
    order = np.argsort(keys)
    is_repeated = np.zeros(len(keys), dtype=bool)
    for rows in chunks(max(0, len(keys) - 1)):
        later = slice(rows.start + 1, rows.stop + 1)
        same = keys[order[rows]] == keys[order[later]]
        is_repeated[rows] |= same
        is_repeated[later] |= same
    order = order[is_repeated]
    if len(order):
        repeated = keys[order]
        starts = np.flatnonzero(np.concatenate([[True], repeated[1:] != repeated[:-1]]))
        classes[order] = np.repeat(np.minimum.reduceat(classes[order], starts), np.diff(starts, append=len(order)))
    return classes


def assign_evenly(keys: Hashes, classes: Codes, sides: Sides, shares: tuple[float, float, float]) -> None:
    """Assign rows so that each class comes as close to the shares as whole rows can; assigned rows stay.

    Args:
        keys: uint64 ``[rows]``; rows with equal keys have equal classes and come to one side.
        classes: int32 ``[rows]`` from 0.
        sides: uint8 ``[rows]``; those that are ``UNASSIGNED`` are set.
        shares: of train, validation and test; they add up to 1.
    """
    for code in range(int(classes.max(initial=-1)) + 1):
        of_class = classes == code
        train, validation, test = (int(np.count_nonzero(of_class & (sides == side))) for side in (TRAIN, VALIDATION, TEST))
        new = of_class & (sides == UNASSIGNED)
        ordered = keys[new]
        ordered.sort()
        wanted = apportion((train, validation, test), len(ordered), shares)
        sides[new] = TRAIN
        for side, position in ((VALIDATION, wanted[TEST] + wanted[VALIDATION]), (TEST, wanted[TEST])):
            end = _boundary(ordered, position)
            if end:
                sides[new & (keys <= ordered[end - 1])] = side


def _boundary(ordered: Hashes, position: int) -> int:
    """The place nearest to a position at which equal values are not parted."""
    if position in (0, len(ordered)):
        return position
    first, last = (int(np.searchsorted(ordered, ordered[position], side)) for side in ("left", "right"))
    return first if position - first <= last - position else last


def apportion(known: tuple[int, int, int], num_new: int, shares: tuple[float, float, float]) -> tuple[int, int, int]:
    """How many of the new rows come to each side, so that all rows together are nearest to the shares (least squares).

    Args:
        known: rows that are on each side already.
        num_new: rows to be assigned.
        shares: of the sides; they add up to 1.
    """
    lacking = np.array(shares) * (sum(known) + num_new) - known
    is_open = np.ones(len(known), dtype=bool)
    while (lacking[is_open] < 0).any():
        is_open &= lacking >= 0
        lacking[is_open] += (num_new - lacking[is_open].sum()) / is_open.sum()
    lacking[~is_open] = 0
    whole = np.floor(lacking + 1e-9).astype(np.int64)
    nearest = np.argsort(whole - lacking, kind="stable")
    whole[nearest[: num_new - int(whole.sum())]] += 1
    return int(whole[0]), int(whole[1]), int(whole[2])


def deal_folds(keys: Hashes, classes: Codes, is_dealt: Mask, num_folds: int) -> Sides:
    """Deal the rows of each class round the folds in the order of their keys; equal keys come to one fold.

    Args:
        keys: uint64 ``[rows]``.
        classes: int32 ``[rows]`` from 0, equal where keys are.
        is_dealt: bool ``[rows]``; the others are in no fold.
        num_folds: number of folds.

    Returns:
        uint8 ``[rows]``, ``NO_FOLD`` where a row is in none.
    """
    folds, num_dealt = np.full(len(keys), NO_FOLD, dtype=np.uint8), 0
    for code in range(int(classes.max(initial=-1)) + 1):
        chosen = is_dealt & (classes == code)
        ordered = sorted_once(keys[chosen])
        for rows in chunks(len(keys)):
            of_class = chosen[rows]
            folds[rows][of_class] = (num_dealt + find_places(ordered, keys[rows][of_class])) % num_folds
        num_dealt += len(ordered)
    return folds


def find_places(ordered: Hashes, hashes: Hashes) -> npt.NDArray[np.intp]:
    """Where each hash stands, or would stand, in an ascending list: ``[hashes]``. To search in order is five times as fast."""
    order, places = np.argsort(hashes), np.empty(len(hashes), dtype=np.intp)
    places[order] = np.searchsorted(ordered, hashes[order])
    return places


def sorted_once(hashes: Hashes) -> Hashes:
    """Each hash once, ascending; the array given is sorted in place."""
    hashes.sort()
    is_first = np.ones(len(hashes), dtype=bool)
    np.not_equal(hashes[1:], hashes[:-1], out=is_first[1:])
    return hashes if is_first.all() else hashes[is_first]


# ---- by time


@dataclass(frozen=True)
class Cuts:
    """The last instants before the validation and the test window: microseconds since 1970, UTC."""

    validation: int
    test: int


def find_cuts(times: Times, split: SplitConfig, earlier: Cuts | None) -> Cuts:
    """Where the windows begin: never before those of an earlier split.

    A window that is a share holds that share of the rows, and all rows of the instant at which it begins.

    Args:
        times: int64 ``[rows]``, ascending, microseconds; one row at least.
        split: windows and gap.
        earlier: cuts of the split before, where there was one.
    """
    test = _window_start(times, split.test, end=int(times[-1]))
    test = test if earlier is None else max(test, earlier.test)
    validation = _window_start(times, split.validation, end=test - gap_of(split))
    return Cuts(validation if earlier is None else max(validation, earlier.validation), test)


def _window_start(times: Times, window: float | str, *, end: int) -> int:
    """The last instant before a window that ends with ``end``."""
    if isinstance(window, str):
        return max(end - duration_seconds(window) * 1_000_000, int(times[0]) - 1)
    position = int(np.searchsorted(times, end, "right")) - max(1, round(window * len(times)))
    if position < 0:
        return int(times[0]) - 1
    first = int(np.searchsorted(times, times[position], "left"))
    return int(times[first - 1]) if first else int(times[0]) - 1


def gap_of(split: SplitConfig) -> int:
    """Microseconds before a later window whose rows take no part."""
    return duration_seconds(split.gap) * 1_000_000 if split.gap else 0


def assign_by_time(times: Times, cuts: Cuts, gap: int) -> Sides:
    """Side of each row by its time; rows in a gap are on none.

    Args:
        times: int64 ``[rows]``, microseconds.
        cuts: where the windows begin.
        gap: microseconds before each of them.

    Returns:
        uint8 ``[rows]``.
    """
    sides = np.full(len(times), NO_SIDE, dtype=np.uint8)
    sides[times <= cuts.test - gap] = VALIDATION
    sides[times <= cuts.validation] = NO_SIDE
    sides[times <= cuts.validation - gap] = TRAIN
    sides[times > cuts.test] = TEST
    return sides
