"""Every path on disk lies under the home, whatever name was asked for."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refit.errors import HomeError, RequestError
from refit.layout import HOME_VARIABLE, Layout, home_layout, safe_name

BAD_NAMES = ["../x", "..", ".", "", "/etc", "a/b", "a\\b", "a.b", "-a", "_a", "a b", "a\n", "\n", "ä", "a\x00", "~", "$HOME", "a/"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_could_lead_out_of_its_folder_is_refused(tmp_path, name) -> None:
    layout = Layout(tmp_path)
    for ask in (layout.dataset, layout.job_dir, layout.model, lambda n: layout.run("job", n), lambda n: layout.run(n, "run")):
        with pytest.raises(RequestError, match="cannot be used as a name") as caught:
            ask(name)
        assert repr(name) in str(caught.value)


@given(st.text(max_size=30))
def test_a_name_is_refused_or_stays_one_folder_under_the_home(name) -> None:
    home = Path("/home/of/refit")
    try:
        path = Layout(home).model(name).root
    except RequestError:
        return
    assert Path(os.path.normpath(path)).parent == home / "models"


def test_a_good_name_is_returned_as_it_is() -> None:
    assert safe_name("breast-cancer_2", what="the job") == "breast-cancer_2"


def test_paths_are_those_of_the_drawing(tmp_path) -> None:
    layout = Layout(tmp_path)
    run, data, model = layout.run("digits", "r1"), layout.dataset("digits"), layout.model("digits")
    expected = {
        data.shard("ab"): "data/digits/shards/ab.parquet",
        data.rejects("gh"): "data/digits/rejects/gh.parquet",
        data.profile("ef"): "data/digits/profiles/ef.arrow",
        data.snapshot("cd"): "data/digits/snapshots/cd.json",
        data.head: "data/digits/HEAD",
        run.record: "runs/digits/r1/run.json",
        run.report: "runs/digits/r1/report.html",
        run.stage("fit"): "runs/digits/r1/stages/fit.json",
        run.keras_model: "runs/digits/r1/model/model.keras",
        run.weights: "runs/digits/r1/model/weights.weights.h5",
        run.saved_model: "runs/digits/r1/model/saved_model",
        model.version(3): "models/digits/3",
        model.history: "models/digits/history.jsonl",
    }
    assert {layout.relative(path): path for path in expected} == {relative: path for path, relative in expected.items()}
    assert all(layout.resolve(relative) == path for path, relative in expected.items())


def test_asking_for_paths_makes_no_folder(tmp_path) -> None:
    layout = Layout(tmp_path / "home")
    assert layout.jobs() == []
    assert layout.runs("digits") == []
    assert layout.datasets() == []
    assert layout.model("digits").versions() == []
    assert not layout.home.exists()


def test_data_sets_are_listed_in_order_without_hidden_folders_and_files(tmp_path) -> None:
    layout = Layout(tmp_path)
    for name in ("b", "a", ".tmp", "not a name"):
        (layout.datasets_dir / name).mkdir(parents=True)
    (layout.datasets_dir / "file").touch()
    assert layout.datasets() == ["a", "b"]


def test_runs_and_jobs_are_listed_in_order_without_hidden_folders_and_files(tmp_path) -> None:
    layout = Layout(tmp_path)
    for name in ("b/r2", "b/r1", "b/.tmp", "a/r1", ".hidden/r1"):
        (layout.runs_dir / name).mkdir(parents=True)
    (layout.runs_dir / "b" / "owner.lock").touch()
    (layout.runs_dir / "file").touch()
    assert layout.jobs() == ["a", "b"]
    assert layout.runs("b") == ["r1", "r2"]


def test_versions_are_numbers_in_order_of_size(tmp_path) -> None:
    model = Layout(tmp_path).model("m")
    for name in ("10", "9", "1", "0", "01", "1a", ".2", "x", "2.tmp"):
        (model.root / name).mkdir(parents=True)
    (model.root / "11").touch()
    assert model.versions() == [1, 9, 10]


def test_the_home_is_the_one_that_the_environment_names(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "x"))
    assert home_layout().home == tmp_path / "x"


@pytest.mark.parametrize("value", [None, ""])
def test_the_home_is_the_folder_artifacts_where_none_is_named(tmp_path, monkeypatch, value) -> None:
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(HOME_VARIABLE, value)
    monkeypatch.chdir(tmp_path)
    assert home_layout().home == tmp_path / "artifacts"


def test_a_relative_home_stays_where_it_was_when_the_working_directory_changes(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, "x")
    monkeypatch.chdir(tmp_path)
    layout = home_layout()
    monkeypatch.chdir("/")
    assert layout.home == tmp_path / "x"


def test_a_home_is_made_with_its_parents_and_may_exist(tmp_path) -> None:
    layout = Layout(tmp_path / "a" / "b")
    assert layout.create() == layout.create()
    assert layout.home.is_dir()


def test_a_home_under_a_regular_file_is_refused(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HomeError, match="cannot be made") as caught:
        Layout(tmp_path / "file" / "home").create()
    assert str(tmp_path / "file" / "home") in str(caught.value)
    assert HOME_VARIABLE in caught.value.remedy


def test_a_home_that_is_a_regular_file_is_refused(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HomeError):
        Layout(tmp_path / "file").create()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_that_cannot_be_written_is_refused(tmp_path) -> None:
    (tmp_path / "home").mkdir(mode=0o500)
    with pytest.raises(HomeError, match="cannot be written"):
        Layout(tmp_path / "home").create()
