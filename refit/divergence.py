"""A fit whose loss is no longer finite: back to the last good state, and on with a lower learning rate.

The first time that is the newest checkpoint without a number that is not finite; where that did not help, the best epoch's, whose
weights are known to be good; where there is none, the fit begins anew. All of it is recorded, so that a fit that was killed
afterwards goes on as it was going.
"""

import logging
from pathlib import Path

from refit.checkpoints import Checkpoint, read_newest
from refit.config import DivergenceConfig, Job
from refit.errors import DivergedError
from refit.fit_state import is_finite
from refit.records import Restart

_log = logging.getLogger(__name__)
Restarts = tuple[Restart, ...]


def lower_rate(job: Job, restarts: Restarts) -> Job:
    """The job with the learning rate that a fit goes on with after its restarts; whatever schedule there is begins at it."""
    if not restarts:
        return job
    optimizer = job.fit.optimizer.model_copy(update={"learning_rate": job.fit.optimizer.rate * restarts[-1].factor})
    return job.model_copy(update={"fit": job.fit.model_copy(update={"optimizer": optimizer})})


def turn_back(
    error: DivergedError, restarts: Restarts, config: DivergenceConfig | None, folder: Path, *, belongs_to: str
) -> tuple[Checkpoint | None, Restarts]:
    """Where a fit that has diverged goes on, and its restarts with this one.

    Args:
        error: says where it diverged.
        restarts: earlier ones.
        config: what the job wants; None: nothing.
        folder: of the run's checkpoints.
        belongs_to: digest of what the fit is a function of.

    Raises:
        DivergedError: the job wants no restart, or no more of them.
    """
    if config is None:
        raise error
    if len(restarts) >= config.restarts:
        tried = "once" if len(restarts) == 1 else f"{len(restarts)} times"
        lowest = f"with {restarts[-1].factor:.3g} of the job's learning rate at last"
        raise DivergedError(f"{error.what} The fit was begun again {tried}, {lowest}.", where=error.where, remedy=error.remedy) from error
    found = _find_good(folder, belongs_to=belongs_to, is_first=not restarts)
    epoch, step = (found.record.epoch, found.record.total_steps) if found else (0, 0)
    restart = Restart(
        diverged_epoch=error.epoch, diverged_step=error.step, epoch=epoch, step=step, factor=config.factor ** (len(restarts) + 1)
    )
    _log.warning(
        "fit: %s It goes on in epoch %d after %d steps with %.3g of the job's learning rate (restart %d of %d)",
        error.what,
        epoch + 1,
        step,
        restart.factor,
        len(restarts) + 1,
        config.restarts,
    )
    return found, (*restarts, restart)


def _find_good(folder: Path, *, belongs_to: str, is_first: bool) -> Checkpoint | None:
    """The newest checkpoint that is finite, or else the best epoch's."""
    newest = read_newest(folder, belongs_to=belongs_to, accept=is_finite)
    if newest is None or is_first:
        return newest
    best = newest.record.best
    return read_newest(folder, belongs_to=belongs_to, accept=lambda found: found.record.name == best and is_finite(found))
