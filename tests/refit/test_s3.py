"""Objects behind a real S3-speaking server: listed, digested, fetched; and what is said when that cannot be."""

import contextlib
import gzip
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from refit.config import Located
from refit.errors import RefitError, SourceError
from refit.sources.locations import list_files, list_folder, local_path
from refit.sources.seen import Seen, digest_file, digest_files
from refit.sources.stores import TransientError
from tests.refit.digests import digest_of
from tests.refit.object_store import KEY, SECRET, breaking_line, free_port, running_store, set_credentials

CONTENT = bytes(range(256)) * 5000


@pytest.fixture(scope="module")
def server():
    """The server with some objects whose keys need care."""
    with running_store() as store:
        fill(store)
        yield store


@pytest.fixture
def store(server, monkeypatch):
    set_credentials(monkeypatch)
    return server


def fill(store):
    for key in ("day=1/a.csv", "day=1/b.csv", "day=2/a.csv", "day=2/deep/c.csv", "day=1/.hidden.csv", "top.csv", "odd/ä b%20[1]?.csv"):
        store.put(key, key.encode())
    store.put("folder.csv/inner.csv", b"inner")
    store.put("images/cat/1.JPG", b"cat")
    store.put("images/readme.txt", b"text")


@pytest.fixture
def place(store):
    return Located(path="unused", endpoint=store.endpoint)


def keys(store, place, pattern):
    return [file.name.removeprefix(store.address("")) for file in list_files(store.address(pattern), place)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("top.csv", ["top.csv"]),
        ("*.csv", ["top.csv"]),
        ("day=1/*.csv", ["day=1/a.csv", "day=1/b.csv"]),
        ("day=*/a.csv", ["day=1/a.csv", "day=2/a.csv"]),
        ("day=2/**/*.csv", ["day=2/a.csv", "day=2/deep/c.csv"]),
        ("**/c.csv", ["day=2/deep/c.csv"]),
        ("day=[12]/**", ["day=1/a.csv", "day=1/b.csv", "day=2/a.csv", "day=2/deep/c.csv"]),
        ("day=1/.*", ["day=1/.hidden.csv"]),
        ("odd/*", ["odd/ä b%20[1]?.csv"]),
    ],
)
def test_a_pattern_names_objects_sorted_by_key(store, place, pattern, expected):
    assert keys(store, place, pattern) == expected


def test_a_folder_of_images_is_listed_at_any_depth(store, place):
    for path in (store.address("images"), store.address("images/"), f"s3://{store.bucket}"):
        assert [file.name for file in list_folder(path, place, [".jpg"])] == [store.address("images/cat/1.JPG")]
    with pytest.raises(SourceError, match=r"holds no file whose name ends in \.png"):
        list_folder(store.address("images"), place, [".png"])


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("none.csv", "does not exist"),
        ("none/*.csv", "matches no file"),
        ("fold*.csv", "matches no file"),
        ("folder.csv", r"is a folder.*folder\.csv/\*\.csv"),
        ("day=1/", r"is a folder.*day=1/\*\.csv"),
        ("", "is a folder"),
        ("a//b.csv", "the address cannot be read"),
    ],
)
def test_a_pattern_without_an_object_is_refused_with_the_reason(store, place, pattern, says):
    with pytest.raises(SourceError, match=says) as caught:
        list_files(store.address(pattern), place)
    assert store.address(pattern) in str(caught.value)


@pytest.mark.parametrize("key", ["x.csv", "*.csv", "**"])
def test_a_missing_bucket_is_named(store, place, key):
    with pytest.raises(SourceError, match='"s3://nobucket" does not exist: there is no such bucket'):
        list_files(f"s3://nobucket/{key}", place)


# ---- digests and copies


def test_objects_are_digested_in_order(store, place):
    files = list_files(store.address("day=*/**"), place)
    assert digest_files(files, place, Seen()) == [digest_of(file.name.removeprefix(store.address("")).encode()) for file in files]


def test_an_object_is_copied_for_as_long_as_it_is_needed(store, place, tmp_path):
    packed = gzip.compress(CONTENT * 10)
    (file,) = list_files(store.put("big/rows.csv.gz", packed), place)
    assert digest_file(file, place, Seen()) == digest_of(packed)
    with local_path(file, place, tmp_path / "spool") as path:
        assert path.read_bytes() == packed  # as it is: pyarrow unpacks by the name unless it is told not to
        assert (path.parent, path.name.endswith(".csv.gz")) == (tmp_path / "spool", True)
    with pytest.raises(KeyError), local_path(file, place, tmp_path / "spool"):
        raise KeyError
    assert list((tmp_path / "spool").iterdir()) == []


def test_an_empty_object_and_one_of_an_odd_key_are_copied(store, place, tmp_path):
    store.put("empty/none.csv", b"")
    for pattern, content in (("empty/*", b""), ("odd/*", "odd/ä b%20[1]?.csv".encode())):
        (file,) = list_files(store.address(pattern), place)
        with local_path(file, place, tmp_path) as path:
            assert path.read_bytes() == content


def test_only_new_and_changed_objects_are_read_again(store, place, tmp_path):
    """Shown by taking the server's contents away: what is known needs none."""
    hour = 3600 * 10**9
    store.put("increments/a.csv", b"one")
    seen = Seen(clock=lambda: time.time_ns() + hour)
    first = digest_files(list_files(store.address("increments/*"), place), place, seen)
    seen.save(tmp_path / "seen.json")
    store.put("increments/b.csv", b"two")
    files = list_files(store.address("increments/*"), place)
    again = Seen.load(tmp_path / "seen.json")
    assert [again.find(file) for file in files] == [*first, None]
    assert digest_files(files, place, again) == [digest_of(content) for content in (b"one", b"two")]

    time.sleep(1.1 - time.time() % 1)  # S3 tells times in whole seconds
    store.put("increments/a.csv", b"new")
    files = list_files(store.address("increments/*"), place)
    assert digest_file(files[0], place, again) == digest_of(b"new")
    store.remove("increments/a.csv")
    assert digest_file(files[1], place, again) == digest_of(b"two")
    with pytest.raises(TransientError, match="changed or was removed"):
        digest_file(files[0], place, Seen())


