"""The page of a run: every ending, hostile names, odd numbers, the same bytes."""

import ast
import json
import re
from datetime import UTC, datetime, timedelta
from html import unescape
from html.parser import HTMLParser
from math import cos, exp, inf, nan
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refit import figures
from refit.config import Job
from refit.errors import CorruptRecordError
from refit.headline import Facts, Stages, read_stages, warn_of_baselines, warn_of_data, write_headline
from refit.layout import Layout
from refit.metrics import METRICS
from refit.records import (
    BatchesRecord,
    BuildRecord,
    ChampionRecord,
    CheckRecord,
    CodeRecord,
    Column,
    ColumnDrift,
    Comparison,
    CrossPlan,
    DriftRecord,
    EvaluationRecord,
    ExportRecord,
    FeaturePlan,
    FitRecord,
    GateRecord,
    Histogram,
    PublishRecord,
    Reason,
    Record,
    Resumption,
    Rows,
    RunRecord,
    ShardRecord,
    SnapshotRecord,
    SourceRecord,
    SplitRecord,
    TargetPlan,
    ValidationRecord,
    WarmStart,
)
from refit.rejects import Rejects
from refit.report import write_report
from refit.sources.inputs import Reject
from refit.stages import STAGES, run_stage
from refit.wording import (
    format_bytes,
    format_differences,
    format_list,
    format_moments,
    format_number,
    format_p_value,
    format_seconds,
    format_share,
    format_ticks,
    is_lower_better,
    is_score,
    name_some,
    tell_evidence,
    tell_start,
)

RUN = "20251123T114007Z-4f2a"
SHA = "9b74c9897bac770ffc029102a200c5de11f3a6c1b0e1d6e6a3f9c0d8e7b6a5f4"
HOSTILE = '<script>alert("x")</script>&$\\frac{1}{2}$'
SUMMARY = """\
Model: "dense"
┏━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━┓
┃ Layer (type)                    ┃ Output Shape           ┃       Param # ┃
┡━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━┩
│ hidden_0 (Dense)                │ (None, 64)             │         1,024 │
├─────────────────────────────────┼────────────────────────┼───────────────┤
│ classes (Dense)                 │ (None, 3)              │           195 │
└─────────────────────────────────┴────────────────────────┴───────────────┘
 Total params: 1,219 (4.76 KB)
"""
JOB = Job.model_validate(
    {
        "name": "penguins",
        "data": {"sources": [{"kind": "csv", "path": "data/penguins*.csv"}], "key": ["id"]},
        "target": {"column": "species", "kind": "classes"},
        "model": {"build": "models.dense:build_model", "options": {"hidden_units": [64], "dropout": 0.2}},
        "gate": {
            "require": {"accuracy": {"at_least": 0.9}},
            "champion": {"metric": "accuracy", "must": "not_be_worse", "margin": 0.005},
            "latency_p99_ms": 50,
        },
    }
)


def example_history(num_epochs: int = 24, every: int = 1) -> FitRecord:
    epochs = range(num_epochs)
    measured = [epoch for epoch in epochs if (epoch + 1) % every == 0]
    return FitRecord(
        num_epochs=num_epochs,
        best_epoch=measured[max(0, len(measured) - 6)],
        history={
            "loss": [1.1 * exp(-e / 5) + 0.05 for e in epochs],
            "accuracy": [1 - 0.6 * exp(-e / 4) - 0.01 for e in epochs],
            "val_loss": [1.1 * exp(-e / 5) + 0.09 + 0.00025 * e**2 for e in measured],
            "val_accuracy": [1 - 0.6 * exp(-e / 4) - 0.03 + 0.006 * cos(3 * e) for e in measured],
            "learning_rate": [0.0005 * (1 + cos(3.14159 * e / num_epochs)) for e in epochs],
        },
        validation_epochs=measured,
        weights_sha256=SHA,
        devices=("CPU:0",),
        examples_per_second=18423.7,
    )


def example_stages() -> dict[str, Record]:
    double, text = Column(name="x", type="double"), Column(name="x", type="string")
    return {
        "ingest": SnapshotRecord(
            id=SHA[:16],
            dataset="penguins",
            key=("id",),
            key_hash="md5-64/1",
            columns=(double, text),
            sources=(
                SourceRecord(
                    name="data/penguins_2024.csv",
                    digest=SHA,
                    num_read=1512,
                    num_kept=1437,
                    num_rejected=3,
                    num_filtered=60,
                    num_duplicate=10,
                    num_superseded=2,
                    shards=(ShardRecord(digest=SHA, num_rows=1437, num_bytes=51200),),
                ),
                SourceRecord(
                    name="data/penguins_2025.csv",
                    digest=SHA,
                    num_read=363,
                    num_kept=363,
                    shards=(ShardRecord(digest=SHA, num_rows=363, num_bytes=51200),),
                ),
            ),
        ),
        "validate": ValidationRecord(
            checks=(
                CheckRecord(name="columns", ok=True, detail="9 columns as pinned"),
                CheckRecord(name="classes", ok=True, detail="Adelie 790, Chinstrap 356, Gentoo 654"),
            )
        ),
        "split": SplitRecord(by="hash", num_rows={"train": 1170, "validation": 270, "test": 360}, digest=SHA),
        "convert": BatchesRecord(
            engine="resident",
            row_bytes=52,
            batch_size=32,
            steps_per_epoch=37,
            elements={"bill_length_mm": "float32 [batch]"},
            features=(
                FeaturePlan(name="bill_length_mm", kind="numeric", column=double, mean=43.92193, variance=29.8, num_missing=2),
                FeaturePlan(name="body_mass_g", kind="numeric", column=double, mean=4201.754, variance=643131.1),
                FeaturePlan(name="island", kind="category", column=text, vocabulary=("Biscoe", "Dream", "Torgersen")),
                FeaturePlan(
                    name="photo",
                    kind="image",
                    column=Column(name="photo", type="fixed_size_binary[64]", shape=(8, 8, 1), dtype="uint8"),
                    scale=1 / 255,
                ),
            ),
            target=TargetPlan(name="species", kind="classes", column=text, classes=("Adelie", "Chinstrap", "Gentoo")),
        ),
        "build": BuildRecord(
            build="models.dense:build_model",
            options={"hidden_units": [64], "dropout": 0.2},
            builder_sha256=SHA,
            num_parameters=1219,
            summary=SUMMARY,
        ),
        "fit": example_history(),
        "export": ExportRecord(
            path=f"runs/penguins/{RUN}/model/saved_model",
            digest=SHA,
            num_bytes=412_345,
            inputs={"bill_length_mm": "float32 [batch]", "island": "string [batch]", "photo": "uint8 [batch, 8, 8, 1]"},
            outputs={"probabilities": "float32 [batch, 3]", "label": "string [batch]"},
            proof_rows=256,
            max_difference=1.19e-7,
            latency_p50_ms=0.412,
            latency_p99_ms=1.237,
        ),
        "evaluate": EvaluationRecord(
            metrics={
                "validation": {"accuracy": 0.9815, "loss": 0.0712, "macro_f1": 0.978},
                "test": {"loss": 0.0655, "macro_f1": 0.9838, "accuracy": 0.98611},
            },
            champion=ChampionRecord(
                version=6, run="20251120T030000Z-aa01", metrics={"accuracy": 0.98333, "loss": 0.0741, "macro_f1": 0.981}
            ),
            num_rows=360,
            baselines={
                "constant": {"accuracy": 0.43889, "loss": 1.0411, "macro_f1": 0.2034},
                "linear": {"accuracy": 0.95278, "loss": 0.1204, "macro_f1": 0.949},
            },
        ),
        "gate": GateRecord(
            verdict="promote",
            reasons=(
                Reason(code="require", ok=True, text="Accuracy 0.986 is at least 0.9."),
                Reason(code="champion", ok=True, text="Accuracy is not worse than version 6 by more than the margin of 0.5 points."),
                Reason(code="latency", ok=True, text="The 99th percentile of latency, 1.24 ms, is within 50 ms."),
            ),
            comparison=Comparison(
                metric="accuracy",
                candidate=0.98611,
                champion=0.98333,
                difference=0.00278,
                low=-0.0051,
                high=0.0107,
                confidence=0.95,
                num_rows=360,
                method="paired bootstrap",
            ),
            judged_against=6,
        ),
        "publish": PublishRecord(version=7, path="models/penguins/7"),
    }


