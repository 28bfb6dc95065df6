"""Credentials of the job's sources come from Prefect's Secret blocks, last as long as they are needed, and show nowhere."""

import json
import os
import sys
from datetime import UTC, datetime

import pytest
from prefect import flow
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.logging import get_run_logger

from refit.config import parse_job
from refit.errors import RequestError
from refit.records import CodeRecord, RunRecord
from tasks.credentials import credentials

HIDDEN = "hunter2/and+more"


def job_with(*secrets):
    return parse_job(
        {"name": "a", "data": {"sources": [{"kind": "csv", "path": "a.csv"}], "secrets": list(secrets)}, "target": {"column": "y"}}
    )


def save(name, value):
    Secret(value=value).save(name, overwrite=True)
    return name


@flow
def look(job, path):
    """As the real flow does: something runs under the credentials, is logged, and leaves a record."""
    with credentials(job):
        is_there = os.environ["REFIT_TEST_SECRET"] == HIDDEN
        get_run_logger().info("under the credentials of %s", job.data.secrets)
    record_of(job).write(path)
    return is_there


def record_of(job):
    return RunRecord(
        run="r1",
        job=job.name,
        status="completed",
        config_digest="d",
        code=CodeRecord(git=None, builder_sha256="b"),
        versions={},
        started=datetime.now(UTC),
        inputs_digest="i",
        parameters=job,
    )


def test_a_flow_has_the_variables_while_it_needs_them_and_they_show_nowhere(prefect_server, tmp_path, monkeypatch, caplog, capfd):
    caplog.set_level("DEBUG")
    monkeypatch.delenv("REFIT_TEST_SECRET", raising=False)
    job = job_with(save("shown-nowhere", {"REFIT_TEST_SECRET": HIDDEN}))
    state = look(job, tmp_path / "run.json", return_state=True)
    assert state.result() is True
    assert "REFIT_TEST_SECRET" not in os.environ
    assert "shown-nowhere" in (tmp_path / "run.json").read_text()
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
    told = [run.model_dump_json(), caplog.text, *capfd.readouterr(), *(path.read_text() for path in tmp_path.rglob("*") if path.is_file())]
    assert "under the credentials of" in caplog.text
    assert [text for text in told if HIDDEN in text] == []


def test_a_value_may_be_json_text_and_later_blocks_count(prefect_server, monkeypatch):
    monkeypatch.delenv("REFIT_TEST_OTHER", raising=False)
    monkeypatch.setenv("REFIT_TEST_SECRET", "before")
    first = save("as-mapping", {"REFIT_TEST_SECRET": "1", "REFIT_TEST_OTHER": "1"})
    with credentials(job_with(first, save("as-text", json.dumps({"REFIT_TEST_SECRET": "2"})))):
        assert (os.environ["REFIT_TEST_SECRET"], os.environ["REFIT_TEST_OTHER"]) == ("2", "1")
    assert os.environ["REFIT_TEST_SECRET"] == "before"
    assert "REFIT_TEST_OTHER" not in os.environ


def test_the_environment_is_restored_when_the_work_fails(prefect_server, monkeypatch):
    monkeypatch.setenv("REFIT_TEST_SECRET", "before")
    with pytest.raises(KeyboardInterrupt), credentials(job_with(save("fails", {"REFIT_TEST_SECRET": HIDDEN}))):
        raise KeyboardInterrupt
    assert os.environ["REFIT_TEST_SECRET"] == "before"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (HIDDEN, "holds no mapping"),
        ([HIDDEN], "holds no mapping"),
        (json.dumps(HIDDEN), "holds no mapping"),
        ({"A": 1, "B": HIDDEN}, "has entries that cannot be set: 'A'"),
        ({"A": {"B": HIDDEN}}, "has entries that cannot be set: 'A'"),
        ({"A=B": HIDDEN}, "has entries that cannot be set: 'A=B'"),
        ({"": HIDDEN}, "has entries that cannot be set: ''"),
        ({"A": f"{HIDDEN}\0"}, "has entries that cannot be set: 'A'"),
    ],
)
def test_a_block_that_is_no_mapping_of_strings_is_refused_without_its_value(prefect_server, value, says):
    before = dict(os.environ)
    with pytest.raises(RequestError, match=says) as caught, credentials(job_with(save("wrong", value))):
        pytest.fail("the work was begun")
    assert HIDDEN not in str(caught.value)
    assert (caught.value.__cause__, dict(os.environ)) == (None, before)


def test_a_block_that_cannot_be_read_is_refused_without_its_value(prefect_server):
    """A document that another program wrote, or an older one: the value lies under another key."""
    save("foreign", "x")
    with get_client(sync_client=True) as client:
        document = client.read_block_document_by_name("foreign", "secret")
        client._client.patch(
            f"/block_documents/{document.id}", json={"data": {"text": HIDDEN}, "merge_existing_data": False}
        ).raise_for_status()
    with pytest.raises(RequestError, match="cannot be read") as caught, credentials(job_with("foreign")):
        pytest.fail("the work was begun")
    assert HIDDEN not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_missing_block_is_named_before_any_variable_is_set(prefect_server, monkeypatch):
    monkeypatch.delenv("REFIT_TEST_SECRET", raising=False)
    there = save("there", {"REFIT_TEST_SECRET": HIDDEN})
    with pytest.raises(RequestError, match='the Secret block "not-there" does not exist'), credentials(job_with(there, "not-there")):
        pytest.fail("the work was begun")
    assert "REFIT_TEST_SECRET" not in os.environ


def test_a_job_without_secrets_asks_prefect_for_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "prefect.blocks.system", None)  # an import of it would fail
    before = dict(os.environ)
    with credentials(job_with()):
        assert dict(os.environ) == before
    with pytest.raises(ImportError), credentials(job_with("any")):
        pytest.fail("the work was begun")
