"""The command as people and programs use it: statuses, one paragraph an error, one JSON document on stdout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from deployments.command import app
from deployments.environment import CHECKOUT
from refit.config import CheckpointConfig
from refit.records import RunRecord

REFIT = Path(sys.executable).with_name("refit")
DIGITS = CHECKOUT / "deployments" / "digits.yaml"
COMMANDS = sorted(command.name or command.callback.__name__ for command in app.registered_commands)


@pytest.fixture
def environment(tmp_path):
    """Folders of the test's own, and no git state, which others may change meanwhile."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "REFIT_"))}
    folders = {
        "REFIT_HOME": str(tmp_path / "artifacts"),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "GIT_DIR": str(tmp_path / "no-repository"),
    }
    return {**kept, **folders, "COLUMNS": "400", "DO_NOT_TRACK": "1"}


@pytest.fixture
def refit(environment, tmp_path):
    def call(*arguments, **variables):
        return subprocess.run(
            [REFIT, *map(str, arguments)],
            env={**environment, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return call


@pytest.fixture
def job_file(tmp_path):
    """Writes the shipped deployment with other values."""

    def write(name="job.yaml", overrides=None, **job):
        tree = yaml.safe_load(DIGITS.read_text())
        parameters = tree["deployments"][0]["parameters"]
        parameters["job"] |= job
        if overrides:
            parameters["overrides"] = overrides
        path = tmp_path / name
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        return path

    return write


def check_failed(done, status, *told):
    assert done.returncode == status
    for text in told:
        assert text in done.stderr
    assert "Traceback" not in done.stderr


# ---- help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name):
    done = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert f"Usage: refit {name}" in done.output or f" {name} [OPTIONS]" in done.output


def test_the_help_names_every_command_and_imports_nothing_heavy(refit):
    done = refit("--help")
    assert done.returncode == 0
    assert [name for name in COMMANDS if name not in done.stdout] == []
    code = (
        "import sys, deployments.command; print([n for n in ('tensorflow', 'keras', 'prefect', 'pyarrow', 'duckdb') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT).stdout == "[]\n"


def test_without_a_command_there_is_help(refit):
    done = refit()
    assert done.returncode == 2
    assert "Usage" in done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [["run", "--epochs", "3"], ["frobnicate"], ["run"], ["runs", "--limit", "0"]])
def test_an_unknown_option_or_command_is_status_2(arguments):
    assert CliRunner().invoke(app, arguments).exit_code == 2


# ---- check


def test_a_good_file_is_checked_off(refit):
    done = refit("check", DIGITS)
    assert (done.returncode, done.stdout) == (0, "")
    assert "digits" in done.stderr
    as_json = refit("check", DIGITS, "--json")
    (job,) = json.loads(as_json.stdout)["jobs"]
    filled_in = CheckpointConfig().model_dump()  # what the file leaves out
    assert job["fit"]["checkpoint"] == {**filled_in, "every_epochs": 1, "keep": 2}


def test_a_typo_is_told_with_line_column_and_the_nearest(refit, job_file):
    path = job_file(fit={"epoch": 3})
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "epoch: 3" in text)
    check_failed(refit("check", path), 2, str(path), f"line {line}, column", 'Did you mean "epochs"?')


def test_two_faults_are_told_together(refit, job_file):
    done = refit("check", job_file(fit={"epoch": 3, "batch_size": 0}, seed="many"))
    check_failed(done, 2, "3 faults", "epoch", "fit.batch_size", "seed")


@pytest.mark.parametrize("command", ["check", "run"])
def test_code_that_cannot_be_used_is_told_with_line_and_column(command, refit, job_file):
    path = job_file(fit={"callbacks": [{"use": "models.dense:build_model"}, {"use": "models.mine:Watch"}]})
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "models.dense:" in text)
    check_failed(refit(command, path), 2, f"{path}: line {line}, column", "fit.callbacks.0.options", "needs the options features, target")


def test_code_that_an_override_names_is_told_as_the_overrides(refit, job_file):
    path = job_file()
    done = refit("run", path, "--set", "model.options={units: 3}")
    check_failed(done, 2, f"{path}: override model.options: ", 'takes no option "units"')


def test_a_missing_file_is_told(refit, tmp_path):
    check_failed(refit("check", tmp_path / "nowhere.yaml"), 2, "nowhere.yaml", "there is no such file")


def test_an_error_with_json_is_one_document(refit, tmp_path):
    done = refit("check", tmp_path / "nowhere.yaml", "--json")
    assert done.returncode == 2
    told = json.loads(done.stdout)
    assert told["error"] == "JobError"
    assert "there is no such file" in told["message"]
    assert told.keys() == {"error", "message", "where", "remedy"}


# ---- requests that cannot be met


