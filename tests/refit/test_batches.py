"""A batch is a pure function of (snapshot, split, seed, epoch, step) with either engine, and columns come back as they went in."""

import itertools
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refit.batches import Position, choose_engine, open_side, read_batches, read_in_order, read_validation, sample_sides
from refit.config import BatchesConfig
from refit.errors import DataError, SourceError
from refit.packing import LABEL
from refit.records import Column, FeaturePlan
from refit.resident import Resident
from refit.row_groups import check_digests
from refit.slicing import count_steps
from refit.streaming import Streaming
from tests.refit.small import job_of, keep, packed, plan_of, stored

START = Position(0, 0)
ENGINES = ["resident", "streaming"]
WINDOW = 1024


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


def numbered(folder, num_rows, engine, *, batch_size=8, sides=None, group_rows=50, shard_rows=700, **more):
    """Rows that know their number, in several shards and many row groups."""
    table = stored(row=np.arange(num_rows, dtype=np.float64), y=np.arange(num_rows, dtype=np.float64))
    job = job_of("y", fit__batch_size=batch_size, batches__engine=engine, batches__window_rows=WINDOW, **more)
    return keep(folder, job, table, sides, shard_rows=shard_rows, group_rows=group_rows)


def rows_of(dataset, num_batches=None):
    """The row numbers of the first batches; feature and label of a row must have stayed together."""
    found = []
    for features, label, *_ in itertools.islice(dataset.as_numpy_iterator(), num_batches):
        np.testing.assert_array_equal(features["row"], label)
        found.append(features["row"].astype(int).tolist())
    return found


def epochs_of(source, num_epochs, *, batch_size=8, seed=1):
    steps = count_steps(source.num_rows, batch_size)
    batches = rows_of(read_batches(source, batch_size=batch_size, seed=seed, start=START), num_epochs * steps)
    return [batches[epoch * steps : (epoch + 1) * steps] for epoch in range(num_epochs)]


def flat(batches):
    return list(itertools.chain(*batches))


