"""How many steps are run at once is measured where that is worth its time, and changes nothing else."""

import pytest

from refit.pace import Pace


class Machine:
    """A clock that is moved by what is run: so long for a step, and so long for each call beside."""

    def __init__(self, step: float, call: float) -> None:
        self.now, self._step, self._call = 0.0, step, call

    def run(self, pace: Pace, steps_per_epoch: int, num_calls: int) -> None:
        done = 0
        for _ in range(num_calls):
            count = min(pace.size, steps_per_epoch - done)
            with pace.timing(count):
                self.now += count * self._step + (self._call if count == pace.size else count * self._call)
            done = (done + count) % steps_per_epoch


def measured(step: float, call: float, *, steps_per_epoch: int = 500, epochs: int = 200, num_calls: int = 60) -> Pace:
    machine = Machine(step, call)
    pace = Pace("auto", steps_per_epoch=steps_per_epoch, num_steps=epochs * steps_per_epoch, clock=lambda: machine.now)
    machine.run(pace, steps_per_epoch, num_calls)
    return pace


@pytest.mark.parametrize(
    ("step", "call", "size"),
    [
        (0.001, 0.0009, 52),  # a tenth of a second
        (0.0002, 0.001, 64),  # no more than 64
        (0.01, 0.00001, 1),  # groups save nothing
        (0.09, 0.02, 1),  # two would take longer than a tenth of a second
    ],
)
def test_groups_are_kept_where_they_are_faster(step, call, size):
    pace = measured(step, call)
    assert (pace.size, pace.chosen) == (size, size)


def test_nothing_is_tried_in_a_short_fit():
    assert measured(0.001, 0.001, epochs=20).chosen == 1


def test_a_group_is_no_longer_than_an_epoch():
    assert measured(0.001, 0.001, steps_per_epoch=7, epochs=10_000).chosen == 7


def test_nothing_is_decided_before_it_was_measured():
    pace = measured(0.001, 0.001, num_calls=10)
    assert (pace.size, pace.chosen) == (1, None)


@pytest.mark.parametrize(("asked", "chosen", "size"), [(5, None, 5), (5, 20, 5), ("auto", 20, 20), (50, None, 30), ("auto", 64, 30)])
def test_what_was_asked_for_or_measured_before_is_taken_and_fits_an_epoch(asked, chosen, size):
    pace = Pace(asked, steps_per_epoch=30, num_steps=1000, chosen=chosen)
    assert (pace.size, pace.chosen) == (size, size)
