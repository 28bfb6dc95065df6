"""A run is adopted or begun, skipped where nothing changed, found by the name that a person gives, and always ended by name."""

import errno
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from refit import references
from refit.config import Job, parse_job
from refit.errors import CodeError, RequestError, SourceError, StorageError, UnknownNameError
from refit.layout import Layout
from refit.records import PublishRecord, RunRecord, SplitRecord
from refit.references import CODE_VARIABLE
from refit.runs import (
    adopt_or_begin,
    check_references,
    collect,
    complete_run,
    end_run,
    find_run,
    find_unchanged,
    find_unfinished,
    git_state,
    inspect_inputs,
    read_run,
    read_runs,
    read_versions,
    recording_failure,
    skip_run,
    write_run,
)
from refit.stages import run_stage


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "home")


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A job whose builder and data lie in the test's folder, in a checkout without git."""
    folder = tmp_path / "code" / "runs_of_a_test"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "net.py").write_text("def build(features, target, *, units=3): ...\n")
    (tmp_path / "a.csv").write_text("x,y\n1,0\n")
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.setenv(CODE_VARIABLE, "runs_of_a_test")
    monkeypatch.setattr(references, "CHECKOUT", tmp_path / "code")
    source = {"kind": "csv", "path": str(tmp_path / "a.csv")}
    yield parse_job(
        {"name": "job", "data": {"sources": [source]}, "target": {"column": "y"}, "model": {"build": "runs_of_a_test.net:build"}}
    )
    for name in [name for name in sys.modules if name.startswith("runs_of_a_test")]:
        del sys.modules[name]


def changed(job, **changes):
    return parse_job(job.model_dump(mode="json"), {key.replace("__", "."): value for key, value in changes.items()})


def begin(job, layout, status=None, **changes):
    run, inputs = adopt_or_begin(job, layout, fresh=True)
    record = read_run(layout, job.name, run.id).model_copy(update=changes)
    write_run(run, record)
    if status:
        end_run(layout, record, status)
    return run, inputs


def stored(layout, run, job="job", status="completed", minutes=0, parameters=None):
    given = {"run": run, "job": job, "status": status, "config_digest": "c", "code": {"git": None, "builder_sha256": "b"}, "versions": {}}
    parameters = parameters or {"name": job, "data": {"sources": [{"kind": "csv", "path": "a"}]}, "target": {"column": "y"}}
    started = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
    record = RunRecord(**given, started=started, inputs_digest="i", parameters=Job.model_validate(parameters))
    return record.write(layout.run(job, run).record)


# ---- what a run depends on


def test_the_digest_of_inputs_stays_while_nothing_changes(job, layout) -> None:
    assert inspect_inputs(job, layout) == inspect_inputs(job, layout)


def test_the_digest_of_inputs_changes_with_the_data(job, layout, tmp_path) -> None:
    before = inspect_inputs(job, layout)
    (tmp_path / "a.csv").write_text("x,y\n1,1\n")
    assert inspect_inputs(job, layout).digest != before.digest


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"fit__epochs": 3}, {"gate__require": {"accuracy": {"at_least": 0.1}}}, {"model__options": {"units": 4}}]
)
def test_the_digest_of_inputs_changes_with_the_job(job, layout, changes) -> None:
    assert inspect_inputs(changed(job, **changes), layout).digest != inspect_inputs(job, layout).digest


@pytest.mark.parametrize("name", ["net.py", "neighbour.py"])
def test_the_digest_of_inputs_changes_with_the_source_of_the_builder(job, layout, tmp_path, name) -> None:
    before = inspect_inputs(job, layout)
    with (tmp_path / "code" / "runs_of_a_test" / name).open("a") as file:
        file.write("# changed\n")
    after = inspect_inputs(job, layout)
    assert after.digest != before.digest
    assert after.builder_sha256 != before.builder_sha256


def test_the_digest_of_inputs_changes_with_the_lock_of_the_packages(job, layout, tmp_path) -> None:
    before = inspect_inputs(job, layout)
    (tmp_path / "code" / "requirements.lock").write_text("keras==3.10\n")
    assert inspect_inputs(job, layout).digest != before.digest


