"""Profiles say what numpy says of the rows, merge into the profile of the whole, and are read from the shards once."""

import hashlib
import itertools
import math
from collections import Counter
from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refit import profiles
from refit.errors import CorruptRecordError, SchemaMismatchError
from refit.layout import DatasetLayout, Layout
from refit.records import Column, ShardRecord
from refit.schema import KEY_HASH, arrow_schema, column_of, field_of
from refit.shards import ShardWriter

RNG = np.random.default_rng(0)


def stored(**columns):
    """A table as a shard holds it: arrays of more dimensions become tensor columns, ``_key_hash`` is drawn unless it is given."""
    arrays = {name: pa.array(_tensors(values) if getattr(values, "ndim", 1) > 1 else values) for name, values in columns.items()}
    hashes = arrays.pop(KEY_HASH, None)
    described = tuple(
        Column(name=name, type=str(array.type), shape=columns[name].shape[1:], dtype=str(columns[name].dtype))
        if getattr(columns[name], "ndim", 1) > 1
        else column_of(pa.field(name, array.type))
        for name, array in arrays.items()
    )
    rows = len(next(iter(arrays.values())))
    drawn = pa.array(RNG.integers(0, 2**64, rows, dtype=np.uint64)) if hashes is None else hashes.cast(pa.uint64())
    schema = arrow_schema(described)
    return pa.Table.from_arrays(
        [*(a.cast(field_of(c).type) for a, c in zip(arrays.values(), described, strict=True)), drawn], schema=schema
    )


def _tensors(values):
    width = values[0].nbytes
    return pa.Array.from_buffers(pa.binary(width), len(values), [None, pa.py_buffer(np.ascontiguousarray(values).tobytes())])


def write_shard(home, table, dropped=(), **options):
    """Put a table into a data set as a shard, with positions of rows that do not count."""
    home.shards_dir.mkdir(parents=True, exist_ok=True)
    aside = home.shards_dir / "aside"
    pq.write_table(table, aside, **options)
    digest = hashlib.sha256(aside.read_bytes()).hexdigest()
    aside.rename(home.shard(digest))
    if not len(dropped):
        return ShardRecord(digest=digest, num_rows=len(table), num_bytes=1)
    positions = np.asarray(dropped, np.uint32)
    name = hashlib.sha256(positions.tobytes()).hexdigest()
    home.drops_dir.mkdir(exist_ok=True)
    np.save(home.drops(name), positions)
    return ShardRecord(digest=digest, num_rows=len(table), num_bytes=1, dropped=name, num_dropped=len(positions))


@pytest.fixture
def home(tmp_path):
    return DatasetLayout(tmp_path / "data")


@pytest.fixture
def profile_of(home):
    return lambda table, **more: profiles.profile_shards([write_shard(home, table, **more)], home)


def multiset(profile, name):
    return Counter(profile.values(name).tolist())


def close(one, two):
    return one == two or (one is not None and two is not None and math.isclose(one, two, rel_tol=1e-9, abs_tol=1e-9))


# ---- what a profile says


def test_moments_and_counts_are_numpys(profile_of) -> None:
    values = RNG.gamma(2, size=50_000)
    told = profile_of(stored(x=values)).columns["x"]
    assert (told.num_rows, told.num_missing, told.minimum, told.maximum) == (50_000, 0, values.min(), values.max())
    assert told.mean == pytest.approx(values.mean(), rel=1e-12)
    assert told.variance == pytest.approx(values.var(), rel=1e-10)


def test_null_and_not_a_number_are_missing_and_infinities_are_counted_apart(profile_of) -> None:
    profile = profile_of(stored(x=pa.array([1.0, None, math.nan, math.inf, -math.inf, 3.0])))
    told = profile.columns["x"]
    assert (told.num_rows, told.num_missing, told.num_infinite, told.num_present) == (6, 2, 2, 4)
    assert (told.minimum, told.maximum, told.mean, told.variance) == (1.0, 3.0, 2.0, 1.0)
    assert multiset(profile, "x") == Counter([1.0, 3.0, math.inf, -math.inf])


