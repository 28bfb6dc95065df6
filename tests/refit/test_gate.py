"""Every branch of the verdict, and an interval that covers what it promises."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from refit.answers import Answers
from refit.config import Bound, ChampionRule, GateConfig
from refit.errors import JobError, RequestError
from refit.gate import check_gate, compare, decide
from refit.metrics import METRICS, metric_names
from refit.paired_tests import rows_needed
from refit.records import ChampionRecord, Comparison, EvaluationRecord, ExportRecord

NAN = math.nan


def export(**changes):
    told = {"digest": "0", "num_bytes": 1, "inputs": {}, "outputs": {}, "proof_rows": 1, "max_difference": 0}
    latency = {"latency_p50_ms": 1.0, "latency_p99_ms": 2.0}
    return ExportRecord.model_validate({"path": "runs/a/b/model/saved_model", **told, **latency, **changes})


def evaluation(champion=True, best=None, **metrics):
    served = ChampionRecord(version=3, run="r3", metrics={"accuracy": 0.9}) if champion is True else champion
    return EvaluationRecord(metrics={"test": metrics or {"accuracy": 0.91}}, champion=served or None, best=best, num_rows=4000)


def comparison(lower, upper, metric="accuracy", **changes):
    middle = (lower + upper) / 2
    numbers = {"candidate": 0.9 + middle, "champion": 0.9, "difference": middle, "low": lower, "high": upper} | changes
    return Comparison(metric=metric, confidence=0.95, num_rows=4000, method="paired bootstrap", **numbers)


def judge(kind="classes", *, rule=None, require=None, evaluated=None, compared=None, exported=None, budgets=None, **more):
    config = GateConfig(require=require or {}, champion=rule or ChampionRule(), **budgets or {})
    return decide(config, kind, evaluated or evaluation(), exported or export(), compared, **more)


def failed(record):
    return [reason.code for reason in record.reasons if not reason.ok]


# ---- against the champion


@pytest.mark.parametrize(
    ("must", "margin", "low", "high", "passes"),
    [
        ("be_better", 0.0, 0.001, 0.02, True),
        ("be_better", 0.0, 0.0, 0.02, False),
        ("be_better", 0.0, -0.001, 0.02, False),
        ("be_better", 0.01, 0.011, 0.02, True),
        ("be_better", 0.01, 0.01, 0.02, False),
        ("not_be_worse", 0.0, -0.02, 0.001, True),
        ("not_be_worse", 0.0, -0.02, 0.0, True),
        ("not_be_worse", 0.0, -0.02, -0.001, False),
        ("not_be_worse", 0.01, -0.02, -0.01, True),
        ("not_be_worse", 0.01, -0.02, -0.011, False),
        ("prove_not_worse", 0.01, -0.009, 0.001, True),
        ("prove_not_worse", 0.01, -0.01, 0.02, False),
        ("prove_not_worse", 0.0, 0.001, 0.02, True),
        ("prove_not_worse", 0.0, 0.0, 0.0, False),
    ],
)
@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_the_champion_rule_in_the_direction_of_the_metric(metric, must, margin, low, high, passes):
    compared = comparison(low, high) if METRICS[metric].higher_is_better else comparison(-high, -low, metric)
    record = judge(rule=ChampionRule(metric=metric, must=must, margin=margin), compared=compared)
    assert record.verdict == ("promote" if passes else "keep")
    assert failed(record) == ([] if passes else ["champion"])
    assert record.judged_against == 3
    assert record.comparison == compared


@pytest.mark.parametrize("must", ["be_better", "not_be_worse", "prove_not_worse"])
@pytest.mark.parametrize("field", ["candidate", "champion", "difference", "low", "high"])
@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
def test_a_comparison_that_is_not_finite_never_passes(must, field, value):
    record = judge(rule=ChampionRule(must=must), compared=comparison(0.01, 0.02, **{field: value}))
    assert (record.verdict, failed(record)) == ("keep", ["champion"])


def test_the_reason_says_all_numbers_in_words():
    record = judge(rule=ChampionRule(must="be_better", margin=0.002), compared=comparison(0.004, 0.02))
    assert record.reasons[-1].text == (
        "Accuracy of the new model is 0.912, that of version 3, which serves, 0.9 (higher is better): a difference of +0.012, "
        "with 95% confidence between +0.004 and +0.02, on 4,000 test rows. So it is better by more than 0.002."
    )
    worse = judge(compared=comparison(-0.02, -0.004, "log_loss"), rule=ChampionRule(metric="log_loss", must="be_better"))
    assert worse.verdict == "promote"
    assert "Log loss" in worse.reasons[-1].text
    assert "lower is better" in worse.reasons[-1].text


@pytest.mark.parametrize(
    ("must", "low", "high", "told"),
    [
        ("be_better", 0.02, 0.04, "So it is better by more than 0.01."),
        ("be_better", -0.04, -0.02, "So it is not better by more than 0.01, as the job asks."),
        (
            "be_better",
            0.005,
            0.035,
            "So it is not proved better by more than 0.01, as the job asks. If the difference is what it seems, about 16,000 test rows "
            "would tell, 12,000 more than there are.",
        ),
        (
            "be_better",
            -0.01,
            0.02,
            "So it is not proved better by more than 0.01, as the job asks. So many rows show a gain of 0.03 or more 8 times in 10.",
        ),
        ("not_be_worse", 0.02, 0.04, "So it is not worse by more than 0.01."),
        ("not_be_worse", -0.04, -0.02, "So it is worse by more than 0.01."),
        (
            "not_be_worse",
            -0.035,
            -0.005,
            "So it is not shown to be worse by more than 0.01. If the difference is what it seems, about 16,000 test rows would tell, "
            "12,000 more than there are.",
        ),
        (
            "not_be_worse",
            -0.02,
            0.01,
            "So it is not shown to be worse by more than 0.01. So many rows show a loss of 0.03 or more 8 times in 10.",
        ),
        ("prove_not_worse", -0.005, 0.035, "So it is proved not to be worse by more than 0.01."),
        ("prove_not_worse", -0.04, -0.02, "So it is worse by more than 0.01."),
        (
            "prove_not_worse",
            -0.015,
            0.015,
            "So it is not proved that it is not worse by more than 0.01, as the job asks. If the difference is what it seems, about "
            "16,000 test rows would tell, 12,000 more than there are.",
        ),
        (
            "prove_not_worse",
            -0.035,
            0.005,
            "So it is not proved that it is not worse by more than 0.01, as the job asks. So many rows prove it of a model that is better "
            "by 0.01 8 times in 10.",
        ),
    ],
)
@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_the_reason_says_what_the_interval_comes_to_and_what_more_rows_would_tell(metric, must, low, high, told):
    ends = (low, high) if METRICS[metric].higher_is_better else (-high, -low)
    compared = comparison(*ends, metric, detectable=0.02)
    record = judge(rule=ChampionRule(metric=metric, must=must, margin=0.01), compared=compared)
    assert record.reasons[-1].text.endswith(f" on 4,000 test rows. {told}")


def test_rows_that_prove_it_of_a_model_that_is_as_good_are_said_to():
    compared = comparison(-0.04, 0.0, detectable=0.02)
    record = judge(rule=ChampionRule(must="prove_not_worse", margin=0.02), compared=compared)
    assert record.reasons[-1].text.endswith("So many rows prove it of a model that is as good 8 times in 10.")


# ---- against the best version


def best_judged(low, high, *, champion=(-0.01, 0.01), must="not_be_worse", margin=0.0, **changes):
    evaluated = evaluation(best=ChampionRecord(version=1, run="r1", metrics={"accuracy": 0.95}))
    rule = ChampionRule(must=must, margin=margin)
    return judge(rule=rule, evaluated=evaluated, compared=comparison(*champion), best=comparison(low, high, **changes))


@pytest.mark.parametrize(
    ("low", "high", "margin", "verdict"),
    [(-0.03, -0.01, 0.0, "keep"), (-0.03, 0.0, 0.0, "promote"), (-0.03, -0.01, 0.01, "promote"), (-0.03, -0.011, 0.01, "keep")],
)
def test_a_model_that_is_worse_than_the_best_version_is_kept_back_though_it_is_not_worse_than_the_champion(low, high, margin, verdict):
    record = best_judged(low, high, margin=margin)
    assert record.verdict == verdict
    assert [reason.code for reason in record.reasons] == ["champion", "best_version"]
    assert failed(record) == ([] if verdict == "promote" else ["best_version"])
    assert "that of version 1, the best of the earlier ones, 0.9" in record.reasons[-1].text
    assert ("Small losses have added up since then." in record.reasons[-1].text) == (verdict == "keep")
    assert record.best.low == low


def test_a_model_that_is_shown_to_be_better_than_the_champion_passes_though_an_earlier_one_was_better_still():
    record = best_judged(-0.03, -0.01, champion=(0.01, 0.03))
    assert record.verdict == "promote"
    assert record.reasons[-1].text.endswith("So it is worse. It is better than the version that serves, though.")


@pytest.mark.parametrize("must", ["be_better", "prove_not_worse"])
def test_rules_that_ask_for_proof_do_not_ask_the_best_version(must):
    record = best_judged(-0.03, -0.01, champion=(0.01, 0.03), must=must)
    assert (record.verdict, [reason.code for reason in record.reasons]) == ("promote", ["champion"])


def test_a_best_version_that_gives_no_numbers_stops_nothing():
    assert best_judged(NAN, NAN).verdict == "promote"


def test_without_a_champion_the_first_model_that_meets_its_requirements_is_published():
    record = judge(evaluated=evaluation(champion=None))
    assert (record.verdict, record.judged_against, failed(record)) == ("first", None, [])
    assert [reason.code for reason in record.reasons] == ["no_champion"]
    missed = judge(evaluated=evaluation(champion=None), require={"accuracy": Bound(at_least=0.95)})
    assert (missed.verdict, failed(missed)) == ("keep", ["require.accuracy"])


def test_a_champion_that_cannot_be_compared_makes_the_verdict_incompatible():
    served = ChampionRecord(version=3, metrics={}, incompatible='it wants the column "island".')
    record = judge(evaluated=evaluation(champion=served))
    assert (record.verdict, failed(record), record.judged_against) == ("incompatible", ["incompatible"], 3)
    assert 'it wants the column "island". `refit promote RUN --force --reason' in record.reasons[0].text


def test_a_champion_that_was_trained_on_test_rows_makes_the_verdict_incompatible():
    served = ChampionRecord(version=3, metrics={"accuracy": 0.99}, num_shared_rows=1234)
    record = judge(evaluated=evaluation(champion=served), compared=comparison(0.1, 0.2))
    assert (record.verdict, failed(record)) == ("incompatible", ["shared_rows"])
    for words in ("1,234 of this run's test rows", "Go back to the split", "`refit promote RUN --force --reason TEXT`"):
        assert words in record.reasons[0].text


def test_a_comparison_that_was_not_made_is_no_pass():
    record = judge(compared=None)
    assert (record.verdict, failed(record)) == ("incompatible", ["not_compared"])


def test_a_hold_after_a_rollback_keeps_the_champion_and_names_both_ways_out():
    record = judge(compared=comparison(0.1, 0.2), is_held=True)
    assert (record.verdict, failed(record)) == ("keep", ["held"])
    assert "`refit promote RUN`" in record.reasons[-1].text
    assert "`refit rollback NAME --release`" in record.reasons[-1].text
    assert judge(evaluated=evaluation(champion=None), is_held=True).verdict == "keep"
    served = ChampionRecord(version=3, metrics={}, incompatible="other classes")
    assert judge(evaluated=evaluation(champion=served), is_held=True).verdict == "incompatible"


# ---- requirements


@pytest.mark.parametrize(
    ("bound", "value", "passes"),
    [
        (Bound(at_least=0.8), 0.8, True),
        (Bound(at_least=0.8), 0.7999, False),
        (Bound(at_most=0.8), 0.8, True),
        (Bound(at_most=0.8), 0.8001, False),
        (Bound(at_least=0.7, at_most=0.8), 0.75, True),
        (Bound(at_least=0.7, at_most=0.8), 0.65, False),
        (Bound(at_least=0.8), NAN, False),
        (Bound(at_most=0.8), NAN, False),
        (Bound(at_least=0.8), math.inf, False),
        (Bound(at_most=0.8), -math.inf, False),
    ],
)
@pytest.mark.parametrize("champion", [True, None])
def test_a_requirement_on_a_metric(bound, value, passes, champion):
    evaluated = evaluation(champion=champion, log_loss=value)
    record = judge(require={"log_loss": bound}, evaluated=evaluated, compared=comparison(0.1, 0.2) if champion else None)
    assert record.verdict == (("promote" if champion else "first") if passes else "keep")
    assert ("require.log_loss" in failed(record)) is not passes


def test_a_required_metric_that_the_test_rows_do_not_define_is_missed():
    record = judge("binary", require={"auc": Bound(at_least=0.5)}, compared=comparison(0.1, 0.2))
    assert (record.verdict, failed(record)) == ("keep", ["require.auc"])
    assert "AUC is required, but the test rows do not define it" in record.reasons[0].text


@pytest.mark.parametrize("champion", [True, None])
def test_a_metric_that_is_no_number_never_passes_even_if_nothing_is_required_of_it(champion):
    evaluated = evaluation(champion=champion, accuracy=0.9, log_loss=NAN)
    record = judge(evaluated=evaluated, compared=comparison(0.1, 0.2) if champion else None)
    assert (record.verdict, failed(record)) == ("keep", ["not_finite"])


@pytest.mark.parametrize(("latency", "verdict"), [(5.0, "promote"), (5.01, "keep"), (NAN, "keep"), (math.inf, "keep")])
def test_the_limit_on_latency(latency, verdict):
    for name in ("latency_p50_ms", "latency_p99_ms"):
        record = judge(budgets={name: 5}, exported=export(**{name: latency}), compared=comparison(0.1, 0.2))
        assert record.verdict == verdict
        assert failed(record) == ([] if verdict == "promote" else [name])
        assert "allowed is 5 ms" in record.reasons[0].text


@pytest.mark.parametrize(("num_bytes", "verdict"), [(2_500_000, "promote"), (2_500_001, "keep")])
def test_the_limit_on_the_size_of_the_model(num_bytes, verdict):
    record = judge(budgets={"max_model_mb": 2.5}, exported=export(num_bytes=num_bytes), compared=comparison(0.1, 0.2))
    assert record.verdict == verdict
    assert record.reasons[0].code == "max_model_mb"
    assert "The exported model takes 2.5 MB; allowed is 2.5 MB" in record.reasons[0].text


@pytest.mark.parametrize(("num_parameters", "verdict"), [(1_048_576, "promote"), (1_048_577, "keep"), (None, "keep")])
def test_the_limit_on_the_parameters_of_the_model(num_parameters, verdict):
    record = judge(budgets={"max_parameters": 1_048_576}, num_parameters=num_parameters, compared=comparison(0.1, 0.2))
    assert record.verdict == verdict
    assert failed(record) == ([] if verdict == "promote" else ["max_parameters"])
    assert "allowed is 1,048,576 parameters" in record.reasons[0].text


def test_a_missed_requirement_decides_before_an_incompatible_champion_and_all_reasons_are_given():
    served = ChampionRecord(version=3, metrics={}, incompatible="other classes")
    config = {"accuracy": Bound(at_least=0.95), "log_loss": Bound(at_most=0.1)}
    evaluated = evaluation(champion=served, accuracy=0.9, log_loss=0.05)
    record = judge(require=config, budgets={"latency_p99_ms": 1}, evaluated=evaluated, is_held=True)
    assert record.verdict == "keep"
    assert [reason.code for reason in record.reasons] == ["require.accuracy", "require.log_loss", "latency_p99_ms", "incompatible", "held"]
    assert failed(record) == ["require.accuracy", "latency_p99_ms", "incompatible", "held"]


numbers = st.one_of(st.floats(), st.floats(-1, 1))


@given(
    value=numbers,
    interval=st.tuples(numbers, numbers, numbers, numbers, numbers),
    champion=st.sampled_from([None, "serves", "incompatible", "shared"]),
    compared=st.booleans(),
    must=st.sampled_from(["be_better", "not_be_worse", "prove_not_worse"]),
    held=st.booleans(),
)
def test_there_is_always_one_verdict_with_reasons_and_it_follows_from_them(value, interval, champion, compared, must, held):
    served = champion and ChampionRecord(
        version=1,
        metrics={},
        incompatible="other classes" if champion == "incompatible" else None,
        num_shared_rows=2 if champion == "shared" else 0,
    )
    names = ("candidate", "champion", "difference", "low", "high")
    made = comparison(0, 0, **dict(zip(names, interval, strict=True))) if compared else None
    record = judge(rule=ChampionRule(must=must), evaluated=evaluation(champion=served, accuracy=value), compared=made, is_held=held)
    assert record.verdict in ("promote", "keep", "first", "incompatible")
    assert record.reasons
    assert all(reason.text for reason in record.reasons)
    assert (record.verdict in ("promote", "first")) == (not failed(record))
    if record.verdict in ("promote", "first"):
        assert math.isfinite(value)
        assert not held


# ---- the job's rules


@pytest.mark.parametrize("kind", ["binary", "classes", "multilabel", "regression"])
def test_the_default_gate_is_accepted_for_every_kind_of_target(kind):
    check_gate(GateConfig(), kind)


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for kind in ("binary", "classes", "multilabel", "regression") for name in metric_names(kind)]
)
def test_every_metric_may_be_required_and_compared_and_has_a_name_that_people_read(name, kind):
    config = GateConfig(require={name: Bound(at_most=0.1)}, champion=ChampionRule(metric=name))
    check_gate(config, kind)
    evaluated = evaluation(**{name: 0.05})
    record = judge(kind, require=config.require, evaluated=evaluated, compared=comparison(0.1, 0.2))
    assert record.verdict == "promote"
    assert record.reasons[0].code == f"require.{name}"
    assert " on the test rows is 0.05; required is at most 0.1: met." in record.reasons[0].text
    assert "_" not in record.reasons[0].text
    missed = judge(kind, require=config.require, evaluated=evaluation(**{name: NAN}), compared=comparison(0.1, 0.2))
    assert (missed.verdict, set(failed(missed))) == ("keep", {f"require.{name}", "not_finite"})


def test_an_unknown_metric_is_refused_with_the_nearest_known_one():
    with pytest.raises(RequestError, match=r'gate.require.acuracy: "acuracy" is no metric of a classes target. Did you mean "accuracy"\?'):
        check_gate(GateConfig(require={"acuracy": Bound(at_least=0.8)}), "classes")
    with pytest.raises(RequestError, match=r'gate.champion.metric: "auc" is no metric of a regression target. Known:.* mae,.* r2, rmse'):
        check_gate(GateConfig(champion=ChampionRule(metric="auc")), "regression")


def test_all_faults_of_a_gate_are_reported_together():
    config = GateConfig(
        require={"rmse": Bound(at_most=1), "accuracy": Bound(at_least=0.9, at_most=0.8)}, champion=ChampionRule(metric="r2")
    )
    with pytest.raises(JobError) as raised:
        check_gate(config, "classes")
    assert str(raised.value).splitlines()[0] == "3 faults in the gate:"
    assert "at_least 0.9 is above at_most 0.8: no model could pass" in str(raised.value)


# ---- the comparison


def two_classifiers(num_rows, seed, accuracies=(0.85, 0.8)):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, num_rows)
    models = []
    for accuracy in accuracies:
        chosen = np.where(random.random(num_rows) < accuracy, labels, 1 - labels)
        models.append(np.eye(2)[chosen] * 0.6 + 0.2)
    return labels, *models


def random_rows(kind, num_rows=60, seed=3):
    random = np.random.default_rng(seed)
    if kind == "regression":
        return random.normal(size=num_rows), random.normal(size=num_rows)
    if kind == "multilabel":
        return random.integers(0, 2, (num_rows, 3)), random.random((num_rows, 3))
    num_classes = 2 if kind == "binary" else 6
    return random.integers(0, num_classes, num_rows), random.dirichlet(np.ones(num_classes), num_rows)


def test_a_difference_of_accuracies_is_told_by_mcnemar_with_all_that_it_found():
    labels, candidate, champion = two_classifiers(5_000, seed=0)
    compared = compare("accuracy", "binary", labels, candidate, champion, confidence=0.95, seed=1)
    right = [predictions.argmax(axis=1) == labels for predictions in (candidate, champion)]
    difference = right[0].astype(float) - right[1]
    # Source: normal interval of a mean of paired differences, mean +- z * s / sqrt(n), z(0.975) = 1.959964.
    half = 1.959964 * difference.std(ddof=1) / math.sqrt(len(difference))
    assert compared.difference == pytest.approx(difference.mean(), abs=1e-12)
    assert (compared.low, compared.high) == pytest.approx((difference.mean() - half, difference.mean() + half), abs=0.06 * half)
    assert (compared.candidate, compared.champion) == pytest.approx((right[0].mean(), right[1].mean()))
    assert (compared.num_rows, compared.confidence, compared.metric) == (5_000, 0.95, "accuracy")
    assert compared.method.startswith("McNemar's exact test, Tango's score interval")
    assert compared.p_value == pytest.approx(binomtest(int((difference > 0).sum()), int((difference != 0).sum())).pvalue)
    assert compared.detectable == pytest.approx((1.959964 + 0.841621) * math.sqrt((difference != 0).mean() / 5_000), rel=1e-5)
    assert compared.rows_needed == pytest.approx(5_000 * (compared.detectable / compared.difference) ** 2, abs=1)


def test_an_auc_is_compared_by_delong_and_its_interval_has_the_width_of_hanley_and_mcneil():
    random = np.random.default_rng(5)
    labels = random.integers(0, 2, 4000)
    scores = [1 / (1 + np.exp(-(random.normal(size=4000) + 1.2 * labels))) for _ in range(2)]
    models = [np.stack([1 - score, score], axis=1) for score in scores]
    compared = compare("auc", "binary", labels, *models, confidence=0.95, seed=0)
    positives = int(labels.sum())
    negatives = len(labels) - positives
    variance = 0.0
    for auc in (compared.candidate, compared.champion):
        # Source: Hanley & McNeil (1982), https://doi.org/10.1148/radiology.143.1.7063747, formula 1; the two models are independent.
        q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
        variance += (auc * (1 - auc) + (positives - 1) * (q1 - auc**2) + (negatives - 1) * (q2 - auc**2)) / (positives * negatives)
    assert compared.high - compared.low == pytest.approx(2 * 1.959964 * math.sqrt(variance), rel=0.05)
    assert compared.method == "DeLong's test of two AUCs"


@pytest.mark.parametrize(
    ("metric", "kind", "method"),
    [
        ("top_3_accuracy", "classes", "McNemar's exact test"),
        ("subset_accuracy", "multilabel", "McNemar's exact test"),
        ("log_loss", "classes", "paired bootstrap, 1000 resamples, seed 4"),
        ("macro_auc", "multilabel", "paired bootstrap"),
        ("rmse", "regression", "paired bootstrap"),
    ],
)
def test_each_metric_has_the_test_that_fits_it(metric, kind, method):
    labels, candidate = random_rows(kind)
    _, champion = random_rows(kind, seed=5)
    compared = compare(metric, kind, labels, candidate, champion, confidence=0.9, seed=4)
    assert compared.method.startswith(method)
    assert compared.low < compared.difference < compared.high
    assert 0 < compared.p_value <= 1
    assert compared.detectable > 0


def test_each_model_decides_by_its_own_threshold():
    labels, scores = np.array([0, 0, 1, 1] * 20), np.tile([0.1, 0.3, 0.35, 0.45], 20)
    told = np.stack([1 - scores, scores], axis=1)
    compared = compare("accuracy", "binary", labels, told, told, confidence=0.9, seed=0, thresholds=(0.32, 0.5))
    assert (compared.candidate, compared.champion) == (1, 0.5)
    assert compared.low > 0


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, spec in METRICS.items() for kind in spec.kinds])
def test_a_model_compared_with_itself_does_not_differ(name, kind):
    labels, predictions = random_rows(kind)
    compared = compare(name, kind, labels, predictions, predictions, confidence=0.9, seed=0)
    assert (compared.difference, compared.low, compared.high) == (0, 0, 0)
    assert compared.candidate == pytest.approx(METRICS[name].measure(Answers(kind, labels, predictions)), abs=1e-12)


def test_a_comparison_is_a_function_of_its_seed():
    labels, candidate, champion = two_classifiers(200, seed=7)
    first, again, other = (compare("log_loss", "binary", labels, candidate, champion, confidence=0.9, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)


def test_what_cannot_be_compared_gives_no_numbers():
    labels, candidate, champion = two_classifiers(50, seed=8)
    broken = candidate.copy()
    broken[3] = NAN
    for case in (
        compare("accuracy", "binary", labels, broken, champion, confidence=0.9, seed=0),
        compare("auc", "binary", np.zeros(50, np.int64), candidate, champion, confidence=0.9, seed=0),
        compare("accuracy", "classes", labels[:0], candidate[:0], champion[:0], confidence=0.9, seed=0),
    ):
        assert math.isnan(case.difference)
        assert math.isnan(case.low)
        assert case.rows_needed is None
        assert case.method == "none: the rows or the predictions do not define the metric"
        assert judge("binary", compared=case).verdict == "keep"


def test_a_metric_of_another_kind_of_target_is_refused():
    with pytest.raises(RequestError, match="no metric of a classes target"):
        compare("rmse", "classes", np.zeros(3), np.ones(3), np.ones(3), confidence=0.9, seed=0)


# ---- calibration of the whole gate


def two_binary_models(random, num_rows, *, gains=(1.2, 1.2)):
    """Labels of which four in ten are positive, and two models' probabilities, whose logits rise with the label by their gains."""
    labels = (random.random(num_rows) < 0.4).astype(np.int64)
    common = random.normal(size=num_rows) * 0.8
    scores = [1 / (1 + np.exp(-(common + 0.6 * random.normal(size=num_rows) + gain * (2 * labels - 1)))) for gain in gains]
    return labels, *(np.stack([1 - score, score], axis=1) for score in scores)


