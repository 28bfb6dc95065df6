"""The jobs in ``deployments/``: none learns from what gives its target away, and each goes through a deep check of its data."""

import os
from pathlib import Path

import pytest

from deployments.deep_check import check_deeply
from refit.jobfile import read_job

DEPLOYMENTS = Path(__file__).resolve().parents[2] / "deployments"
FOLDERS = {
    "adult": "adult",
    "bike_sharing": "bike_sharing",
    "california_housing": "california_housing",
    "fashion_mnist": "fashion_mnist",
    "penguins": "penguins",
    "sms_spam": "sms_spam",
    "taxi": "chicago_taxi",
}
WITHOUT_DATA = {"digits", "breast_cancer"}  # scikit-learn brings theirs


def test_every_shipped_job_is_known_here():
    assert {path.stem for path in DEPLOYMENTS.glob("*.yaml")} == FOLDERS.keys() | WITHOUT_DATA


@pytest.mark.parametrize("name", FOLDERS)
def test_a_job_on_known_data_says_where_they_come_from_and_takes_them_from_a_folder_that_the_machine_names(name):
    path = DEPLOYMENTS / f"{name}.yaml"
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("https://" in line for line in head)
    (source,) = read_job(path).data.sources
    assert source.path.startswith(f"${{REFIT_DATA:-data}}/{FOLDERS[name]}/")


@pytest.mark.parametrize(("name", "giving_away"), [("taxi", {"tips"}), ("bike_sharing", {"casual", "registered", "instant"})])
def test_no_feature_gives_the_target_away(name, giving_away):
    features = read_job(DEPLOYMENTS / f"{name}.yaml").features
    assert features
    assert not giving_away & features.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_a_job_on_known_data_goes_through_a_deep_check(name):
    root = os.environ.get("REFIT_DATA")
    if not root or not (Path(root) / FOLDERS[name]).is_dir():
        pytest.skip(f"REFIT_DATA names no folder with {FOLDERS[name]}")
    check_deeply(read_job(DEPLOYMENTS / f"{name}.yaml"))