def test_inputs_are_inspected_without_importing_the_builder(job, layout) -> None:
    inspect_inputs(job, layout)
    assert "runs_of_a_test.net" not in sys.modules


def test_a_missing_source_or_builder_is_found_before_any_work(job, layout, tmp_path) -> None:
    with pytest.raises(CodeError):
        adopt_or_begin(changed(job, model__build="runs_of_a_test.nett:build"), layout)
    (tmp_path / "a.csv").unlink()
    with pytest.raises(SourceError):
        adopt_or_begin(job, layout)
    assert layout.jobs() == []


def test_options_of_the_builder_are_checked(job) -> None:
    check_references(job)
    with pytest.raises(CodeError, match=r'takes no option "unit". Did you mean "units"'):
        check_references(changed(job, model__options={"unit": 1}))


def test_options_of_a_source_are_checked(job) -> None:
    with pytest.raises(CodeError, match="needs the options features, target"):
        check_references(changed(job, data__sources=[{"kind": "python", "read": "runs_of_a_test.net:build"}]))


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"model__options": {"unit": 1}}, "model.options"),
        ({"model__build": "runs_of_a_test.net:bild"}, "model.build"),
        ({"fit__callbacks": [{"use": "os:system"}]}, "fit.callbacks.0.use"),
        ({"data__sources": [{"kind": "python", "read": "runs_of_a_test.net:build"}]}, "data.sources.0.options"),
    ],
)
def test_code_that_cannot_be_used_is_told_with_its_key(job, changes, where) -> None:
    with pytest.raises(CodeError) as refused:
        check_references(changed(job, **changes))
    assert refused.value.where == where


def test_versions_of_what_counts_are_known_without_importing_it() -> None:
    assert {"python", "refit", "tensorflow", "keras", "duckdb"} <= read_versions().keys()


# ---- git


