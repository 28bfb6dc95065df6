"""Code that a job names: only what is allowed, checked without importing it, and loaded with clear refusals."""

import sys

import pytest

from refit.errors import CodeError
from refit.references import CODE_VARIABLE, allowed_prefixes, check_options, find_module, load, source_digest

SOURCE = """\
raise RuntimeError("imported")
from os import system as shell
CONSTANT = 3
class Reader: ...
def read(): ...
def build(features, target, *, units=(64,), dropout=0.1): ...
def needs(features, target, *, units, rate, dropout=0.1): ...
def anything(features, target, **options): ...
def positional(features, target, units, dropout=0.1, /): ...
def _hidden(): ...
lambda_ = lambda x: x
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "package_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "code.py").write_text(SOURCE)
    (folder / "good.py").write_text(SOURCE.partition("\n")[2])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(CODE_VARIABLE, "models, package_of_a_test")
    yield folder
    for name in [name for name in sys.modules if name.startswith("package_of_a_test")]:
        del sys.modules[name]


# ---- the allow-list


@pytest.mark.parametrize("reference", ["os:system", "subprocess:run", "builtins:eval", "modelsx:f", "refit_evil.a:f", "tasks.fit:fit"])
@pytest.mark.parametrize("use", [find_module, load, source_digest, lambda r: check_options(r, {}, positional=0)])
def test_a_module_outside_the_list_is_refused(reference, use, monkeypatch) -> None:
    monkeypatch.delenv(CODE_VARIABLE, raising=False)
    with pytest.raises(CodeError, match="not among those that a job may name") as caught:
        use(reference)
    assert CODE_VARIABLE in caught.value.remedy
    assert "models, refit" in caught.value.expected


@pytest.mark.parametrize(
    ("value", "prefixes"), [(None, ("models", "refit")), ("", ("models", "refit")), (" , ", ("models", "refit")), ("a, b.c,", ("a", "b.c"))]
)
def test_the_list_comes_from_the_environment(monkeypatch, value, prefixes) -> None:
    monkeypatch.delenv(CODE_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(CODE_VARIABLE, value)
    assert allowed_prefixes() == prefixes


def test_the_environment_extends_the_list(package) -> None:
    assert find_module("package_of_a_test.code:build") == package / "code.py"


def test_what_a_listed_module_merely_imports_is_not_to_be_had(monkeypatch) -> None:
    monkeypatch.delenv(CODE_VARIABLE, raising=False)
    with pytest.raises(CodeError):
        load("refit.runs:subprocess.run")


# ---- finding and checking, without importing


def test_a_missing_module_gets_a_suggestion(monkeypatch) -> None:
    monkeypatch.delenv(CODE_VARIABLE, raising=False)
    with pytest.raises(CodeError, match=r'"models.dens:build_model" does not exist. Did you mean "dense"'):
        find_module("models.dens:build_model")


@pytest.mark.parametrize("reference", ["models.none.deeper:f", "models..dense:f", "package_of_a_test.:f"])
def test_a_module_that_cannot_be_is_refused(package, reference) -> None:
    with pytest.raises(CodeError, match="does not exist"):
        find_module(reference)


def test_checking_imports_nothing(package) -> None:
    check_options("package_of_a_test.code:build", {"units": [3]}, positional=2)
    assert "package_of_a_test.code" not in sys.modules
    source_digest("package_of_a_test.code:build")
    assert "package_of_a_test.code" not in sys.modules


def test_checking_does_not_run_the_package_around_the_module(package) -> None:
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    check_options("package_of_a_test.code:build", {}, positional=2)


def test_an_unknown_option_gets_a_suggestion(package) -> None:
    with pytest.raises(CodeError, match=r'takes no option "droput". Did you mean "dropout"'):
        check_options("package_of_a_test.code:build", {"droput": 0.1}, positional=2)


def test_a_parameter_that_refit_fills_is_no_option(package) -> None:
    with pytest.raises(CodeError, match='takes no option "features"'):
        check_options("package_of_a_test.code:build", {"features": 0.1}, positional=2)


def test_missing_options_are_named_together(package) -> None:
    with pytest.raises(CodeError, match="needs the options units, rate"):
        check_options("package_of_a_test.code:needs", {}, positional=2)
    with pytest.raises(CodeError, match="needs the option rate"):
        check_options("package_of_a_test.code:needs", {"units": 1}, positional=2)
    check_options("package_of_a_test.code:needs", {"units": 1, "rate": 1}, positional=2)


def test_a_function_with_open_keywords_takes_any_option(package) -> None:
    check_options("package_of_a_test.code:anything", {"whatever": 1}, positional=2)


def test_an_option_cannot_be_given_to_a_positional_only_parameter(package) -> None:
    with pytest.raises(CodeError):
        check_options("package_of_a_test.code:positional", {"units": 1}, positional=2)


def test_the_options_of_a_class_are_those_of_its_constructor(package) -> None:
    with (package / "code.py").open("a") as file:
        file.write("class Watch:\n    def __init__(self, every, *, name='w'): ...\n")
    check_options("package_of_a_test.code:Watch", {"every": 3, "name": "x"}, positional=0)
    with pytest.raises(CodeError, match=r'takes no option "evry". Did you mean "every"'):
        check_options("package_of_a_test.code:Watch", {"evry": 3}, positional=0)
    with pytest.raises(CodeError, match="needs the option every"):
        check_options("package_of_a_test.code:Watch", {}, positional=0)
    with pytest.raises(CodeError, match='takes no option "self"'):
        check_options("package_of_a_test.code:Watch", {"self": 3}, positional=0)


def test_a_missing_function_gets_a_suggestion(package) -> None:
    with pytest.raises(CodeError, match=r'"bild" does not exist in package_of_a_test.code. Did you mean "build"'):
        check_options("package_of_a_test.code:bild", {}, positional=2)
    with pytest.raises(CodeError, match='Did you mean "Reader"'):
        check_options("package_of_a_test.code:Readr", {}, positional=0)


@pytest.mark.parametrize("name", ["Reader", "CONSTANT", "shell", "lambda_"])
def test_a_name_that_is_no_plain_function_is_left_to_the_import(package, name) -> None:
    check_options(f"package_of_a_test.code:{name}", {"any": 1}, positional=0)


def test_a_module_that_is_no_python_is_refused_with_its_line(package) -> None:
    (package / "broken.py").write_text("x = 1\ndef f(:\n")
    with pytest.raises(CodeError, match="no valid Python") as caught:
        check_options("package_of_a_test.broken:f", {}, positional=0)
    assert f"{package / 'broken.py'}, line 2" in str(caught.value)


def test_a_module_with_null_bytes_is_refused(package) -> None:
    (package / "broken.py").write_bytes(b"x = 1\0\n")
    with pytest.raises(CodeError):
        check_options("package_of_a_test.broken:f", {}, positional=0)


# ---- loading


def test_a_function_is_loaded(package) -> None:
    assert load("package_of_a_test.good:read")() is None


def test_a_module_that_raises_at_import_is_refused_in_words(package) -> None:
    with pytest.raises(CodeError, match=r'"package_of_a_test.code" cannot be imported: RuntimeError: imported'):
        load("package_of_a_test.code:build")


def test_a_module_that_is_no_python_cannot_be_loaded(package) -> None:
    (package / "broken.py").write_text("def f(:\n")
    with pytest.raises(CodeError, match="SyntaxError"):
        load("package_of_a_test.broken:f")


def test_a_missing_attribute_gets_a_suggestion_when_loaded(package) -> None:
    with pytest.raises(CodeError, match=r'"bild" does not exist in package_of_a_test.good. Did you mean "build"'):
        load("package_of_a_test.good:bild")


def test_what_cannot_be_called_is_refused(package) -> None:
    with pytest.raises(CodeError, match='"CONSTANT" is no function'):
        load("package_of_a_test.good:CONSTANT")


# ---- digests


def test_the_digest_of_code_changes_with_its_module_and_its_neighbours(package) -> None:
    digests = [source_digest("package_of_a_test.code:build")]
    for name in ("code.py", "good.py", "new.py"):
        path = package / name
        path.write_text((path.read_text() if path.exists() else "") + "\n# changed\n")
        digests.append(source_digest("package_of_a_test.code:build"))
    (package / "new.py").rename(package / "newer.py")
    digests.append(source_digest("package_of_a_test.code:build"))
    assert len(set(digests)) == 5


def test_the_digest_of_code_stays_when_nothing_or_another_file_changes(package) -> None:
    before = source_digest("package_of_a_test.code:build")
    (package / "notes.txt").write_text("x")
    (package / "code.py").touch()
    assert source_digest("package_of_a_test.code:build") == before


def test_the_digest_of_code_tells_where_one_file_ends_and_the_next_begins(package) -> None:
    (package / "code.py").write_text("ab")
    (package / "good.py").write_text("c")
    before = source_digest("package_of_a_test.code:build")
    (package / "code.py").write_text("a")
    (package / "good.py").write_text("bc")
    assert source_digest("package_of_a_test.code:build") != before
