"""The whole flow in the real engine: from a CSV file to a published version, a skip, a refusal, and a run taken up again."""

import csv
import json
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
from prefect.client.schemas.objects import State

from flows.retrain import retrain
from refit import fitting, registry
from refit.config import Job, parse_job
from refit.errors import JobError, NothingThereError
from refit.layout import Layout
from refit.records import BatchesRecord, FitRecord, FoldsRecord, RunRecord
from refit.runs import read_run
from refit.stages import STAGES, forget_stages, read_stage

ROWS = 240


def write_table(path, *, num_rows=ROWS, noise=0.05):
    """Two columns, each with missing values, and a label that they tell."""
    generator = np.random.default_rng(0)
    colours = np.array(["red", "green", "blue"])
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "colour", "size", "kind"])
        for number in range(num_rows):
            colour, size = generator.choice(colours), generator.normal()
            is_big = (size + (colour == "red") > 0.5) ^ (generator.random() < noise)
            told = ["" if number % 17 == 0 else colour, "" if number % 19 == 0 else f"{size:.4f}"]
            rows.writerow([number, *told, "big" if is_big else "small"])
    return path


def job_over(table):
    return parse_job(
        {
            "name": "sizes",
            "data": {"sources": [{"kind": "csv", "path": str(table)}], "key": ["id"]},
            "target": {"column": "kind"},
            "model": {"options": {"hidden_units": [8]}},
            "fit": {"epochs": 6, "batch_size": 32, "optimizer": {"learning_rate": 0.03}},
            "gate": {"champion": {"metric": "auc", "must": "prove_not_worse", "margin": 0.02}},
        }
    )


@pytest.fixture
def job(tmp_path, home):
    return job_over(write_table(tmp_path / "sizes.csv"))


@pytest.fixture
def layout(home):
    return Layout(home)


def run_flow(job, **more):
    state = retrain(job=job, return_state=True, **more)
    return state, state.result(raise_on_failure=False)


@dataclass(frozen=True)
class Published:
    """A home with a first version, whose run was interrupted before its fit and taken up; to be read, or copied."""

    job: Job
    layout: Layout
    interrupted: RunRecord
    converted: bytes
    state: State
    run: str