# ---- the order


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(num_rows=st.integers(2, 4000), batch_size=st.integers(1, 1500), seed=st.integers(0, 2**31 - 1), group_rows=st.integers(20, 900))
def test_each_row_comes_once_an_epoch(tmp_path_factory, engine, num_rows, batch_size, seed, group_rows):
    batch_size = min(max(batch_size, num_rows // 60), num_rows)
    small = numbered(tmp_path_factory.mktemp("rows"), num_rows, engine, batch_size=batch_size, group_rows=group_rows)
    for batches in epochs_of(small.open(), 2, batch_size=batch_size, seed=seed):
        assert sorted(flat(batches)) == list(range(num_rows))
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
        assert len(batches[-1]) == (num_rows - 1) % batch_size + 1


@pytest.mark.parametrize("step", [0, 31, 62])
def test_a_batch_produced_first_is_the_one_that_iterating_reaches(tmp_path, engine, step):
    source = numbered(tmp_path, 2503, engine, batch_size=40).open()
    reached = epochs_of(source, 5, batch_size=40)
    rest = [*reached[3][step:], *reached[4]]
    assert rows_of(read_batches(source, batch_size=40, seed=1, start=Position(3, step)), len(rest)) == rest


FRESH = """
import sys
from pathlib import Path
from refit.batches import Position, open_side, read_batches
from refit.layout import Layout
from refit.records import BatchesRecord, SnapshotRecord
import numpy as np
for folder in map(Path, sys.argv[1:]):
    snapshot, plan = SnapshotRecord.read(folder / "snapshot.json"), BatchesRecord.read(folder / "plan.json")
    source = open_side(snapshot, plan, Layout(folder), np.load(folder / "sides.npy"), "train")
    features, label = next(read_batches(source, batch_size=40, seed=1, start=Position(3, 17)).as_numpy_iterator())
    print(*features["row"].astype(int).tolist())
"""


def test_batch_17_of_epoch_3_is_the_same_when_a_fresh_process_produces_it_first(tmp_path):
    expected = []
    for engine in ENGINES:
        small = numbered(tmp_path / engine, 2503, engine, batch_size=40)
        small.snapshot.write(tmp_path / engine / "snapshot.json")
        small.plan.write(tmp_path / engine / "plan.json")
        np.save(tmp_path / engine / "sides.npy", small.sides)
        expected.append(epochs_of(small.open(), 4, batch_size=40)[3][17])
    command = [sys.executable, "-c", FRESH, *(str(tmp_path / engine) for engine in ENGINES)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=Path(__file__).parents[2])
    assert [list(map(int, line.split())) for line in done.stdout.splitlines()] == expected


def test_only_the_first_epoch_of_a_stream_begins_at_a_later_step(tmp_path, engine):
    source = numbered(tmp_path, 20, engine).open()
    batches = rows_of(read_batches(source, batch_size=8, seed=1, start=Position(2, 2)), 4)
    assert [len(batch) for batch in batches] == [4, 8, 8, 4]
    assert sorted(flat(batches[1:])) == list(range(20))


def test_a_step_that_no_epoch_has_is_refused(tmp_path, engine):
    with pytest.raises(ValueError, match="20 rows has 3 steps, none is 3"):
        read_batches(numbered(tmp_path, 20, engine).open(), batch_size=8, seed=1, start=Position(0, 3))


def test_the_same_seed_gives_the_same_batches_and_another_seed_others(tmp_path, engine):
    source = numbered(tmp_path, 1500, engine).open()
    first, again, other = (epochs_of(source, 2, batch_size=100, seed=seed) for seed in (7, 7, 8))
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_the_order_does_not_depend_on_what_else_lies_in_the_rows(tmp_path, engine):
    wide = stored(row=np.arange(40.0), image=np.zeros((40, 4, 4, 1), np.uint8), y=np.arange(40.0))
    job = job_of("y", fit__batch_size=8, batches__engine=engine, batches__window_rows=WINDOW)
    source = keep(tmp_path / "wide", job, wide, group_rows=50).open()
    assert epochs_of(source, 2) == epochs_of(numbered(tmp_path / "narrow", 40, engine).open(), 2)


def test_orders_of_epochs_and_seeds_are_uncorrelated(tmp_path, engine):
    source = numbered(tmp_path, 4000, engine).open()
    orders = [flat(epoch) for seed in (0, 1) for epoch in epochs_of(source, 4, batch_size=500, seed=seed)]
    orders.append(list(range(4000)))
    places = np.argsort(orders, axis=1)  # where each row stands
    correlations = np.corrcoef(places) - np.eye(len(places))
    groups = 4000 / 50 if engine == "streaming" else 4000  # rows of a group share a window
    assert np.abs(correlations).max() < 5 / np.sqrt(groups)  # five standard deviations of chance


def test_reading_in_order_gives_every_row_once_and_ends(tmp_path, engine):
    dataset = read_in_order(numbered(tmp_path, 2501, engine).open(), batch_size=8)
    assert int(dataset.cardinality()) == 313
    batches = rows_of(dataset)
    assert flat(batches) == list(range(2501))
    assert [len(batch) for batch in batches] == [*[8] * 312, 5]


def test_rows_that_do_not_count_and_rows_of_other_sides_do_not_come(tmp_path, engine):
    table, dropped = stored(row=np.arange(300.0), y=np.arange(300.0)), [0, 57, *range(100, 150), 299]
    sides = np.random.default_rng(0).choice([0, 1, 2, 3], 300 - len(dropped)).astype(np.uint8)
    live = np.delete(np.arange(300), dropped)
    job = job_of("y", fit__batch_size=8, batches__engine=engine, batches__window_rows=WINDOW)
    small = keep(tmp_path, job, table, sides, shard_rows=170, group_rows=50, dropped=dropped)
    for code, side in enumerate(("train", "validation", "test")):
        assert flat(rows_of(read_in_order(small.open(side), batch_size=8))) == live[sides == code].tolist()
    assert sorted(flat(epochs_of(small.open(), 1)[0])) == live[sides == 0].tolist()
    assert (small.plan.num_train, small.plan.num_validation) == (int((sides == 0).sum()), int((sides == 1).sum()))


def test_a_short_last_batch_can_be_left_out(tmp_path, engine):
    small = numbered(tmp_path, 2503, engine, batch_size=40, batches__drop_remainder=True)
    assert small.plan.steps_per_epoch == 62
    dataset = read_batches(small.open(), batch_size=40, seed=1, start=START, drop_remainder=True)
    assert dataset.element_spec[1].shape == [40]
    batches = rows_of(dataset, 124)
    assert {len(batch) for batch in batches} == {40}
    assert all(len(set(flat(epoch))) == 2480 for epoch in (batches[:62], batches[62:]))
    whole = epochs_of(small.open(), 1, batch_size=40)[0]
    assert whole[:30] == batches[:30]


@pytest.mark.parametrize(("batch_size", "num_workers"), [(40, 4), (41, 3), (700, 2)])
def test_workers_share_each_batch_and_together_they_have_all_of_it(tmp_path, engine, batch_size, num_workers):
    source = numbered(tmp_path, 1503, engine, batch_size=batch_size).open()
    start, steps = Position(1, 1), count_steps(1503, batch_size)
    whole = rows_of(read_batches(source, batch_size=batch_size, seed=1, start=start), steps)
    parts = [
        rows_of(read_batches(source, batch_size=batch_size, seed=1, start=start, worker=worker, num_workers=num_workers), steps)
        for worker in range(num_workers)
    ]
    for step, batch in enumerate(whole):
        joined = [0] * len(batch)
        for worker in range(num_workers):
            joined[worker::num_workers] = parts[worker][step]
        assert joined == batch


@pytest.mark.parametrize(("worker", "num_workers"), [(2, 2), (-1, 2), (0, 9), (0, 0)])
def test_a_worker_without_rows_is_refused(tmp_path, worker, num_workers):
    source = numbered(tmp_path, 20, "resident").open()
    with pytest.raises(ValueError, match="each has a row of a full batch"):
        read_batches(source, batch_size=8, seed=1, start=START, worker=worker, num_workers=num_workers)


def resident_megabytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_over_50_epochs(tmp_path, engine):
    rows = 4000
    table = stored(x=np.zeros((rows, 40, 40, 1), np.uint8), word=[f"word {i}" for i in range(rows)], y=np.arange(float(rows)))
    job = job_of("y", fit__batch_size=500, batches__engine=engine, batches__window_rows=WINDOW)
    source = keep(tmp_path, job, table, group_rows=500).open()  # 6.4 MB an epoch: 320 MB would be seen
    batches = iter(read_batches(source, batch_size=500, seed=0, start=START))
    found = []
    for _ in range(50):
        for _ in range(8):
            next(batches)
        found.append(resident_megabytes())
    assert found[-1] - found[9] < 20


# ---- a sample


def test_a_sample_is_of_train_rows_alone_and_grows_with_them(tmp_path):
    sides = np.array([0, 1, 2, 3] * 1000, np.uint8)
    small = numbered(tmp_path, 4000, "resident", sides=sides, batches__sample=0.3)
    chosen = sample_sides(small.snapshot, small.layout, sides, 0.3)
    assert 240 < (chosen == 0).sum() < 360
    assert (chosen[sides != 0] == sides[sides != 0]).all()
    assert small.plan.num_train == small.open().num_rows == (chosen == 0).sum()
    wider = sample_sides(small.snapshot, small.layout, sides, 0.6)
    assert set(np.flatnonzero(chosen == 0)) < set(np.flatnonzero(wider == 0))
    assert sample_sides(small.snapshot, small.layout, sides, None) is sides


def test_a_sample_smaller_than_a_batch_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"the sample \(0\.01 of the train split\) has \d+ rows?, fewer than a batch of 32"):
        numbered(tmp_path, 300, "resident", batch_size=32, batches__sample=0.01)


# ---- validation rows drawn anew for each epoch


@pytest.fixture
def pool(tmp_path, engine):
    sides = np.repeat([0, 1, 2], [1200, 300, 100])
    return numbered(tmp_path, 1600, engine, batch_size=50, sides=sides, split__resplit_each_epoch=True)


def validation_of(source, epoch, seed=1):
    return flat(rows_of(read_validation(source, batch_size=64, seed=seed, epoch=epoch)))


def test_each_epoch_divides_the_pool_anew_with_the_same_counts(pool):
    source = pool.open("pool")
    assert (source.num_rows, pool.plan.num_train, pool.plan.steps_per_epoch) == (1200, 1200, 24)
    drawn = [validation_of(source, epoch) for epoch in range(4)]
    for validation, train in zip(drawn, epochs_of(source, 4, batch_size=50), strict=True):
        assert len(validation) == 300
        assert sorted([*validation, *flat(train)]) == list(range(1500))
    shared = [len(set(a) & set(b)) for a, b in itertools.combinations(drawn, 2)]
    assert all(35 < count < 85 for count in shared)  # 60 by chance, five standard deviations of 6


def test_validation_rows_are_a_pure_function_of_seed_and_epoch(pool):
    drawn = validation_of(pool.open("pool"), 2)
    assert drawn == validation_of(pool.open("pool"), 2)
    assert set(drawn) != set(validation_of(pool.open("pool"), 2, seed=2))


def test_only_a_pool_has_validation_rows_of_its_own(tmp_path):
    with pytest.raises(ValueError, match="use read_in_order"):
        read_validation(numbered(tmp_path, 20, "resident").open(), batch_size=8, seed=0, epoch=0)


class Member(keras.layers.Layer):
    """Passes rows on and tells their numbers."""

    def __init__(self, tell):
        super().__init__()
        self.tell = tell

    def call(self, inputs, training=False):
        tf.py_function(lambda rows: self.tell("train" if training else "validation", rows.numpy().astype(int)), [inputs], [])
        return inputs


class Follow(keras.callbacks.Callback):
    """Sets the epoch before it begins."""

    def __init__(self, epoch, seen):
        super().__init__()
        self.epoch, self.seen = epoch, seen

    def on_epoch_begin(self, epoch, logs=None):  # noqa: ARG002 -- Keras's signature
        self.epoch.assign(epoch)
        self.seen.append({"train": [], "validation": []})


def test_one_validation_dataset_follows_the_epochs_of_a_fit(pool):
    source, epoch = pool.open("pool"), tf.Variable(0, dtype=tf.int64)
    seen = [{"train": [], "validation": []}]  # what Keras calls to build the model
    inputs = keras.Input((), name="row")
    member = Member(lambda side, rows: seen[-1][side].extend(rows))(inputs)
    model = keras.Model({"row": inputs}, keras.layers.Dense(1)(keras.layers.Reshape((1,))(member)))
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss="mse", run_eagerly=True)
    model.fit(
        read_batches(source, batch_size=300, seed=1, start=START),
        validation_data=read_validation(source, batch_size=100, seed=1, epoch=epoch),
        steps_per_epoch=4,
        epochs=3,
        shuffle=False,
        verbose=0,
        callbacks=[Follow(epoch, seen)],
    )
    for number, rows in enumerate(seen[1:]):
        assert sorted(rows["validation"]) == sorted(validation_of(source, number))
        assert sorted([*rows["train"], *rows["validation"]]) == list(range(1500))