def example_record(stages: dict[str, Record], **changes: object) -> RunRecord:
    took = [0.41, 0.08, 0.05, 0.22, 0.31, 12.6, 4.9, 1.4, 0.12, 0.03]
    started = datetime(2025, 11, 23, 11, 40, 7, tzinfo=UTC)
    evaluation, gate, publish = stages.get("evaluate"), stages.get("gate"), stages.get("publish")
    known: dict[str, object] = {
        "run": RUN,
        "job": "penguins",
        "status": "completed",
        "verdict": gate.verdict if isinstance(gate, GateRecord) else None,
        "reasons": [reason.text for reason in gate.reasons] if isinstance(gate, GateRecord) else [],
        "snapshot": SHA[:16],
        "rows": Rows(train=1170, validation=270, test=360) if "split" in stages else None,
        "metrics": evaluation.metrics if isinstance(evaluation, EvaluationRecord) else {},
        "champion": evaluation.champion if isinstance(evaluation, EvaluationRecord) else None,
        "baselines": evaluation.baselines if isinstance(evaluation, EvaluationRecord) else {},
        "comparison": gate.comparison if isinstance(gate, GateRecord) else None,
        "model_version": publish.version if isinstance(publish, PublishRecord) else None,
        "seconds": {name: seconds for name, seconds in zip(STAGES, took, strict=False) if name in stages},
        "config_digest": SHA,
        "code": CodeRecord(git="3f0c2d1+9b74c989", builder_sha256=SHA),
        "versions": {"refit": "0.1.0", "keras": "3.12.0", "tensorflow": "2.21.0", "python": "3.11.7"},
        "started": started,
        "ended": started + timedelta(seconds=21.4),
        "inputs_digest": SHA,
        "parameters": JOB,
    }
    return RunRecord.model_validate({**known, **changes})


def until(stage: str, stages: dict[str, Record] | None = None) -> dict[str, Record]:
    """The records of the stages before ``stage``."""
    given = stages or example_stages()
    return {name: given[name] for name in STAGES[: STAGES.index(stage)] if name in given}


def replaced(stages: dict[str, Record], stage: str, **changes: object) -> dict[str, Record]:
    return {**stages, stage: stages[stage].model_copy(update=changes)}


def promoted() -> tuple[dict[str, Record], RunRecord]:
    stages = example_stages()
    return stages, example_record(stages)


def first() -> tuple[dict[str, Record], RunRecord]:
    reason = Reason(code="first", ok=True, text="There is no champion yet.")
    stages = replaced(example_stages(), "evaluate", champion=None)
    stages = replaced(stages, "gate", verdict="first", comparison=None, judged_against=None, reasons=(reason,))
    stages = replaced(stages, "publish", version=1, path="models/penguins/1")
    stages["fit"] = example_history(1)
    return stages, example_record(stages)


def kept() -> tuple[dict[str, Record], RunRecord]:
    comparison = Comparison(
        metric="accuracy",
        candidate=0.9583,
        champion=0.98333,
        difference=-0.025,
        low=-0.0441,
        high=-0.0059,
        confidence=0.95,
        num_rows=360,
        method="paired bootstrap",
    )
    reasons = (
        Reason(code="require", ok=True, text="Accuracy 0.958 is at least 0.9."),
        Reason(code="champion", ok=False, text="Accuracy is worse by 2.5 points, more than the margin of 0.5 points."),
    )
    stages = replaced(example_stages(), "gate", verdict="keep", comparison=comparison, reasons=reasons)
    stages = replaced(stages, "publish", version=None, path=None)
    stages = replaced(
        stages, "evaluate", metrics={"validation": {"accuracy": 0.961, "loss": 0.2}, "test": {"accuracy": 0.9583, "loss": 0.1913}}
    )
    stages["fit"] = example_history(40, every=3)
    return stages, example_record(stages, resumed_at=[Resumption(epoch=11, step=0)])


def incompatible() -> tuple[dict[str, Record], RunRecord]:
    champion = ChampionRecord(version=6, metrics={}, incompatible='it wants the column "sex", which the data no longer have')
    reason = Reason(code="incompatible", ok=False, text="Version 6 cannot be compared.")
    stages = replaced(example_stages(), "evaluate", champion=champion)
    stages = replaced(stages, "gate", verdict="incompatible", comparison=None, reasons=(reason,))
    stages = replaced(stages, "publish", version=None, path=None)
    return stages, example_record(stages)


def failed() -> tuple[dict[str, Record], RunRecord]:
    stages = until("fit")
    error = (
        "fit: the loss is not a number after epoch 3. Expected: a finite number. Received: nan. Try a lower fit.optimizer.learning_rate."
    )
    return stages, example_record(stages, status="failed", error=error)


def skipped() -> tuple[dict[str, Record], RunRecord]:
    stages = until("validate")
    return stages, example_record(stages, verdict="skipped", unchanged_since="20251122T030000Z-77c1")


def bare(status: str) -> tuple[dict[str, Record], RunRecord]:
    return {}, example_record({}, status=status, snapshot=None, ended=None)


ENDINGS = {
    "promote": promoted(),
    "first": first(),
    "keep": kept(),
    "incompatible": incompatible(),
    "skipped": skipped(),
    "failed": failed(),
    **{f"bare_{status}": bare(status) for status in ("running", "completed", "failed", "cancelled", "abandoned")},
}


