"""When a digest may be believed, and that a cache is never worse than none."""

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refit.errors import SourceError
from refit.sources.inputs import File
from refit.sources.locations import list_files
from refit.sources.seen import Seen, digest_file, digest_files
from tests.refit.digests import digest_of
from tests.refit.local_files import HERE, file_at
from tests.refit.local_files import folder as folder  # a fixture

LATER = 10**10


def settled(*, at=None):
    """A cache whose clock stands long after every file was written."""
    return Seen(clock=lambda: at or Path.cwd().stat().st_ctime_ns + 10**15)


def test_a_digest_is_that_of_the_content(folder):
    content = bytes(range(256)) * 70_000
    Path("big.bin").write_bytes(content)
    assert digest_file(file_at("big.bin"), HERE, Seen()) == digest_of(content)


def test_an_unchanged_file_is_read_once_and_a_changed_one_again(folder):
    seen = settled()
    first = digest_file(file_at("a.csv"), HERE, seen)
    files = [File("a.csv", 5, file_at("a.csv").stamp), File("gone.csv", 1, "1 1 1")]
    assert digest_file(files[0], HERE, seen) == first
    Path("a.csv").write_text("other")
    assert digest_file(file_at("a.csv"), HERE, seen) == digest_of(b"other")


def test_a_trusted_digest_opens_no_file(folder):
    file, seen = file_at("a.csv"), settled()
    digest = digest_file(file, HERE, seen)
    Path("a.csv").unlink()
    assert digest_files([file, file], HERE, seen) == [digest, digest]
    with pytest.raises(SourceError, match="cannot be read"):
        digest_file(file, HERE, settled())


@given(st.integers(-(10**11), 10**11), st.booleans())
def test_a_digest_is_believed_only_if_the_file_had_settled_when_it_was_read(age, is_remote):
    newest = 1_700_000_000_000_000_000
    file = File("s3://b/k" if is_remote else "k", 5, f"{newest - 5} {newest} 7")
    seen = Seen()
    seen.add(file, "0" * 64, at=newest + age)
    assert (seen.find(file) is not None) == (age > (60 if is_remote else 2) * 10**9)


def test_a_file_written_twice_in_one_moment_is_read_twice(folder):
    """What git calls racy: the same size and, by a coarse clock, the same times, but another content."""
    file = file_at("a.csv")
    newest = max(int(moment) for moment in file.stamp.split()[:2])
    seen = settled(at=newest + 1)
    digest_file(file, HERE, seen)
    Path("a.csv").write_text("A.CSV")
    assert digest_file(file, HERE, seen) == digest_of(b"A.CSV")


@pytest.mark.parametrize("changed", [File("a", 2, "1 1 1"), File("a", 1, "1 2 1"), File("a", 1, "1 1 2"), File("b", 1, "1 1 1")])
def test_another_name_size_or_stamp_is_not_known(changed):
    seen = Seen()
    seen.add(File("a", 1, "1 1 1"), "0" * 64, at=LATER)
    assert seen.find(File("a", 1, "1 1 1")) == "0" * 64
    assert seen.find(changed) is None


@pytest.mark.parametrize("stamp", ["", "x", "None None ", "1 x 1"])
def test_a_stamp_without_times_is_never_believed(stamp):
    seen = Seen()
    seen.add(File("a", 1, stamp), "0" * 64, at=LATER)
    assert seen.find(File("a", 1, stamp)) is None


def test_a_cache_comes_back_from_disk_with_what_was_used_since(tmp_path):
    path, kept, left = tmp_path / "deep" / "seen.json", File("ä\n", 1, "1 1 1"), File("left", 1, "1 1 1")
    seen = Seen()
    seen.add(kept, "0" * 64, at=LATER)
    seen.add(left, "1" * 64, at=LATER)
    seen.save(path)
    again = Seen.load(path)
    assert (again.find(kept), again.find(left)) == ("0" * 64, "1" * 64)

    third = Seen.load(path)
    assert third.find(kept) == "0" * 64
    third.save(path)
    assert Seen.load(path).find(left) is None
    assert Seen.load(path).find(kept) == "0" * 64


def test_an_unchanged_cache_is_not_written(tmp_path):
    path, file = tmp_path / "seen.json", File("a", 1, "1 1 1")
    Seen().save(path)
    assert not path.exists()
    seen = Seen()
    seen.add(file, "0" * 64, at=LATER)
    seen.save(path)
    before = path.stat().st_ino
    seen.save(path)
    again = Seen.load(path)
    again.find(file)
    again.save(path)
    assert path.stat().st_ino == before
    again.add(file, "1" * 64, at=LATER)
    again.save(path)
    assert path.stat().st_ino != before


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff", b'{"a": 1}', b'{"a": [1, "1 1 1", "short", 1]}', b'{"a": [1, "1 1 1"]}', b'{"a": [null, "", "", 1]}'],
)
def test_a_damaged_cache_is_an_empty_one(tmp_path, content):
    path = tmp_path / "seen.json"
    path.write_bytes(content)
    assert Seen.load(path).find(File("a", 1, "1 1 1")) is None
    assert Seen.load(tmp_path).find(File("a", 1, "1 1 1")) is None


def test_many_threads_share_a_cache(folder):
    for number in range(200):
        Path(f"{number:03}.bin").write_bytes(b"%d" % number)
    files, seen, results = list_files("*.bin", HERE), settled(), []

    def work():
        results.append(digest_files(files, HERE, seen))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[digest_of(b"%d" % number) for number in range(200)]] * 4


def test_the_order_of_digests_is_that_of_the_files_also_where_some_are_known(folder):
    seen, files = settled(), list_files("**/*.csv", HERE)
    digest_file(files[1], HERE, seen)
    assert digest_files(files, HERE, seen) == [digest_of(file.name.encode()) for file in files]
    assert digest_files([], HERE, seen) == []
