"""Windows: what is dealt to them, that labels which lie together are spread, and that nothing but windows is kept in memory."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refit.batches import Position, read_batches
from refit.config import BatchesConfig
from refit.shards import ROW_GROUP_ROWS
from refit.streaming import Course, deal_groups, draw_numbers, draw_validation
from tests.refit.small import job_of, keep, stored

BATCH = 256
GOLDEN = [15934997034538813590, 5974038831710081363, 6215707385546428567]


# ---- quality of the shuffle


def chi_square(labels, num_classes):
    """Chi-square of the label counts of full batches against what all rows lead to expect, a degree of freedom; 1 is chance."""
    batches = labels[: len(labels) // BATCH * BATCH].reshape(-1, BATCH)
    counts = np.stack([(batches == label).sum(axis=1) for label in range(num_classes)], axis=1)
    expected = BATCH * np.bincount(labels, minlength=num_classes) / len(labels)
    return float(((counts - expected) ** 2 / expected).sum(axis=1).mean() / (num_classes - 1))


def sorted_labels(folder, engine, num_rows, num_classes):
    labels = np.sort(np.random.default_rng(0).integers(0, num_classes, num_rows))
    job = job_of("y", fit__batch_size=BATCH, batches__engine=engine, target__kind="classes")
    return keep(folder, job, stored(x=np.arange(num_rows, dtype=np.float32), y=labels), group_rows=ROW_GROUP_ROWS).open()


def one_epoch(source):
    batches = read_batches(source, batch_size=BATCH, seed=1, start=Position(0, 0))
    return np.concatenate([label for _, label in itertools.islice(batches.as_numpy_iterator(), -(-source.num_rows // BATCH))])


def test_streaming_spreads_sorted_labels_over_all_batches(tmp_path):
    ten = one_epoch(sorted_labels(tmp_path, "streaming", 4 * BatchesConfig().window_rows, 10))
    for labels, num_classes in [(ten, 10), (ten // 5, 2)]:  # halves of sorted labels are sorted, too
        assert chi_square(labels, num_classes) <= 3
        windows = np.array_split(labels, 4)
        assert all(abs(np.mean(window == 0) - 1 / num_classes) < 0.03 for window in windows)


def test_rows_in_memory_spread_sorted_labels_as_chance_does(tmp_path):
    assert chi_square(one_epoch(sorted_labels(tmp_path, "resident", 1 << 19, 10)), 10) <= 1.1


def test_labels_that_are_not_spread_are_seen():
    assert chi_square(np.sort(np.random.default_rng(0).integers(0, 10, 1 << 16)), 10) > 100


# ---- dealing


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(0, 30), min_size=1, max_size=80), num_windows=st.integers(1, 12), seed=st.integers(0, 2**31 - 1))
def test_every_group_with_rows_is_dealt_once(counts, num_windows, seed):
    order = deal_groups(np.array(counts), num_windows, seed=seed, epoch=3)
    assert sorted(order) == [number for number, count in enumerate(counts) if count]


@given(num_windows=st.integers(1, 9), hands=st.integers(1, 9), epoch=st.integers(0, 2**40))
def test_each_window_gets_one_of_every_run_of_neighbours(num_windows, hands, epoch):
    order = deal_groups(np.ones(num_windows * hands, np.int64), num_windows, seed=1, epoch=epoch)
    for hand in order.reshape(num_windows, hands):
        assert sorted(hand // num_windows) == list(range(hands))


def test_a_group_comes_to_every_window_equally_often():
    windows = [np.flatnonzero(deal_groups(np.ones(12, np.int64), 4, seed=0, epoch=epoch) == 11)[0] // 3 for epoch in range(2000)]
    assert np.abs(np.bincount(windows) - 500).max() < 100  # five standard deviations of chance


class Groups:
    """What a course asks of row groups."""

    def __init__(self, counts):
        self.num_chosen = np.array(counts)


@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=40), window_rows=st.integers(1, 100))
def test_windows_take_each_row_of_the_order_once(counts, window_rows):
    order = np.random.default_rng(0).permutation(len(counts))
    course = Course(Groups(counts), order, window_rows)
    windows = [course.picks(window) for window in range(-(-sum(counts) // window_rows))]
    assert [sum(map(len, picks)) for picks in windows[:-1]] == [window_rows] * (len(windows) - 1)
    taken = [(pick.group, row) for picks in windows for pick in picks for row in range(pick.first, pick.stop)]
    assert taken == [(group, row) for group in order for row in range(counts[group])]


@given(num_pool=st.integers(1, 60), share=st.floats(0.01, 1), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 2**40))
def test_exactly_so_many_validation_rows_are_drawn(num_pool, share, seed, epoch):
    is_pool = np.random.default_rng(seed).permutation(np.arange(90) < num_pool)
    count = max(1, int(num_pool * share))
    drawn = draw_validation(is_pool, count, seed=seed, epoch=epoch)
    assert drawn.sum() == count
    assert not (drawn & ~is_pool).any()


def test_equal_numbers_at_the_bound_leave_the_count_as_it_is(monkeypatch):
    monkeypatch.setattr("refit.streaming.draw_numbers", lambda count, **_: np.arange(count, dtype=np.uint64) // np.uint64(4))
    assert draw_validation(np.ones(12, bool), 6, seed=0, epoch=0).tolist() == [True] * 6 + [False] * 6


def test_drawn_numbers_are_those_that_were_always_drawn():
    assert draw_numbers(3, seed=7, epoch=2, purpose=1).tolist() == GOLDEN
    assert draw_numbers(3, seed=7, epoch=3, purpose=1).tolist() != GOLDEN


# ---- memory and ends

ABANDON = """
import sys
from pathlib import Path
import numpy as np
from refit.batches import Position, read_batches
from tests.refit.small import job_of, keep, stored
job = job_of("y", fit__batch_size=1000, batches__engine="streaming", batches__window_rows=100000)
table = stored(**{f"x{i}": np.arange(400000.0) for i in range(8)}, y=np.arange(400000.0))
batches = iter(read_batches(keep(Path(sys.argv[1]), job, table).open(), batch_size=1000, seed=0, start=Position(0, 0)))
for _ in range(100):
    next(batches)
