"""Callbacks of a repository's own: made from what the job says, and told by name when they fail."""

import contextlib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType

import keras
from keras.src.utils import traceback_utils

from refit import references, resuming
from refit.config import CallbackConfig, FitConfig
from refit.errors import CodeError, RefitError

Guests = Mapping[str, keras.callbacks.Callback]
_Frames = Sequence[tuple[FrameType, int]]


def build_callbacks(fit: FitConfig) -> dict[str, keras.callbacks.Callback]:
    """The repository's own callbacks by their number and reference.

    Raises:
        CodeError: one cannot be had or made, or is no Keras callback.
    """
    return {name: _build_callback(number, fit.callbacks[number]) for number, name in enumerate(name_callbacks(fit))}


def name_callbacks(fit: FitConfig) -> list[str]:
    """Names of the repository's own callbacks, by which a fit's state keeps them."""
    return [f"{number} {config.use}" for number, config in enumerate(fit.callbacks)]


def _build_callback(number: int, config: CallbackConfig) -> keras.callbacks.Callback:
    where = f"fit.callbacks.{number}"
    references.check_options(config.use, config.options, positional=0)
    make = references.load(config.use)
    try:
        made = make(**config.options)
    except Exception as error:
        raise CodeError(
            f'"{config.use}" cannot be made: {_brief(error)}.',
            where=where,
            received=f"options {config.options}",
            remedy="Mend its options.",
        ) from error
    if not isinstance(made, keras.callbacks.Callback):
        raise CodeError(f'"{config.use}" is no callback.', where=where, expected="a keras.callbacks.Callback", received=type(made).__name__)
    return made


@contextlib.contextmanager
def telling_guests(guests: Guests) -> Iterator[None]:
    """Tell an error that comes out of a callback of the repository's own as that callback's.

    Args:
        guests: as ``build_callbacks`` named them.

    Raises:
        CodeError: a callback raised something, or ended the process.
    """
    try:
        yield
    except RefitError:
        raise
    except (Exception, SystemExit) as error:
        told = _tell(error, guests)
        if told is None:
            raise
        raise told from error


def _tell(error: BaseException, guests: Guests) -> CodeError | None:
    frames = list(traceback.walk_tb(error.__traceback__))
    is_seen = {name: any(frame.f_locals.get("self") is guest for frame, _ in frames) for name, guest in guests.items()}
    for name, guest in sorted(guests.items(), key=lambda item: not is_seen[item[0]]):  # others of its module may be innocent
        number, _, use = name.partition(" ")
        own = _frames_of(guest, use, frames)
        if own and (isinstance(error, Exception) or own[-1] == frames[-1]):  # a signal may end the process while a callback works
            (first, _), (last, line) = own[0], own[-1]
            return CodeError(
                f'"{use}" failed in {first.f_code.co_name}: {_brief(error)} ({last.f_code.co_filename}, line {line}).',
                where=f"fit.callbacks.{number}",
                remedy="Mend the callback, or leave it out.",
            )
    return None


def _frames_of(guest: keras.callbacks.Callback, use: str, frames: _Frames) -> _Frames:
    """The frames in which the callback, or a function of its module that Keras calls for it, was at work, and what these called there."""
    file = str(references.find_module(use))
    lists = {resuming.__file__, traceback_utils.__file__}  # Keras leaves its other frames out of a traceback
    called_by = [""] + [frame.f_code.co_filename for frame, _ in frames]
    is_own = [frame.f_locals.get("self") is guest for frame, _ in frames]
    is_there = [frame.f_code.co_filename == file for frame, _ in frames]
    begun = (at for at in range(len(frames)) if is_own[at] or (is_there[at] and called_by[at] in lists))
    first = next(begun, len(frames))
    return [frames[at] for at in range(first, len(frames)) if is_own[at] or is_there[at]]


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(".: ")