def test_batches_can_be_copied_to_a_device_ahead_of_their_use(tmp_path, engine):
    source = numbered(tmp_path, 20, engine).open()
    dataset = read_batches(source, batch_size=8, seed=1, start=START, device="/cpu:0")
    assert rows_of(dataset, 6) == flat(epochs_of(source, 2))


# ---- which engine


def test_rows_are_held_in_memory_where_it_allows():
    assert choose_engine(BatchesConfig(memory_mb=64), 64 << 20) == "resident"
    assert choose_engine(BatchesConfig(memory_mb=64), (64 << 20) + 1) == "streaming"
    assert choose_engine(BatchesConfig(), 1 << 50) == "streaming"
    assert choose_engine(BatchesConfig(), 1) == "resident"
    assert choose_engine(BatchesConfig(engine="resident"), 1 << 50) == "resident"


def test_the_plan_says_which_engine_reads_and_what_was_chosen_for_it(tmp_path, engine):
    small = numbered(tmp_path, 100, engine)
    assert isinstance(small.open(), {"resident": Resident, "streaming": Streaming}[engine])
    assert (small.plan.engine, small.plan.window_rows, small.plan.tensorflow) == (engine, WINDOW, tf.__version__)


def test_a_window_holds_no_more_than_256_mebibytes(tmp_path):
    table = stored(image=np.zeros((2, 512, 512, 3), np.uint8), y=[1.0, 2.0])
    plan = keep(tmp_path, job_of("y", fit__batch_size=1), table).plan
    assert plan.window_rows == 341