@pytest.mark.parametrize(
    ("values", "minimum", "mean"),
    [
        (pa.array([1, 2, None, 3], pa.int64()), 1.0, 2.0),
        (pa.array([2**62, -(2**62)], pa.int64()), -(2.0**62), 0.0),
        (pa.array([True, False, None, True]), 0.0, 2 / 3),
        (pa.array([1.5, None], pa.float32()), 1.5, 1.5),
        (pa.array([date(1970, 1, 2), date(1970, 1, 4)]), 86_400.0, 172_800.0),
        (pa.array([datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)]).cast(pa.timestamp("us")), 1.0, 1.0),
        (pa.array([-1.7e308, 1.7e308]), -1.7e308, 0.0),
        (pa.array([1.7e308, 1.7e308]), 1.7e308, None),
        (pa.array([None, None], pa.float64()), None, None),
        (pa.array([], pa.int32()), None, None),
        (pa.array([7], pa.int8()), 7.0, 7.0),
    ],
)
def test_every_kind_of_number_has_statistics_or_says_that_it_has_none(profile_of, values, minimum, mean) -> None:
    told = profile_of(stored(x=values)).columns.get("x")
    assert (told.minimum, told.mean) == (minimum, mean) if told else minimum is None
    assert told is None or told.model_validate_json(told.model_dump_json()) == told


def test_text_has_counts_and_a_sample(profile_of) -> None:
    words = ["", "héllo", "日本", None, "héllo", "a\x00b", "🙂"]
    profile = profile_of(stored(x=words))
    assert (profile.columns["x"].num_missing, profile.columns["x"].mean) == (1, None)
    assert multiset(profile, "x") == Counter(word for word in words if word is not None)


def test_long_texts_are_cut_and_stay_apart(profile_of) -> None:
    long = "x" * 10_000_000
    profile = profile_of(stored(x=[long + "a", long + "b", long + "a", None, "short"] * 4))
    counts = multiset(profile, "x")
    assert sorted(counts.values()) == [4, 4, 8]
    assert max(map(len, counts)) < profiles.MAX_TEXT + 20


def test_a_tensor_is_told_by_the_mean_of_each_row(profile_of) -> None:
    images = RNG.integers(0, 256, (500, 8, 8, 1), dtype=np.uint8)
    profile = profile_of(stored(image=images))
    means = images.reshape(500, -1).mean(axis=1)
    assert profile.columns["image"].mean == pytest.approx(means.mean())
    assert sorted(profile.values("image")) == pytest.approx(sorted(means))


def test_a_missing_tensor_is_missing_whatever_its_bytes(home) -> None:
    table = stored(image=RNG.random((4, 2)))
    holes = pa.array([None, table["image"][1].as_py(), None, table["image"][3].as_py()], table.schema.field("image").type)
    profile = profiles.profile_shards([write_shard(home, table.set_column(0, table.schema.field("image"), holes))], home)
    assert profile.columns["image"].num_missing == 2
    assert len(profile.values("image")) == 2


@pytest.mark.parametrize(("values", "missing"), [([b"1", b"\xff", b""], 0), ([b"1", None, None], 2)])
def test_bytes_have_a_missing_count_alone(profile_of, values, missing) -> None:
    profile = profile_of(stored(file=pa.array(values, pa.binary()), n=[1, 2, 3]))
    told = profile.columns["file"]
    assert (told.num_rows, told.num_missing, told.mean) == (3, missing, None)
    assert len(profile.values("file")) == 0
    assert profile.columns["n"].mean == 2


def test_missing_bytes_of_dropped_rows_do_not_count(profile_of) -> None:
    table = stored(file=pa.array([b"1", None, None], pa.binary()))
    assert profile_of(table, dropped=[1]).columns["file"].num_missing == 1


def test_a_shard_of_nothing_but_whole_bytes_is_profiled(profile_of) -> None:
    profile = profile_of(stored(file=pa.array([b"1"] * 5, pa.binary())), dropped=[0])
    assert (profile.num_rows, profile.columns["file"].num_rows, len(profile.sample)) == (4, 4, 4)


def test_no_shards_have_an_empty_profile(home) -> None:
    profile = profiles.profile_shards([], home)
    absent = Column(name="x", type="double")
    assert (profile.num_rows, profile.columns, profile.column(absent).num_rows, len(profile.values("x"))) == (0, {}, 0, 0)


def test_wide_rows_are_read_a_few_at_a_time(home, monkeypatch) -> None:
    monkeypatch.setattr(profiles, "_BATCH_BYTES", 4_000)
    table = stored(image=RNG.integers(0, 256, (64, 1_000), dtype=np.uint8))
    record = write_shard(home, table, use_dictionary=False)
    with pq.ParquetFile(home.shard(record.digest)) as file:
        sizes = [len(batch) for _, batch in profiles._read_rows(file, [column_of(table.schema.field("image"))])]
    assert sum(sizes) == 64
    assert max(sizes) <= 4
    assert len(profiles.profile_shards([record], home).values("image")) == 64


