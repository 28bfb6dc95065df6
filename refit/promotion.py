"""What people decide about versions: promote a run by hand, roll back, release the hold."""

from datetime import UTC, datetime

from refit import registry
from refit.errors import PromotionError, RequestError
from refit.layout import Layout
from refit.runs import current_user, find_run


def promote_run(layout: Layout, name: str, *, force: bool, reason: str) -> int:
    """Publish the model of a run; the version that it gets.

    Raises:
        UnknownNameError: there is no such run.
        PromotionError: it exported no model, or the gate said no and ``force`` is not given.
        RequestError: ``force`` without a reason.
    """
    record = find_run(layout, name)
    if not record.saved_model or not layout.resolve(record.saved_model).is_dir():
        raise PromotionError("the run has no exported model.", where=f"{record.job}/{record.run}", received=record.status)
    passed = record.verdict in ("promote", "first")
    if not passed and not force:
        raise PromotionError(
            f"the gate did not let this run pass ({record.verdict or record.status}).",
            where=f"{record.job}/{record.run}",
            remedy='refit show RUN says why; to publish it all the same: --force --reason "...".',
        )
    if force and not reason.strip():
        raise RequestError("--force needs a reason, which is kept in the history.", remedy='Add --reason "...".')
    return registry.publish(
        layout,
        record.job,
        layout.resolve(record.saved_model),
        run=record.run,
        verdict="forced" if force and not passed else str(record.verdict),
        reason=reason or "promoted by hand",
        metrics=record.metrics.get("test", {}),
        expected_champion=registry.champion(layout, record.job),
        keep_versions=record.parameters.export.keep_versions,
        by=current_user(),
        at=datetime.now(UTC),
    )


def roll_back(layout: Layout, name: str, *, to: int | None, reason: str) -> int:
    """Publish an earlier version again; the version that serves then."""
    return registry.rollback(layout, name, to=to, by=current_user(), at=datetime.now(UTC), reason=reason or "rolled back by hand")


def release_hold(layout: Layout, name: str) -> bool:
    """Let runs promote by themselves again; whether they could not."""
    return registry.release(layout, name, by=current_user(), at=datetime.now(UTC))
