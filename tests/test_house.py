"""The house itself: what is imported lies in this checkout, the lock is a lock, and every file says what it owns."""

import ast
import importlib.util
import tomllib
from pathlib import Path

import pytest

import refit

CHECKOUT = Path(__file__).parents[1]
PACKAGES = ("refit", "models", "tasks", "flows", "deployments")
MODULES = sorted(path.relative_to(CHECKOUT) for package in PACKAGES for path in (CHECKOUT / package).rglob("*.py"))
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_those_of_this_checkout(package):
    assert Path(importlib.util.find_spec(package).origin) == CHECKOUT / package / "__init__.py"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_says_what_it_owns(module):
    docstring = ast.get_docstring(ast.parse((CHECKOUT / module).read_text()))
    assert docstring
    assert docstring.splitlines()[0].rstrip()[-1] in ".:"


def test_the_version_stands_in_two_places_and_is_one():
    assert PROJECT["project"]["version"] == refit.__version__


def test_every_package_is_shipped():
    assert sorted(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == sorted(PACKAGES)


def requirements():
    text = (CHECKOUT / "requirements.lock").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def test_every_requirement_is_pinned_and_hashed():
    assert len(requirements()) > 50
    loose = [line[:60] for line in requirements() if "==" not in line or "--hash=sha256:" not in line]
    assert loose == []


def test_the_lock_names_no_address():
    assert "://" not in (CHECKOUT / "requirements.lock").read_text()


def test_every_dependency_is_in_the_lock():
    locked = {line.partition("==")[0].strip().lower() for line in requirements()}
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]
    names = {requirement.split(">")[0].split("=")[0].split("[")[0].strip().lower() for requirement in wanted}
    assert names <= locked
