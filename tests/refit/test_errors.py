"""Every error is one paragraph, keeps its parts through a pickle, and stands where the drawn tree has it."""

import copy
import pickle
import re

import pytest

from refit import errors
from refit.errors import HomeError, RefitError, UnknownNameError

CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RefitError)]
STANDARD = {
    "ValueError": ValueError,
    "LookupError": LookupError,
    "OSError": OSError,
    "RuntimeError": RuntimeError,
    "ArithmeticError": ArithmeticError,
}
PARTS = {"where": "jobs.yaml, line 3", "expected": "a number", "received": "'x'", "remedy": "Mend it."}


def drawn():
    """Class, parent, exit status and standard class of each line of the tree in the module's docstring."""
    path, status = [], {}
    for line in errors.__doc__.splitlines():
        found = re.match(r"^\s{4}([│├└─ ]*)(\w+Error)\b\s*(\d)?(.*)$", line)
        if found:
            depth = len(found[1]) // 4
            path = [*path[:depth], found[2]]
            parent = path[depth - 1] if depth else "Exception"
            status[found[2]] = int(found[3]) if found[3] else status[parent]
            standard = next((kind for name, kind in STANDARD.items() if f"({name})" in found[4]), None)
            yield found[2], parent, status[found[2]], standard


def test_the_drawn_tree_has_every_class() -> None:
    assert sorted(name for name, *_ in drawn()) == sorted(kind.__name__ for kind in CLASSES)


@pytest.mark.parametrize(("name", "parent", "status", "standard"), list(drawn()))
def test_a_class_stands_where_it_is_drawn(name, parent, status, standard) -> None:
    kind = getattr(errors, name)
    assert kind.__bases__[0].__name__ == parent
    assert kind.exit_status == status
    assert standard is None or issubclass(kind, standard)
    assert kind.__doc__


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_keeps_its_class_and_all_parts_through_a_pickle(kind) -> None:
    error = kind("it is wrong.", **PARTS)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 -- our own
        assert type(again) is kind
        assert str(again) == str(error)
        assert {name: getattr(again, name) for name in PARTS} == PARTS
        assert again.what == "it is wrong."


@pytest.mark.parametrize("kind", CLASSES)
def test_the_text_of_an_error_is_one_paragraph_of_its_parts(kind) -> None:
    assert str(kind("it is wrong.", **PARTS)) == "jobs.yaml, line 3: it is wrong. Expected: a number. Received: 'x'. Mend it."
    assert str(kind("it is wrong.")) == "it is wrong."


@pytest.mark.parametrize("kind", CLASSES)
def test_a_cause_is_kept_while_the_text_stays(kind) -> None:
    with pytest.raises(kind) as caught:
        raise kind("it is wrong.") from KeyError("x")
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_error_of_two_families_reads_as_ours() -> None:
    assert str(HomeError("it cannot be made.", where="/x")) == "/x: it cannot be made."
    assert str(UnknownNameError("no run.")) == "no run."


def test_a_wrong_request_is_told_from_a_failure_by_the_exit_status() -> None:
    assert RefitError.exit_status == 1
    assert {kind.exit_status for kind in CLASSES} == {1, 2}
