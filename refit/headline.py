"""What a run's records say of it, and the one sentence that sums it up."""

from dataclasses import dataclass
from typing import Literal

from refit.layout import RunLayout
from refit.records import (
    SIDES,
    BatchesRecord,
    BuildRecord,
    ChampionRecord,
    Comparison,
    EvaluationRecord,
    ExportRecord,
    FitRecord,
    FoldsRecord,
    GateRecord,
    Metrics,
    PublishRecord,
    RunRecord,
    SnapshotRecord,
    SplitRecord,
    ValidationRecord,
)
from refit.stages import STAGES, read_stage
from refit.wording import counted, format_number, is_lower_better, name_some, spoken, tell_evidence

_MAIN = {"binary": "auc", "classes": "accuracy", "multilabel": "log_loss", "regression": "rmse"}
_CLAIMS = {"be_better": "better than", "not_be_worse": "not worse than", "prove_not_worse": "shown to be no worse than"}
_BADGES = {
    "promote": ("Published", "good"),
    "first": ("First version", "good"),
    "keep": ("Not published", "warn"),
    "incompatible": ("Incompatible", "warn"),
    "skipped": ("Skipped", "calm"),
    "failed": ("Failed", "bad"),
    "cancelled": ("Cancelled", "calm"),
    "abandoned": ("Abandoned", "calm"),
    "running": ("Running", "calm"),
    "completed": ("Completed", "calm"),
}
_UNFINISHED = {
    "failed": "{outcome}: the run failed in the stage “{stage}”.",
    "cancelled": "{outcome}: the run was cancelled in the stage “{stage}”, and the next start of the job goes on from there.",
    "abandoned": "{outcome}: the run was given up in the stage “{stage}”.",
    "running": "The run has come to the stage “{stage}”; {lower} so far.",
    "completed": "The run ended without a verdict; {lower}.",
}


@dataclass(frozen=True)
class Stages:
    """The records of the stages that are complete."""

    ingest: SnapshotRecord | None = None
    validate: ValidationRecord | None = None
    split: SplitRecord | None = None
    convert: BatchesRecord | None = None
    build: BuildRecord | None = None
    folds: FoldsRecord | None = None
    fit: FitRecord | None = None
    export: ExportRecord | None = None
    evaluate: EvaluationRecord | None = None
    gate: GateRecord | None = None
    publish: PublishRecord | None = None


def read_stages(layout: RunLayout) -> Stages:
    """Read the record of every stage that is complete.

    Raises:
        CorruptRecordError: a record is there and cannot be read.
    """
    return Stages(
        ingest=read_stage(layout, "ingest", SnapshotRecord),
        validate=read_stage(layout, "validate", ValidationRecord),
        split=read_stage(layout, "split", SplitRecord),
        convert=read_stage(layout, "convert", BatchesRecord),
        build=read_stage(layout, "build", BuildRecord),
        folds=read_stage(layout, "folds", FoldsRecord),
        fit=read_stage(layout, "fit", FitRecord),
        export=read_stage(layout, "export", ExportRecord),
        evaluate=read_stage(layout, "evaluate", EvaluationRecord),
        gate=read_stage(layout, "gate", GateRecord),
        publish=read_stage(layout, "publish", PublishRecord),
    )


@dataclass(frozen=True)
class Facts:
    """A run's record with its stages, and what either of them may know."""

    record: RunRecord
    stages: Stages

    @property
    def validation(self) -> Metrics:
        """Metrics of the candidate on the validation split."""
        return self._metrics("validation")

    @property
    def test(self) -> Metrics:
        """Metrics of the candidate on the test split."""
        return self._metrics("test")

    def _metrics(self, side: Literal["validation", "test"]) -> Metrics:
        evaluated = self.stages.evaluate
        return self.record.metrics.get(side) or (evaluated.metrics.get(side, {}) if evaluated else {})

    @property
    def champion(self) -> ChampionRecord | None:
        """The version that served when the run was judged."""
        return self.record.champion or (self.stages.evaluate.champion if self.stages.evaluate else None)

    @property
    def baselines(self) -> dict[str, Metrics]:
        """Metrics of the baselines on the test split, the strongest first."""
        found = self.record.baselines or (self.stages.evaluate.baselines if self.stages.evaluate else {})
        return {name: found[name] for name in sorted(found, key=lambda name: name == "constant")}

    @property
    def comparison(self) -> Comparison | None:
        """Candidate against champion."""
        return self.record.comparison or (self.stages.gate.comparison if self.stages.gate else None)

    @property
    def version(self) -> int | None:
        """The version that the run published."""
        return self.record.model_version or (self.stages.publish.version if self.stages.publish else None)

    @property
    def main_metric(self) -> str | None:
        """The metric that the page speaks of first."""
        target = self.stages.convert.target.kind if self.stages.convert else self.record.parameters.target.kind
        asked = self.comparison.metric if self.comparison else self.record.parameters.gate.champion.metric
        known = [asked, _MAIN.get(target or ""), *self.test]
        return next((name for name in known if name in self.test), None)

    @property
    def progress(self) -> list[tuple[str, str]]:
        """Each stage that leaves a record, with its state: done, stopped (where the run ended) or open."""
        has_folds = self.record.parameters.split.k_fold is not None
        names = [name for name in STAGES if name in Stages.__dataclass_fields__ and (has_folds or name != "folds")]
        states = ["open" if getattr(self.stages, name) is None else "done" for name in names]
        if "open" in states and self.record.status in ("failed", "cancelled", "abandoned"):
            states[states.index("open")] = "stopped"
        return list(zip(names, states, strict=True))

    @property
    def rows(self) -> dict[str, int]:
        """Rows on each side."""
        if self.record.rows:
            return self.record.rows.model_dump()
        return {side: self.stages.split.num_rows[side] for side in SIDES} if self.stages.split else {}


