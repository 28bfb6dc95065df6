"""The shipped deployment on a real server with a real worker, as an operator uses it."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.environment import CHECKOUT
from tasks.announce import STATE_NAMES
from tests.deployments.processes import Server, clean_environment, descendants, running, wait_until

DIGITS = CHECKOUT / "deployments" / "digits.yaml"
AUTOMATION = "refit: a run whose heart stopped has crashed"
SHORT = {"fit.epochs": 2}
WORKER = ["-m", "prefect", "worker", "start", "--pool", "killed", "--type", "process"]
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
ENDLESS = {"fit.epochs": 1_000_000, "fit.early_stopping": None}
NIGHTLY: dict[str, Any] = {"name": "nightly", "schedules": [{"cron": "0 3 * * *"}]}
TWICE: dict[str, Any] = {"name": "twice", "schedules": [{"cron": "0 3 * * *", "timezone": "UTC"}, {"interval": 3600}]}
VARIABLE: dict[str, Any] = {"name": "variable", "description": "by {{ $REFIT_TEST_WHO }}"}


@pytest.fixture(scope="module")
def deployed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The shipped deployment on the server; beside it in its file are variants of it."""
    path = variants(tmp_path_factory.mktemp("deployed"), {}, NIGHTLY, TWICE, VARIABLE)
    done = server.refit("deploy", str(path), REFIT_TEST_WHO="me")
    assert done.returncode == 0, done.stderr
    return server.deployment("digits")


def variants(folder: Path, *changes: dict[str, Any]) -> Path:
    """The shipped deployment's file with a deployment for each of these other values."""
    document = yaml.safe_load(DIGITS.read_text())
    (shipped,) = document["deployments"]
    document["deployments"] = [{**shipped, **other} for other in changes]
    path = folder / "variants.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def run(server: Server, *parameters: str) -> subprocess.CompletedProcess[str]:
    """``prefect deployment run``, watched to the end."""
    options = [option for parameter in parameters for option in ("--param", parameter)]
    return server.prefect("deployment", "run", "retrain/digits", "--watch", *options)


def run_folders(server: Server) -> set[Path]:
    """The runs on disk."""
    return set((server.refit_home / "runs").glob("*/*/"))


# ---- what a deployment is


