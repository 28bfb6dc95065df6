"""One Prefect server, in a folder of its own, for all tests of the flow."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prefect's own harness: a temporary database and server, gone at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        patch.setenv("DO_NOT_TRACK", "1")
        from prefect.settings import PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW, temporary_settings
        from prefect.testing.utilities import prefect_test_harness

        # Prefect's handler stays on refit's loggers; what later tests log outside of any flow is no matter of its own.
        with prefect_test_harness(server_startup_timeout=90), temporary_settings({PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW: "ignore"}):
            yield


@pytest.fixture
def home(tmp_path, monkeypatch, prefect_server):
    """A REFIT_HOME of the test's own; and no git state, which others may change while a test runs."""
    monkeypatch.setenv("REFIT_HOME", str(tmp_path / "artifacts"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "no-repository"))
    return tmp_path / "artifacts"