# ---- columns

WORDS = ["Zürich", None, "東京", "", "naïve 🦊", "Zürich", "a" * 300, "\t"]
NUMBERS = [0.1, None, -0.0, 1e30, float("nan"), 5e-45, float("inf"), 7.0]
SINGLES = [0.1, None, -0.0, 1e30, float("nan"), 1e-40, float("-inf"), 7.0]
WHOLE = [-(2**53) - 1, None, 0, 2**63 - 1, 5, 5, 5, -1]
MISSING = -(2**63)


@pytest.fixture
def everything(tmp_path, engine):
    generator = np.random.default_rng(0)
    table = stored(
        number=NUMBERS,
        single=pa.array(SINGLES, pa.float32()),
        truth=[True, None, False, True, True, False, False, True],
        word=WORDS,
        whole=WHOLE,
        bytes=generator.integers(0, 256, (8, 3, 2, 3), dtype=np.uint8),
        floats=generator.normal(size=(8, 2, 3, 1)).astype(np.float32),
        label=["b", "a", "c", "b", "a", "c", "c", "é"],
    )
    kinds = {"number": "numeric", "single": "numeric", "truth": "category", "word": "category", "whole": "category"}
    features = {name: {"kind": kinds.get(name, "image")} for name in table.column_names if name != "label"}
    job = job_of("label", features=features, fit__batch_size=3, batches__engine=engine, batches__window_rows=WINDOW)
    return table, keep(tmp_path, job, table, shard_rows=5, group_rows=2)


