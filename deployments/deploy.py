"""From a deployment file to a server: the work pool, ``prefect deploy``, and the automation that ends runs whose process is gone.

Everything is found by name and set to what it should be: deploying twice changes nothing.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import DeploymentSchedule, StateType, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError
from prefect.schedules import Schedule
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings
from prefect.utilities.templating import PlaceholderType, apply_values, find_placeholders
from prefect.utilities.urls import url_for
from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type
from pydantic import TypeAdapter, ValidationError

from deployments.environment import API_URL, CHECKOUT, is_api_configured
from refit.config import parse_job
from refit.errors import RefitError, RequestError
from refit.jobfile import Deployment, read_deployments

WORK_POOL = "refit"
FLOW = "retrain"
AUTOMATION = "refit: a run whose heart stopped has crashed"
CONCURRENCY_LIMIT = {"limit": 1, "collision_strategy": "CANCEL_NEW"}
HEARTBEATS_MISSED = 4
UNREACHABLE_REMEDY = (
    f"Start one with `prefect server start` and set {API_URL}=http://127.0.0.1:4200/api; or use `refit serve`, which brings its own."
)


@dataclass(frozen=True)
class DeployedRecord:
    """One deployment as the server has it now."""

    name: str
    id: str
    work_pool: str
    num_schedules: int
    url: str


def deploy_file(path: Path) -> list[DeployedRecord]:
    """Bring every deployment of a file to the configured server.

    Raises:
        RequestError: the file is wrong, or no server answers.
        RefitError: Prefect refused.
    """
    found = [fill_in_variables(deployment) for deployment in read_deployments(path)]
    with reach_server() as client:
        install_automation(client)
        completed = [_complete(raw, client) for raw in found]
        _prefect_deploy({**_top_level(path), "deployments": completed})
        return [_read_record(client, f"{FLOW}/{raw['name']}") for raw in found]


# ---- the server


@contextmanager
def reach_server() -> Iterator[SyncPrefectClient]:
    """A client of the configured server, once that has answered.

    Raises:
        RequestError: none is configured, it does not answer, or it refuses us.
    """
    if not is_api_configured():
        raise RequestError("no Prefect server is configured.", expected=API_URL, remedy=UNREACHABLE_REMEDY)
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), get_client(sync_client=True) as client:
        failure = client.api_healthcheck()
        if failure is not None:
            raise RequestError("no Prefect server answers.", where=str(client.api_url), received=repr(failure), remedy=UNREACHABLE_REMEDY)
        try:
            yield client
        except PrefectHTTPStatusError as error:
            raise _refusal(error, str(client.api_url)) from error


def _refusal(error: PrefectHTTPStatusError, url: str) -> RefitError:
    if error.response.status_code in (401, 403):
        return RequestError(
            "the Prefect server refuses us.", where=url, received=str(error.response.status_code), remedy="Set PREFECT_API_AUTH_STRING."
        )
    return RefitError("the Prefect server cannot do that.", where=url, received=f"{error.response.status_code} {error.response.text[:500]}")


def _ensure_work_pool(client: SyncPrefectClient, name: str) -> WorkPool:
    try:
        return client.read_work_pool(name)
    except ObjectNotFound:
        template = asyncio.run(get_default_base_job_template_for_infrastructure_type("process"))
    try:
        return client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template or {}))
    except ObjectAlreadyExists:  # somebody else was quicker
        return client.read_work_pool(name)


# ---- what a file leaves out


def fill_in_variables(deployment: Deployment) -> dict[str, Any]:
    """The deployment's mapping with ``{{ $NAME }}`` replaced by environment variables.

    Raises:
        RequestError: some are not set, or the job or a schedule is wrong with them.
    """
    raw = _filled_in(deployment.raw, where=f"{deployment.path}, {deployment.name}")
    parse_job(raw["parameters"]["job"], raw["parameters"].get("overrides"))
    for item in raw.get("schedules") or []:
        read_schedule(item)
    return raw


def _filled_in(tree: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Prefect by itself warns of a variable that is not set, and deploys the placeholder as if it were the value."""
    plain = _plain(tree)
    named = {found.name.removeprefix("$") for found in find_placeholders(plain) if found.type is PlaceholderType.ENV_VAR}
    unset = sorted(named - set(os.environ))
    if unset:
        remedy = f"Set them: export {' '.join(f'{name}=...' for name in unset)}"
        raise RequestError(f"environment variables are not set: {', '.join(unset)}.", where=where, remedy=remedy)
    return cast("dict[str, Any]", apply_values(plain, dict(os.environ), remove_notset=False))


