"""What ``bench_batches.py`` runs: data, refit's side, its contenders, and the clocks."""


class AbsentError(Exception):
    """A contender cannot take part, since its package is not installed. The text stands in the table."""
