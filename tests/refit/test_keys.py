"""Of all rows with one key the newest counts, whatever the order, the number of ranges, or what was there before."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refit import keys
from refit.keys import keep_newest
from refit.layout import Layout
from refit.records import SourceRecord
from refit.schema import KEY_HASH
from refit.shards import ShardWriter, live_mask, read_shard

SCHEMA = pa.schema([("x", pa.int64()), pa.field(KEY_HASH, pa.uint64(), nullable=False)])


def store(home, name, hashes):
    writer = ShardWriter(home, SCHEMA)
    writer.write(pa.table({"x": range(len(hashes)), KEY_HASH: pa.array(hashes, pa.uint64())}, schema=SCHEMA))
    return SourceRecord(name=name, digest=name, num_read=len(hashes), num_kept=len(hashes), shards=writer.finish())


def expected(inputs):
    """Live rows of each input by a plain dictionary."""
    newest = {key: (i, row) for i, rows in enumerate(inputs) for row, key in enumerate(rows)}
    return [[row for row, key in enumerate(rows) if newest[key] == (i, row)] for i, rows in enumerate(inputs)]


def live(home, sources):
    return [[row for shard in source.shards for row in read_shard(home, shard, ["x"])["x"].to_pylist()] for source in sources]


@pytest.fixture
def home(tmp_path):
    home = Layout(tmp_path).dataset("d")
    for folder in (home.shards_dir, home.drops_dir):
        folder.mkdir(parents=True)
    return home


ROWS = st.lists(st.sampled_from([0, 1, 2, 3, 2**63, 2**64 - 1]), min_size=1, max_size=12)


@pytest.mark.parametrize("range_rows", [1, 5, 1 << 23])
@given(inputs=st.lists(ROWS, min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_the_newest_row_of_a_key_is_the_last_of_the_newest_input(tmp_path_factory, range_rows, inputs) -> None:
    home = Layout(tmp_path_factory.mktemp("home")).dataset("d")
    home.shards_dir.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "_RANGE_ROWS", range_rows)
        sources = keep_newest(home, [store(home, str(i), rows) for i, rows in enumerate(inputs)])
    assert live(home, sources) == expected(inputs)
    for source, rows in zip(sources, inputs, strict=True):
        assert source.num_read == source.num_kept + source.num_duplicate + source.num_superseded == len(rows)


@given(old=st.lists(ROWS, min_size=1, max_size=4), new=st.lists(ROWS, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_what_is_added_to_settled_inputs_comes_to_the_same_as_all_at_once(tmp_path_factory, old, new) -> None:
    home = Layout(tmp_path_factory.mktemp("home")).dataset("d")
    home.shards_dir.mkdir(parents=True)
    fresh = [store(home, f"new {i}", rows) for i, rows in enumerate(new)]
    known = [store(home, str(i), rows) for i, rows in enumerate(old)]
    settled = keep_newest(home, known)
    assert keep_newest(home, [*settled, *fresh], num_settled=len(settled)) == keep_newest(home, [*known, *fresh])


def test_a_few_new_rows_are_found_among_many(home) -> None:
    rng = np.random.default_rng(1)
    many = rng.integers(0, 2**64, 200_000, dtype=np.uint64)
    (old,) = keep_newest(home, [store(home, "many", many.tolist())])
    old, new = keep_newest(home, [old, store(home, "few", [*many[[7, 70_000, 199_999]].tolist(), 5])], num_settled=1)
    assert (old.num_superseded, new.num_kept) == (3, 4)
    dropped = np.concatenate([np.flatnonzero(~live_mask(home, shard)) for shard in old.shards])
    assert dropped.tolist() == [7, 70_000, 199_999]


def test_a_row_replaced_within_its_input_is_a_duplicate_and_one_replaced_by_another_is_superseded(home) -> None:
    old, new = keep_newest(home, [store(home, "old", [1, 1, 2, 3]), store(home, "new", [2, 2])])
    assert (old.num_kept, old.num_duplicate, old.num_superseded) == (2, 1, 1)
    assert (new.num_kept, new.num_duplicate, new.num_superseded) == (1, 1, 0)


def test_a_row_comes_back_when_what_replaced_it_goes(home) -> None:
    old, _ = keep_newest(home, [store(home, "old", [1, 2]), store(home, "new", [2])])
    assert old.num_superseded == 1
    (again,) = keep_newest(home, [old])
    assert (again.num_kept, again.num_superseded, again.shards[0].dropped) == (2, 0, None)
    assert live_mask(home, again.shards[0]).all()


def test_one_shard_of_two_inputs_keeps_the_rows_of_the_newer(home) -> None:
    first, copy = store(home, "first", [1, 2]), store(home, "copy", [1, 2])
    assert first.shards == copy.shards
    old, new = keep_newest(home, [first, copy])
    assert (old.num_kept, new.num_kept) == (0, 2)


def test_nothing_is_dropped_where_all_keys_differ(home) -> None:
    rng = np.random.default_rng(0)
    sources = [store(home, str(i), rng.integers(0, 2**64, 20_000, dtype=np.uint64).tolist()) for i in range(3)]
    assert keep_newest(home, sources) == tuple(sources)
    assert not home.drops_dir.exists() or not list(home.drops_dir.iterdir())
