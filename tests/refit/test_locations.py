"""Files of this machine: what a pattern names, and what a file must be to be read."""

import contextlib
import glob
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refit.errors import RefitError, SourceError
from refit.sources import locations
from refit.sources.locations import list_files, list_folder, local_path
from refit.sources.seen import Seen, digest_file, digest_files
from refit.sources.stores import TransientError
from tests.refit.digests import digest_of
from tests.refit.local_files import HERE, file_at
from tests.refit.local_files import folder as folder  # a fixture


def names(pattern):
    return [file.name for file in list_files(str(pattern), HERE)]


# ---- what a pattern names


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.csv", ["a.csv"]),
        ("./a.csv", ["a.csv"]),
        ("sub/../a.csv", ["sub/../a.csv"]),
        ("*.csv", ["a.csv", "b.csv"]),
        ("[!a].*", ["b.csv", "c.txt"]),
        ("?.csv", ["a.csv", "b.csv"]),
        ("*/*.csv", ["sub/d.csv"]),
        ("s*/deep/*", ["sub/deep/e.csv"]),
        ("**/*.csv", ["a.csv", "b.csv", "sub/d.csv", "sub/deep/e.csv"]),
        ("**/**/d.csv", ["sub/d.csv"]),
        ("sub/**", ["sub/d.csv", "sub/deep/e.csv"]),
        ("**/deep/**/e.csv", ["sub/deep/e.csv"]),
        ("**.csv", ["a.csv", "b.csv"]),
        (".hidden/*", [".hidden/f.csv"]),
        (".h*/*.csv", [".hidden/f.csv"]),
        ("sub/.*", ["sub/.g.csv"]),
    ],
)
def test_a_pattern_names_files_sorted_by_name(folder, pattern, expected):
    assert names(pattern) == expected


def test_absolute_and_relative_patterns_name_the_same_files(folder):
    assert names(f"{folder}/**/*.csv") == [f"{folder}/{name}" for name in names("**/*.csv")]


def test_a_file_says_its_size_and_changes_its_stamp_with_its_content_even_if_its_time_is_set_back(folder):
    before = file_at("a.csv")
    status = Path("a.csv").stat()
    Path("a.csv").write_text("A.CSV")
    os.utime("a.csv", ns=(status.st_atime_ns, status.st_mtime_ns))
    after = file_at("a.csv")
    assert (before.size, after.size, before.name) == (5, 5, after.name)
    assert Path("a.csv").stat().st_mtime_ns == status.st_mtime_ns
    assert before.stamp != after.stamp


part = st.sampled_from(["*", "**", "a", "b", "?", "[ab]", "*a", ".c", ".*", "a*"])
name = st.sampled_from(["a", "b", "ba", ".c", "ab"])


@given(st.lists(part, min_size=1, max_size=4), st.lists(name, min_size=1, max_size=4))
def test_keys_match_as_the_files_of_those_names_do(tmp_path_factory, patterns, parts):
    root = tmp_path_factory.mktemp("tree")
    path = root.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    named = glob.glob("/".join(patterns), root_dir=root, recursive=True)  # noqa: PTH207 -- pathlib's patterns differ between versions
    found = [name for name in named if (root / name).is_file()]
    assert locations._matches_whole(parts, patterns) == bool(found)
    try:
        assert bool(list_files(f"{glob.escape(str(root))}/{'/'.join(patterns)}", HERE)) == bool(found)
    except SourceError:
        assert not found


@pytest.mark.parametrize("odd", ["x y.csv", "ä.csv", "x'y.csv", "new\nline.csv", "-x.csv", "%20.csv", "a[1].csv", "a*.csv", "x:y.csv"])
def test_a_file_of_an_odd_name_is_found_and_read(tmp_path, odd):
    (tmp_path / odd).write_text("x")
    (file,) = list_files(f"{tmp_path}/*.csv", HERE)
    assert file.name == str(tmp_path / odd)
    assert digest_file(file, HERE, Seen()) == digest_of(b"x")


def test_a_file_is_found_through_links_but_a_pattern_follows_no_link_to_a_folder_by_itself(folder):
    Path("link.csv").symlink_to("a.csv")
    Path("other").symlink_to("sub")
    assert names("link.csv") == ["link.csv"]
    assert "link.csv" in names("*.csv")
    assert names("other/*.csv") == ["other/d.csv"]
    assert names("o*/*.csv") == ["other/d.csv"]
    assert names("**/d.csv") == ["sub/d.csv"]


def test_folders_that_lead_into_each_other_end(folder):
    for number in range(8):
        Path(f"sub/loop{number}").symlink_to("..")
    assert names("**/*.csv") == ["a.csv", "b.csv", "sub/d.csv", "sub/deep/e.csv"]
    assert [file.name for file in list_folder("sub", HERE, [".csv"])] == ["sub/d.csv", "sub/deep/e.csv"]


def test_what_is_no_regular_file_is_left_out_and_never_opened(folder):
    make_oddities()
    assert names("*.csv") == ["a.csv", "b.csv"]


