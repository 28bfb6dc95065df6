"""The flow that predicts, in the real engine."""

import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.predict import predict
from refit.errors import RequestError, UnknownNameError
from tests.refit.published import publish_sales, write_sales


@pytest.fixture(scope="module")
def sales(prefect_server, tmp_path_factory):
    return publish_sales(tmp_path_factory.mktemp("sales"))


@pytest.fixture
def folder(sales, tmp_path, monkeypatch):
    monkeypatch.setenv("REFIT_HOME", str(sales.layout.home))
    write_sales(tmp_path / "new.csv", num_rows=60)
    return tmp_path


def test_a_file_is_predicted_and_told(folder):
    output = folder / "out.parquet"
    state = predict("sales", str(folder / "new.csv"), str(output), return_state=True)
    assert (state.name, state.result()) == ("Predicted", str(output))
    assert state.message == f"60 rows predicted by sales, version 1: {output}"
    assert len(pq.read_table(output)) == 60
    with get_client(sync_client=True) as client:
        (artifact,) = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["prediction-sales"])))
    assert artifact.description == state.message


def test_a_schedule_replaces_its_output_and_passes_options(folder):
    for _ in range(2):
        arguments = {"options": {"delimiter": ";"}, "version": 1, "kind": "csv", "max_rejected_fraction": 0.0, "force": True}
        assert predict("sales", str(folder / "new.csv"), str(folder / "out.csv"), **arguments, return_state=True).is_completed()


def test_a_wrong_request_fails_before_any_work(folder):
    for arguments, error in ((("sale", "new.csv", "out.csv"), UnknownNameError), (("sales", "new.csv", "out.doc"), RequestError)):
        state = predict(arguments[0], *(str(folder / name) for name in arguments[1:]), return_state=True)
        assert state.is_failed()
        assert isinstance(state.result(raise_on_failure=False), error)


def test_it_can_be_scheduled(folder):
    deployment = predict.to_deployment(
        name="nightly", cron="0 4 * * *", parameters={"name": "sales", "input": "new.csv", "output": "out.csv"}
    )
    assert deployment.entrypoint.endswith("flows/predict.py:predict")
    assert deployment.schedules[0].schedule.cron == "0 4 * * *"
