"""Weights that a fit starts from: those of a file, or those that a warm start has put aside."""

import re
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np

from refit.errors import FitError

_MISSING = "freshly-initialized"  # Source: keras.src.saving.saving_lib, Keras 3.15: said of layers that the file does not know
_HDF5 = b"\x89HDF\r\n\x1a\n"  # Source: HDF5 file format specification, version 3.0, II.A


def load_initial_weights(model: keras.Model, path: Path) -> None:
    """Give a model the weights of a file, all of them; before its optimizer is built.

    Raises:
        FitError: the file is missing, is of another kind, or holds others.
    """
    is_whole_model = path.suffix == ".keras"
    _check_kind(path, is_whole_model=is_whole_model)
    with warnings.catch_warnings(record=True) as told:  # of the optimizer's state, which is not wanted, and of what is missing
        warnings.simplefilter("always")
        try:
            if is_whole_model:
                model.set_weights(keras.saving.load_model(path, compile=False).get_weights())
            else:
                model.load_weights(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _refused(path, _why(str(error))) from error
    missing = next((str(warning.message) for warning in told if _MISSING in str(warning.message)), None)
    if missing:
        raise _refused(path, _why(missing))


def assign_start(model: keras.Model, path: Path) -> None:
    """Give the variables of a model the values that a file holds by path (``refit.warm_start``).

    Raises:
        FitError: the file is missing or damaged, or has a variable that the model lacks.
    """
    variables = {variable.path: variable for variable in model.weights}
    try:
        with np.load(path, allow_pickle=False) as values:
            for name in values.files:
                variables[name].assign(values[name])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise FitError(
            f"the weights that the fit starts from cannot be read: {error}.", where=str(path), remedy="Begin anew: refit run --fresh."
        ) from error


def _why(text: str) -> str:
    """Keras's reason without its listings of values."""
    shapes = re.search(r"variable\.shape=(\(.*?\)), Received: value\.shape=(\(.*?\))\. Target variable: <Variable path=([^,]+),", text)
    if shapes:
        return f"{shapes[3]} is {shapes[1]} in the model and {shapes[2]} in the file"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = next((line for line in lines if line.startswith("Layer ")), lines[0] if lines else "they cannot be read")
    return told.rstrip(".:")


def _check_kind(path: Path, *, is_whole_model: bool) -> None:
    if not path.is_file():
        raise _refused(path, "there is no such file")
    if not (zipfile.is_zipfile(path) if is_whole_model else _first_bytes(path, len(_HDF5)) == _HDF5):
        raise _refused(path, f"this is no file of Keras's, or not a whole one; {path.stat().st_size:,} bytes")


def _first_bytes(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def _refused(path: Path, why: str) -> FitError:
    return FitError(
        f"the initial weights cannot be loaded: {why}.",
        where=f"fit.initial_weights: {path}",
        expected="weights.weights.h5 or model.keras of a fit of the same model",
        remedy="Name such a file, or leave the key out.",
    )
