"""Are there rows enough: to split them, to hold each class on each side, and to tell two models apart."""

import math
from collections.abc import Iterator, Mapping
from statistics import NormalDist

from refit.config import Job
from refit.records import CheckRecord
from refit.wording import counted, format_list, shorten

MINIMUM_ROWS = 20
SURE = 0.95  # how probable it must be that no side is empty
ASSUMED_DIFFERENCE = 0.02  # where the job names no margin: two points of accuracy
ASSUMED_DISAGREEMENT = 0.1  # share of rows for which two models of one lineage give different answers
POWER = 0.8  # how probable it is that a difference of that size is told from noise


def check_sizes(job: Job, num_rows: int, num_per_class: Mapping[str, int]) -> Iterator[CheckRecord]:
    """See whether there are rows enough to split, to hold each class on each side, and to compare two models.

    Args:
        job: its split, and the rule and margin of its gate.
        num_rows: in all. Where a group stays together, the sides are as sure only for as many groups.
        num_per_class: rows of each class, as ``count_classes`` gives them; empty for a quantity.
    """
    needed = max(MINIMUM_ROWS, rows_needed_to_split(job))
    too_few = f"{counted(num_rows, 'row')} are too few to split and judge; {needed} at least"
    yield CheckRecord.of("rows", num_rows >= needed, f"{num_rows:,}", too_few)
    rare = [f"{shorten(name)} ({count})" for name, count in num_per_class.items() if count < rows_needed_to_split(job)]
    if num_per_class:
        text = f"train, validation or test may have no row of {format_list(rare)}; {rows_needed_to_split(job)} rows of a class are enough"
        yield CheckRecord.of("classes on each side", not rare, "each class will be on each side", text, only_warns=True)
        yield from _power_check(job, num_rows)


def rows_needed_to_split(job: Job) -> int:
    """Rows of which each side gets one or more with a probability of ``SURE`` for each side."""
    shares = [share for share in (job.split.test, job.split.validation) if isinstance(share, float)]
    if not shares:
        return 0  # windows of time: the split itself says which of them is empty
    smallest = min(*shares, 1 - sum(shares))
    return math.ceil(math.log(1 - SURE) / math.log(1 - smallest))


def _power_check(job: Job, num_rows: int) -> Iterator[CheckRecord]:
    difference = job.gate.champion.margin or ASSUMED_DIFFERENCE
    if difference >= 1 or isinstance(job.split.test, str):
        return
    expected = round(num_rows * job.split.test)
    needed = rows_needed_to_compare(difference, confidence=job.gate.champion.confidence)
    points = f"{100 * difference:g} {'point' if difference == 0.01 else 'points'}"
    held = f"the test split will hold about {counted(expected, 'row')}"
    good = f"{held}, enough to tell a difference of {points} from noise (about {_rounded(needed)} are needed)"
    bad = f"{held}; a difference of {points} can be told from noise with about {_rounded(needed)}"
    yield CheckRecord.of("test rows", expected >= needed, good, bad, only_warns=True)


def rows_needed_to_compare(difference: float, *, confidence: float, disagreement: float = ASSUMED_DISAGREEMENT) -> int:
    """Test rows on which a difference in accuracy of two models is found with a probability of ``POWER``.

    Args:
        difference: in accuracy, between 0 and 1.
        confidence: two-sided, of the interval of the difference.
        disagreement: share of the rows for which one model is right and the other wrong; not below ``difference``.

    Source:
        Connor (1987), Sample size for testing differences in proportions for the paired-sample design,
        Biometrics 43(1):207-211, https://doi.org/10.2307/2531961
    """
    disagreement = max(disagreement, difference)
    z_confidence, z_power = NormalDist().inv_cdf((1 + confidence) / 2), NormalDist().inv_cdf(POWER)
    spread = z_confidence * math.sqrt(disagreement) + z_power * math.sqrt(disagreement - difference**2)
    return math.ceil((spread / difference) ** 2)


def _rounded(number: int) -> str:
    """Two digits that count: ``2,000``, ``49``."""
    scale = 10 ** max(0, len(str(number)) - 2)
    return f"{round(number / scale) * scale:,}"
