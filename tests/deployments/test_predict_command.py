"""``refit predict`` as people use it: a file with predictions, one JSON document, statuses, and nothing half written."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from refit.prediction import PredictionRecord
from tests.refit.published import publish_sales, write_sales

REFIT = Path(sys.executable).with_name("refit")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return publish_sales(tmp_path_factory.mktemp("sales")).layout.home


@pytest.fixture
def start(home, tmp_path):
    """Starts the command in the test's folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "REFIT_"))}

    def call(*arguments):
        command = [REFIT, "predict", *map(str, arguments)]
        environment = {**kept, "REFIT_HOME": str(home), "COLUMNS": "400"}
        return subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return call


@pytest.fixture
def refit(start):
    def call(*arguments):
        process = start(*arguments)
        out, err = process.communicate(timeout=240)
        assert "Traceback" not in err
        return process.returncode, out, err

    return call


def test_predictions_and_what_was_done_are_told(refit, tmp_path):
    path = write_sales(tmp_path / "new.csv", num_rows=300)
    path.write_text(path.read_text(encoding="latin-1").replace("\n7;", "\n7;;;;;;;;;;"), encoding="latin-1")
    status, out, err = refit("sales", "new.csv", "out.csv")
    assert (status, out) == (0, "")
    assert "299 rows predicted by sales, version 1" in err
    assert "out.csv: label, score, probability_0, probability_1" in err
    assert "1 of 300 rows: out.csv.rejects.parquet" in err
    assert "none of 6 columns" in err
    status, out, err = refit("sales", "new.csv", "out.csv", "--force", "--json")
    assert (status, PredictionRecord.model_validate_json(out)) == (0, PredictionRecord.read(tmp_path / "out.csv.refit.json"))
    status, out, err = refit("sales", "new.csv", "more.csv", "--max-rejected-fraction", "0", "--json")
    assert (status, json.loads(out)["error"]) == (1, "DataError")


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["sale", "new.csv", "out.csv"], 2, 'Did you mean "sales"?'),
        (["../sales", "new.csv", "out.csv"], 2, "cannot be used as a name"),
        (["sales", "new.csv", "out.csv", "--version", "3"], 2, "no version 3"),
        (["sales", "new.csv", "out.doc"], 2, ".parquet, .csv, .jsonl"),
        (["sales", "new.csv", "new.csv", "--force"], 2, "replace the input"),
        (["sales", "new.csv", "out.csv", "--kind", "xml"], 2, "no kind of input"),
        (["sales", "new.csv", "out.csv", "--set", "delimeter=,"], 2, 'Did you mean "delimiter"?'),
        (["sales", "new.csv", "out.csv", "--set", "delimiter"], 2, "KEY=VALUE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_has_a_status_and_a_reason(arguments, status, told, home, tmp_path, monkeypatch, capsys):
    from deployments.command import main

    write_sales(tmp_path / "new.csv", num_rows=3)
    for name, value in (("REFIT_HOME", home), ("COLUMNS", 400)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["refit", "predict", *arguments])
    before, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        signal.signal(signal.SIGTERM, handler)
        for name in set(os.environ) - set(before):
            del os.environ[name]
    assert (ended.value.code, told in capsys.readouterr().err) == (status, True)
    assert [path.name for path in tmp_path.iterdir()] == ["new.csv"]


@pytest.mark.parametrize(
    ("source", "option", "told"), [("none.csv", "quote='", "does not exist"), ("new.csv", "delimiter=|", "the input lacks")]
)
def test_an_input_that_cannot_be_used_is_status_1(source, option, told, refit, tmp_path):
    write_sales(tmp_path / "new.csv", num_rows=3)
    status, _, err = refit("sales", source, "out.csv", "--set", option)
    assert (status, told in err) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["new.csv"]


def wait_for_bytes(process, path):
    """Until something stands in the file that is under way."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.stat().st_size:
            return
        time.sleep(0.01)
    pytest.fail(f"nothing is written: {process.communicate()[1] if process.poll() is not None else path}")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_in_the_middle_there_is_no_output_and_the_next_makes_it(how, start, refit, tmp_path):
    write_sales(tmp_path / "new.csv", num_rows=20_000)
    arguments = ["sales", "new.csv", "out.csv", "--batch-rows", "2"]
    process = start(*arguments)
    wait_for_bytes(process, tmp_path / ".out.csv.predicting" / "out.csv")
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode == (-how if how == signal.SIGKILL else 128 + how)
    assert {path.name for path in tmp_path.iterdir()} - {".out.csv.predicting"} == {"new.csv"}
    assert (tmp_path / ".out.csv.predicting").exists() == (how == signal.SIGKILL)
    if how == signal.SIGKILL:
        status, _, _ = refit("sales", "new.csv", "out.csv")
        assert status == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["new.csv", "out.csv", "out.csv.refit.json"]


def test_a_table_of_another_kind_is_read_where_it_is_told(refit, tmp_path):
    write_sales(tmp_path / "new", num_rows=4, delimiter=",")
    status, _, _ = refit("sales", "new", "out.parquet", "--kind", "csv", "--set", "delimiter=,", "--version", "1")
    assert (status, len(pq.read_table(tmp_path / "out.parquet"))) == (0, 4)