def images(table, name, dtype, shape):
    return np.frombuffer(b"".join(table[name].to_pylist()), dtype).reshape(-1, *shape)


def expected_columns(table):
    return {
        "number": np.array([float("nan") if v is None else v for v in NUMBERS], np.float32),
        "single": np.array([float("nan") if v is None else v for v in SINGLES], np.float32),
        "truth": np.array([MISSING if v is None else int(v) for v in table["truth"].to_pylist()]),
        "word": np.array([(v or "").encode() for v in WORDS], dtype=object),
        "whole": np.array([MISSING if v is None else v for v in WHOLE]),
        "bytes": images(table, "bytes", np.uint8, (3, 2, 3)),
        "floats": images(table, "floats", np.float32, (2, 3, 1)),
    }


def test_every_column_comes_back_as_it_went_in(everything):
    table, small = everything
    batches = list(read_in_order(small.open(), batch_size=3).as_numpy_iterator())
    for name, expected in expected_columns(table).items():
        received = np.concatenate([features[name] for features, _ in batches])
        assert received.dtype == expected.dtype
        np.testing.assert_array_equal(received, expected, err_msg=name)
    labels = np.concatenate([label for _, label in batches])
    assert [small.plan.target.classes[code] for code in labels] == table["label"].to_pylist()


def test_shuffled_rows_keep_all_their_columns(everything):
    table, small = everything
    expected = expected_columns(table)
    by_image = {image.tobytes(): row for row, image in enumerate(expected["bytes"])}
    for features, _ in itertools.islice(read_batches(small.open(), batch_size=3, seed=0, start=START).as_numpy_iterator(), 6):
        rows = [by_image[image.tobytes()] for image in features["bytes"]]
        for name, values in expected.items():
            np.testing.assert_array_equal(features[name], values[rows], err_msg=name)