def test_an_object_written_twice_in_a_second_is_read_twice(store, place):
    seen, address = Seen(), store.put("racy/a.csv", b"one")
    digest_file(list_files(address, place)[0], place, seen)
    store.put("racy/a.csv", b"two")
    assert digest_file(list_files(address, place)[0], place, seen) == digest_of(b"two")


def test_another_server_has_other_objects(store, place):
    store.put("same/a.csv", b"one")
    (here,) = list_files(store.address("same/a.csv"), place)
    (there,) = list_files(store.address("same/a.csv"), Located(path="x", endpoint=store.endpoint.replace("127.0.0.1", "localhost")))
    assert (here.name, here.size) == (there.name, there.size)
    assert here.stamp != there.stamp


@pytest.mark.parametrize("change", [lambda store: store.put("moving/a.csv", b"shorter"), lambda store: store.remove("moving/a.csv")])
def test_an_object_that_changed_since_it_was_listed_is_tried_again(store, place, tmp_path, change):
    (file,) = list_files(store.put("moving/a.csv", CONTENT), place)
    change(store)
    with pytest.raises(TransientError, match="changed or was removed while it was read"), local_path(file, place, tmp_path):
        pytest.fail("a changed object was handed out")
    assert list(tmp_path.iterdir()) == []


# ---- the network


def test_a_store_that_cannot_be_reached_may_be_tried_again(store):
    with pytest.raises(TransientError, match=r"s3://training/x\.csv: the object store failed or could not be reached") as caught:
        list_files(store.address("x.csv"), Located(path="x", endpoint=f"http://127.0.0.1:{free_port()}"))
    assert not isinstance(caught.value, RefitError)


def test_a_connection_that_breaks_within_an_object_is_tried_again_and_leaves_no_copy(store, place, tmp_path):
    (file,) = list_files(store.put("broken/a.csv", CONTENT), place)
    with breaking_line(store.port, after_bytes=len(CONTENT) // 2) as port:
        there = Located(path="x", endpoint=f"http://127.0.0.1:{port}")
        (seen_there,) = list_files(file.name, there)
        with pytest.raises(TransientError, match="could not be reached"), local_path(seen_there, there, tmp_path):
            pytest.fail("half an object was handed out")
        with pytest.raises(TransientError):
            digest_file(seen_there, there, Seen())
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_holds_gives_the_whole_object(store, place, tmp_path):
    """Shows that it was the break, and not the line, that failed the test above."""
    store.put("broken/a.csv", CONTENT)
    with breaking_line(store.port, after_bytes=10**9) as port:
        there = Located(path="x", endpoint=f"http://127.0.0.1:{port}")
        (file,) = list_files(store.address("broken/a.csv"), there)
        with local_path(file, there, tmp_path) as path:
            assert path.read_bytes() == CONTENT


# ---- credentials


def test_a_store_that_denies_access_is_named_with_the_variables_to_set_and_none_of_their_values(
    store, place, tmp_path, caplog, monkeypatch
):
    caplog.set_level(logging.DEBUG)
    (file,) = list_files(store.put("denied/a.csv", b"x"), place)
    with store.checking_credentials():
        for call in (
            lambda: list_files(store.address("**"), place),
            lambda: list_files(file.name, place),
            lambda: list_folder(store.address("denied"), place, [".csv"]),
            lambda: digest_file(file, place, Seen()),
            lambda: fetch(file, place, tmp_path),
        ):
            with pytest.raises(SourceError, match="the object store denies access") as caught:
                call()
            text = str(caught.value) + repr(caught.value.__cause__)
            assert "AWS_ACCESS_KEY_ID is set" in text
            assert "AWS_SECRET_ACCESS_KEY" in text
            assert "data.secrets" in text
            assert SECRET not in text + caplog.text
            assert KEY not in text + caplog.text


def fetch(file, place, spool):
    with local_path(file, place, spool):
        pass


def test_credentials_are_looked_up_anew_at_each_request(store, place, monkeypatch):
    """So a client that was made under one job's credentials does not keep them for the next."""
    store.put("public/a.csv", b"x")
    with store.checking_credentials(), pytest.raises(SourceError, match="INVALID_ACCESS_KEY_ID"):
        list_files(store.address("public/*"), place)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert keys(store, place, "public/*") == ["public/a.csv"]


def test_secrets_stand_in_no_file_and_no_line_of_the_log(store, place, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    seen = Seen()
    with contextlib.chdir(tmp_path):
        files = list_files(store.address("day=*/*"), place)
        digest_files(files, place, seen)
        seen.save(tmp_path / "seen.json")
        with local_path(files[0], place, tmp_path / "spool"):
            found = written(tmp_path)
    assert len(found) == 2
    for secret in (SECRET, KEY):
        assert [path for path, content in found.items() if secret.encode() in content] == []
        assert secret not in caplog.text + "".join(file.name + file.stamp for file in files)


def written(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_process_that_used_a_store_ends_in_silence(store, tmp_path):
    script = (
        "import sys; from refit.config import Located; from refit.sources.locations import list_files\n"
        "print(len(list_files(sys.argv[1], Located(path='x', endpoint=sys.argv[2]))))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, store.address("day=1/*"), store.endpoint],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")