def _plain(value: Any) -> Any:  # noqa: ANN401 -- a node of a YAML tree
    """Dates become text, which is what Prefect's search for placeholders takes."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def _complete(raw: Mapping[str, Any], client: SyncPrefectClient) -> dict[str, Any]:
    deployment = deepcopy(dict(raw))
    deployment.setdefault("concurrency_limit", dict(CONCURRENCY_LIMIT))
    deployment["work_pool"] = _complete_work_pool(deployment.get("work_pool") or {}, client)
    if "image" not in deployment["work_pool"]["job_variables"]:
        deployment.setdefault("pull", [{"prefect.deployments.steps.set_working_directory": {"directory": str(CHECKOUT)}}])
    existing = _find_deployment(client, f"{FLOW}/{deployment['name']}")
    return deployment if existing is None else _carry_over(deployment, existing, client)


def _find_deployment(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def _carry_over(deployment: dict[str, Any], existing: DeploymentResponse, client: SyncPrefectClient) -> dict[str, Any]:
    """Make the server's schedules those of the file, but for what people changed and the file says nothing of.

    By itself ``prefect deploy`` starts again what somebody paused, moves the anchor of intervals, and leaves schedules that are gone
    from the file (3.8.8).
    """
    items = [(item, _match(item, existing.schedules)) for item in deployment.get("schedules") or []]
    kept = {match.id for _, match in items if match}
    for schedule in existing.schedules:
        if schedule.id not in kept:
            client.delete_deployment_schedule(existing.id, schedule.id)
    schedules = [item if match is None else {**_standing(match), **item} for item, match in items]
    return {"paused": existing.paused, **deployment, "schedules": schedules}


def _match(item: Mapping[str, Any], schedules: list[DeploymentSchedule]) -> DeploymentSchedule | None:
    slug, timing = item.get("slug"), _timing(read_schedule(item))
    return next((s for s in schedules if s.slug == slug and (slug or _timing(s.schedule) == timing)), None)


def _timing(schedule: object) -> tuple[object, ...]:
    """What says when; the server puts a start before a rule that has none, and UTC where there is no time zone."""
    rule = str(getattr(schedule, "rrule", None)).rpartition("\n")[2].removeprefix("RRULE:")
    return getattr(schedule, "cron", None), getattr(schedule, "interval", None), rule, getattr(schedule, "timezone", None) or "UTC"


def _standing(existing: DeploymentSchedule) -> dict[str, Any]:
    anchor = getattr(existing.schedule, "anchor_date", None)
    return {"active": existing.active} | ({"anchor_date": anchor.isoformat()} if anchor else {})


def read_schedule(item: Mapping[str, Any]) -> Schedule:
    """One entry under ``schedules`` of a deployment file.

    Raises:
        RequestError: it is none.
    """
    try:
        return TypeAdapter(Schedule).validate_python(dict(item))
    except (ValidationError, ValueError) as error:
        raise RequestError("this is no schedule.", received=repr(dict(item)), remedy=str(error)) from error


def _complete_work_pool(given: Mapping[str, Any], client: SyncPrefectClient) -> dict[str, Any]:
    name = str(given.get("name") or WORK_POOL)
    pool = _ensure_work_pool(client, name)
    variables = dict(given.get("job_variables") or {})
    if pool.type == "process":
        # With a pipe to the worker, a flow whose worker was killed dies at its next line of output.
        variables.setdefault("stream_output", False)
    return {**given, "name": name, "job_variables": variables}


def _top_level(path: Path) -> dict[str, Any]:
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    return _filled_in({key: value for key, value in document.items() if key != "deployments"}, where=str(path))


# ---- prefect deploy


def _prefect_deploy(document: Mapping[str, Any]) -> None:
    """Run ``prefect deploy`` in the checkout, whose folders entrypoints are relative to. It never asks, so it never offers to clone."""
    with tempfile.TemporaryDirectory(prefix="refit-deploy-") as folder:
        path = Path(folder) / "prefect.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(path)]
        done = subprocess.run(  # noqa: S603 -- this interpreter, with our arguments
            command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        raise RefitError(f"`prefect deploy` ended with status {done.returncode}.", received=(done.stdout + done.stderr).strip()[-2000:])


def _read_record(client: SyncPrefectClient, name: str) -> DeployedRecord:
    deployed = client.read_deployment_by_name(name)
    return DeployedRecord(
        name=name,
        id=str(deployed.id),
        work_pool=deployed.work_pool_name or "",
        num_schedules=len(deployed.schedules),
        url=url_for("deployment", obj_id=deployed.id) or "",
    )


# ---- the automation


def install_automation(client: SyncPrefectClient) -> None:
    """Make the server mark runs as Crashed whose process is gone."""
    wanted = crash_automation()
    existing = client.read_automations_by_name(AUTOMATION)
    if not existing:
        client.create_automation(wanted)
    elif _meaning(existing[0]) != _meaning(wanted):
        client.update_automation(existing[0].id, wanted.model_copy(update={"enabled": existing[0].enabled}))


def _meaning(automation: AutomationCore) -> dict[str, Any]:
    """What it does; whether it is enabled is for people to say."""
    return automation.model_dump(include={"description", "trigger", "actions"})


def crash_automation() -> AutomationCore:
    """A run of the flow that has sent a heartbeat and then sends neither another nor a change of state has crashed.

    Without it a run whose process and worker both died stays Running. States have names of their own (a verdict), and a change of state
    is an event of that name, so any event of the run counts as a sign of life.
    Source: https://docs.prefect.io/v3/advanced/detect-zombie-flows
    """
    frequency = get_current_settings().flows.heartbeat_frequency or 30
    return AutomationCore(
        name=AUTOMATION,
        description="Installed by `refit deploy`. Without it a run whose process and worker were killed would stay Running.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": FLOW},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=HEARTBEATS_MISSED * frequency),
        ),
        actions=[ChangeFlowRunState(name=None, state=StateType.CRASHED, message="No heartbeat: the process is gone.", force=False)],
    )