def test_a_missing_csv_is_status_1_and_leaves_no_run(refit, job_file, tmp_path):
    path = job_file(data={"sources": [{"kind": "csv", "path": "nowhere.csv"}]}, features=None)
    check_failed(refit("run", path), 1, 'the source "nowhere.csv" does not exist')
    assert not list((tmp_path / "artifacts").glob("runs/*/*/run.json"))


def test_a_home_that_cannot_be_made_is_status_2(refit, tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("")
    check_failed(refit("run", DIGITS, REFIT_HOME=str(occupied / "home")), 2, "REFIT_HOME cannot be made", str(occupied))


def test_a_builder_that_is_not_there_is_status_2(refit, job_file, tmp_path):
    path = job_file(model={"build": "models.convnett:build_model"})
    check_failed(refit("run", path), 2, "models.convnett", 'Did you mean "convnet"?')
    assert not list((tmp_path / "artifacts").glob("runs/*/*"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["show", "nothing"], 'there is no run "nothing"'),
        (["show", "../etc/latest"], "there is no job"),
        (["models", "nothing"], "nothing"),
        (["models", "../etc"], "cannot be used as a name"),
        (["rollback", "../etc"], "cannot be used as a name"),
        (["rollback", "nothing"], "nothing"),
        (["promote", "nothing"], "nothing"),
        (["runs", "--job", "../etc"], "there is no job"),
        (["diff", "a", "b"], "refit diff is not there yet"),
        (["replay", "a"], "refit replay is not there yet"),
        (["run", str(DIGITS), "--set", "fit.epochs"], "KEY=VALUE"),
        (["run", str(DIGITS), "--set", "fit.epoch=2"], 'Did you mean "epochs"?'),
        (["run", str(DIGITS), "--deployment", "digit"], 'Did you mean "digits"?'),
    ],
    ids=lambda value: " ".join(Path(word).name for word in value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_status_2_with_a_reason(arguments, told, monkeypatch, tmp_path, capsys):
    """In this process, through ``main``, for each of these would take a second of its own."""
    from deployments.command import main

    monkeypatch.setenv("REFIT_HOME", str(tmp_path / "artifacts"))
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(sys, "argv", ["refit", *arguments, *(["--json"] if arguments[0] not in ("diff", "replay") else [])])
    before = dict(os.environ)
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
    out, err = capsys.readouterr()
    assert (ended.value.code, told in err) == (2, True)
    if out:
        assert told in json.loads(out)["message"]
    assert not list(tmp_path.glob("artifacts/runs/*/*/run.json"))


def test_where_nothing_is_yet_lists_say_so(refit):
    runs, models = refit("runs"), refit("models")
    assert (runs.returncode, models.returncode) == (0, 0)
    assert "There is no run under" in runs.stdout
    assert "No model is published under" in models.stdout
    assert json.loads(refit("runs", "--json").stdout) == []


# ---- the shipped example, end to end


def test_the_shipped_deployment_runs_end_to_end(refit, job_file, tmp_path):
    done = refit("run", DIGITS, "--set", "fit.epochs=2", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    _check_record(record, tmp_path / "artifacts")

    shown, listed = refit("show", "digits/latest"), refit("runs", "--json")
    assert record["run"] in shown.stdout
    assert [run["run"] for run in json.loads(listed.stdout)] == [record["run"]]

    again = refit("run", job_file(overrides={"fit.epochs": 2}))  # the same job, so that nothing is to be done
    assert again.returncode == 0, again.stderr
    assert again.stdout == ""
    assert record["run"] in again.stderr
    newest = json.loads(refit("runs", "--limit", "1", "--json").stdout)[0]
    assert (newest["verdict"], newest["unchanged_since"]) == ("skipped", record["run"])

    models = json.loads(refit("models", "--json").stdout)
    assert [m["model"] for m in models] == (["digits"] if record["verdict"] == "first" else [])


def _check_record(record, home):
    assert record.keys() == RunRecord.model_fields.keys()
    assert (record["status"], record["error"], record["parameters"]["fit"]["epochs"]) == ("completed", None, 2)
    assert record["verdict"] in ("first", "keep")
    assert record["reasons"]
    assert sum(record["rows"].values()) == 1797
    assert record["metrics"].keys() == {"validation", "test"}
    filled = ("snapshot", "weights_sha256", "seconds", "config_digest", "versions", "started", "ended", "inputs_digest", "report")
    assert [name for name in filled if not record[name]] == []
    assert (record["model_version"] is None) == (record["verdict"] == "keep")
    assert json.loads((home / "runs" / "digits" / record["run"] / "run.json").read_text()) == record
    assert (home / record["report"]).is_file()
    assert (home / record["saved_model"] / "saved_model.pb").is_file()
