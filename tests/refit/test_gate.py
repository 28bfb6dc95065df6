"""Every branch of the verdict, and an interval that covers what it promises."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from refit.answers import Answers
from refit.config import Bound, ChampionRule, GateConfig
from refit.errors import JobError, RequestError
from refit.gate import check_gate, compare, decide
from refit.metrics import METRICS
from refit.records import ChampionRecord, Comparison, EvaluationRecord, ExportRecord

NAN = math.nan


def export(latency_p99_ms=2.0):
    return ExportRecord(
        path="runs/a/b/model/saved_model",
        digest="0",
        num_bytes=1,
        inputs={},
        outputs={},
        proof_rows=1,
        max_difference=0,
        latency_p50_ms=1,
        latency_p99_ms=latency_p99_ms,
    )


def evaluation(champion=True, **metrics):
    served = ChampionRecord(version=3, run="r3", metrics={"accuracy": 0.9}) if champion is True else champion
    return EvaluationRecord(metrics={"test": metrics or {"accuracy": 0.91}}, champion=served or None, num_rows=4000)


def comparison(lower, upper, metric="accuracy", **changes):
    middle = (lower + upper) / 2
    numbers = {"candidate": 0.9 + middle, "champion": 0.9, "difference": middle, "low": lower, "high": upper} | changes
    return Comparison(metric=metric, confidence=0.95, num_rows=4000, method="paired bootstrap", **numbers)


def judge(kind="classes", *, rule=None, require=None, latency=None, evaluated=None, compared=None, is_held=False, exported=None):
    config = GateConfig(require=require or {}, champion=rule or ChampionRule(), latency_p99_ms=latency)
    return decide(config, kind, evaluated or evaluation(), exported or export(), compared, is_held=is_held)


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
    record = judge(latency=5, exported=export(latency), compared=comparison(0.1, 0.2))
    assert record.verdict == verdict
    assert failed(record) == ([] if verdict == "promote" else ["latency_p99_ms"])
    assert "allowed is 5 ms" in record.reasons[0].text


def test_a_missed_requirement_decides_before_an_incompatible_champion_and_all_reasons_are_given():
    served = ChampionRecord(version=3, metrics={}, incompatible="other classes")
    config = {"accuracy": Bound(at_least=0.95), "log_loss": Bound(at_most=0.1)}
    evaluated = evaluation(champion=served, accuracy=0.9, log_loss=0.05)
    record = judge(require=config, latency=1, evaluated=evaluated, is_held=True)
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
