"""The contract finds what is wrong with a model, and says what to do."""

import numpy as np
import pytest

from deployments.deep_check import check_deeply
from refit.contract import check_builder
from refit.errors import CodeError
from refit.references import CODE_VARIABLE
from tests.refit.small import job_of, plan_of, stored

NUM_ROWS = 24


@pytest.fixture(autouse=True)
def _allow_tests(monkeypatch):
    monkeypatch.setenv(CODE_VARIABLE, "models,tests")


def check(name, **fit):
    table = stored(number=np.arange(NUM_ROWS, dtype=float), word=["a", "b", None] * 8, y=np.arange(NUM_ROWS) % 3)
    job = job_of("y", model={"build": f"tests.models.broken:{name}"}, target__kind="classes", fit={"batch_size": 8, **fit})
    return check_builder(job, plan_of(job, table))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("build_half", r"gives another output\. Expected: float32 \[16, 3\]\. Received: float16 \[16, 3\]\. End the graph with"),
        ("build_logits", r"gives no probabilities"),
        ("build_nan", r"predicts what is no number"),
        ("build_drawing", r"predicts something else the second time"),
        ("build_counting", r"changes itself in inference\. Expected: no change\. Received: \S+"),
        ("build_centred", r"predicts something else in a batch of 1 than of 16"),
        ("build_stuck", r"does not learn: 60 steps on one batch do not lower the loss"),
        ("build_eager", r"fails in a step of training: "),
        ("build_with_state", r"predicts something else after its weights were loaded into a new one"),
        ("build_lambda", r"fails to be loaded from its \.keras file: .*Register custom classes"),
    ],
)
def test_a_model_that_breaks_the_contract_is_told_how(name, fault):
    with pytest.raises(CodeError, match=fault) as told:
        check(name)
    assert told.value.where == "model"
    assert f'the model of "tests.models.broken:{name}"' in told.value.what


def test_a_train_step_that_forgets_weights_is_found_where_the_job_has_them():
    with pytest.raises(CodeError, match=r"fails in a step of training: .*a third part"):
        check("build_for_two_parts", class_weight="balanced")


def test_a_deep_check_asks_the_contract(tmp_path):
    lines = [f"{i},w{i % 3},{i % 3}" for i in range(200)]
    (tmp_path / "rows.csv").write_text("\n".join(["number,word,y", *lines]))
    source = {"kind": "csv", "path": str(tmp_path / "rows.csv")}
    job = {"data__sources": [source], "target__kind": "classes", "fit__batch_size": 16}
    check_deeply(job_of("y", **job))
    with pytest.raises(CodeError, match="gives no probabilities"):
        check_deeply(job_of("y", **job, model__build="tests.models.broken:build_logits"))
    with pytest.raises(CodeError, match="cannot be made: TypeError"):
        check_deeply(job_of("y", **job, fit__callbacks=[{"use": "tests.models.broken:make_no_callback"}]))