def test_what_the_file_leaves_out_is_filled_in(deployed: dict[str, Any]) -> None:
    assert deployed["work_pool_name"] == "refit"
    assert deployed["job_variables"] == {"stream_output": False}
    assert deployed["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert deployed["global_concurrency_limit"]["limit"] == 1
    assert deployed["pull_steps"] == [{"prefect.deployments.steps.set_working_directory": {"directory": str(CHECKOUT)}}]
    assert deployed["entrypoint"] == "flows/retrain.py:retrain"


@pytest.mark.usefixtures("deployed")
def test_deploying_again_changes_nothing_but_what_the_file_changes(server: Server, tmp_path: Path) -> None:
    first = server.deployment("twice")
    server.post(f"/deployments/{first['id']}/pause_deployment")
    assert server.refit("deploy", str(variants(tmp_path, TWICE))).returncode == 0
    second = server.deployment("twice")
    assert second["paused"]
    assert (second["id"], meaning(second["schedules"])) == (first["id"], meaning(first["schedules"]))
    assert server.refit("deploy", str(variants(tmp_path, {**TWICE, "schedules": TWICE["schedules"][1:]}))).returncode == 0
    assert meaning(server.deployment("twice")["schedules"]) == [entry for entry in meaning(first["schedules"]) if "interval" in entry]
    assert [automation["name"] for automation in server.post("/automations/filter")] == [AUTOMATION]
    assert len(server.post("/deployments/filter", {"deployments": {"name": {"any_": ["twice"]}}})) == 1


def meaning(schedules: list[dict[str, Any]]) -> list[str]:
    """Schedules without their identity, sorted."""
    return sorted(json.dumps([entry["schedule"], entry["active"]]) for entry in schedules)


@pytest.mark.usefixtures("deployed")
def test_a_cron_deployment_gets_runs_by_itself(server: Server) -> None:
    nightly = server.deployment("nightly")["id"]
    runs = wait_until(
        lambda: server.runs_of(nightly, scheduled=True), seconds=60, what="the scheduler makes a run (with SQLAlchemy 2.1 it never does)"
    )
    assert {run["state_name"] for run in runs} == {"Scheduled"}


# ---- what is refused


@pytest.mark.usefixtures("deployed")
def test_a_variable_that_is_not_set_is_an_error_and_no_placeholder(server: Server, tmp_path: Path) -> None:
    refused = server.refit("deploy", str(variants(tmp_path, VARIABLE)))
    assert refused.returncode == 2
    assert "not set: REFIT_TEST_WHO" in " ".join(refused.stderr.split())
    assert server.deployment("variable")["description"] == "by me"


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:9/api"])
def test_without_a_server_it_says_what_to_start(url: str | None, tmp_path: Path) -> None:
    variables = {"PREFECT_API_URL": url} if url else {}
    nowhere = Server(port=9, environment=clean_environment(tmp_path, **variables), refit_home=tmp_path)
    refused = nowhere.refit("deploy", str(DIGITS))
    assert refused.returncode == 2
    assert "prefect server start" in refused.stderr


def test_a_typo_in_the_job_makes_no_run(server: Server, deployed: dict[str, Any]) -> None:
    job = {**deployed["parameters"]["job"], "fitt": {"epochs": 2}}
    before = server.runs_of(deployed["id"], scheduled=False)
    refused = run(server, f"job={json.dumps(job)}")
    assert refused.returncode != 0
    assert "fitt" in refused.stdout + refused.stderr
    assert len(server.runs_of(deployed["id"], scheduled=False)) == len(before)


# ---- runs


@pytest.mark.usefixtures("worker")
def test_a_run_completes_and_the_name_of_its_state_is_the_verdict(server: Server, deployed: dict[str, Any]) -> None:
    done = run(server, f"overrides={json.dumps(SHORT)}")
    assert done.returncode == 0, done.stdout + done.stderr
    state = server.runs_of(deployed["id"], scheduled=False)[0]["state"]
    assert state["type"] == "COMPLETED"
    assert state["name"] in (STATE_NAMES["first"], STATE_NAMES["keep"])
    assert len(run_folders(server)) == 1
    # The slot that the run held is written where a restart of the server finds it.
    assert Path(server.environment["PREFECT_HOME"], "concurrency_leases").is_dir()


@pytest.mark.usefixtures("worker")
def test_a_typo_in_the_overrides_fails_before_any_work(server: Server, deployed: dict[str, Any]) -> None:
    before = run_folders(server)
    refused = run(server, 'overrides={"fit.epoch": 2}')
    assert refused.returncode != 0
    state = server.runs_of(deployed["id"], scheduled=False)[0]["state"]
    assert (state["type"], "epoch" in state["message"]) == ("FAILED", True)
    assert run_folders(server) == before


@pytest.mark.slow
def test_a_run_whose_process_and_worker_were_killed_becomes_crashed_and_makes_room(server: Server, tmp_path: Path) -> None:
    path = variants(tmp_path, {"name": "killed", "work_pool": {"name": "killed"}})
    assert server.refit("deploy", str(path)).returncode == 0
    deployed = server.deployment("killed")
    with running(WORKER, server.environment, tmp_path / "first") as worker:
        begun = begin(server, deployed, ENDLESS)
        wait_until(lambda: heartbeats(server, begun), seconds=120, what="the run's heart beats")
        for pid in [worker.pid, *descendants(worker.pid)]:
            os.kill(pid, signal.SIGKILL)
        assert state_of(server, begun) == "RUNNING"
        wait_until(lambda: state_of(server, begun) == "CRASHED", seconds=240, what="the automation marks the run")
    with running(WORKER, server.environment, tmp_path / "second"):
        later = begin(server, deployed, SHORT, fresh=True)  # the interrupted run would never end
        wait_until(lambda: state_of(server, later) in ENDED, seconds=120, what="the next run ends")
        assert state_of(server, later) == "COMPLETED"


def begin(server: Server, deployed: dict[str, Any], overrides: dict[str, Any], *, fresh: bool = False) -> str:
    """Ask for a run; its id."""
    body = {"state": {"type": "SCHEDULED"}, "parameters": {**deployed["parameters"], "overrides": overrides, "fresh": fresh}}
    return str(server.post(f"/deployments/{deployed['id']}/create_flow_run", body)["id"])


def state_of(server: Server, run_id: str) -> str:
    """The type of a run's state."""
    return str(server.get(f"/flow_runs/{run_id}")["state"]["type"])


def heartbeats(server: Server, run_id: str) -> int:
    """How many heartbeats of a run the server has seen."""
    wanted = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [f"prefect.flow-run.{run_id}"]}}
    return int(server.post("/events/filter", {"filter": wanted})["total"])