@dataclass(frozen=True)
class Headline:
    """The verdict as a badge and one sentence. ``tone`` is good, warn, bad or calm."""

    badge: str
    tone: str
    sentence: str


def write_headline(facts: Facts) -> Headline:
    """Say in one sentence how the run ended."""
    record = facts.record
    if record.verdict is None or record.status not in ("running", "completed"):
        return Headline(*_BADGES[record.status], _tell_unfinished(facts))
    tell = {"promote": _tell_promoted, "first": _tell_first, "skipped": _tell_skipped}.get(record.verdict, _tell_kept)
    return Headline(*_BADGES[record.verdict], tell(facts))


def warn_of_data(facts: Facts) -> str:
    """One sentence on columns that have drifted and on checks that warn; empty where the data give no cause."""
    validation, split = facts.stages.validate, facts.stages.split
    if validation is None:
        return ""
    drifted = validation.drift.drifted if validation.drift else []
    warning = [check.name for check in validation.warnings if check.only_warns and not (drifted and check.name == "drift")]
    warning += [check.name for check in split.checks if not check.ok] if split else []
    told = []
    if drifted:
        names = [f"{column.name} (the label)" if column.is_target else column.name for column in drifted]
        told.append(f"{counted(len(drifted), 'column')} {'has' if len(drifted) == 1 else 'have'} drifted: {name_some(names)}")
    if warning:
        told.append(f"{counted(len(warning), 'check')} of the data {'warns' if len(warning) == 1 else 'warn'}: {name_some(warning)}")
    return "; ".join(told) + "." if told else ""


def warn_of_baselines(facts: Facts) -> str:
    """One sentence where a baseline is as good as the candidate; empty where none is."""
    metric = facts.main_metric
    known = {name: metrics[metric] for name, metrics in facts.baselines.items() if metric in metrics}
    if metric is None or not known:
        return ""
    sign, own = -1 if is_lower_better(metric) else 1, facts.test[metric]
    as_good = [f"{name} baseline ({format_number(value)})" for name, value in known.items() if not sign * own > sign * value]
    if not as_good:
        return ""
    return f"With {spoken(metric)} {format_number(own)} on the test rows the candidate is no better than the {' and the '.join(as_good)}."


def _tell_promoted(facts: Facts) -> str:
    comparison = facts.comparison
    if comparison is None:
        return f"{_published(facts)}: {_score(facts)}."
    claim = _CLAIMS[facts.record.parameters.gate.champion.must]
    return f"{_published(facts)}: {_score(facts)}, and {claim} {name_champion(facts)} ({tell_evidence(comparison)})."


def _tell_first(facts: Facts) -> str:
    rows = facts.rows.get("test")
    exam = f" on {counted(rows, 'test row')}" if rows else ""
    return f"{_published(facts)}, the first of this model: {_score(facts)}{exam}."


def _tell_skipped(facts: Facts) -> str:
    since = f" since run {facts.record.unchanged_since}" if facts.record.unchanged_since else ""
    return f"Nothing has changed{since}, so nothing was trained."


def _tell_kept(facts: Facts) -> str:
    stays = f"{name_champion(facts)} stays" if facts.champion else "there is still no version that serves"
    why = _refusal(facts)
    return f"Nothing was published and {stays}{': ' if why else ''}{why}."


def _tell_unfinished(facts: Facts) -> str:
    stage = next((name for name, state in facts.progress if state != "done"), "report")
    outcome = f"Version {facts.version} had been published" if facts.version else "Nothing was published"
    return _UNFINISHED[facts.record.status].format(stage=stage, outcome=outcome, lower=outcome[0].lower() + outcome[1:])


def _published(facts: Facts) -> str:
    return f"Version {facts.version} was published" if facts.version else "The candidate passed"


def name_champion(facts: Facts) -> str:
    """``version 6``, or ``the champion`` where no record has its number."""
    judged = facts.stages.gate.judged_against if facts.stages.gate else None
    version = judged or (facts.champion.version if facts.champion else None)
    return f"version {version}" if version else "the champion"


def _score(facts: Facts) -> str:
    metric = facts.main_metric
    return f"{spoken(metric)} {format_number(facts.test[metric])}" if metric else "it has no metrics"


def _refusal(facts: Facts) -> str:
    """Why nothing was published: why it cannot be compared, else the first reason that failed."""
    if facts.champion and facts.champion.incompatible:
        return f"it cannot be compared, because {facts.champion.incompatible.strip().rstrip('.')}"
    gate = facts.stages.gate
    failed = [reason.text for reason in gate.reasons if not reason.ok] if gate else list(facts.record.reasons)
    return _continue(failed[0].strip().rstrip(".")) if failed else ""


def _continue(sentence: str) -> str:
    """A sentence as it reads after a colon; a first word such as AUC keeps its capitals."""
    first = sentence.split(" ")[0]
    return sentence[0].lower() + sentence[1:] if first.istitle() and first.isalpha() else sentence