def write_stages(layout: Layout, record: RunRecord, stages: dict[str, Record]) -> None:
    for name, stage in stages.items():
        run_stage(layout.run(record.job, record.run), name, type(stage), lambda stage=stage: stage)


def page_of(home: Path, stages: dict[str, Record], record: RunRecord) -> str:
    layout = Layout(home)
    write_stages(layout, record, stages)
    return write_report(layout, record).read_text()


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))))


def sentence_of(stages: dict[str, Record], record: RunRecord) -> str:
    return write_headline(Facts(record, Stages(**stages))).sentence


class Strict(HTMLParser):
    """Counts what is opened and not closed; collects attributes that could fetch something."""

    VOID = ("meta", "br", "link", "img", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.references: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "srcset", "action")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parse(page: str) -> Strict:
    parser = Strict()
    parser.feed(page)
    parser.close()
    return parser


# ---- the page as a whole


@pytest.fixture(scope="module", params=ENDINGS)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of each ending."""
    return page_of(tmp_path_factory.mktemp("page"), *ENDINGS[request.param])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run of ``promoted_page`` lies."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def promoted_page(home: Path) -> str:
    """The page of a run whose model was promoted."""
    return page_of(home, *promoted())


def test_every_ending_gives_a_well_formed_page(page: str) -> None:
    parsed = parse(page)
    assert parsed.open == []
    assert "script" not in parsed.tags
    assert len(parsed.ids) == len(set(parsed.ids))


def test_the_page_fetches_nothing(page: str) -> None:
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert all(reference.startswith(("#", "../")) for reference in parse(page).references)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    stages, record = promoted()
    layout = Layout(tmp_path)
    write_stages(layout, record, stages)
    before = write_report(layout, record).read_bytes()
    again = RunRecord.model_validate_json(record.model_dump_json())
    assert write_report(layout, again).read_bytes() == before


def test_settings_of_matplotlib_do_not_change_the_page(tmp_path: Path) -> None:
    import matplotlib as mpl

    before = page_of(tmp_path, *promoted())
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red", "svg.fonttype": "path", "text.usetex": True}):
        assert page_of(tmp_path, *promoted()) == before


def test_the_report_lies_where_the_layout_says(tmp_path: Path) -> None:
    _, record = failed()
    layout = Layout(tmp_path)
    assert write_report(layout, record) == layout.run("penguins", RUN).report
    assert [path.name for path in layout.run("penguins", RUN).root.iterdir()] == ["report.html"]


def test_a_corrupt_stage_is_reported_and_not_skipped(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    path = layout.run("penguins", RUN).stage("fit")
    path.parent.mkdir(parents=True)
    path.write_text('{"seconds": 1.0, "record": {}}')
    with pytest.raises(CorruptRecordError):
        read_stages(layout.run("penguins", RUN))


def test_names_from_users_stay_text(tmp_path: Path) -> None:
    stages = example_stages()
    double = Column(name=HOSTILE, type="double")
    plan = FeaturePlan(name=HOSTILE, kind="numeric", column=double, mean=0.0, variance=1.0)
    target = TargetPlan(name=HOSTILE, kind="classes", column=double, classes=(HOSTILE, "other"))
    check = CheckRecord(name=HOSTILE, ok=False, detail=HOSTILE)
    source = SourceRecord(name=HOSTILE, digest=SHA, num_read=1, num_kept=1)
    metrics = {HOSTILE: 0.5}
    champion = ChampionRecord(version=6, run=HOSTILE, metrics=metrics)
    fit = example_history(3).model_copy(update={"history": {"loss": [1.0] * 3, HOSTILE: [0.5] * 3, f"val_{HOSTILE}": [0.5] * 3}})
    comparison = Comparison(
        metric=HOSTILE, candidate=0.5, champion=0.4, difference=0.1, low=0, high=0.2, confidence=0.9, num_rows=2, method=HOSTILE
    )
    stages = replaced(stages, "ingest", sources=(source,))
    stages = replaced(stages, "validate", checks=(check,))
    stages = replaced(stages, "convert", features=(plan,), target=target)
    stages = replaced(stages, "build", options={HOSTILE: HOSTILE}, summary=HOSTILE, build=HOSTILE)
    stages = replaced(stages, "export", inputs={HOSTILE: "float32 [batch]"}, outputs={HOSTILE: "x"})
    stages = replaced(stages, "evaluate", metrics={"validation": metrics, "test": metrics}, champion=champion)
    stages = replaced(stages, "gate", reasons=(Reason(code="x", ok=False, text=HOSTILE),), comparison=comparison)
    record = example_record(
        {**stages, "fit": fit}, error=HOSTILE, unchanged_since=HOSTILE, seconds={HOSTILE: 1.0}, versions={HOSTILE: HOSTILE}
    )
    page = page_of(tmp_path, {**stages, "fit": fit}, record)
    parsed = parse(page)
    assert parsed.open == []
    assert "<script" not in page
    assert all(reference.startswith(("#", "../")) for reference in parsed.references)
    assert text_of(page).count(HOSTILE) > 15


# ---- the headline


def test_a_published_run_says_so_with_its_evidence() -> None:
    assert sentence_of(*promoted()) == (
        "Version 7 was published: accuracy 0.986, and not worse than version 6 (+0.3 points, 95 % interval −0.5 to +1.1, 360 rows)."
    )


def test_the_first_version_is_named_as_such() -> None:
    assert sentence_of(*first()) == "Version 1 was published, the first of this model: accuracy 0.986 on 360 test rows."


def test_a_run_that_keeps_the_champion_gives_the_reason_that_failed() -> None:
    assert sentence_of(*kept()) == (
        "Nothing was published and version 6 stays: accuracy is worse by 2.5 points, more than the margin of 0.5 points."
    )


def test_a_candidate_that_misses_a_requirement_leaves_no_version_where_there_was_none() -> None:
    stages, _ = first()
    reason = Reason(code="require", ok=False, text="Accuracy 0.8 is below 0.9.")
    stages = replaced(stages, "gate", verdict="keep", reasons=(reason,))
    stages = replaced(stages, "publish", version=None, path=None)
    assert sentence_of(stages, example_record(stages)) == (
        "Nothing was published and there is still no version that serves: accuracy 0.8 is below 0.9."
    )


def test_an_incompatible_champion_is_told_with_its_cause() -> None:
    assert sentence_of(*incompatible()) == (
        "Nothing was published and version 6 stays: it cannot be compared, "
        'because it wants the column "sex", which the data no longer have.'
    )


def test_a_skipped_run_names_the_run_that_did_the_work() -> None:
    assert sentence_of(*skipped()) == "Nothing has changed since run 20251122T030000Z-77c1, so nothing was trained."


def test_a_failed_run_names_the_stage_in_which_it_ended(tmp_path: Path) -> None:
    assert sentence_of(*failed()) == "Nothing was published: the run failed in the stage “fit”."
    page = page_of(tmp_path, *failed())
    assert "Try a lower fit.optimizer.learning_rate." in page
    assert '<li class="stopped">fit ✗</li>' in page
    assert '<li class="done">build ✓</li>' in page


def test_a_run_that_fails_after_publication_does_not_deny_it() -> None:
    stages = example_stages()
    record = example_record(stages, status="failed", error="report: no space left on device")
    assert sentence_of(stages, record) == "Version 7 had been published: the run failed in the stage “report”."


@pytest.mark.parametrize("status", ["running", "completed", "failed", "cancelled", "abandoned"])
def test_a_run_without_any_stage_has_one_sentence(status: str) -> None:
    assert sentence_of(*bare(status)).endswith(".")


@pytest.mark.parametrize(
    ("must", "claim"),
    [("be_better", "and better than"), ("not_be_worse", "and not worse than"), ("prove_not_worse", "and shown to be no worse than")],
)
def test_the_claim_is_the_rule_that_held(must: str, claim: str) -> None:
    stages, record = promoted()
    rule = JOB.gate.champion.model_copy(update={"must": must})
    job = JOB.model_copy(update={"gate": JOB.gate.model_copy(update={"champion": rule})})
    assert f"{claim} version 6" in sentence_of(stages, record.model_copy(update={"parameters": job}))


# ---- the parts


def test_key_numbers_are_shown(promoted_page: str) -> None:
    text = text_of(promoted_page)
    for shown in ("0.986", "1,800", "1.24 ms", "limit 50 ms", "412 kB", "1,219 parameters", "best: 19", "21 s", "2025-11-23 11:40:07 UTC"):
        assert shown in text


def test_crosses_are_told(tmp_path) -> None:
    stages, record = promoted()
    crosses = (CrossPlan(name="pair", of=("island", "sex"), bins=1024),)
    page = page_of(tmp_path, replaced(stages, "convert", crosses=crosses), record)
    assert "Crosses: pair (island and sex, hashed into 1,024 bins)." in text_of(page)


def test_every_stage_record_reaches_the_page(promoted_page: str) -> None:
    text = text_of(promoted_page)
    for shown in (
        "data/penguins_2024.csv",
        "9 columns as pinned",
        "train 1,170",
        "mean 43.92, deviation 5.459; 2 missing",
        "3 values: Biscoe, Dream, Torgersen",
        "uint8 8 × 8 × 1",
        "Adelie, Chinstrap, Gentoo",
        "models.dense:build_model",
        "hidden_0 (Dense)",
        "256 rows predicted again",
        "1.2 × 10⁻⁷",
        "paired bootstrap",
        "+0.3 points against version 6",
        "scaled by 1/255",
        "3f0c2d1+9b74c989",
        "tensorflow 2.21.0",
        "path: data/penguins*.csv",
    ):
        assert shown in text


def test_sources_add_up_in_the_last_row(promoted_page: str) -> None:
    assert re.findall(r"[\d,]+", text_of(re.findall("<tfoot>.*?</tfoot>", promoted_page, re.DOTALL)[0])) == [
        "2",
        "1,875",
        "1,800",
        "3",
        "60",
        "10",
        "2",
    ]


def test_many_sources_are_cut_off_with_a_count(tmp_path: Path) -> None:
    sources = tuple(SourceRecord(name=f"part-{n:04}", digest=SHA, num_read=1, num_kept=1) for n in range(1284))
    stages = replaced(example_stages(), "ingest", sources=sources)
    text = text_of(page_of(tmp_path, stages, example_record(stages)))
    assert "part-1264" in text
    assert "part-1263" not in text
    assert text.index("part-1283") < text.index("part-1282")
    assert "… and 1,264 more." in text
    assert "1,284 inputs" in text


def test_the_snippet_is_python_with_the_real_inputs(home: Path, promoted_page: str) -> None:
    snippet = unescape(re.findall(r"<pre[^>]*>(import tensorflow.*?)</pre>", promoted_page, re.DOTALL)[0])
    ast.parse(snippet)
    assert str(home / "models/penguins/7") in snippet
    assert "'photo': tf.zeros([1, 8, 8, 1], 'uint8')" in snippet
    assert "'island': tf.constant([\"\"])" in snippet


def test_an_unpublished_model_is_loaded_from_its_run(tmp_path: Path) -> None:
    assert f"{tmp_path}/runs/penguins/{RUN}/model/saved_model" in page_of(tmp_path, *kept())


def test_a_champion_that_saw_test_rows_is_pointed_out(tmp_path: Path) -> None:
    stages = example_stages()
    champion = ChampionRecord(version=6, metrics={"accuracy": 0.98}, num_shared_rows=12)
    stages = replaced(stages, "evaluate", champion=champion)
    assert "Version 6 was trained on 12 of these test rows." in text_of(page_of(tmp_path, stages, example_record(stages)))


# ---- baselines and the start of the fit


def with_evaluation(**changes: object) -> Facts:
    stages = replaced(example_stages(), "evaluate", **changes)
    return Facts(example_record(stages), Stages(**stages))


def test_baselines_stand_beside_the_champion(promoted_page: str) -> None:
    text = text_of(promoted_page)
    assert "Metric Validation Test Version 6 Difference Linear Constant" in text
    assert "accuracy 0.982 0.986 0.983 +0.3 points 0.953 0.439" in text
    assert "no better" not in text


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        ({"accuracy": 0.95278}, "With accuracy 0.953 on the test rows the candidate is no better than the linear baseline (0.953)."),
        ({"accuracy": 0.2}, "…no better than the linear baseline (0.953) and the constant baseline (0.439)."),
        ({"accuracy": nan}, "…no better than the linear baseline (0.953) and the constant baseline (0.439)."),
        ({"accuracy": 0.96}, ""),
        ({}, ""),
    ],
)
def test_a_candidate_that_is_no_better_than_a_baseline_is_told_so(metrics: dict[str, float], sentence: str) -> None:
    told = warn_of_baselines(with_evaluation(metrics={"validation": {}, "test": metrics}))
    assert told.endswith(sentence.removeprefix("…"))
    assert bool(told) == bool(sentence)


def test_of_an_error_less_is_better_than_a_baseline() -> None:
    facts = with_evaluation(metrics={"test": {"rmse": 3.0}}, baselines={"linear": {"rmse": 2.5}, "constant": {"rmse": 9.0}}, champion=None)
    facts = Facts(facts.record.model_copy(update={"comparison": None}), Stages(**{**vars(facts.stages), "gate": None}))
    assert warn_of_baselines(facts) == "With rmse 3.000 on the test rows the candidate is no better than the linear baseline (2.500)."


def test_why_there_is_no_linear_baseline_is_told(tmp_path: Path) -> None:
    told = {"baselines": {"constant": {"accuracy": 0.43889}}, "no_baselines": {"linear": "2,000 inputs are too many"}}
    stages = replaced(example_stages(), "evaluate", **told)
    page = text_of(page_of(tmp_path, stages, example_record(stages)))
    assert "There is no linear baseline: 2,000 inputs are too many." in page
    assert "Version 6 Difference Constant" in page


def test_what_a_fit_started_from_is_told(tmp_path: Path) -> None:
    start = WarmStart(
        version=3,
        run="one",
        num_taken=14,
        num_taken_parameters=980,
        num_parameters=1000,
        fresh=("dense/kernel", "dense/bias"),
        tokens={"colour>embedding/embeddings": (5, 6)},
        shifted=("x",),
        num_seen_validation=7,
    )
    assert tell_start(start) == (
        "Started from version 3: 14 of 16 weights (98 % of the parameters) taken over; fresh: dense/kernel, dense/bias. "
        "Of colour>embedding/embeddings the rows of 5 of 6 tokens. Statistics have changed since, and with them what numbers mean: x. "
        "It had been trained on 7 validation rows: what early stopping sees is too good."
    )
    stages = replaced(example_stages(), "fit", warm_start=start)
    assert "14 of 16 weights" in text_of(page_of(tmp_path, stages, example_record(stages)))
    assert tell_start(WarmStart(why_not="no version serves yet")) == "The fit started afresh: no version serves yet."


def test_a_lower_loss_counts_as_good(promoted_page: str) -> None:
    row = re.findall(r"<tr[^>]*><th scope=\"row\">loss</th>.*?</tr>", promoted_page, re.DOTALL)[0]
    assert 'class="number good">−0.0086<' in row


def test_numbers_that_are_not_finite_are_told(tmp_path: Path) -> None:
    stages = example_stages()
    metrics = {"accuracy": nan, "loss": inf}
    comparison = Comparison(
        metric="accuracy", candidate=nan, champion=0.9, difference=nan, low=nan, high=inf, confidence=0.95, num_rows=3, method="none"
    )
    record = example_record(
        stages, metrics={"test": metrics, "validation": metrics}, comparison=comparison, seconds={"fit": nan, "gate": inf}
    )
    text = text_of(page_of(tmp_path, stages, record))
    assert "Test accuracy not a number" in text
    assert "∞" in text
    assert re.findall(r"\bnan\b", text) == []


def test_curves_without_a_finite_value_say_so(tmp_path: Path) -> None:
    fit = example_history(2).model_copy(update={"history": {"loss": [1e300, 1e-300], "accuracy": [0.0, 0.0]}})
    stages = {**until("fit"), "fit": fit}
    assert text_of(page_of(tmp_path, stages, example_record(stages, status="failed")))
    nothing = example_history(1).model_copy(update={"history": {"loss": []}, "validation_epochs": [], "best_epoch": None})
    stages = {**until("fit"), "fit": nothing}
    assert "No epoch has a finite value." in text_of(page_of(tmp_path / "other", stages, example_record(stages, status="failed")))


# ---- the data


BINS = Histogram(edges=(0.0, 10.0, 20.0, 30.0), old=(0.5, 0.3, 0.2), new=(0.1, 0.2, 0.7))
LABELS = Histogram(labels=("Adelie", "Gentoo"), old=(0.75, 0.25), new=(0.5, 0.5))
CHECKS = (
    CheckRecord(name="columns", ok=True, detail="all 9 are there"),
    CheckRecord(name="fare_usd: min", ok=False, only_warns=True, detail="12 rows are below 0"),
    CheckRecord(name="classes", ok=False, detail="only one"),
)


def column(name: str = "mass", verdict: str = "stable", **changes: object) -> ColumnDrift:
    known: dict[str, object] = {
        "name": name,
        "kind": "numeric",
        "test": "Kolmogorov-Smirnov",
        "statistic": 0.4321,
        "p_value": 0.01,
        "p_adjusted": 0.02,
        "psi": 0.31,
        "num_old": 1300,
        "num_new": 420,
        "missing_old": 0.0,
        "missing_new": 0.125,
        "has_drifted": verdict.startswith("drifted"),
        "verdict": verdict,
        "histogram": BINS,
    }
    return ColumnDrift.model_validate({**known, **changes})


def drift_of(*columns: ColumnDrift, **changes: object) -> DriftRecord:
    return DriftRecord.model_validate({"champion": 6, "num_old": 1300, "num_new": 420, "columns": columns, **changes})


def page_with(home: Path, *, checks: tuple[CheckRecord, ...] = (), drift: DriftRecord | None = None, **ingest: object) -> str:
    stages = replaced(replaced(until("split"), "ingest", **ingest), "validate", checks=checks, drift=drift)
    page = page_of(home, stages, example_record(stages, status="running", seconds={}))
    assert parse(page).open == []
    return page


def source(name: str, **changes: object) -> SourceRecord:
    return SourceRecord.model_validate({"name": name, "digest": SHA, "num_read": 10, "num_kept": 10, **changes})


def warning_of(*checks: CheckRecord, drift: DriftRecord | None = None) -> str:
    stages = replaced(example_stages(), "validate", checks=checks, drift=drift)
    return warn_of_data(Facts(example_record(stages), Stages(**stages)))


def test_counts_that_are_zero_everywhere_are_left_out(tmp_path: Path) -> None:
    head = re.findall("<thead>.*?</thead>", page_with(tmp_path, sources=(source("a.csv"), source("b.csv", num_duplicate=3))))[0]
    assert text_of(head).split() == ["Input", "Read", "Kept", "Rejected", "Duplicate"]


def test_a_refused_input_shows_its_reason_in_place_of_counts(tmp_path: Path) -> None:
    refused = source("b.csv", num_read=0, num_kept=0, refused="b.csv: the file is empty.")
    page = page_with(tmp_path, sources=(source("a.csv"), refused))
    row = re.findall(r"<tr><th[^>]*>b\.csv.*?</tr>", page, re.DOTALL)[0]
    assert text_of(row).split() == ["b.csv", "✗", "refused:", "the", "file", "is", "empty."]
    assert "2 inputs, 1 refused" in text_of(page)


def test_refused_and_vanished_inputs_are_not_the_ones_left_out(tmp_path: Path) -> None:
    sources = [source(f"part-{n:04}") for n in range(200)]
    sources[3] = source("part-0003", is_vanished=True)
    sources[7] = source("part-0007", num_read=0, num_kept=0, refused="part-0007: not UTF-8.")
    text = text_of(page_with(tmp_path, sources=tuple(sources)))
    assert "part-0003 vanished" in text
    assert "not UTF-8." in text
    assert "part-0008" not in text
    assert "200 inputs, 1 refused, 1 vanished" in text


def test_notes_on_inputs_are_told_once(tmp_path: Path) -> None:
    text = text_of(page_with(tmp_path, sources=(source("a", notes=("One more column.",)), source("b", notes=("One more column.",)))))
    assert text.count("One more column.") == 1


def write_rejects(home: Path, name: str, rejects: list[Reject]) -> None:
    folder = Layout(home).dataset("penguins").rejects_dir
    folder.mkdir(parents=True)
    with Rejects(folder / f"{name}.parquet", folder / "notes") as file:
        file.write("a.csv", rejects)


def test_the_commonest_reasons_for_rejection_are_counted_with_their_file(tmp_path: Path) -> None:
    kinds = {HOSTILE: 40, "no number": 30, "no date": 20, "too long": 10, "a quote is open": 5, "rare": 1}
    line = iter(range(1000))
    rejects = [Reject(reason=why, text="", line=next(line), column="mass") for why, rows in kinds.items() for _ in range(rows)]
    write_rejects(tmp_path, "first", rejects)
    text = text_of(page_with(tmp_path, sources=(source("a.csv", num_read=212, num_rejected=106, rejects="first"),)))
    assert "106 rows (50 % of those read) could not be used." in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "data/penguins/rejects/first.parquet ." in text
    assert f"40 mass {HOSTILE} 30 mass no number 20 mass no date 10 mass too long 5 mass a quote is open" in text
    assert "rare" not in text


@pytest.mark.parametrize("content", [None, b"", b"no Parquet at all"])
def test_the_page_is_written_without_a_readable_rejects_file(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        write_rejects(tmp_path, "first", [])
        (Layout(tmp_path).dataset("penguins").rejects_dir / "first.parquet").write_bytes(content)
    text = text_of(page_with(tmp_path, sources=(source("a.csv", num_rejected=1, rejects="first"),)))
    assert ("(no longer there)" in text) == (content is None)
    assert "1 row (" in text


def test_a_rejects_file_of_another_program_is_passed_over(tmp_path: Path) -> None:
    folder = Layout(tmp_path).dataset("penguins").rejects_dir
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"why": ["x"]}), folder / "first.parquet")
    assert "1 row (" in text_of(page_with(tmp_path, sources=(source("a.csv", num_rejected=1, rejects="first"),)))


def test_checks_that_fail_come_first_then_those_that_warn(tmp_path: Path) -> None:
    page = page_with(tmp_path, checks=CHECKS)
    marks = re.findall(r'<span class="mark (\w+)" role="img" aria-label="([^"]+)">(.)</span><span>(classes|fare_usd: min|columns) ', page)
    assert marks == [
        ("bad", "not ok", "✗", "classes"),
        ("warn", "warning", "!", "fare_usd: min"),
        ("good", "ok", "✓", "columns"),
    ]
    assert "Checks: 1 failed, 1 warns, 1 held" in text_of(page)


def test_many_checks_that_held_are_folded(tmp_path: Path) -> None:
    held = tuple(CheckRecord(name=f"rule {n}", ok=True, detail="") for n in range(20))
    assert "<summary>20 checks held</summary>" in page_with(tmp_path, checks=held)
    assert "checks held</summary>" not in page_with(tmp_path / "few", checks=held[:3])


def names_of(page: str) -> list[str]:
    return [unescape(name) for name in re.findall("<h4>(.*?)</h4>", page)]


def test_drifted_columns_come_first_then_the_label(tmp_path: Path) -> None:
    drift = drift_of(
        column("a"), column("b", "drifted: PSI 0.2", psi=0.2), column("y", is_target=True), column("c", "drifted: PSI 2", psi=2.0)
    )
    page = page_with(tmp_path, drift=drift)
    assert names_of(page) == ["c", "b", "y", "a"]
    assert page.count('<span class="tag">label</span>') == 1
    assert "2 of 4 columns have drifted between the 1,300 rows that version 6 was trained on and 420 rows that it never saw." in text_of(
        page
    )


def test_a_column_is_told_with_its_numbers(tmp_path: Path) -> None:
    page = page_with(tmp_path, drift=drift_of(column("mass", "drifted: PSI 0.31, KS 0.43")))
    card = re.findall('<ul class="cards">.*?</ul>', page, re.DOTALL)[0]
    text = text_of(card).replace("\N{NO-BREAK SPACE}", " ")
    assert 'class="tone-warn"' in card
    for shown in (
        "mass drifted",
        "PSI 0.31, KS 0.43",
        "Missing 0 % → 12.5 %",
        "PSI 0.310",
        "Kolmogorov-Smirnov: 0.432",
        "Corrected p 0.020",
    ):
        assert shown in text


@pytest.mark.parametrize(
    ("verdict", "tone"),
    [("stable", "good"), ("not judged: time passes", "calm"), ("too few rows to tell", "calm"), ("drifted: PSI 1", "warn")],
)
def test_the_tone_of_a_column_is_its_verdict(verdict: str, tone: str, tmp_path: Path) -> None:
    page = page_with(tmp_path, drift=drift_of(column("mass", verdict)))
    assert f'<li class="tone-{tone}">' in page
    assert ("Corrected p" in text_of(page)) == (tone != "calm")


def test_without_a_champion_the_new_rows_are_shown_alone(tmp_path: Path) -> None:
    alone = column("mass", "nothing to compare with", histogram=BINS.model_copy(update={"old": ()}), test="none")
    page = page_with(tmp_path, drift=drift_of(alone, champion=None, num_old=0, why_not="There is no champion yet."))
    text = text_of(page)
    assert "There is no champion yet." in text
    assert "Missing 12.5" in text
    assert "→" not in text
    assert "the champion's rows" not in text
    assert "Corrected p" not in text
    assert "stroke: var(--validation)" in page
    assert "fill: var(--train)" not in page


def test_of_many_columns_all_that_drifted_and_the_first_are_shown_and_the_rest_is_folded(tmp_path: Path) -> None:
    columns = [column(f"c{n}", "drifted: PSI 1" if n >= 90 else "stable") for n in range(100)]
    page = page_with(tmp_path, drift=drift_of(*columns))
    shown, folded = page.split("<summary>76 more columns</summary>")
    assert names_of(shown) == [f"c{n}" for n in (*range(90, 100), *range(14))]
    assert len(names_of(folded)) == 76


def test_a_thousand_columns_do_not_make_a_heavy_page(tmp_path: Path) -> None:
    page = page_with(tmp_path, drift=drift_of(*(column(f"c{n}") for n in range(1000))))
    assert len(names_of(page)) == 200
    assert "… and 800 more." in text_of(page)
    assert len(page) < 500_000


def test_hostile_columns_and_values_stay_text(tmp_path: Path) -> None:
    labels = Histogram(
        labels=(HOSTILE, "a\nb", "", "ü" * 5000, "\x00\ud83d\ude00"[:1], "<b>"), old=(0.2,) * 5, new=(nan, inf, -1.0, 0.5, 0.1, 0.2)
    )
    hostile = column(
        HOSTILE,
        f"drifted: {HOSTILE}",
        kind="categorical",
        test=HOSTILE,
        histogram=labels,
        psi=nan,
        statistic=inf,
        p_adjusted=nan,
        is_target=True,
    )
    sources = (source(HOSTILE, refused=HOSTILE, notes=(HOSTILE,)), source(HOSTILE, is_vanished=True))
    page = page_with(tmp_path, drift=drift_of(hostile, why_not=None), sources=sources)
    assert "<script" not in page
    assert "<b>" not in page
    assert text_of(page).count(HOSTILE) >= 8
    assert re.findall(r"\bnan\b|\binf\b", text_of(page)) == []


def test_drift_and_warnings_stand_near_the_top_in_one_sentence(tmp_path: Path) -> None:
    drifted = drift_of(column("mass", "drifted: PSI 1"), column("species", "drifted: PSI 1", is_target=True), column("age"))
    warned = CheckRecord(name="inputs readable", ok=False, only_warns=True, detail="2 were refused")
    repeated = CheckRecord(name="drift", ok=False, only_warns=True, detail="mass, species")
    sentence = "2 columns have drifted: mass, species (the label); 1 check of the data warns: inputs readable."
    assert warning_of(warned, repeated, drift=drifted) == sentence
    page = page_with(tmp_path, checks=(warned, repeated), drift=drifted)
    assert f'<p class="notice"><a href="#data">{sentence}</a></p>' in page
    assert page.index(sentence) < page.index("</header>")


def test_good_data_are_no_warning(tmp_path: Path) -> None:
    assert warning_of(*CHECKS[:1], drift=drift_of(column("mass"))) == ""
    assert warning_of() == ""
    assert '<p class="notice"><a' not in page_with(tmp_path, checks=CHECKS[:1])


def test_many_names_are_cut_off_in_the_sentence() -> None:
    drifted = drift_of(*(column(f"c{n}", "drifted: PSI 1") for n in range(9)))
    assert warning_of(drift=drifted) == "9 columns have drifted: c0, c1, c2, c3 and 5 more."
    assert name_some(["a"]) == "a"


def test_records_from_before_there_was_drift_are_shown_without(tmp_path: Path) -> None:
    old = ValidationRecord.model_validate_json('{"checks": [{"name": "columns", "ok": true, "detail": "9 columns as pinned"}]}')
    stages = {**example_stages(), "validate": old}
    page = page_of(tmp_path, stages, example_record(stages))
    assert "9 columns as pinned" in text_of(page)
    assert '<ul class="cards">' not in page


# ---- figures


def test_a_histogram_draws_both_sides_to_one_scale() -> None:
    old, new, axis = re.findall('<path d="([^"]+)"', figures.draw_histogram(BINS))
    assert old == "M0 72V20.6H100V41.1H200V51.4H300V72"
    assert new == "M0 72V61.7H100V51.4H200V0H300V72"
    assert axis == "M0 72H300"


def test_bins_of_different_widths_are_drawn_as_densities() -> None:
    wide = Histogram(edges=(0.0, 1.0, 4.0), old=(0.25, 0.75))
    assert 'd="M0 72V0H75V0H300V72"' in figures.draw_histogram(wide)


def test_labels_have_a_bar_for_each_side_and_both_shares() -> None:
    svg = figures.draw_histogram(LABELS)
    assert 'd="M116 3.5h108v5H116zM116 22.5h36v5H116z" style="fill: var(--train)"' in svg
    assert 'd="M116 9h72v5H116zM116 28h72v5H116z" style="fill: var(--validation)"' in svg
    assert re.findall(r">([^<]+)</text>", svg) == ["Adelie", "Gentoo", "75 → 50 %", "25 → 50 %"]


def test_labels_beyond_the_first_are_drawn_together() -> None:
    svg = figures.draw_histogram(Histogram(labels=tuple("abcdefghijkl"), new=(0.2, *(0.8 / 11,) * 11)))
    assert re.findall(r">([^<]+)</text>", svg) == [*"abcdefg", "(others)", "20 %", *["7 %"] * 6, "36 %"]


def test_long_labels_are_cut_and_kept_as_a_title() -> None:
    svg = figures.draw_histogram(
        Histogram(labels=("Palmer Station, Antarctica", "観測者の長い名前がここにあります", "W" * 40), new=(0.5, 0.3, 0.2))
    )
    assert "<title>Palmer Station, Antarctica</title>Palmer Stati" in svg
    assert all(len(shown) <= 16 for shown in re.findall(r"</title>([^<]*)…</text>", svg))
    assert len(re.findall("…</text>", svg)) == 3


def test_the_axis_names_the_whole_numbers_within_the_bins() -> None:
    svg = figures.draw_histogram(Histogram(edges=(-0.5, 4.5, 9.5), old=(0.5, 0.5), new=(0.5, 0.5)))
    assert re.findall(r">([^<]+)</text>", svg) == ["0", "4.5", "9"]
    single = figures.draw_histogram(Histogram(edges=(6.5, 7.5), new=(1.0,)))
    assert re.findall(r">([^<]+)</text>", single) == ["7"]


def test_times_have_dates_on_the_axis(tmp_path: Path) -> None:
    times = BINS.model_copy(update={"edges": (0.0, 86400.0 * 10, 86400.0 * 20, 86400.0 * 30)})
    page = page_with(tmp_path, drift=drift_of(column("at", histogram=times)), columns=(Column(name="at", type="timestamp[us]"),))
    assert "1970-01-01 1970-01-16 1970-01-31" in text_of(page)


_FLOATS = st.floats(allow_nan=True, allow_infinity=True)


@given(
    st.lists(_FLOATS, max_size=8).map(tuple), st.lists(st.text(), max_size=15).map(tuple), *[st.lists(_FLOATS, max_size=15).map(tuple)] * 2
)
def test_any_histogram_gives_well_formed_svg_without_ids(
    edges: tuple[float, ...], labels: tuple[str, ...], old: tuple[float, ...], new: tuple[float, ...]
) -> None:
    histogram = Histogram(edges=edges, labels=labels, old=old, new=new)
    svg = figures.draw_histogram(histogram)
    parsed = parse(svg)
    assert parsed.open == []
    assert parsed.ids == []
    assert parsed.tags <= {"svg", "path", "g", "text", "title"}
    assert all(re.fullmatch(r"[MVHhvz\d. -]+", steps) for steps in re.findall('<path d="([^"]*)"', svg))
    assert svg == figures.draw_histogram(histogram)


def test_a_histogram_is_small_and_takes_its_colours_from_the_page() -> None:
    bins = Histogram(edges=tuple(map(float, range(21))), old=tuple([0.0333333] * 20), new=tuple([0.0512345] * 20))
    labels = Histogram(labels=tuple(f"a rather long label {n}" for n in range(13)), old=(1 / 13,) * 13, new=(1 / 13,) * 13)
    for svg in map(figures.draw_histogram, (bins, labels)):
        assert len(svg.encode()) < 3000
        assert "#" not in svg
        assert "var(--train)" in svg
        assert "var(--validation)" in svg


def test_one_epoch_is_a_visible_point() -> None:
    svg = figures.draw_curve("loss", [(1, 0.5)], [(1, 0.6)], best=1)
    assert svg.count("<use ") >= 2
    assert ">1</text>" in svg


def test_gaps_infinities_and_constants_can_be_drawn() -> None:
    assert figures.draw_curve("loss", [(1, nan), (2, inf), (3, 1.0)], best=2).startswith("<svg")
    assert figures.draw_curve("learning_rate", [(1, 0.001), (2, 0.001)], from_zero=True).startswith("<svg")
    assert figures.draw_interval(0.0, 0.0, 0.0, threshold=0.0, is_lower_better=False).startswith("<svg")
    assert figures.draw_interval(0.5, -inf, nan, threshold=0.1, is_lower_better=True).startswith("<svg")
    assert figures.draw_seconds({"fit": 0.0}, ["0 s"]).startswith("<svg")


def test_figures_take_their_colours_from_the_page() -> None:
    svg = figures.draw_curve("loss", [(1, 0.5), (2, 0.4)], [(1, 0.6), (2, 0.5)], best=2)
    assert re.findall(r"#[0-9a-f]{6}\b", svg) == []
    assert "var(--train)" in svg
    assert "var(--validation)" in svg


def test_worse_stands_on_the_right_where_less_is_better() -> None:
    def places(*, is_lower_better: bool) -> dict[str, str]:
        svg = figures.draw_interval(1.0, -1.0, 3.0, threshold=0.0, is_lower_better=is_lower_better)
        return {word: anchor for anchor, word in re.findall(r"<text[^>]*text-anchor: (\w+)[^>]*>(better|worse)</text>", svg)}

    assert places(is_lower_better=True)["worse"] == "end"
    assert places(is_lower_better=False)["better"] == "end"


# ---- numbers for people


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.98611, "0.986"),
        (0, "0.000"),
        (-1.5, "−1.500"),
        (43.92193, "43.92"),
        (4201.754, "4,202"),
        (1234567.8, "1,234,568"),
        (1.19e-7, "1.2 × 10⁻⁷"),
        (-0.00012, "−1.2 × 10⁻⁴"),
        (nan, "not a number"),
        (inf, "∞"),
        (-inf, "−∞"),
        (None, "–"),
        (1e300, "1.0 × 10³⁰⁰"),
    ],
)
def test_numbers_are_written_for_people(value: float | None, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.412, "0.41 s"),
        (9.96, "10.0 s"),
        (21.4, "21 s"),
        (59.7, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.9, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 bytes"), (1219, "1.2 kB"), (412_345, "412 kB"), (999_700, "1.0 MB"), (5e13, "50.0 TB")]
)
def test_sizes_are_decimal(num_bytes: float, text: str) -> None:
    assert format_bytes(num_bytes) == text


def test_differences_of_scores_are_told_in_points_and_of_others_in_their_unit() -> None:
    assert format_differences("accuracy", [0.00278, -0.0051, 0.0107]) == ["+0.3", "−0.5", "+1.1"]
    assert format_differences("rmse", [-312.5, 1234.0]) == ["−312", "+1,234"]
    assert format_differences("auc", [0.0]) == ["+0.0"]
    assert format_differences("rmse", [nan, inf]) == ["not a number", "∞"]


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1, "100 %"), (0.123, "12.3 %"), (0.9995, "99.95 %"), (0.99999, "> 99.99 %"), (1e-9, "< 0.01 %"), (nan, "not a number")],
)
def test_a_share_is_all_or_nothing_only_where_it_is(share: float, text: str) -> None:
    assert format_share(share).replace("\N{NO-BREAK SPACE}", " ") == text


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([13, 30, 47], ["13", "30", "47"]),
        ([0, 4.5, 9], ["0", "4.5", "9"]),
        ([-0.25, 0, 0.25], ["−0.25", "0", "0.25"]),
        ([1e9, 1.5e9, 2e9], ["1,000,000,000", "1,500,000,000", "2,000,000,000"]),
        ([0, 5e-8, 1e-7], ["0", "5.0 × 10⁻⁸", "1.0 × 10⁻⁷"]),
        ([1e300], ["1.0 × 10³⁰⁰"]),
        ([7], ["7"]),
        ([nan, inf], ["not a number", "∞"]),
    ],
)
def test_numbers_of_an_axis_have_the_decimals_that_tell_them_apart(values: list[float], texts: list[str]) -> None:
    assert format_ticks(values) == texts


def test_moments_are_dates_or_times_of_day_and_never_an_error() -> None:
    assert format_moments([0, 86400 * 365]) == ["1970-01-01", "1971-01-01"]
    assert format_moments([0, 3600]) == ["01-01 00:00", "01-01 01:00"]
    assert format_moments([0, 1e18]) == ["0", "1.0 × 10¹⁸"]
    assert format_moments([nan, 0]) == ["not a number", "0.000"]


def test_a_p_value_that_underflows_is_not_called_zero() -> None:
    assert format_p_value(0.0) == "below 10⁻³⁰⁰"
    assert format_p_value(0.03) == "0.030"


def test_long_lists_are_cut_off_with_a_count() -> None:
    assert format_list(range(3)) == "0, 1, 2"
    assert format_list(range(1000)).endswith("10, 11, … (1,000 in all)")


@pytest.mark.parametrize("metric", ["loss", "rmse", "mae", "log_loss", "mean_absolute_error", "val_mse"])
def test_less_is_better_for_losses(metric: str) -> None:
    assert is_lower_better(metric)
    assert not is_score(metric)


@pytest.mark.parametrize("metric", ["accuracy", "auc", "macro_f1", "balanced_accuracy", "recall"])
def test_more_is_better_for_scores(metric: str) -> None:
    assert is_score(metric)
    assert not is_lower_better(metric)


def test_directions_agree_with_the_metrics_that_refit_computes() -> None:
    assert {name: not is_lower_better(name) for name in METRICS} == {name: spec.higher_is_better for name, spec in METRICS.items()}


def test_evidence_of_a_regression_has_no_points() -> None:
    comparison = Comparison(
        metric="rmse", candidate=1, champion=2, difference=-1.04, low=-1.5, high=-0.5, confidence=0.9, num_rows=1, method="bootstrap"
    )
    assert tell_evidence(comparison) == "−1.0, 90 % interval −1.5 to −0.5, 1 row"


def test_the_example_record_is_what_a_run_writes() -> None:
    _, record = promoted()
    assert RunRecord.model_validate(json.loads(record.model_dump_json())) == record