# ---- rows that do not count


def test_dropped_rows_are_left_out(profile_of) -> None:
    values = np.arange(100.0)
    profile = profile_of(stored(x=values, w=[str(v) for v in values]), dropped=[0, 17, 99])
    kept = np.delete(values, [0, 17, 99])
    assert profile.num_rows == 97
    assert profile.columns["x"].mean == pytest.approx(kept.mean())
    assert sorted(profile.values("x")) == kept.tolist()
    assert multiset(profile, "w") == Counter(map(str, kept))


def test_a_row_that_is_dropped_later_changes_the_profile(home) -> None:
    table = stored(x=[1.0, 2.0, 3.0])
    before, after = write_shard(home, table), write_shard(home, table, dropped=[2])
    assert before.digest == after.digest
    assert [profiles.profile_shards([record], home).columns["x"].mean for record in (before, after, before)] == [2.0, 1.5, 2.0]


# ---- samples


def test_a_large_shard_is_sampled_without_bias(profile_of, monkeypatch) -> None:
    monkeypatch.setattr(profiles, "SAMPLE_ROWS", 2_000)
    values = np.arange(200_000.0)
    sample = profile_of(stored(x=values)).values("x")
    assert len(np.unique(sample)) == len(sample) == 2_000
    assert sample.mean() == pytest.approx(values.mean(), rel=0.05)
    assert np.bincount((sample // 20_000).astype(int), minlength=10).min() > 140


def test_equal_rows_do_not_enter_the_sample_together(profile_of, monkeypatch) -> None:
    monkeypatch.setattr(profiles, "SAMPLE_ROWS", 1_000)
    kinds = np.repeat(np.arange(10), 1_000)
    hashes = RNG.integers(0, 2**64, 10, dtype=np.uint64)[kinds]
    counts = multiset(profile_of(stored(x=kinds, _key_hash=hashes)), "x")
    assert len(counts) == 10
    assert min(counts.values()) > 60


def test_a_sample_holds_whole_rows(profile_of, monkeypatch) -> None:
    monkeypatch.setattr(profiles, "SAMPLE_ROWS", 100)
    numbers = np.arange(10_000)
    profile = profile_of(stored(n=numbers, w=[str(n) for n in numbers]), row_group_size=700)
    assert [str(int(n)) for n in profile.values("n")] == profile.values("w").tolist()


def test_samples_merge_into_the_sample_of_the_union(home, monkeypatch) -> None:
    everything = [write_shard(home, stored(x=RNG.random(1_000), w=[f"{i}-{j}" for j in range(1_000)])) for i in range(5)]
    whole = profiles.profile_shards(everything, home)
    monkeypatch.setattr(profiles, "SAMPLE_ROWS", 300)
    monkeypatch.setattr(profiles, "_MERGED_AT_ONCE", 2)
    few = profiles.profile_shards(everything, home)
    assert few.sample.equals(whole.sample.slice(0, 300).combine_chunks())
    assert profiles.profile_shards(everything[::-1], home).sample.equals(few.sample)


# ---- merging


VALUES = st.one_of(st.none(), st.floats(allow_nan=True, width=32), st.sampled_from([0.0, 1.0]))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(VALUES, st.sampled_from(["a", "b", "ü", None])), max_size=40), st.lists(st.integers(0, 40), max_size=3))
def test_merged_profiles_of_parts_are_the_profile_of_the_whole(home, rows, cuts) -> None:
    def shard(part):
        numbers, words = pa.array([n for n, _ in part], pa.float64()), pa.array([w for _, w in part], pa.string())
        return write_shard(home, stored(x=numbers, w=words))

    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    parts = profiles.profile_shards([shard(rows[a:b]) for a, b in itertools.pairwise(edges)], home)
    whole = profiles.profile_shards([shard(rows)], home)
    assert parts.num_rows == whole.num_rows
    for name, told in whole.columns.items():
        merged = parts.columns[name]
        assert all(close(getattr(merged, field), getattr(told, field)) for field in ("num_missing", "num_infinite", "minimum", "maximum"))
        extent = max(abs(told.minimum or 0.0), abs(told.maximum or 0.0))
        assert close(merged.mean, told.mean) or math.isclose(merged.mean, told.mean, abs_tol=1e-6 * extent)
        if told.variance is not None and told.variance < 1e12:
            assert math.isclose(merged.variance, told.variance, rel_tol=1e-6, abs_tol=1e-6)
        assert multiset(parts, name) == multiset(whole, name)