def verdict_of(compared, must="be_better"):
    return judge("binary", rule=ChampionRule(metric=compared.metric, must=must), compared=compared).verdict


@pytest.mark.parametrize("metric", ["accuracy", "auc", "log_loss"])
@pytest.mark.parametrize("gains", [(1.2, 1.2), (1.4, 0.8)])
def test_two_models_whose_scores_are_swapped_by_chance_are_rarely_told_apart(metric, gains):
    random, promoted, kept = np.random.default_rng(20), 0, 0
    for seed in range(200):
        labels, *both = two_binary_models(random, 300, gains=gains)
        is_swapped = random.random(300)[:, None] < 0.5
        first, second = np.where(is_swapped, *both), np.where(is_swapped, *reversed(both))
        compared = compare(metric, "binary", labels, first, second, confidence=0.95, seed=seed)
        promoted += verdict_of(compared) == "promote"
        kept += verdict_of(compared, "not_be_worse") == "keep"
    # Each happens 5 times in 200 at 95 % two-sided; a binomial distribution gives 13 or more 2 times in 1,000.
    assert promoted <= 12
    assert kept <= 12


@pytest.mark.parametrize(("metric", "trials"), [("accuracy", 300), ("auc", 300), ("log_loss", 80)])
def test_an_improvement_is_promoted_as_often_as_the_comparison_predicts(metric, trials):
    random, gains = np.random.default_rng(21), (1.3, 1.1)
    compared = compare(metric, "binary", *two_binary_models(random, 60_000, gains=gains), confidence=0.95, seed=0)
    labels, candidate, champion = two_binary_models(random, 1_000_000, gains=gains)
    truth = METRICS[metric].weigh(Answers("binary", labels, candidate))
    other = METRICS[metric].weigh(Answers("binary", labels, champion))
    ones = np.ones(len(labels), np.uint8)
    num_rows = rows_needed(truth(ones) - other(ones), compared.detectable, 60_000)
    found = 0
    for seed in range(trials):
        compared = compare(metric, "binary", *two_binary_models(random, num_rows, gains=gains), confidence=0.95, seed=seed)
        found += verdict_of(compared) == "promote"
    # The exact test of few rows on which only one model is right costs some power.
    assert binom.ppf(0.0005, trials, 0.76) <= found <= binom.ppf(0.9995, trials, 0.8)
