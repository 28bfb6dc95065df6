"""Retrain a model and publish it only when it has proved better: the whole job on one screen.

Every stage leaves a record in the run's folder when it is complete. A run that was killed is taken up by the next start
of its job, on its own data, and goes on after the last record.
"""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from refit.config import Job
from refit.runs import mark_skipped
from tasks.adopt import adopt
from tasks.announce import announce
from tasks.build import build
from tasks.convert import convert
from tasks.cross_validate import cross_validate
from tasks.evaluate import evaluate
from tasks.export import export
from tasks.fit import fit
from tasks.gate import gate
from tasks.ingest import ingest
from tasks.publish import publish
from tasks.report import report
from tasks.split import split
from tasks.validate import validate


@flow(name="retrain", flow_run_name="{job.name}", persist_result=False)
def retrain(job: Job, overrides: dict[str, Any] | None = None, force: bool = False, fresh: bool = False) -> State[str]:
    """Retrain one job.

    Args:
        job: data, features, model, fit, and what must be proved.
        overrides: values by dotted key, such as ``{"fit.epochs": 3}``; with any, the run is never skipped.
        force: train although nothing changed.
        fresh: begin anew although an interrupted run could be finished; implies ``force``.

    Returns:
        A completed state named after the verdict; its result is the run's id.
    """
    with adopt(job, overrides or {}, force=force, fresh=fresh) as (run, unchanged):
        if unchanged:
            return announce(mark_skipped(run, unchanged))
        snapshot = ingest(run)  # raw inputs -> typed Parquet shards, rejects, snapshot
        validate(run, snapshot)  # columns, kinds, key, labels
        split(run, snapshot)  # train / validation / test, for ever
        plan = convert(run, snapshot)  # Parquet -> tf.data; statistics of the train split
        build(run, plan)  # one Keras graph from raw columns
        folds = cross_validate(run, snapshot)  # k-fold, where the job asks for it: estimates with spread
        fit(run, snapshot, plan, folds)  # checkpoints, early stopping, decay, TensorBoard
        exported = export(run, snapshot, plan)  # SavedModel, proved in a process with only TensorFlow
        published = None
        while published is None:  # again only if the champion moved while we judged
            scores = evaluate(run, snapshot, plan, exported)
            verdict = gate(run, plan, exported, scores)
            published = publish(run, exported, scores, verdict)
        return announce(report(run))