def test_a_column_that_a_shard_does_not_have_is_missing_in_it(home) -> None:
    shards = [write_shard(home, stored(x=[1.0, 2.0])), write_shard(home, stored(x=[3.0], w=["new"]))]
    profile = profiles.profile_shards(shards, home)
    assert (profile.columns["w"].num_rows, profile.columns["w"].num_missing) == (3, 2)
    assert profile.values("w").tolist() == ["new"]
    assert profile.columns["x"].mean == 2


def test_a_column_of_two_types_is_refused(home) -> None:
    shards = [write_shard(home, stored(x=[1.0])), write_shard(home, stored(x=["1"]))]
    with pytest.raises(SchemaMismatchError, match='"x" has two types'):
        profiles.profile_shards(shards, home)


# ---- the cache


def test_a_shard_is_read_once(home) -> None:
    record = write_shard(home, stored(x=RNG.random(100), w=["a", None] * 50))
    first = profiles.profile_shards([record], home)
    home.shard(record.digest).unlink()
    again = profiles.profile_shards([record], home)
    assert (again.columns, again.num_rows) == (first.columns, first.num_rows)
    assert again.sample.equals(first.sample)


@pytest.mark.parametrize("harm", ["cut", "flipped", "emptied", "foreign", "other version"])
def test_a_damaged_or_foreign_cache_is_computed_again(home, harm, monkeypatch) -> None:
    record = write_shard(home, stored(x=RNG.random(100)))
    first = profiles.profile_shards([record], home)
    path = profiles.profile_path(record, home)
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    path.write_bytes({"cut": good[:-10], "flipped": bytes(flipped), "emptied": b"", "foreign": b"{}" * 50}.get(harm, good))
    if harm == "other version":
        monkeypatch.setattr(profiles, "PROFILE_VERSION", 99)
    again = profiles.profile_shards([record], home)
    assert again.sample.equals(first.sample)
    assert (path.read_bytes() == good) == (harm != "other version")


def test_a_shard_that_is_gone_is_named(home) -> None:
    record = write_shard(home, stored(x=[1.0]))
    home.shard(record.digest).unlink()
    with pytest.raises(CorruptRecordError, match=record.digest):
        profiles.profile_shards([record], home)


def test_a_list_of_dropped_rows_that_is_gone_is_an_error(home) -> None:
    record = write_shard(home, stored(x=[1.0, 2.0]), dropped=[0])
    home.drops(record.dropped).unlink()
    with pytest.raises(CorruptRecordError, match="cannot be read"):
        profiles.profile_shards([record], home)


KEY_FIELD = pa.field(KEY_HASH, pa.uint64(), nullable=False)


@pytest.mark.parametrize("rows", [0, 1, 900, 16_384, 50_000])
def test_what_is_measured_while_a_shard_is_written_is_what_a_reading_of_it_finds(tmp_path, rows) -> None:
    home = Layout(tmp_path).dataset("d")
    home.shards_dir.mkdir(parents=True)
    rng = np.random.default_rng(rows)
    columns = {
        "number": pa.array(rng.normal(size=rows), mask=rng.random(rows) < 0.1),
        "word": pa.array([f"w{value}" for value in rng.integers(0, 50, rows)], pa.string()),
        "name": pa.array([f"name {value}" for value in range(rows)], pa.string()),
        "flag": pa.array(rng.random(rows) < 0.5),
        KEY_HASH: pa.array(rng.integers(0, 2**64, rows, dtype=np.uint64)),
    }
    table = pa.table(columns).cast(pa.schema([*(pa.field(n, a.type) for n, a in columns.items() if n != KEY_HASH), KEY_FIELD]))
    writer = ShardWriter(home, table.schema)
    for start in range(0, rows, 7_000):
        writer.write(table.slice(start, 7_000))
    for shard in writer.finish():
        written = profiles.profile_shard(shard, home)
        assert home.profile(shard.digest).exists()
        home.profile(shard.digest).unlink()
        read = profiles.profile_shard(shard, home)
        assert read.num_rows == written.num_rows
        assert str(read.sample.to_pylist()) == str(written.sample.to_pylist())  # of which a NaN is like another
        for name, column in read.columns.items():
            facts, others = (c.model_dump(exclude={"column"}) for c in (column, written.columns[name]))
            assert [facts.pop(fact) for fact in ("num_rows", "num_missing")] == [others.pop(fact) for fact in ("num_rows", "num_missing")]
            assert [fact or 0.0 for fact in facts.values()] == pytest.approx([fact or 0.0 for fact in others.values()], rel=1e-9)