print("done")
"""


@pytest.mark.slow
def test_a_process_that_leaves_a_stream_half_read_ends_cleanly(tmp_path):
    command = [sys.executable, "-c", ABANDON, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert not [line for line in done.stderr.splitlines() if "Traceback" in line or "finaliz" in line]


def test_a_stream_that_is_given_up_lets_go_of_its_windows(tmp_path):
    table = stored(x=np.zeros((4096, 32, 32, 3), np.uint8), y=np.arange(4096.0))
    job = job_of("y", fit__batch_size=64, batches__engine="streaming", batches__window_rows=1024)
    source = keep(tmp_path, job, table, group_rows=256).open()

    def used():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    found = []
    for epoch in range(30):
        next(iter(read_batches(source, batch_size=64, seed=0, start=Position(epoch, 0))))
        found.append(used())
    assert found[-1] - found[9] < 20  # a window is 3 MiB


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path):
    peaks = []
    for number, num_rows in enumerate((40_000, 320_000)):
        images = np.zeros((num_rows, 32, 32, 3), np.uint8)
        job = job_of("y", fit__batch_size=64, batches__engine="streaming", batches__window_rows=4096)
        source = keep(tmp_path / str(number), job, stored(x=images, y=np.arange(float(num_rows))), group_rows=512).open()
        del images
        batches, most = iter(read_batches(source, batch_size=64, seed=0, start=Position(0, 0))), 0
        start = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
        for _ in range(num_rows // 64):
            next(batches)
            most = max(most, int(Path("/proc/self/statm").read_text().split()[1]) * 4096 - start)
        peaks.append(most)
        del batches, source
    window = 4096 * 3080
    assert max(peaks) < 4 * window + 16 * 280_000
