"""Versions, promotion and rollback on real folders, and under SIGKILL of real processes."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refit import registry
from refit.errors import ChampionMovedError, CorruptRecordError, PromotionError, RequestError, UnknownNameError
from refit.layout import Layout

AT = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "artifacts").create()


def saved_model(folder, content="weights"):
    (folder / "variables").mkdir(parents=True)
    (folder / "assets").mkdir()
    (folder / "saved_model.pb").write_text(f"graph {content}")
    (folder / "variables" / "variables.index").write_text("index")
    (folder / "variables" / "variables.data-00000-of-00001").write_text(content * 1000)
    return folder


def publish(layout, run, *, name="taxi", expected="current", keep=10, metrics=None, verdict="promote"):
    source = layout.home / "sources" / run
    if not source.exists():
        saved_model(source, run)
    champion = registry.champion(layout, name)
    return registry.publish(
        layout,
        name,
        source,
        run=run,
        verdict=verdict,
        reason="it is better",
        metrics=metrics or {"accuracy": 0.9},
        expected_champion=champion if expected == "current" else expected,
        keep_versions=keep,
        by="test",
        at=AT,
    )


def rollback(layout, to=None, name="taxi"):
    return registry.rollback(layout, name, to=to, by="ann", at=AT, reason="complaints")


def serving_run(layout, name="taxi"):
    number = registry.champion(layout, name)
    return layout.model(name).version(number).joinpath("saved_model.pb").read_text().removeprefix("graph ")


def check_champion(layout, name="taxi"):
    """Whatever is numbered is whole: its files are those that were published. The highest number is what serves."""
    model = layout.model(name)
    records = {r.version: r for r in registry.read_history(layout, name) if r.action != "release"}
    for number in model.versions():
        assert registry.digest_folder(model.version(number)) == records[number].digest
        assert (model.version(number) / "saved_model.pb").read_text() == f"graph {records[number].run}"
    return registry.champion(layout, name)


def check_settled(layout, name="taxi"):
    """Nothing is left of killed writers: every number has one line, in order, and no line is torn."""
    model = layout.model(name)
    lines = model.history.read_bytes().split(b"\n")
    assert lines[-1] == b""
    published = [record["version"] for record in map(json.loads, lines[:-1]) if record["action"] != "release"]
    assert published == list(range(1, len(published) + 1))
    assert model.versions()[-1] == published[-1]
    assert [path.name for path in model.root.iterdir() if path.name.startswith(".")] == []
    check_champion(layout, name)


# ---- publishing


def test_versions_are_numbered_from_one_and_the_highest_serves(layout):
    assert registry.champion(layout, "taxi") is None
    assert registry.champion_record(layout, "taxi") is None
    assert [publish(layout, run) for run in ("a", "b")] == [1, 2]
    assert registry.champion(layout, "taxi") == 2
    assert registry.champion_record(layout, "taxi").run == "b"
    assert registry.models(layout) == ["taxi"]
    check_settled(layout)


def test_a_version_holds_the_files_of_the_saved_model_and_its_record(layout):
    publish(layout, "a", metrics={"accuracy": 0.9, "auc": float("nan")}, verdict="first")
    source, folder = layout.home / "sources" / "a", layout.model("taxi").version(1)
    names = sorted(path.relative_to(source).as_posix() for path in source.rglob("*"))
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) == sorted([*names, "refit.json"])
    assert registry.digest_folder(folder) == registry.digest_folder(source)
    (line,) = registry.read_history(layout, "taxi")
    assert json.loads((folder / "refit.json").read_text()) == line.model_dump(mode="json")
    assert (line.version, line.action, line.run, line.verdict, line.by, line.at) == (1, "promote", "a", "first", "test", AT)
    assert line.metrics == {"accuracy": 0.9}
    assert line.digest == registry.digest_folder(source)


def test_every_user_may_read_a_version_even_if_the_run_is_private(layout):
    source = saved_model(layout.home / "sources" / "a", "a")
    source.chmod(0o700)
    (source / "saved_model.pb").chmod(0o600)
    publish(layout, "a")
    mask = os.umask(0)
    os.umask(mask)
    folder = layout.model("taxi").version(1)
    assert folder.stat().st_mode & 0o777 == 0o777 & ~mask
    assert (folder / "saved_model.pb").stat().st_mode & 0o777 == 0o666 & ~mask


def test_nothing_is_published_against_another_champion(layout):
    publish(layout, "a")
    for expected, words in ((None, "Expected: no version. Received: version 1"), (7, "Expected: version 7. Received: version 1")):
        with pytest.raises(ChampionMovedError, match=words):
            publish(layout, "b", expected=expected)
    with pytest.raises(ChampionMovedError, match="Received: no version"):
        publish(layout, "b", name="other", expected=1)
    assert registry.champion(layout, "taxi") == 1
    assert len(registry.read_history(layout, "taxi")) == 1


def test_a_run_that_serves_already_is_not_published_again(layout):
    assert publish(layout, "a", expected=None) == 1
    assert publish(layout, "a", expected=None) == 1
    assert publish(layout, "b", expected=1) == 2
    assert publish(layout, "b", expected=1) == 2
    assert publish(layout, "a", expected=2) == 3
    check_settled(layout)


def test_a_run_that_a_rollback_brought_back_can_be_promoted_by_hand(layout):
    publish(layout, "a")
    publish(layout, "b")
    assert rollback(layout) == 3
    assert publish(layout, "a", expected=3) == 4
    assert not registry.is_held(layout, "taxi")


def test_a_folder_that_is_no_saved_model_is_not_published(layout, tmp_path):
    with pytest.raises(PromotionError, match="no SavedModel"):
        registry.publish(
            layout,
            "taxi",
            tmp_path,
            run="a",
            verdict="first",
            reason="",
            metrics={},
            expected_champion=None,
            keep_versions=2,
            by="test",
            at=AT,
        )
    assert not layout.model("taxi").root.exists()


def test_a_name_that_leads_out_of_its_folder_is_refused(layout):
    with pytest.raises(RequestError):
        registry.champion(layout, "../taxi")


def test_a_model_that_another_process_holds_for_long_is_reported(layout, monkeypatch):
    publish(layout, "a")
    monkeypatch.setattr(registry, "LOCK_SECONDS", 0.1)
    with registry._writing(layout.model("taxi")), pytest.raises(PromotionError, match="another process"):
        publish(layout, "b")


# ---- what stays on disk


def test_old_versions_go_and_the_numbers_go_on(layout):
    for run in "abcdef":
        publish(layout, run, keep=3)
    assert layout.model("taxi").versions() == [4, 5, 6]
    assert len(registry.read_history(layout, "taxi")) == 6
    assert publish(layout, "g", keep=2) == 7
    assert layout.model("taxi").versions() == [6, 7]
    check_settled(layout)


def test_a_number_is_never_used_again_even_if_its_folder_was_removed_by_hand(layout):
    for run in "abc":
        publish(layout, run)
    layout.model("taxi").version(3).rename(layout.home / "elsewhere")
    assert registry.champion(layout, "taxi") == 2
    assert publish(layout, "d") == 4


def test_the_version_that_a_rollback_would_bring_back_stays(layout):
    publish(layout, "good")
    publish(layout, "bad")
    rollback(layout)
    for run in ("c", "d"):
        publish(layout, run)
        rollback(layout)
    # 1 good, 2 bad, 3 good again, 4 c, 5 good again, 6 d, 7 good again: nothing but "good" was never withdrawn.
    publish(layout, "e", keep=2)
    rollback(layout)
    publish(layout, "worse", keep=2)
    assert serving_run(layout) == "worse"
    rollback(layout)
    assert serving_run(layout) == "good"
    check_settled(layout)


def test_pruning_keeps_the_way_back_beyond_the_newest_versions(layout):
    publish(layout, "good")
    publish(layout, "b")
    registry.rollback(layout, "taxi", to=1, by="ann", at=AT, reason="b is bad")
    publish(layout, "d")
    registry.rollback(layout, "taxi", to=2, by="ann", at=AT, reason="d is worse than b")
    # 5 is b again; 4 is withdrawn; 3 (good) is the way back and not among the newest two.
    publish(layout, "b", expected=5, keep=2)
    assert layout.model("taxi").versions() == [5, 6]
    registry.rollback(layout, "taxi", to=5, by="ann", at=AT, reason="6 is bad")
    with pytest.raises(PromotionError, match="no earlier version"):
        rollback(layout)


def test_the_way_back_survives_pruning_when_the_newer_ones_were_withdrawn(layout):
    publish(layout, "good")
    publish(layout, "b")
    publish(layout, "c")
    registry.rollback(layout, "taxi", to=2, by="ann", at=AT, reason="c is bad")
    registry.rollback(layout, "taxi", to=3, by="ann", at=AT, reason="b is worse")
    # 5 holds c; 4 and 2 hold b, which is withdrawn; 1 is the only way back.
    history = registry.read_history(layout, "taxi")
    assert registry._way_back(layout.model("taxi"), history) == 1
    registry._prune(layout.model("taxi"), 2)
    assert layout.model("taxi").versions() == [1, 4, 5]
    rollback(layout)
    assert serving_run(layout) == "good"


def test_a_folder_that_refit_did_not_publish_serves_if_highest_and_is_never_removed(layout):
    publish(layout, "a")
    saved_model(layout.model("taxi").version(5), "by hand")
    assert registry.champion(layout, "taxi") == 5
    assert registry.champion_record(layout, "taxi").run is None
    for run in "bcde":
        publish(layout, run, keep=2)
    assert layout.model("taxi").versions() == [5, 8, 9]
    registry.rollback(layout, "taxi", to=5, by="ann", at=AT, reason="the old one")
    assert serving_run(layout) == "by hand"


# ---- rolling back


def test_a_rollback_publishes_the_version_before_again_and_withdraws_the_one_that_served(layout):
    publish(layout, "a", metrics={"accuracy": 0.8})
    publish(layout, "b")
    assert rollback(layout) == 3
    assert serving_run(layout) == "a"
    line = registry.read_history(layout, "taxi")[-1]
    assert (line.version, line.action, line.run, line.restores, line.withdraws) == (3, "rollback", "a", 1, 2)
    assert (line.by, line.reason, line.metrics) == ("ann", "complaints", {"accuracy": 0.8})
    listed = registry.versions(layout, "taxi")
    assert [(v.version, v.run, v.action, v.withdrawn, v.serving) for v in listed] == [
        (1, "a", "promote", False, False),
        (2, "b", "promote", True, False),
        (3, "a", "rollback", False, True),
    ]
    check_settled(layout)


def test_a_rollback_links_files_but_never_writes_through_a_link(layout):
    publish(layout, "a")
    publish(layout, "b")
    before = (layout.model("taxi").version(1) / "refit.json").read_bytes()
    rollback(layout)
    one, three = layout.model("taxi").version(1), layout.model("taxi").version(3)
    assert (one / "saved_model.pb").samefile(three / "saved_model.pb")
    assert not (one / "refit.json").samefile(three / "refit.json")
    assert (one / "refit.json").read_bytes() == before


def test_a_rollback_copies_where_links_are_not_possible(layout, monkeypatch):
    def refuse(target, source):
        raise PermissionError(1, "Operation not permitted", str(target), None, str(source))

    publish(layout, "a")
    publish(layout, "b")
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    rollback(layout)
    assert serving_run(layout) == "a"
    assert not (layout.model("taxi").version(1) / "saved_model.pb").samefile(layout.model("taxi").version(3) / "saved_model.pb")
    check_settled(layout)


def test_an_error_that_is_not_about_links_is_not_hidden(layout, monkeypatch):
    def refuse(target, source):
        raise OSError(28, "No space left on device", str(target), None, str(source))

    publish(layout, "a")
    publish(layout, "b")
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(OSError, match="No space left"):
        rollback(layout)
    assert serving_run(layout) == "b"


def test_rollbacks_in_a_row_go_further_back_and_never_to_a_withdrawn_model(layout):
    for run in "abc":
        publish(layout, run)
    runs = []
    for _ in range(2):
        rollback(layout)
        runs.append(serving_run(layout))
    assert runs == ["b", "a"]
    with pytest.raises(PromotionError, match="no earlier version"):
        rollback(layout)
    assert [v.version for v in registry.versions(layout, "taxi") if v.withdrawn] == [2, 3, 4]
    check_settled(layout)


def test_a_named_version_is_brought_back_even_if_it_was_withdrawn(layout):
    for run in "abc":
        publish(layout, run)
    assert rollback(layout, to=1) == 4
    assert rollback(layout, to=3) == 5
    assert serving_run(layout) == "c"
    assert [v.version for v in registry.versions(layout, "taxi") if v.withdrawn] == [1, 4]


def test_what_cannot_be_brought_back_is_refused_with_the_reason(layout):
    with pytest.raises(UnknownNameError, match=r'no model "taxi"\. Nothing has been published yet'):
        rollback(layout)
    assert not layout.model("taxi").root.exists()
    publish(layout, "a")
    with pytest.raises(PromotionError, match="no earlier version"):
        rollback(layout)
    publish(layout, "b")
    with pytest.raises(UnknownNameError, match=r'there is no version 9 of "taxi" on disk\. Known: 1, 2\.'):
        rollback(layout, to=9)
    with pytest.raises(PromotionError, match="serves already"):
        rollback(layout, to=2)
    rollback(layout)
    with pytest.raises(PromotionError, match='version 1 of "taxi" serves already, as version 3'):
        rollback(layout, to=1)
    for ask in (registry.versions, lambda *known: registry.release(*known, by="ann", at=AT)):
        with pytest.raises(UnknownNameError, match='Did you mean "taxi"'):
            ask(layout, "taxy")


def test_a_version_whose_files_were_changed_is_not_brought_back(layout):
    publish(layout, "a")
    publish(layout, "b")
    (layout.model("taxi").version(1) / "variables" / "variables.index").write_text("bit rot")
    with pytest.raises(PromotionError, match="not those that were published"):
        rollback(layout)
    assert registry.champion(layout, "taxi") == 2


# ---- the hold


def test_a_rollback_holds_promotion_until_it_is_released(layout):
    assert not registry.is_held(layout, "taxi")
    publish(layout, "a")
    publish(layout, "b")
    assert not registry.is_held(layout, "taxi")
    rollback(layout)
    assert registry.is_held(layout, "taxi")
    assert registry.release(layout, "taxi", by="ann", at=AT)
    assert not registry.is_held(layout, "taxi")
    assert not registry.release(layout, "taxi", by="ann", at=AT)
    assert [line.action for line in registry.read_history(layout, "taxi")] == ["promote", "promote", "rollback", "release"]
    assert publish(layout, "c") == 4
    check_settled(layout)


def test_publishing_by_hand_ends_the_hold(layout):
    publish(layout, "a")
    publish(layout, "b")
    rollback(layout)
    publish(layout, "c")
    assert not registry.is_held(layout, "taxi")


def test_a_candidate_that_was_judged_before_a_rollback_is_not_published_after_it(layout):
    publish(layout, "a")
    publish(layout, "b")
    rollback(layout)
    with pytest.raises(ChampionMovedError):
        publish(layout, "c", expected=2)
    assert registry.is_held(layout, "taxi")


# ---- the digest


def test_a_digest_depends_on_names_and_contents_and_on_nothing_else(tmp_path):
    first, second = saved_model(tmp_path / "one"), saved_model(tmp_path / "two")
    (second / "refit.json").write_text("{}")
    os.utime(second / "saved_model.pb", (0, 0))
    digest = registry.digest_folder(first)
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert registry.digest_folder(second) == digest
    (second / "variables" / "variables.index").rename(second / "variables" / "variables.inde")
    assert registry.digest_folder(second) != digest


def test_a_digest_tells_a_longer_name_from_a_longer_content(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "ab").write_bytes(b"c")
    (tmp_path / "two" / "a").write_bytes(b"bc")
    assert registry.digest_folder(tmp_path / "one") != registry.digest_folder(tmp_path / "two")


def test_a_digest_is_the_one_written_down_here(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"graph")
    # sha256(00..0e "saved_model.pb" sha256("graph")), computed with coreutils' sha256sum.
    assert registry.digest_folder(tmp_path) == "75b334dcee18e995d7288eeecdc710a4ce1e55e385315abf6a910f9d81d0404b"


# ---- after a crash


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(1, 400))
def test_a_torn_last_line_is_ignored_by_readers_and_repaired_by_the_next_writer(tmp_path_factory, cut):
    layout = Layout(tmp_path_factory.mktemp("torn")).create()
    publish(layout, "a")
    publish(layout, "b")
    whole = registry.read_history(layout, "taxi")
    path = layout.model("taxi").history
    content = path.read_bytes()
    last = len(content) - content[:-1].rfind(b"\n") - 1
    path.write_bytes(content[: len(content) - min(cut, last)])
    assert registry.read_history(layout, "taxi") == whole
    publish(layout, "c")
    assert registry.read_history(layout, "taxi")[:2] == whole
    check_settled(layout)


def test_a_torn_release_is_as_if_it_was_never_asked_for(layout):
    publish(layout, "a")
    publish(layout, "b")
    rollback(layout)
    registry.release(layout, "taxi", by="ann", at=AT)
    path = layout.model("taxi").history
    path.write_bytes(path.read_bytes()[:-5])
    assert registry.is_held(layout, "taxi")
    assert registry.release(layout, "taxi", by="ann", at=AT)
    assert not registry.is_held(layout, "taxi")
    check_settled(layout)


def test_a_line_that_is_no_record_is_reported_with_its_place(layout):
    publish(layout, "a")
    path = layout.model("taxi").history
    path.write_bytes(b'{"version": 1}\n' + path.read_bytes())
    with pytest.raises(CorruptRecordError, match=r"history.jsonl:1: this line is no record"):
        registry.read_history(layout, "taxi")


def test_a_version_without_a_line_counts_for_readers_and_gets_its_line_from_the_next_writer(layout):
    publish(layout, "a")
    publish(layout, "b")
    rollback(layout)
    path = layout.model("taxi").history
    whole = registry.read_history(layout, "taxi")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:1]))
    assert registry.read_history(layout, "taxi") == whole
    assert registry.is_held(layout, "taxi")
    assert publish(layout, "c") == 4
    assert registry.read_history(layout, "taxi")[:3] == whole
    check_settled(layout)


def test_leftovers_of_a_killed_publisher_are_removed_and_other_hidden_folders_are_not(layout):
    publish(layout, "a")
    root = layout.model("taxi").root
    saved_model(root / ".publishing-2")
    saved_model(root / ".removing-1")
    (root / ".snapshot").mkdir()
    assert registry.champion(layout, "taxi") == 1
    publish(layout, "b")
    assert [path.name for path in root.iterdir() if path.is_dir() and path.name.startswith(".")] == [".snapshot"]


# ---- killed processes

NURSERY = """
import os, signal, sys, time
from datetime import UTC, datetime
from pathlib import Path
from refit import registry
from refit.layout import Layout