@pytest.mark.parametrize(("name", "values"), [("number", NUMBERS), ("single", SINGLES)])
def test_the_sign_of_zero_and_every_bit_of_a_float_survive(everything, name, values):
    features, _ = next(read_in_order(everything[1].open(), batch_size=8).as_numpy_iterator())
    finite = [i for i, v in enumerate(values) if v is not None and v == v]
    expected = np.array([values[i] for i in finite], np.float32)
    np.testing.assert_array_equal(features[name][finite].view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("shuffled", [True, False])
def test_elements_are_what_the_plan_says(everything, shuffled):
    source, plan = everything[1].open(), everything[1].plan
    dataset = read_batches(source, batch_size=3, seed=0, start=START) if shuffled else read_in_order(source, batch_size=3)
    features, label = dataset.element_spec
    told = {name: f"{spec.dtype.name} {['batch', *spec.shape[1:]]}".replace("'", "") for name, spec in {**features, LABEL: label}.items()}
    assert told == plan.elements
    assert told["bytes"] == "uint8 [batch, 3, 2, 3]"
    assert told["word"] == "string [batch]"
    assert all(spec.shape[0] is None for spec in (*features.values(), label))


def test_the_plan_tells_the_bytes_of_a_row_and_the_steps_of_an_epoch(everything):
    table, small = everything
    assert (small.plan.row_bytes, small.plan.steps_per_epoch, small.open().num_rows) == (80, 3, len(table))


def test_words_of_many_row_groups_are_told_apart(tmp_path, engine):
    words = [f"word {i % 37}" if i % 5 else None for i in range(500)]
    job = job_of("y", fit__batch_size=50, batches__engine=engine)
    source = keep(tmp_path, job, stored(word=words, y=np.arange(500.0)), shard_rows=130, group_rows=20).open()
    for features, label in itertools.islice(read_batches(source, batch_size=50, seed=0, start=START).as_numpy_iterator(), 20):
        assert features["word"].tolist() == [(words[int(row)] or "").encode() for row in label]


def test_a_side_without_a_word_can_be_read(tmp_path, engine):
    table = stored(word=["a", "b", None], y=[1.0, 2.0, 3.0])
    small = keep(tmp_path, job_of("y", fit__batch_size=1, batches__engine=engine), table, [0, 0, 2])
    features, _ = next(read_in_order(small.open("test"), batch_size=8).as_numpy_iterator())
    assert features["word"].tolist() == [b""]


def test_encoded_images_travel_as_the_bytes_that_they_are(tmp_path, engine):
    generator = np.random.default_rng(0)
    shades = generator.integers(0, 256, 40)
    files = [tf.io.encode_png(np.full((4 + row, 3, 1), shade, np.uint8)).numpy() for row, shade in enumerate(shades)]
    table = stored(image=pa.array(files, pa.binary()), x=np.arange(40.0), y=np.arange(40.0))
    job = job_of("y", features={"x": {"kind": "numeric"}}, fit__batch_size=7, batches__engine=engine)
    small = keep(tmp_path, job, table, [0, 1] * 20, shard_rows=25, group_rows=6)
    feature = FeaturePlan(name="image", kind="image", column=Column(name="image", type="binary"))
    plan = small.plan.model_copy(update={"features": (*small.plan.features, feature)})
    source = open_side(small.snapshot, plan, small.layout, small.sides, "train")
    seen = []
    for features, label in itertools.islice(read_batches(source, batch_size=7, seed=0, start=START).as_numpy_iterator(), 3):
        assert features["image"].tolist() == [files[int(row)] for row in label]
        seen += [tf.io.decode_image(image).shape[0] - 4 for image in features["image"]]
    assert sorted(seen) == list(range(0, 40, 2))


# ---- weights


def test_weights_of_rows_and_classes_are_multiplied_where_rows_are_trained_on(tmp_path, engine):
    table = stored(x=np.arange(90.0), y=["a", "b", "b"] * 30, w=np.arange(90.0))
    job = job_of("y", fit__batch_size=9, fit__class_weight="balanced", fit__sample_weight="w", batches__engine=engine)
    small = keep(tmp_path, job, table, [0] * 60 + [1] * 30, group_rows=20)
    assert small.plan.class_weights == (1.5, 0.75)
    assert sorted(small.plan.elements) == ["_label", "_weight", "x"]
    for features, label, weight in itertools.islice(read_batches(small.open(), batch_size=9, seed=0, start=START).as_numpy_iterator(), 7):
        np.testing.assert_array_equal(weight, features["x"] * np.array([1.5, 0.75])[label])
    for features, _, weight in read_in_order(small.open("validation"), batch_size=9).as_numpy_iterator():
        np.testing.assert_array_equal(weight, features["x"])


def test_rows_of_which_only_the_class_has_a_weight_are_unweighted_in_validation(tmp_path, engine):
    table = stored(x=np.arange(90.0), y=["a", "b", "b"] * 30)
    job = job_of("y", fit__batch_size=9, fit__class_weight={"a": 3.0}, batches__engine=engine)
    small = keep(tmp_path, job, table, [0] * 60 + [1] * 30)
    _, label, weight = next(read_batches(small.open(), batch_size=9, seed=0, start=START).as_numpy_iterator())
    np.testing.assert_array_equal(weight, np.array([3.0, 1.0], np.float32)[label])
    assert len(next(iter(read_in_order(small.open("validation"), batch_size=9)))) == 2


# ---- refusals


def test_a_batch_larger_than_the_train_split_is_refused():
    with pytest.raises(DataError, match=r"3 rows, fewer than a batch of 4"):
        plan_of(job_of("y", fit__batch_size=4), stored(x=[1.0, 2.0, 3.0], y=[1.0, 2.0, 3.0]))


def test_an_empty_side_is_refused_with_the_numbers(tmp_path, engine):
    with pytest.raises(DataError, match=r"no row is left for test.*20 rows: 20 train, 0 validation, 0 test"):
        numbered(tmp_path, 20, engine).open("test")


def test_a_missing_image_is_refused(engine):
    table = stored(image=np.zeros((2, 2, 2, 1), np.uint8), y=[1.0, 2.0])
    broken = table.set_column(0, table.schema.field("image"), pa.array([None, b"\0" * 4], pa.binary(4)))
    with pytest.raises(DataError, match=r'1 values of "image" are missing'):
        packed(job_of("y", fit__batch_size=1, batches__engine=engine), broken, table)


def test_a_label_of_validation_that_train_has_not_is_refused_when_batches_are_planned(tmp_path, engine):
    table = stored(x=[1.0, 2.0, 3.0, 4.0], y=["a", "b", "a", "c"])
    job = job_of("y", fit__batch_size=1, target__kind="classes", batches__engine=engine)
    with pytest.raises(DataError, match=r'1 rows have a "y" that does not occur in the train split.*\'c\''):
        keep(tmp_path, job, table, [0, 0, 0, 1])


def damage(path, how):
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "overwritten":
        path.write_bytes(b"\0" * len(content))
    else:
        path.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])