def git(folder, *arguments):
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "a.py").write_text("a = 1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


def test_a_clean_checkout_is_its_commit(checkout) -> None:
    assert git_state(checkout) == git(checkout, "rev-parse", "HEAD")


def test_a_modified_checkout_is_its_commit_and_a_digest_of_the_change(checkout) -> None:
    commit, states = git_state(checkout), []
    for text in ("a = 2\n", "a = 3\n"):
        (checkout / "a.py").write_text(text)
        states.append(git_state(checkout))
    assert len({commit, *states}) == 3
    assert all(state.startswith(f"{commit}+") and len(state) == len(commit) + 13 for state in states)
    (checkout / "a.py").write_text("a = 1\n")
    assert git_state(checkout) == commit


@pytest.mark.parametrize("name", ["new.py", "a b.py", "ä.py", "deep/new.py"])
def test_an_untracked_file_counts_with_its_content(checkout, name) -> None:
    states = [git_state(checkout)]
    (checkout / name).parent.mkdir(exist_ok=True)
    for text in ("1", "2"):
        (checkout / name).write_text(text)
        states.append(git_state(checkout))
    assert len(set(states)) == 3


def test_a_staged_change_counts_like_an_unstaged_one(checkout) -> None:
    (checkout / "a.py").write_text("a = 2\n")
    before = git_state(checkout)
    git(checkout, "add", ".")
    assert git_state(checkout) == before


def test_an_ignored_file_does_not_count(checkout) -> None:
    (checkout / ".gitignore").write_text("out/\n")
    before = git_state(checkout)
    (checkout / "out").mkdir()
    (checkout / "out" / "x").write_text("1")
    assert git_state(checkout) == before


def test_a_folder_that_is_no_checkout_or_has_no_commit_has_no_state(tmp_path) -> None:
    (tmp_path / "plain").mkdir()
    assert git_state(tmp_path / "plain") is None
    git(tmp_path / "plain", "init", "-q")
    assert git_state(tmp_path / "plain") is None


# ---- adopting


def test_a_new_run_says_what_it_depends_on(job, layout) -> None:
    run, inputs = adopt_or_begin(job, layout)
    record = read_run(layout, "job", run.id)
    assert (record.status, record.parameters, record.inputs_digest) == ("running", job, inputs.digest)
    assert not run.is_adopted


def test_an_interrupted_run_is_taken_up_with_its_own_job(job, layout, tmp_path) -> None:
    first, _ = adopt_or_begin(job, layout)
    (tmp_path / "a.csv").write_text("x,y\n5,0\n")
    second, inputs = adopt_or_begin(changed(job, seed=5), layout)
    assert (second.id, second.job, second.is_adopted, inputs) == (first.id, job, True, None)
    assert len(read_runs(layout, "job")) == 1


@pytest.mark.parametrize(("status", "is_found"), [("cancelled", True), ("completed", False), ("failed", False), ("abandoned", False)])
def test_a_run_that_ended_so_is_taken_up_or_not(job, layout, status, is_found) -> None:
    run, _ = begin(job, layout, status)
    assert (find_unfinished(layout, "job") is not None) is is_found
    assert adopt_or_begin(job, layout)[0].is_adopted is is_found
    if is_found:
        assert read_run(layout, "job", run.id).status == "running"


def test_a_fresh_start_marks_every_interrupted_run_as_abandoned(layout, job) -> None:
    for number in range(2):
        stored(layout, f"20260101-00000{number}-aaaa", status="running", minutes=number)
    run, inputs = adopt_or_begin(job, layout, fresh=True)
    assert [record.status for record in read_runs(layout, "job")] == ["abandoned", "abandoned", "running"]
    assert all(record.ended and record.error for record in read_runs(layout, "job")[:2])
    assert not run.is_adopted
    assert inputs is not None


def test_the_newest_interrupted_run_is_taken_up(layout) -> None:
    for number in range(2):
        stored(layout, f"20260101-00000{number}-aaaa", status="running")
    assert find_unfinished(layout, "job").run == "20260101-000001-aaaa"


def test_an_unreadable_run_is_told_and_passed_over(layout, caplog) -> None:
    stored(layout, "20260101-000000-aaaa")
    layout.run("job", "20260101-000001-bbbb").root.mkdir()
    layout.run("job", "20260101-000002-cccc").root.mkdir()
    layout.run("job", "20260101-000002-cccc").record.write_text("{")
    assert [record.run for record in read_runs(layout, "job")] == ["20260101-000000-aaaa"]
    assert "20260101-000002-cccc" in caplog.text


# ---- nothing changed


def test_a_run_with_unchanged_inputs_is_found_and_skipped(job, layout) -> None:
    run, inputs = begin(job, layout, "completed", verdict="promote", model_version=3)
    unchanged = find_unchanged(layout, "job", inspect_inputs(job, layout))
    assert unchanged.run == run.id
    skipped = skip_run(job, layout, inputs, unchanged)
    assert (skipped.status, skipped.verdict, skipped.unchanged_since, skipped.model_version) == ("completed", "skipped", run.id, 3)
    assert run.id in skipped.reasons[0]
    assert find_unchanged(layout, "job", inputs).run == run.id


def test_changed_inputs_are_not_unchanged(job, layout) -> None:
    begin(job, layout, "completed", verdict="keep")
    assert find_unchanged(layout, "job", inspect_inputs(changed(job, seed=1), layout)) is None


@pytest.mark.parametrize("status", ["failed", "abandoned", "cancelled"])
def test_a_run_that_did_not_complete_is_no_reason_to_skip(job, layout, status) -> None:
    _, inputs = begin(job, layout, status)
    assert find_unchanged(layout, "job", inputs) is None


# ---- ending


def test_the_record_of_a_complete_run_has_what_its_stages_say(job, layout) -> None:
    run, _ = adopt_or_begin(job, layout)
    run_stage(
        run.paths, "split", SplitRecord, lambda: SplitRecord(by="hash", num_rows={"train": 3, "validation": 2, "test": 1}, digest="d")
    )
    run_stage(run.paths, "publish", PublishRecord, lambda: PublishRecord(version=4))
    run.paths.report.touch()
    record = complete_run(run)
    assert (record.status, record.rows.train, record.model_version) == ("completed", 3, 4)
    assert record.report == f"runs/job/{run.id}/report.html"
    assert list(record.seconds) == ["split", "publish"]
    assert read_run(layout, "job", run.id).status == "running"


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (SourceError("it is gone.", where="a.csv"), "failed", "a.csv: it is gone."),
        (ZeroDivisionError("by zero"), "failed", "ZeroDivisionError: by zero"),
        (KeyboardInterrupt(), "cancelled", "KeyboardInterrupt: "),
        (SystemExit(143), "cancelled", "SystemExit: 143"),
    ],
)
def test_whatever_ends_a_run_early_is_written_into_its_record(job, layout, error, status, text) -> None:
    run, _ = adopt_or_begin(job, layout)
    with pytest.raises(type(error)), recording_failure(run):  # noqa: PT012 -- the work before the error counts
        run_stage(run.paths, "publish", PublishRecord, lambda: PublishRecord(version=4))
        raise error
    record = read_run(layout, "job", run.id)
    assert (record.status, record.error, record.verdict, record.reasons) == (status, text, None, ())
    assert record.ended
    assert "publish" in collect(run).seconds


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("saved_model/variables: No space left on device")]
)
def test_a_full_disk_in_any_stage_leaves_a_run_that_goes_on(job, layout, error) -> None:
    run, _ = adopt_or_begin(job, layout)
    with pytest.raises(StorageError, match="the disk is full"), recording_failure(run):
        raise error
    assert read_run(layout, "job", run.id).status == "cancelled"
    assert find_unfinished(layout, "job").run == run.id