def make_oddities():
    Path("folder.csv").mkdir()
    Path("dangling.csv").symlink_to("nowhere")
    Path("loop.csv").symlink_to("loop.csv")
    os.mkfifo("pipe.csv")
    Path("pipelink.csv").symlink_to("pipe.csv")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.csv")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("folder.csv", "is a folder"),
        ("folder.csv/", "is a folder"),
        ("fold*.csv", 'matches no file: "folder.csv" is a folder'),
        ("dangling.csv", 'is a link to "nowhere", which does not exist'),
        ("loop.csv", "is a link to itself"),
        ("loop*", 'matches no file: "loop.csv" is a link to itself'),
        ("pipe.csv", "is a pipe, a socket or a device"),
        ("socket.csv", "is a pipe, a socket or a device"),
        ("pipelink.csv", "is a link to a pipe"),
        ("/dev/zero", "is a pipe, a socket or a device"),
        ("none.csv", "does not exist"),
        ("a.csv/b.csv", "does not exist"),
        ("x" * 300, "does not exist"),
        ("*.tsv", "matches no file"),
        ("none/*.csv", "matches no file"),
        ("loop.csv/*", "matches no file"),
        ("l*/*", "matches no file"),
    ],
)
def test_a_pattern_without_a_regular_file_is_refused_with_the_reason(folder, pattern, says):
    make_oddities()
    with pytest.raises(SourceError, match=says) as caught:
        list_files(pattern, HERE)
    assert f'the source "{pattern}"' in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_folder_is_refused_with_the_pattern_that_would_name_its_files(folder):
    with pytest.raises(SourceError, match=r"Name the files in it, such as sub/\*\.csv"):
        list_files("sub", HERE)


def test_a_name_that_is_no_text_is_refused(folder):
    Path(os.fsdecode(b"\xff.csv")).write_text("x")
    with pytest.raises(SourceError, match="no valid UTF-8") as caught:
        list_files("*.csv", HERE)
    str(caught.value).encode()


@pytest.mark.parametrize("path", ["a\0.csv", "s3://bucket/a\0"])
def test_a_path_with_a_nul_is_refused(path):
    with pytest.raises(SourceError, match="NUL"):
        list_files(path, HERE)


@contextlib.contextmanager
def without_rights(path):
    """Nobody may look into ``path`` within the block, root not excepted."""
    if os.geteuid() != 0:
        path.chmod(0)
        yield
        path.chmod(0o755)
        return
    path.chmod(0o700)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("pattern", ["sub/*.csv", "**/*.csv", "sub/d.csv"])
def test_a_folder_that_may_not_be_read_is_an_error_and_not_an_empty_folder(folder, pattern):
    folder.chmod(0o755)
    with without_rights(folder / "sub"), pytest.raises(SourceError, match="cannot be read: Permission denied") as caught:
        list_files(pattern, HERE)
    assert "sub" in caught.value.where


# ---- folders of images


def test_a_folder_is_listed_at_any_depth_by_suffix(folder):
    Path("sub/deep/P.JPG").write_text("x")
    Path("sub/._P.jpg").write_text("x")
    assert [file.name for file in list_folder("sub", HERE, [".jpg", ".png"])] == ["sub/deep/P.JPG"]
    assert [file.name for file in list_folder("./sub/", HERE, {".csv"})] == ["sub/d.csv", "sub/deep/e.csv"]
    assert [file.name for file in list_folder(".", HERE, {".txt"})] == ["c.txt"]


@pytest.mark.parametrize(
    ("path", "says"), [("none", "does not exist"), ("a.csv", "is no folder"), ("sub", r"holds no file whose name ends in \.jpg, \.png")]
)
def test_a_folder_without_files_is_refused_with_the_reason(folder, path, says):
    with pytest.raises(SourceError, match=says):
        list_folder(path, HERE, [".jpg", ".png"])


# ---- what cannot be read


def test_a_file_that_may_not_be_read_is_refused_by_name(folder):
    (file,) = list_files("sub/d.csv", HERE)
    with without_rights(folder / "sub"), pytest.raises(SourceError, match="the file cannot be read: Permission denied") as caught:
        digest_files([file], HERE, Seen())
    assert caught.value.where == "sub/d.csv"


def test_a_pipe_that_took_the_place_of_a_file_hangs_nothing(folder):
    file = file_at("a.csv")
    Path("a.csv").unlink()
    os.mkfifo("a.csv")
    with pytest.raises(TransientError, match="no regular file any more"):
        digest_file(file, HERE, Seen())
    with pytest.raises(TransientError, match="changed or was removed"), local_path(file, HERE, folder / "spool"):
        pass


def test_a_folder_that_took_the_place_of_a_file_is_refused(folder):
    file = file_at("a.csv")
    Path("a.csv").unlink()
    Path("a.csv").mkdir()
    with pytest.raises((SourceError, TransientError), match=r"a\.csv"):
        digest_file(file, HERE, Seen())


# ---- reading in place


def test_a_file_of_this_machine_is_read_where_it_lies(folder):
    with local_path(file_at("a.csv"), HERE, folder / "spool") as path:
        assert path.read_text() == "a.csv"
    assert not (folder / "spool").exists()
    assert Path("a.csv").exists()


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("change", [lambda path: path.write_text("other"), lambda path: path.unlink()])
def test_a_file_that_changes_between_listing_and_the_end_of_reading_is_tried_again(folder, when, change):
    file = file_at("a.csv")

    def read():
        if when == "before":
            change(Path("a.csv"))
        with local_path(file, HERE, folder / "spool"):
            change(Path("a.csv"))

    with pytest.raises(TransientError, match="changed or was removed while it was read") as caught:
        read()
    assert not isinstance(caught.value, RefitError)


def test_a_parser_that_fails_on_a_file_that_changed_is_tried_again_and_else_its_own_error_counts(folder):
    def read(*, is_changed):
        with local_path(file_at("a.csv"), HERE, folder / "spool") as path:
            if is_changed:
                path.write_text("torn")
            raise ValueError("broken line")

    with pytest.raises(ValueError, match="broken line"):
        read(is_changed=False)
    with pytest.raises(TransientError):
        read(is_changed=True)
