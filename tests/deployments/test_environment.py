"""One file says what refit needs of Prefect; whether a server is configured is known without Prefect."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import Settings

from deployments import environment
from deployments.environment import CHECKOUT, is_api_configured, read_settings

SETTINGS = read_settings(CHECKOUT / "prefect.toml")
URL = "http://127.0.0.1:4200/api"

SHOW_SETTINGS = """
import json, sys
from deployments.environment import prepare_environment
prepare_environment()
early = "prefect" in sys.modules
from prefect.settings import get_current_settings
print(json.dumps({"early": early, "settings": get_current_settings().to_environment_variables(exclude_unset=True)}))
"""


def running_settings(cwd: Path, **variables: str) -> dict[str, Any]:
    """What Prefect's settings are in a process that prepared its environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = [sys.executable, "-c", SHOW_SETTINGS]
    here = {**kept, "PREFECT_HOME": str(cwd), **variables}
    done = subprocess.run(command, cwd=cwd, env=here, capture_output=True, text=True, check=True)
    shown = json.loads(done.stdout)
    assert not shown["early"]
    settings: dict[str, Any] = shown["settings"]
    return settings


def test_every_key_of_the_file_is_a_setting_that_prefect_has_when_started_elsewhere(tmp_path: Path) -> None:
    settings = running_settings(tmp_path)
    assert {name: settings.get(name, "unknown to Prefect").lower() for name in SETTINGS} == {n: v.lower() for n, v in SETTINGS.items()}


def test_a_key_that_prefect_does_not_know_would_be_seen(tmp_path: Path) -> None:
    settings = running_settings(tmp_path, PREFECT_SERVER_ANALYTIC_ENABLED="false")
    assert "PREFECT_SERVER_ANALYTIC_ENABLED" not in settings


def test_what_is_set_already_wins(tmp_path: Path) -> None:
    settings = running_settings(tmp_path, PREFECT_FLOWS_HEARTBEAT_FREQUENCY="90")
    assert settings["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "90"


def test_nested_keys_become_names_of_variables(tmp_path: Path) -> None:
    path = tmp_path / "prefect.toml"
    path.write_text('home = "/x"\n[server.ui]\nenabled = false\n[logging]\nextra_loggers = ["a", "b"]\n[flows]\nheartbeat_frequency = 30\n')
    assert read_settings(path) == {
        "PREFECT_HOME": "/x",
        "PREFECT_SERVER_UI_ENABLED": "false",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "a,b",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }


@pytest.mark.parametrize("module", ["deployments.environment", "deployments.server"])
def test_nothing_heavy_is_imported(module: str) -> None:
    code = f"import sys, {module}; print(*{{'prefect', 'pydantic', 'httpx', 'tensorflow', 'numpy'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# ---- is a server configured?

PROFILES = f'active = "here"\n[profiles.here]\n[profiles.there]\nPREFECT_API_URL = "{URL}"\n'

PLACES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "nowhere": ({}, {}),
    "in the environment": ({"PREFECT_API_URL": URL}, {}),
    "in .env": ({}, {".env": f"PREFECT_API_URL={URL}\n"}),
    "in prefect.toml": ({}, {"prefect.toml": f'[api]\nurl = "{URL}"\n'}),
    "in pyproject.toml": ({}, {"pyproject.toml": f'[tool.prefect.api]\nurl = "{URL}"\n'}),
    "in another profile": ({}, {"profiles.toml": PROFILES}),
    "in the active profile": ({}, {"profiles.toml": PROFILES.replace('active = "here"', 'active = "there"')}),
    "in the profile of the environment": ({"PREFECT_PROFILE": "there"}, {"profiles.toml": PROFILES}),
    "in a broken file": ({}, {"profiles.toml": "active ="}),
}


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A working directory, a PREFECT_HOME and variables as ``PLACES`` has them."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    variables, files = PLACES[request.param]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for name, value in {"PREFECT_HOME": str(tmp_path), **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return str(request.param)


@pytest.mark.filterwarnings("ignore:Failed to load profiles")
@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_whether_a_server_is_configured_is_what_prefect_finds(place: str) -> None:
    expected = place not in ("nowhere", "in another profile", "in a broken file")
    assert (Settings().api.url is not None, is_api_configured()) == (expected, expected)


def test_the_checkout_is_where_prefect_toml_lies() -> None:
    assert environment.CHECKOUT.joinpath("pyproject.toml").is_file()