AT = datetime(2026, 11, 23, tzinfo=UTC)
EVENTS = ("open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.truncate", "os.listdir", "os.scandir", "shutil.copyfile")
assert "tensorflow" not in sys.modules

def publish(layout, run):
    return registry.publish(layout, "taxi", layout.home / "sources" / run, run=run, verdict="promote", reason="test", metrics={},
        expected_champion=registry.champion(layout, "taxi"), keep_versions=3, by="test", at=AT)

def rollback(layout, run):
    return registry.rollback(layout, "taxi", by="test", at=AT, reason="test")

def release(layout, run):
    return registry.release(layout, "taxi", by="test", at=AT)

def die_at(number):
    seen = 0
    def hook(event, args):
        nonlocal seen
        if event in EVENTS:
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

def loop(layout, action, number):
    turn = 0
    while True:
        turn += 1
        runs = sorted(path.name for path in (layout.home / "sources").iterdir())
        serving = registry.champion_record(layout, "taxi")
        try:
            if turn % 3 == 0:
                rollback(layout, "")
            else:
                publish(layout, next(run for run in runs if serving is None or run != serving.run))
        except registry.PromotionError:
            pass

def once(layout, action, number):
    die_at(int(number))
    globals()[action](layout, sorted(path.name for path in (layout.home / "sources").iterdir())[-1])

