"""What refit needs of Prefect, said before Prefect is imported. The values stand in ``prefect.toml``, and only there.

Prefect reads that file from the working directory; the command may be started anywhere, so the values go into the environment, where
child processes find them too. Imports nothing heavy: ``refit --help`` passes through here.
"""

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

CHECKOUT = Path(__file__).resolve().parents[1]
API_URL = "PREFECT_API_URL"
# No setting of Prefect but a convention that its client follows. Source: prefect._internal.analytics.enabled, consoledonottrack.com
DO_NOT_TRACK = "DO_NOT_TRACK"


def prepare_environment() -> None:
    """Set what ``prefect.toml`` says, where the environment says nothing else."""
    os.environ.setdefault(DO_NOT_TRACK, "1")
    for name, value in read_settings(CHECKOUT / "prefect.toml").items():
        os.environ.setdefault(name, value)


def read_settings(path: Path) -> dict[str, str]:
    """Read settings of Prefect as environment variables: ``[server.ui] enabled = false`` is ``PREFECT_SERVER_UI_ENABLED=false``."""
    return dict(_variables(_read_toml(path), "PREFECT"))


def _variables(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        name = f"{prefix}_{key.upper()}"
        if isinstance(value, dict):
            yield from _variables(value, name)
        else:
            yield name, _text(value)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def prefect_home() -> Path:
    """Prefect's own folder: ``$PREFECT_HOME``, or ``~/.prefect``."""
    return Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect").expanduser()


def is_api_configured() -> bool:
    """Whether Prefect will find the address of a server, without importing Prefect.

    Source: https://docs.prefect.io/v3/concepts/settings-and-profiles: environment, ``.env``, ``prefect.toml``, ``pyproject.toml``, profile.
    """
    return any(_api_urls())


def _api_urls() -> Iterator[str | None]:
    yield os.environ.get(API_URL)
    yield dotenv_values(".env").get(API_URL)
    yield _read_toml(Path("prefect.toml")).get("api", {}).get("url")
    yield _read_toml(Path("pyproject.toml")).get("tool", {}).get("prefect", {}).get("api", {}).get("url")
    yield _active_profile().get(API_URL)


def _active_profile() -> dict[str, Any]:
    path = os.environ.get("PREFECT_PROFILES_PATH")
    profiles = _read_toml(Path(path) if path else prefect_home() / "profiles.toml")
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
    return dict(profiles.get("profiles", {}).get(active, {}))


def _read_toml(path: Path) -> dict[str, Any]:
    """A file that is missing or broken says nothing here; Prefect itself reports a broken one."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return {}