@pytest.fixture(scope="module")
def published(prefect_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    layout, job = Layout(folder / "artifacts"), job_over(write_table(folder / "sizes.csv"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFIT_HOME", str(layout.home))
        patch.setenv("GIT_DIR", str(folder / "no-repository"))
        with patch.context() as broken:
            broken.setattr(fitting, "describe_model", interrupt)
            with pytest.raises(KeyboardInterrupt):
                retrain(job=job)
        (run,) = layout.runs("sizes")
        interrupted = read_run(layout, "sizes", run)
        converted = layout.run("sizes", run).stage("convert").read_bytes()
        state, taken_up = run_flow(job)
    return Published(job, layout, interrupted, converted, state, taken_up)


def interrupt(*_):
    raise KeyboardInterrupt


def test_an_interrupted_stage_is_done_again_and_those_before_are_not(published):
    before = published.interrupted
    assert (before.status, before.verdict, list(before.seconds)) == ("cancelled", None, ["ingest", "validate", "split", "convert"])
    assert (published.run, published.state.name) == (before.run, "First version")
    assert published.layout.run("sizes", published.run).stage("convert").read_bytes() == published.converted
    assert published.layout.runs("sizes") == [published.run]


def test_from_a_file_to_a_version(published):
    record = read_run(published.layout, "sizes", published.run)
    assert (published.state.name, published.state.is_completed()) == ("First version", True)
    assert (record.status, record.verdict) == ("completed", "first")
    _check_first(record, published.layout, published.run)


def test_a_version_is_published_once_then_skipped_then_kept(published, home):
    shutil.copytree(published.layout.home, home)
    job, layout, run = published.job, Layout(home), published.run
    _check_published_once(job, layout, run)

    state, skipped = run_flow(job)
    record = read_run(layout, "sizes", skipped)
    assert (state.name, record.verdict, record.unchanged_since, record.model_version) == ("Skipped", "skipped", run, 1)

    state, worse = run_flow(job, overrides={"fit.epochs": 1, "fit.optimizer.learning_rate": 1e-6})
    record = read_run(layout, "sizes", worse)
    assert (state.name, record.verdict, record.model_version) == ("Kept champion", "keep", None)
    assert record.comparison.metric == "auc"
    assert record.comparison.low < -0.02
    assert registry.champion(layout, "sizes") == 1
    assert record.champion.version == 1
    assert record.champion.num_shared_rows == 0

    _check_taken_up(job, layout, worse)


def _check_first(record, layout, run):
    assert record.rows.train + record.rows.validation + record.rows.test == ROWS
    assert record.metrics["test"]["auc"] > 0.8
    assert record.baselines["constant"]["auc"] == 0.5 < record.baselines["linear"]["auc"]
    assert registry.champion_record(layout, "sizes").run == run
    paths = layout.run("sizes", run)
    stages = [name for name in STAGES if name not in ("folds", "start")]  # none are asked for
    assert [name for name in stages if name != "report" and not paths.stage(name).exists()] == []
    assert list(record.seconds) == stages
    assert "<html" in paths.report.read_text()
    plan = json.loads(paths.stage("convert").read_text())["record"]
    assert {f["name"]: (f["kind"], f["num_missing"] > 0) for f in plan["features"]} == {
        "colour": ("category", True),
        "size": ("numeric", True),
    }
    assert plan["target"]["classes"] == ["big", "small"]


def _check_published_once(job, layout, run):
    """A process that died between publication and its record publishes nothing twice."""
    paths = layout.run("sizes", run)
    paths.stage("publish").unlink()
    read_run(layout, "sizes", run).model_copy(update={"status": "running", "verdict": None, "ended": None}).write(paths.record)
    state, taken_up = run_flow(job)
    assert (taken_up, state.name, read_run(layout, "sizes", run).model_version) == (run, "First version", 1)
    assert [version.version for version in registry.versions(layout, "sizes")] == [1]


def _check_taken_up(job, layout, run):
    """A run left as ``running`` by a process that died after its export goes on under its own id and on its own job."""
    paths, before = layout.run("sizes", run), read_run(layout, "sizes", run)
    for name in ("evaluate", "gate", "publish"):
        paths.stage(name).unlink()
    done = (paths.weights, paths.saved_model / "saved_model.pb")
    done_at = [path.stat().st_mtime_ns for path in done]
    told = {"status": "running", "verdict": None, "reasons": (), "metrics": {}, "ended": None, "report": None}
    before.model_copy(update=told).write(paths.record)

    state, taken_up = run_flow(job)  # the job itself, without the overrides of the run
    record = read_run(layout, "sizes", run)
    assert (taken_up, state.name, record.status, record.verdict) == (run, "Kept champion", "completed", "keep")
    assert (record.parameters.fit.epochs, [path.stat().st_mtime_ns for path in done]) == (1, done_at)
    assert record.metrics == before.metrics
    assert record.weights_sha256 == before.weights_sha256
    assert record.started == before.started
    assert len(layout.runs("sizes")) == 3


def test_a_typo_in_overrides_fails_before_any_work(job, layout):
    state, result = run_flow(job, overrides={"fit.epoch": 3})
    assert state.is_failed()
    assert isinstance(result, JobError)
    assert 'Did you mean "epochs"?' in str(result)
    assert not layout.runs_dir.exists() or layout.runs("sizes") == []


def test_a_stage_that_fails_ends_the_run_by_name_and_the_next_start_begins_anew(job, layout, tmp_path):
    broken = job.model_copy(update={"fit": job.fit.model_copy(update={"batch_size": 10_000})})
    state, error = run_flow(broken)
    assert state.is_failed()
    assert "fewer than a batch of 10,000" in str(error)
    (failed,) = layout.runs("sizes")
    record = read_run(layout, "sizes", failed)
    assert (record.status, record.verdict, record.error) == ("failed", None, str(error))
    assert registry.champion(layout, "sizes") is None


def test_a_missing_source_fails_before_a_run_is_begun(job, layout, tmp_path):
    (tmp_path / "sizes.csv").unlink()
    state, error = run_flow(job, force=True)
    assert (state.is_failed(), type(error)) == (True, NothingThereError)
    assert layout.runs("sizes") == []


@pytest.mark.slow
def test_a_run_starts_from_the_version_that_serves_and_baselines_are_made_once(published, home):
    shutil.copytree(published.layout.home, home)
    layout = Layout(home)
    _, run = run_flow(published.job, overrides={"fit.warm_start": "champion", "fit.epochs": 1})
    paths = layout.run("sizes", run)
    start = read_stage(paths, "fit", FitRecord).warm_start
    assert (start.version, start.run, start.fresh, start.num_seen_validation) == (1, published.run, (), 0)
    assert not paths.start_weights.exists()
    assert "Started from version 1: 4 of 4 weights" in paths.report.read_text()

    made = paths.stage("baselines").read_bytes()
    forget_stages(paths, "evaluate", "gate", "publish")
    read_run(layout, "sizes", run).model_copy(update={"status": "running", "verdict": None, "ended": None}).write(paths.record)
    assert run_flow(published.job)[1] == run
    assert paths.stage("baselines").read_bytes() == made


# ---- other ways to hold rows out


@pytest.mark.slow
def test_folds_give_a_spread_and_the_model_that_is_judged_learns_from_all_of_them(job, layout):
    state, run = run_flow(job, overrides={"split.k_fold": {"folds": 3}, "fit.epochs": 4})
    assert state.name == "First version"
    paths = layout.run("sizes", run)
    folds = read_stage(paths, "folds", FoldsRecord)
    assert len(folds.folds) == 3
    assert folds.metrics["auc"].low <= folds.metrics["auc"].mean <= folds.metrics["auc"].high
    fit = read_stage(paths, "fit", FitRecord)
    assert fit.num_epochs == folds.num_epochs == sorted(fold.best_epoch + 1 for fold in folds.folds)[1]
    assert not any(name.startswith("val_") for name in fit.history)
    record = read_run(layout, "sizes", run)
    assert "validation" not in record.metrics
    plan = read_stage(paths, "convert", BatchesRecord)
    assert (plan.num_train, plan.num_validation) == (record.rows.train + record.rows.validation, 0)
    for number in range(3):
        assert list(paths.fold(number).tensorboard_dir.glob("validation/*tfevents*"))
    assert "Cross-validation" in paths.report.read_text()


@pytest.mark.slow
def test_rows_that_are_drawn_anew_each_epoch_are_said_not_to_be_held_out(job, layout):
    state, run = run_flow(job, overrides={"split.resplit_each_epoch": True, "fit.epochs": 3})
    assert state.name == "First version"
    paths = layout.run("sizes", run)
    fit = read_stage(paths, "fit", FitRecord)
    assert len(fit.history["val_loss"]) == len(fit.history["loss"])
    assert "validation" not in read_run(layout, "sizes", run).metrics
    assert "The test rows never took part" in paths.report.read_text()