@pytest.mark.parametrize(("how", "told"), [("missing", "it is missing"), ("truncated", "another size"), ("overwritten", "Parquet")])
def test_a_damaged_shard_is_told_before_anything_is_read(tmp_path, engine, how, told):
    small = numbered(tmp_path, 2000, engine)
    damage(small.shards()[1], how)
    with pytest.raises(SourceError, match=told) as caught:
        small.open()
    assert caught.value.where == str(small.shards()[1])


def test_an_altered_shard_is_told_when_batches_are_planned(tmp_path, engine):
    small = numbered(tmp_path, 2000, engine)
    damage(small.shards()[1], "altered")
    with pytest.raises(SourceError, match="its content was altered"):
        check_digests(small.snapshot, small.layout)


def test_a_shard_that_goes_while_it_is_streamed_ends_the_stream_with_its_name(tmp_path):
    small = numbered(tmp_path, 4000, "streaming")
    batches = iter(read_batches(small.open(), batch_size=8, seed=0, start=START))
    next(batches)
    for path in small.shards():
        path.unlink()
    with pytest.raises(tf.errors.OpError, match="cannot be used: it is missing"):
        for _ in batches:
            pass


def test_a_split_of_other_data_is_refused(tmp_path, engine):
    small = numbered(tmp_path, 20, engine)
    with pytest.raises(SourceError, match=r"the split belongs to other data.*21 rows"):
        open_side(small.snapshot, small.plan, small.layout, np.zeros(21, np.uint8), "train")


@pytest.mark.parametrize(("num_rows", "batch_size", "steps"), [(1, 1, 1), (8, 8, 1), (9, 8, 2), (7, 8, 1)])
def test_the_last_batch_counts_as_a_step(num_rows, batch_size, steps):
    assert count_steps(num_rows, batch_size) == steps
