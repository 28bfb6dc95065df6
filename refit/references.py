"""Code that a job names as ``"module:attribute"``: found, checked against its signature, digested, imported.

Only modules under an allow-list of prefixes may be named (``REFIT_CODE``, by default ``models,refit``): a job file is
data, and whoever may edit it must not thereby run any function of the machine.
"""

import ast
import hashlib
import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from refit.config import nearest
from refit.errors import CodeError

CODE_VARIABLE = "REFIT_CODE"
DEFAULT_PREFIXES = ("models", "refit")
OBJECTIVES = ("keras.losses", "keras.metrics")
CHECKOUT = Path(__file__).resolve().parent.parent


def allowed_prefixes() -> tuple[str, ...]:
    """Prefixes of modules that a job may name."""
    named = os.environ.get(CODE_VARIABLE, "")
    return tuple(part.strip() for part in named.split(",") if part.strip()) or DEFAULT_PREFIXES


def find_module(reference: str, *, also: Sequence[str] = ()) -> Path:
    """The source file behind a reference, without importing it.

    Args:
        reference: ``"module:attribute"``.
        also: modules that may be named besides those under the prefixes.

    Raises:
        CodeError: the module is not under an allowed prefix, or does not exist.
    """
    module = reference.partition(":")[0]
    prefixes = (*allowed_prefixes(), *also)
    if not any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes):
        raise CodeError(
            f'the module of "{reference}" is not among those that a job may name.',
            expected=f"a module under {', '.join(prefixes)}",
            remedy=f"Move the code there, or extend the environment variable {CODE_VARIABLE}.",
        )
    path = _find_source(module)
    if path is None:
        raise CodeError(f'the module of "{reference}" does not exist.{_near_modules(module)}')
    return path


def _find_source(module: str) -> Path | None:
    """The file of a module. ``importlib.util.find_spec`` would import the packages above it."""
    search: Sequence[str] | None = None
    spec = None
    parts = module.split(".")
    for depth in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: depth + 1]), search)
        if spec is None:
            return None
        search = spec.submodule_search_locations or []
    return Path(spec.origin) if spec and spec.origin and Path(spec.origin).is_file() else None


def check_options(reference: str, options: Mapping[str, Any], *, positional: int, also: Sequence[str] = ()) -> None:
    """Check options against the signature of the function, or class, as its source has it, without importing it.

    Args:
        reference: ``"module:function"`` or ``"module:Class"``.
        options: keyword arguments from the job.
        positional: how many leading parameters refit itself fills.
        also: as of ``find_module``.

    Raises:
        CodeError: the function is not there, or does not take an option, or needs one that is not given.
    """
    found = _find_function(reference, also)
    if isinstance(found, ast.ClassDef):
        found, positional = _constructor(found), positional + 1
    if found is None:
        return  # not a plain function or constructor of that module: importing it decides (``refit check --deep``, or the build stage)
    keywords, required = _keywords(found, positional)
    for option in options:
        if keywords is not None and option not in keywords:
            raise CodeError(f'"{reference}" takes no option "{option}".{nearest(option, keywords)}', where="options")
    missing = [name for name in required if name not in options]
    if missing:
        raise CodeError(f'"{reference}" needs the option{"s" * (len(missing) > 1)} {", ".join(missing)}.', where="options")


def load(reference: str, *, also: Sequence[str] = ()) -> Callable[..., Any]:
    """Import what a reference names.

    Args:
        reference: ``"module:attribute"``.
        also: as of ``find_module``.

    Raises:
        CodeError: it is not allowed, cannot be imported, or cannot be called.
    """
    path = find_module(reference, also=also)
    module, _, attribute = reference.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:
        raise CodeError(f'"{module}" cannot be imported: {type(error).__name__}: {error}.', remedy="Mend the module.") from error
    if not callable(found):
        what = "does not exist" if found is None else "is no function"
        raise CodeError(f'"{attribute}" {what} in {module}.{nearest(attribute, _callables(path))}')
    return found  # type: ignore[no-any-return]


def source_digest(reference: str, *, also: Sequence[str] = ()) -> str:
    """SHA-256 over the source of the named module and of its neighbours in the same folder, which it may import."""
    folder = find_module(reference, also=also).parent
    content = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        content.update(f"{path.name}:{path.stat().st_size}:".encode())
        content.update(path.read_bytes())
    return content.hexdigest()


def _find_function(reference: str, also: Sequence[str]) -> ast.FunctionDef | ast.ClassDef | None:
    path, name = find_module(reference, also=also), reference.partition(":")[2]
    found = {node.name: node for node in _top_level(path) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    bound = _bound_names(path)
    if name not in found and name not in bound:
        raise CodeError(f'"{name}" does not exist in {reference.partition(":")[0]}.{nearest(name, [*found, *sorted(bound)])}')
    return found.get(name)


def _constructor(found: ast.ClassDef) -> ast.FunctionDef | None:
    """The constructor in the class's own body; one that is inherited is for the import to find."""
    return next((node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None)


def _keywords(function: ast.FunctionDef, positional: int) -> tuple[list[str] | None, list[str]]:
    """Names of the keywords (None: any) and of those without a default."""
    plain = [*function.args.posonlyargs, *function.args.args]
    with_default = plain[len(plain) - len(function.args.defaults) :] if function.args.defaults else []
    own = plain[positional:]
    required = [a.arg for a in own if a not in with_default]
    required += [a.arg for a, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True) if default is None]
    named = own[max(len(function.args.posonlyargs) - positional, 0) :]
    names = [a.arg for a in [*named, *function.args.kwonlyargs]]
    return (None if function.args.kwarg else names), required


def _top_level(path: Path) -> list[ast.stmt]:
    try:
        return ast.parse(path.read_bytes()).body
    except SyntaxError as error:
        raise CodeError(
            f"this is no valid Python: {error.msg}.", where=f"{path}, line {error.lineno}", remedy="Mend the module."
        ) from error


def _callables(path: Path) -> list[str]:
    kinds = ast.FunctionDef | ast.ClassDef
    return [node.name for node in _top_level(path) if isinstance(node, kinds) and not node.name.startswith("_")]


def _bound_names(path: Path) -> set[str]:
    return set(_names(_top_level(path)))


def _names(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _near_modules(module: str) -> str:
    parent, _, last = module.rpartition(".")
    folder = CHECKOUT / parent.replace(".", "/")
    names = [path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")] if parent else []
    return nearest(last, names) if names else ""
