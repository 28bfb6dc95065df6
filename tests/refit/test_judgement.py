"""From scores on disk to a verdict: who is compared with whom, by which metric."""

import pytest

from refit.judgement import judge, rank_by
from refit.records import BuildRecord
from refit.stages import run_stage
from tests.refit.small import job_of
from tests.refit.test_evaluation import Case, save_model


@pytest.fixture
def case(tmp_path):
    case = Case(tmp_path, "binary")
    for run, weight in (("best", 1.7), ("serves", 1.0)):  # the candidate's weight is 1, too; 1.7 is what the labels were made with
        case.set_members(case.layout.run("small", run))
        model = save_model(tmp_path / run, "binary", weight=weight, num_classes=2)
        case.publish(model, run=run, metrics={"log_loss": 0.6 - weight / 10})
    return case


def verdict_of(case, **gate):
    job = job_of("y", gate=gate)
    scores = case.evaluate(rank_by(job, "binary"))
    return judge(job, case.plan, case.exported, scores, case.layout, case.run)


def test_a_candidate_that_is_the_champion_again_is_kept_back_where_an_earlier_version_was_better(case):
    record = verdict_of(case, champion={"metric": "log_loss"})
    assert (record.verdict, record.judged_against) == ("keep", 2)
    assert [(reason.code, reason.ok) for reason in record.reasons] == [("champion", True), ("best_version", False)]
    assert record.comparison.method == "none: the predictions are the same"
    assert record.best.low > 0
    assert "that of version 1, the best of the earlier ones" in record.reasons[1].text


def test_a_margin_counts_against_the_best_version_too(case):
    assert verdict_of(case, champion={"metric": "log_loss", "margin": 0.1}).verdict == "promote"


def test_without_numbers_of_earlier_versions_by_the_compared_metric_they_are_not_asked(case):
    record = verdict_of(case, champion={"metric": "auc"})
    assert (record.verdict, record.best) == ("promote", None)


def test_a_rule_that_asks_for_proof_does_not_ask_the_best_version(case):
    record = verdict_of(case, champion={"metric": "log_loss", "must": "prove_not_worse", "margin": 0.001})
    assert (record.verdict, record.best) == ("promote", None)


def test_the_parameters_are_those_that_were_built(case):
    built = BuildRecord(build="models.dense:build_model", options={}, builder_sha256="", num_parameters=1_000, summary="")
    run_stage(case.run, "build", BuildRecord, lambda: built)
    record = verdict_of(case, max_parameters=999)
    assert record.verdict == "keep"
    assert record.reasons[0].text == "The model has 1,000 parameters; allowed is 999 parameters: missed."