def test_an_error_is_told_also_where_the_record_cannot_say_so_and_the_run_goes_on(job, layout, caplog) -> None:
    run, _ = adopt_or_begin(job, layout)
    with pytest.raises(StorageError), recording_failure(run):  # noqa: PT012 -- the disk fills up before the error
        away = run.paths.root.rename(layout.home / "away")
        run.paths.root.touch()
        raise OSError(errno.ENOSPC, "No space left on device")
    assert f"the end of run {run.id} cannot be written" in caplog.text
    run.paths.root.unlink()
    away.rename(run.paths.root)
    assert find_unfinished(layout, "job").run == run.id


def test_a_block_that_ends_well_leaves_the_record_alone(job, layout) -> None:
    run, _ = adopt_or_begin(job, layout)
    with recording_failure(run):
        pass
    assert read_run(layout, "job", run.id).status == "running"


# ---- finding


@pytest.fixture
def history(layout):
    for name, job in (("20260101-000000-aaaa", "a"), ("20260102-000000-bbbb", "a"), ("20260102-000000-cccc", "b")):
        stored(layout, name, job=job)
    return layout


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("20260101-000000-aaaa", "20260101-000000-aaaa"),
        ("20260101", "20260101-000000-aaaa"),
        ("a/20260102", "20260102-000000-bbbb"),
        ("b/latest", "20260102-000000-cccc"),
        ("a/latest", "20260102-000000-bbbb"),
        ("a/20260102-000000-bbbb", "20260102-000000-bbbb"),
    ],
)
def test_a_run_is_found_by_the_name_that_a_person_gives(history, name, found) -> None:
    assert find_run(history, name).run == found


@pytest.mark.parametrize("name", ["2026", "20260102", "a/2"])
def test_a_beginning_of_more_than_one_run_is_refused_with_their_names(history, name) -> None:
    with pytest.raises(RequestError, match=r"is the beginning of [23] runs") as caught:
        find_run(history, name)
    assert "a/20260102-000000-bbbb" in str(caught.value)


@pytest.mark.parametrize("name", ["2027", "a/2027", "c/latest", "", "/", "a/", "../a/latest", "latest", "a/../b/latest"])
def test_an_unknown_run_is_refused(history, name) -> None:
    with pytest.raises(UnknownNameError):
        find_run(history, name)


def test_an_unknown_job_gets_a_suggestion(layout) -> None:
    stored(layout, "20260101-000000-aaaa", job="digits")
    with pytest.raises(UnknownNameError, match=r'no job "digit" with runs. Did you mean "digits"'):
        find_run(layout, "digit/latest")


def test_a_home_without_runs_has_none_to_find(layout) -> None:
    with pytest.raises(UnknownNameError):
        find_run(layout, "2026")


def test_a_folder_of_a_run_without_a_record_is_refused_in_words(layout) -> None:
    layout.run("job", "20260101-000000-aaaa").root.mkdir(parents=True)
    with pytest.raises(RequestError):
        find_run(layout, "20260101")