for line in sys.stdin:
    home, kind, action, number = line.split("|")
    pid = os.fork()
    if pid == 0:
        try:
            {"loop": loop, "once": once}[kind](Layout(Path(home)), action, number)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(3)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Nursery:
    """A process that has imported the registry and forks a child for each line, so that children to be killed start at once."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, layout, kind, action="", number=0):
        self.process.stdin.write(f"{layout.home}|{kind}|{action}|{number}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self):
        return int(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def nursery():
    made = Nursery()
    yield made
    made.close()


def test_a_publisher_killed_at_a_random_moment_leaves_one_complete_champion(layout, nursery):
    for run in "ab":
        saved_model(layout.home / "sources" / run, run)
    generator = np.random.default_rng(20261123)
    last = 0
    for _ in range(25):
        pid = nursery.start(layout, "loop")
        time.sleep(generator.uniform(0.002, 0.12))
        os.kill(pid, signal.SIGKILL)
        assert nursery.wait() == -signal.SIGKILL
        champion = check_champion(layout) or 0
        assert champion >= last
        last = champion
    assert last > 25
    publish(layout, "next")
    assert serving_run(layout) == "next"
    check_settled(layout)


@pytest.mark.parametrize("action", ["publish", pytest.param("rollback", marks=pytest.mark.slow), "release"])
def test_a_writer_killed_at_any_step_leaves_the_old_state_or_the_new(tmp_path, nursery, action):
    """Each call that opens, makes, links, renames or removes something is killed once, just before it happens."""
    outcomes = set()
    for number in range(1, 1000):
        layout = Layout(tmp_path / str(number)).create()
        for run in "abcd":
            publish(layout, run, keep=3)
        if action == "release":
            rollback(layout)
        saved_model(layout.home / "sources" / "z", "z")
        before = serving_run(layout), registry.is_held(layout, "taxi")
        nursery.start(layout, "once", action, number)
        status = nursery.wait()
        check_champion(layout)
        after = serving_run(layout), registry.is_held(layout, "taxi")
        expected = {"publish": ("z", False), "rollback": ("c", True), "release": ("c", False)}[action]
        assert after in (before, expected)
        outcomes.add((status, after == expected))
        publish(layout, "next")
        assert serving_run(layout) == "next"
        check_settled(layout)
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert number > 10
    # It was killed before anything had happened, and it ended well; in between also killed after the deed but before the end.
    assert {(-signal.SIGKILL, False), (0, True)} <= outcomes
    assert action == "release" or (-signal.SIGKILL, True) in outcomes


@pytest.mark.parametrize("number", range(8, 60, 3))
def test_a_run_that_goes_on_after_a_kill_publishes_once(layout, nursery, number):
    publish(layout, "a")
    saved_model(layout.home / "sources" / "z", "z")
    nursery.start(layout, "once", "publish", number)
    nursery.wait()
    assert publish(layout, "z", expected=1) == 2
    assert [line.run for line in registry.read_history(layout, "taxi")] == ["a", "z"]
    check_settled(layout)


# ---- several at once


def test_of_two_publishers_that_were_judged_against_the_same_champion_one_wins(layout):
    publish(layout, "a")
    for run in "bc":
        saved_model(layout.home / "sources" / run, run)
    for attempt in range(5):
        champion, results = registry.champion(layout, "taxi"), []
        barrier = threading.Barrier(2)

        def race(run, champion=champion, results=results, barrier=barrier):
            barrier.wait()
            try:
                results.append(publish(layout, run, expected=champion))
            except ChampionMovedError:
                results.append(None)

        for run in ("b", "c"):
            saved_model(layout.home / "sources" / f"{run}{attempt}", f"{run}{attempt}")
        threads = [threading.Thread(target=race, args=(f"{run}{attempt}",)) for run in "bc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results, key=str) == [champion + 1, None]
    check_settled(layout)


def test_two_publishing_processes_leave_a_history_without_gaps(layout):
    for run in "abcd":
        saved_model(layout.home / "sources" / run, run)
    nurseries = [Nursery(), Nursery()]
    pids = [each.start(layout, "loop") for each in nurseries]
    deadline = time.monotonic() + 10
    while (registry.champion(layout, "taxi") or 0) < 30 and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid, each in zip(pids, nurseries, strict=True):
        os.kill(pid, signal.SIGKILL)
        assert each.wait() == -signal.SIGKILL
        each.close()
    assert registry.champion(layout, "taxi") >= 30
    publish(layout, "next")
    check_settled(layout)


def read_champion(layout):
    number = registry.champion(layout, "taxi")
    folder = layout.model("taxi").version(number)
    graph = (folder / "saved_model.pb").read_text().removeprefix("graph ")
    assert (folder / "variables" / "variables.data-00000-of-00001").read_text() == graph * 1000
    assert registry.champion_record(layout, "taxi").run is not None
    return number


def test_a_server_that_follows_the_highest_version_always_finds_a_whole_model(layout):
    publish(layout, "a")
    stop, seen, faults = threading.Event(), set(), []

    def follow():
        while not stop.is_set():
            try:
                seen.add(read_champion(layout))
            except Exception as error:
                faults.append(error)

    readers = [threading.Thread(target=follow) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(20):
        publish(layout, f"r{turn}", keep=4)
        if turn % 3 == 2:
            rollback(layout)
    stop.set()
    for reader in readers:
        reader.join()
    assert faults == []
    assert len(seen) > 5
    check_settled(layout)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_whatever_people_do_the_history_grows_and_one_good_version_serves(tmp_path_factory, data):
    layout = Layout(tmp_path_factory.mktemp("any")).create()
    before, at = [], AT
    for turn in range(data.draw(st.integers(1, 10))):
        at += timedelta(hours=1)
        number = registry.champion(layout, "taxi")
        action = data.draw(st.sampled_from(["publish", "rollback", "named", "release"])) if number else "publish"
        try:
            if action == "publish":
                publish(layout, data.draw(st.sampled_from(["a", "b", "c", f"new{turn}"])), keep=data.draw(st.integers(2, 4)))
            elif action == "release":
                registry.release(layout, "taxi", by="ann", at=at)
            else:
                to = data.draw(st.sampled_from(layout.model("taxi").versions())) if action == "named" else None
                registry.rollback(layout, "taxi", to=to, by="ann", at=at, reason="any")
        except PromotionError:
            assert action in ("rollback", "named")
        history = registry.read_history(layout, "taxi")
        assert history[: len(before)] == before
        before = history
        listed = registry.versions(layout, "taxi")
        assert [v.serving for v in listed] == [False] * (len(listed) - 1) + [True]
        assert not listed[-1].withdrawn
        check_settled(layout)
