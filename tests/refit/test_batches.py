"""A batch is a pure function of (split, seed, epoch, step), and columns come back as they went in."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refit.batches import LABEL, Position, count_steps, pack_rows, read_batches, read_in_order
from refit.errors import DataError
from refit.splits import Rows
from tests.refit.small import job_of, plan_of, stored

START = Position(0, 0)


def numbered(num_rows):
    table = stored(row=np.arange(num_rows, dtype=np.float64), y=np.arange(num_rows, dtype=np.float64))
    plan = plan_of(job_of("y", fit__batch_size=1), table)
    return pack_rows(Rows("train", table), plan.features, plan.target)


def rows_of(dataset, num_batches):
    """The row numbers of the first batches; feature and label of a row must have stayed together."""
    found = []
    for features, label in itertools.islice(dataset.as_numpy_iterator(), num_batches):
        np.testing.assert_array_equal(features["row"], label)
        found.append(features["row"].astype(int).tolist())
    return found


def epochs_of(packed, num_epochs, *, batch_size=8, seed=1):
    steps = count_steps(packed.num_rows, batch_size)
    batches = rows_of(read_batches(packed, batch_size=batch_size, seed=seed, start=START), num_epochs * steps)
    return [batches[epoch * steps : (epoch + 1) * steps] for epoch in range(num_epochs)]


@settings(max_examples=12, deadline=None)
@given(num_rows=st.integers(1, 60), batch_size=st.integers(1, 70), seed=st.integers(0, 2**31 - 1))
def test_each_row_comes_once_an_epoch(num_rows, batch_size, seed):
    for batches in epochs_of(numbered(num_rows), 2, batch_size=batch_size, seed=seed):
        assert sorted(itertools.chain(*batches)) == list(range(num_rows))
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
        assert len(batches[-1]) == (num_rows - 1) % batch_size + 1


@pytest.mark.parametrize("step", [0, 3, 6])
def test_a_batch_produced_first_is_the_one_that_iterating_reaches(step):
    packed = numbered(53)
    reached = epochs_of(packed, 5)
    flat = [*reached[3][step:], *reached[4]]
    assert rows_of(read_batches(packed, batch_size=8, seed=1, start=Position(3, step)), len(flat)) == flat


def test_only_the_first_epoch_of_a_stream_begins_at_a_later_step():
    packed = numbered(20)
    batches = rows_of(read_batches(packed, batch_size=8, seed=1, start=Position(2, 2)), 4)
    assert [len(batch) for batch in batches] == [4, 8, 8, 4]
    assert sorted(itertools.chain(*batches[1:])) == list(range(20))


def test_the_same_seed_gives_the_same_batches_and_another_seed_others():
    packed = numbered(100)
    first, again, other = (epochs_of(packed, 3, seed=seed) for seed in (7, 7, 8))
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_the_order_does_not_depend_on_what_else_lies_in_the_rows():
    wide = stored(row=np.arange(40.0), image=np.zeros((40, 4, 4, 1), np.uint8), y=np.arange(40.0))
    plan = plan_of(job_of("y", fit__batch_size=8), wide)
    packed = pack_rows(Rows("train", wide), plan.features, plan.target)
    assert epochs_of(packed, 2) == epochs_of(numbered(40), 2)


def test_orders_of_epochs_and_seeds_are_uncorrelated():
    packed = numbered(2000)
    orders = [list(itertools.chain(*e)) for seed in (0, 1) for e in epochs_of(packed, 4, batch_size=500, seed=seed)]
    orders.append(list(range(2000)))
    correlations = np.corrcoef(np.array(orders)) - np.eye(len(orders))
    assert np.abs(correlations).max() < 5 / np.sqrt(2000)  # five standard deviations of chance


def test_reading_in_order_gives_every_row_once_and_ends():
    dataset = read_in_order(numbered(21), batch_size=8)
    assert int(dataset.cardinality()) == 3
    batches = rows_of(dataset, 10)
    assert list(itertools.chain(*batches)) == list(range(21))
    assert [len(batch) for batch in batches] == [8, 8, 5]


# ---- columns

WORDS = ["Zürich", None, "東京", "", "naïve 🦊", "Zürich", "a" * 300, "\t"]
NUMBERS = [0.1, None, -0.0, 1e30, float("nan"), 5e-45, float("inf"), 7.0]
WHOLE = [-(2**53) - 1, None, 0, 2**63 - 1, 5, 5, 5, -1]


@pytest.fixture(scope="module")
def everything():
    generator = np.random.default_rng(0)
    table = stored(
        number=NUMBERS,
        truth=[True, None, False, True, True, False, False, True],
        word=WORDS,
        whole=WHOLE,
        bytes=generator.integers(0, 256, (8, 3, 2, 3), dtype=np.uint8),
        floats=generator.normal(size=(8, 2, 3, 1)).astype(np.float32),
        label=["b", "a", "c", "b", "a", "c", "c", "é"],
    )
    features = {
        "number": {"kind": "numeric"},
        "truth": {"kind": "category"},
        "word": {"kind": "category"},
        "whole": {"kind": "category"},
        "bytes": {"kind": "image"},
        "floats": {"kind": "image"},
    }
    job = job_of("label", features=features, fit__batch_size=3)
    plan = plan_of(job, table)
    return table, plan, pack_rows(Rows("train", table), plan.features, plan.target)


def images(table, name, dtype, shape):
    return np.frombuffer(b"".join(table[name].to_pylist()), dtype).reshape(-1, *shape)


def expected_columns(table):
    missing = -(2**63)
    return {
        "number": np.array([float("nan") if v is None else v for v in NUMBERS], np.float32),
        "truth": np.array([missing if v is None else int(v) for v in table["truth"].to_pylist()]),
        "word": np.array([(v or "").encode() for v in WORDS], dtype=object),
        "whole": np.array([missing if v is None else v for v in WHOLE]),
        "bytes": images(table, "bytes", np.uint8, (3, 2, 3)),
        "floats": images(table, "floats", np.float32, (2, 3, 1)),
    }


def test_every_column_comes_back_as_it_went_in(everything):
    table, plan, packed = everything
    batches = list(read_in_order(packed, batch_size=3).as_numpy_iterator())
    for name, expected in expected_columns(table).items():
        received = np.concatenate([features[name] for features, _ in batches])
        assert received.dtype == expected.dtype
        np.testing.assert_array_equal(received, expected, err_msg=name)
    labels = np.concatenate([label for _, label in batches])
    assert [plan.target.classes[code] for code in labels] == table["label"].to_pylist()


def test_shuffled_rows_keep_all_their_columns(everything):
    table, _, packed = everything
    expected = expected_columns(table)
    by_image = {image.tobytes(): row for row, image in enumerate(expected["bytes"])}
    for features, _ in itertools.islice(read_batches(packed, batch_size=3, seed=0, start=START).as_numpy_iterator(), 6):
        rows = [by_image[image.tobytes()] for image in features["bytes"]]
        for name, values in expected.items():
            np.testing.assert_array_equal(features[name], values[rows], err_msg=name)


def test_the_sign_of_zero_and_every_bit_of_a_float_survive(everything):
    _, _, packed = everything
    features, _ = next(read_in_order(packed, batch_size=8).as_numpy_iterator())
    finite = [i for i, v in enumerate(NUMBERS) if v is not None and v == v]
    expected = np.array([NUMBERS[i] for i in finite], np.float32)
    np.testing.assert_array_equal(features["number"][finite].view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("shuffled", [True, False])
def test_elements_are_what_the_plan_says(everything, shuffled):
    _, plan, packed = everything
    dataset = read_batches(packed, batch_size=3, seed=0, start=START) if shuffled else read_in_order(packed, batch_size=3)
    features, label = dataset.element_spec
    told = {name: f"{spec.dtype.name} {['batch', *spec.shape[1:]]}".replace("'", "") for name, spec in {**features, LABEL: label}.items()}
    assert told == plan.elements
    assert told["bytes"] == "uint8 [batch, 3, 2, 3]"
    assert told["word"] == "string [batch]"
    assert all(spec.shape[0] is None for spec in (*features.values(), label))


def test_the_plan_tells_the_bytes_of_a_row_and_the_steps_of_an_epoch(everything):
    table, plan, packed = everything
    assert (plan.row_bytes, plan.steps_per_epoch, packed.num_rows) == (packed.matrix.shape[1], 3, len(table))


def test_a_split_without_a_word_can_be_packed():
    train = stored(word=["a", "b"], y=[1.0, 2.0])
    plan = plan_of(job_of("y", fit__batch_size=1), train)
    packed = pack_rows(Rows("test", stored(word=["x", None], y=[1.0, 2.0]).slice(1)), plan.features, plan.target)
    features, _ = next(read_in_order(packed, batch_size=8).as_numpy_iterator())
    assert features["word"].tolist() == [b""]


# ---- refusals


def test_a_batch_larger_than_the_train_split_is_refused():
    with pytest.raises(DataError, match=r"3 rows, fewer than a batch of 4"):
        plan_of(job_of("y", fit__batch_size=4), stored(x=[1.0, 2.0, 3.0], y=[1.0, 2.0, 3.0]))


def test_a_missing_image_is_refused():
    table = stored(image=np.zeros((2, 2, 2, 1), np.uint8), y=[1.0, 2.0])
    broken = table.set_column(0, table.schema.field("image"), pa.array([None, b"\0" * 4], pa.binary(4)))
    plan = plan_of(job_of("y", fit__batch_size=1), table)
    with pytest.raises(DataError, match=r'1 values of "image" are missing'):
        pack_rows(Rows("train", broken), plan.features, plan.target)


@pytest.mark.parametrize(("num_rows", "batch_size", "steps"), [(1, 1, 1), (8, 8, 1), (9, 8, 2), (7, 8, 1)])
def test_the_last_batch_counts_as_a_step(num_rows, batch_size, steps):
    assert count_steps(num_rows, batch_size) == steps
