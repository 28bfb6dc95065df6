"""The job: what it accepts, what it refuses and in which words, and how overrides reach into it."""

import math
from typing import get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from refit.config import (
    CsvSource,
    Job,
    OptimizerConfig,
    Section,
    SplitConfig,
    apply_overrides,
    digest,
    dotted,
    duration_seconds,
    find_faults,
    job_digest,
    nearest,
    parse_job,
)
from refit.errors import JobError

LEAST = {"name": "penguins", "data": {"sources": [{"kind": "csv", "path": "data/penguins.csv"}]}, "target": {"column": "species"}}
WHOLE = {
    "name": "taxi",
    "data": {
        "name": "taxi-rides",
        "sources": [
            {"kind": "csv", "path": "a/*.csv", "delimiter": ";", "header": False, "names": ["fare", "tips"], "null_values": ["", "NA"]},
            {"kind": "parquet", "path": "b.parquet"},
            {"kind": "json", "path": "c.json"},
            {"kind": "images", "path": "photos", "manifest": "photos.csv", "file_column": "file", "shape": [32, 32, 3], "resize": True},
            {"kind": "idx", "path": "s3://bucket/images.gz", "labels": "labels.gz", "endpoint": "http://127.0.0.1:9000", "region": "eu-1"},
            {"kind": "sql", "database": "env:SHOP_DB", "query": "SELECT * FROM rides", "incremental": "id"},
            {"kind": "python", "read": "models.taxi:read", "options": {"days": 3}},
        ],
        "columns": {"fare": "float64"},
        "optional": ["company"],
        "derive": {"big_tipper": "tips > 0.2 * fare"},
        "select": ["fare", "company", "big_tipper"],
        "where": "fare > 0",
        "key": ["company", "fare"],
        "time": "trip_start",
        "max_rejected_fraction": 0.05,
        "refused": "fail",
        "vanished": "drop",
        "expect": {"fare": {"min": 0, "max": 1000, "not_null": True, "otherwise": "warn"}},
        "secrets": ["bucket"],
    },
    "drift": {"policy": "warn", "columns": ["fare"], "false_discovery_rate": 0.01, "min_psi": 0.2},
    "features": {
        "fare": {"kind": "numeric"},
        "company": {"kind": "category", "max_tokens": 50},
        "photo": {"kind": "image", "scale": 0.5},
    },
    "target": {
        "column": "big_tipper",
        "kind": "binary",
        "positive": "true",
        "threshold": "half",
        "separator": "|",
        "scale": "standard",
        "log": False,
    },
    "split": {
        "by": "group",
        "group": "company",
        "stratify": None,
        "column": None,
        "values": {},
        "validation": 0.1,
        "test": 0.2,
        "gap": None,
        "where": "fare < 100",
        "k_fold": {"folds": 4},
        "resplit_each_epoch": False,
    },
    "model": {"build": "models.dense:build_model", "options": {"hidden_units": [128, 64]}},
    "fit": {
        "epochs": 20,
        "batch_size": 256,
        "loss": {"use": "keras.losses:BinaryFocalCrossentropy", "options": {"gamma": 1.5}, "labels": None},
        "metrics": [{"use": "keras.metrics:AUC", "options": {"curve": "PR"}, "labels": None}],
        "class_weight": {"true": 2.0},
        "sample_weight": None,
        "optimizer": dict.fromkeys(OptimizerConfig.model_fields)
        | {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "clipnorm": 1.0},
        "decay": {"kind": "cosine", "warmup_steps": 200, "warmup_epochs": 0.0, "final_fraction": 0.1},
        "early_stopping": {
            "monitor": "val_loss",
            "mode": "min",
            "patience": 5,
            "min_delta": 0.001,
            "start_from_epoch": 2,
            "restore_best": False,
        },
        "checkpoint": {"every_steps": 100, "every_seconds": None, "every_epochs": 2, "keep": 3},
        "max_minutes": 90.0,
        "initial_weights": None,
        "warm_start": "champion",
        "callbacks": [{"use": "models.taxi:Watch", "options": {"days": 3}}],
        "on_divergence": {"restarts": 3, "factor": 0.1},
        "validation_freq": 2,
        "steps_per_execution": 8,
        "precision": "mixed_bfloat16",
        "devices": "auto",
        "deterministic": False,
        "jit_compile": False,
    },
    "batches": {"engine": "resident", "memory_mb": 512, "window_rows": 65_536, "drop_remainder": True, "sample": 0.5},
    "gate": {
        "require": {"accuracy": {"at_least": 0.8}, "loss": {"at_most": 1.0}},
        "champion": {"metric": "auc", "must": "be_better", "margin": 0.002, "confidence": 0.9},
        "latency_p50_ms": 20,
        "latency_p99_ms": 50,
        "max_model_mb": 100,
        "max_parameters": 1_000_000,
    },
    "evaluation": {"baseline": "constant"},
    "export": {"keep_versions": 3},
    "seed": 7,
}


def sections(kind=Section):
    for section in kind.__subclasses__():
        yield section
        yield from sections(section)


def leaves(tree, path=()):
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    else:
        yield path


def faults(**changes):
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    return {dotted(fault.path): fault.message for fault in find_faults(apply_overrides(LEAST, overrides))}


# ---- what is accepted


def test_the_least_job_is_enough() -> None:
    job = parse_job(LEAST)
    assert job.dataset == "penguins"
    assert (job.features, job.model.build, job.split.by, job.fit.decay.kind) == (None, None, "hash", "constant")


def test_a_job_with_all_keys_is_kept_as_it_was_said() -> None:
    job = parse_job(WHOLE)
    assert job.dataset == "taxi-rides"
    said = {path for path in leaves(WHOLE) if "sources" not in path}
    dumped = job.model_dump(mode="json")
    for path in said:
        node, expected = dumped, WHOLE
        for part in path:
            node, expected = node[part], expected[part]
        assert node == expected, path
    assert [source.kind for source in job.data.sources] == ["csv", "parquet", "json", "images", "idx", "sql", "python"]


def test_the_whole_job_above_says_every_key_that_the_configuration_knows() -> None:
    job = parse_job(WHOLE)

    def unsaid(section, where):
        for name in type(section).model_fields:
            value = getattr(section, name)
            if name not in section.model_fields_set:
                yield f"{where}.{name}"
            elif isinstance(value, BaseModel):
                yield from unsaid(value, f"{where}.{name}")

    assert list(unsaid(job, "job")) == []


def test_a_job_survives_json() -> None:
    job = parse_job(WHOLE)
    assert Job.model_validate_json(job.model_dump_json()) == job


def test_a_job_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parse_job(LEAST).seed = 3


@pytest.mark.parametrize("section", sorted(set(sections()) - {s for s in sections() if s.__name__ == "Fault"}, key=lambda s: s.__name__))
def test_every_field_has_a_description(section) -> None:
    lacking = [name for name, field in section.model_fields.items() if not (field.description or "").endswith((".", '".'))]
    assert lacking == []
    assert section.__doc__


def test_the_schema_that_prefect_draws_its_form_from_describes_every_key() -> None:
    schema = Job.model_json_schema()
    definitions = {f"#/$defs/{name}": definition for name, definition in schema["$defs"].items()} | {"#": schema}
    described = [
        (d["title"], key, definitions.get(value.get("$ref"), {}) | value)
        for d in definitions.values()
        for key, value in d["properties"].items()
    ]
    lacking = [(title, key) for title, key, value in described if not value.get("description")]
    assert lacking == []


# ---- what is refused


def test_an_unknown_key_is_named_with_the_nearest_known_one() -> None:
    assert faults(fit__epoch=3)["fit.epoch"] == 'unknown key. Did you mean "epochs"?'


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("sed", "seed"),
        ("data.wher", "where"),
        ("data.sources.0.delimeter", "delimiter"),
        ("fit.optimizer.momentun", "momentum"),
        ("fit.early_stopping.patiense", "patience"),
        ("gate.champion.margn", "margin"),
    ],
)
def test_a_typo_at_any_depth_gets_a_suggestion(path, near) -> None:
    found = {dotted(fault.path): fault.message for fault in find_faults(apply_overrides(LEAST, {path: 1}))}
    assert f'Did you mean "{near}"?' in found[path]


def test_a_typo_under_a_mapping_of_names_gets_a_suggestion() -> None:
    found = faults(gate__require={"accuracy": {"atleast": 0.5}})
    assert 'Did you mean "at_least"?' in found["gate.require.accuracy.atleast"]


def test_a_typo_within_a_tagged_part_is_named_without_the_tag() -> None:
    found = faults(fit__decay={"kind": "cosine", "warmup": 3})
    assert 'Did you mean "warmup_steps"?' in found["fit.decay.warmup"]


def test_the_path_of_a_feature_that_is_named_like_its_kind_is_whole() -> None:
    found = faults(features={"image": {"kind": "image", "scal": 1}})
    assert 'Did you mean "scale"?' in found["features.image.scal"]


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("fit.decay", {"kind": "cosin"}, {"fit.decay.kind": 'there is no kind "cosin". Did you mean "cosine"? Known: constant, step, '}),
        ("fit.decay", {"factor": 0.1}, {"fit.decay.kind": "this key is required."}),
        ("fit.decay", "cosine", {"fit.decay": "Input should be a mapping of keys to values. Received: 'cosine'."}),
        ("fit.optimizer", "sgd", {"fit.optimizer": "Input should be a mapping of keys to values. Received: 'sgd'."}),
        ("fit.steps_per_execution", 0, {"fit.steps_per_execution": "be 'auto'; or Input should be greater than 0. Received: 0."}),
        ("fit.class_weight", {"1": "x"}, {"fit.class_weight": "Input should be 'balanced'", "fit.class_weight.1": "valid number"}),
        ("data.sources.0.kind", "cvs", {"data.sources.0.kind": 'Did you mean "csv"?'}),
    ],
)
def test_a_value_of_the_wrong_form_is_told_in_the_words_of_the_job(key, value, told) -> None:
    found = {dotted(fault.path): fault.message for fault in find_faults(apply_overrides(LEAST, {key: value}))}
    assert found.keys() == told.keys()
    assert all(text in found[where] for where, text in told.items())


def test_all_faults_are_found_together() -> None:
    with pytest.raises(JobError) as caught:
        parse_job(LEAST, {"fit.epochs": 0, "split.tset": 0.1, "seed": -1, "name": "../x"})
    text = str(caught.value)
    assert text.startswith("4 faults in the job:")
    assert all(key in text for key in ("fit.epochs", "split.tset", "seed", "name"))


def test_one_fault_stands_in_one_line() -> None:
    with pytest.raises(JobError) as caught:
        parse_job(LEAST, {"fit.epochs": 0})
    assert str(caught.value) == "fit.epochs: Input should be greater than or equal to 1. Received: 0."


def test_a_missing_key_is_required() -> None:
    found = {dotted(fault.path): fault.message for fault in find_faults({})}
    assert found == dict.fromkeys(("name", "data", "target"), "this key is required.")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", "-x", "_x", "x\n", "ä", "a b", "x" * 65, "a\x00b"])
def test_a_name_that_could_lead_out_of_its_folder_is_refused(name) -> None:
    assert "name" in faults(name=name)
    assert "data.name" in faults(data__name=name)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "key",
    ["fit.optimizer.learning_rate", "data.max_rejected_fraction", "split.test", "gate.champion.margin", "fit.early_stopping.min_delta"],
)
def test_a_number_that_is_none_is_refused(key, value) -> None:
    assert [dotted(fault.path) for fault in find_faults(apply_overrides(LEAST, {key: value}))] == [key]


def test_a_bound_that_is_no_number_is_refused() -> None:
    assert faults(gate__require={"auc": {"at_least": math.nan}})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"split__validation": 0.5, "split__test": 0.5}, "add up to 1"),
        ({"split__by": "group"}, '"by: group" needs "group", the name of the column'),
        ({"split__by": "column"}, '"by: column" needs "column", the name of the column'),
        ({"split__group": "a"}, '"group" is for "by: group"'),
        ({"split__stratify": "a"}, '"stratify" is for "by: stratified"'),
        ({"split__values": {"a": "test"}}, '"values" is for "by: column"'),
        ({"split__gap": "1 day"}, '"gap" is for "by: time"'),
        ({"split__test": "7 days"}, '"7 days" is a window of time, which is for "by: time"'),
        ({"split__validation": "7 days"}, "give validation and test as shares, such as 0.2"),
        ({"split__test": "3 months"}, "such as \"7 days\" (seconds, minutes, hours, days, weeks). Received: '3 months'."),
        ({"split__test": "0 days"}, "lies between 0 and 1"),
        ({"split__test": 20}, "a share of the rows lies between 0 and 1, such as 0.2"),
        ({"split__test": None}, "Received: None."),
        ({"split__test": [1]}, "Received: [1]."),
        ({"split__test": True}, "Received: True."),
        ({"split": {"by": "time", "gap": "a day"}}, 'a duration is a number of seconds, minutes, hours, days, weeks, such as "7 days"'),
        ({"split": {"by": "time", "gap": 3}}, "Received: '3'."),
        ({"split": {"by": "time", "validation": 0.5, "test": 0.6}}, "add up to 1.1"),
        ({"split": {"by": "time", "k_fold": {"folds": 3}}}, "by: time takes none"),
        ({"split": {"by": "time", "resplit_each_epoch": True}}, "by: time takes none"),
        ({"split": {"k_fold": {"folds": 3}, "resplit_each_epoch": True}}, "choose one"),
        ({"split__k_fold__folds": 1}, "greater than or equal to 2"),
        ({"split__by": "random"}, "'hash', 'group', 'stratified', 'time' or 'column'"),
        ({"split": {"by": "column", "column": "a", "values": {"b": "exam"}}}, "'train', 'validation' or 'test'"),
        ({"fit__optimizer": {"name": "adam", "momentum": 0.9}}, "adam takes no momentum"),
        ({"fit__optimizer": {"name": "rmsprop", "nesterov": True}}, "rmsprop takes no nesterov"),
        ({"fit__epochs": 1, "fit__validation_freq": 2}, "nothing would be validated"),
        ({"gate__require": {"auc": {}}}, "needs at_least or at_most"),
        ({"data__sources__0__names": ["a"]}, "names are for files without a header"),
        ({"features": {}}, "at least one column"),
        ({"features": {"species": {"kind": "category"}}}, "cannot be a feature of itself"),
        ({"data__key": ["species"]}, "cannot be part of the key"),
        ({"target__column": "_key_hash"}, "kept for refit"),
        ({"data__derive": {"_x": "1"}}, "kept for refit"),
        ({"data__columns": {"_x": "int8"}}, "kept for refit"),
        ({"features": {"_x": {"kind": "numeric"}}}, "kept for refit"),
        ({"model__build": "models/dense.py"}, "match pattern"),
        ({"model__build": "models.dense:build_model()"}, "match pattern"),
        ({"data__sources": []}, "at least 1 item"),
        ({"data__sources__0__kind": "excel"}, "Known: csv, parquet, json, images, idx, sql, python."),
        ({"data__sources": [{"kind": "images", "path": "a"}]}, "decoded images have one shape"),
        ({"data__sources": [{"kind": "images", "path": "a", "store": "encoded", "resize": True, "shape": [1, 1, 1]}]}, "leave resize out"),
        ({"data__sources": [{"kind": "csv", "path": "s3://key:secret@bucket/x"}]}, "credentials do not belong into a job"),
        ({"data__sources": [{"kind": "csv", "path": "a", "encoding": "utf-99"}]}, 'no encoding is called "utf-99"'),
        ({"data__sources": [{"kind": "csv", "path": "a", "quote": "«"}]}, "quote and escape are ASCII"),
        ({"data__sources": [{"kind": "csv", "path": "a", "delimiter": "\n"}]}, "none of them is a line end"),
        ({"data__sources": [{"kind": "csv", "path": "a", "delimiter": '"'}]}, "cannot hold the quote"),
        ({"data__sources": [{"kind": "csv", "path": "a", "encoding": "base64"}]}, 'no encoding is called "base64"'),
        ({"data__sources": [{"kind": "csv", "path": "a", "widths": [3]}]}, "need one name each"),
        ({"data__sources": [{"kind": "csv", "path": "a", "header": False, "names": ["b"], "widths": [0]}]}, "1 at least"),
        ({"data__sources": [{"kind": "sql", "database": "postgresql://u:secret@h/d", "query": "SELECT 1"}]}, "use env:NAME"),
        ({"data__columns": {"a": "decimal"}}, "Received: 'decimal'"),
        ({"export__keep_versions": 1}, "greater than or equal to 2"),
        ({"gate__champion__confidence": 0.5}, "greater than 0.5"),
        ({"seed": 2**31}, "less than"),
        ({"fit": None}, "Received: None"),
    ],
)
def test_an_impossible_value_is_refused_in_words(changes, says) -> None:
    found = faults(**changes)
    assert len(found) == 1
    assert says in next(iter(found.values()))


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [("1 second", 1), ("90 seconds", 90), ("2 minutes", 120), ("1 hour", 3_600), ("7 days", 604_800), ("2 weeks", 1_209_600)],
)
def test_a_window_by_time_may_be_a_duration(duration, seconds) -> None:
    job = parse_job(LEAST, {"data.time": "moment", "split": {"by": "time", "test": duration, "validation": 0.1, "gap": duration}})
    assert (job.split.test, job.split.validation, job.split.gap) == (duration, 0.1, duration)
    assert duration_seconds(duration) == seconds


def test_a_share_may_be_a_text_that_is_a_number() -> None:
    assert parse_job(LEAST, {"split.test": "0.25"}).split.test == 0.25


def test_columns_that_say_how_rows_are_divided_are_named() -> None:
    assert parse_job(LEAST, {"split": {"by": "group", "group": "a"}}).split.named_columns == ("a",)
    assert parse_job(LEAST, {"split": {"by": "column", "column": "b"}}).split.named_columns == ("b",)
    assert parse_job(LEAST).split.named_columns == ()


def test_early_stopping_may_be_switched_off() -> None:
    assert parse_job(LEAST, {"fit.early_stopping": None}).fit.early_stopping is None


def test_a_long_value_is_shortened_in_the_message() -> None:
    assert len(faults(seed="x" * 1000)["seed"]) < 250


# ---- overrides


def test_an_override_sets_a_value_and_leaves_the_given_job_as_it_was() -> None:
    before = repr(LEAST)
    assert parse_job(LEAST, {"fit.epochs": 3, "data.sources.0.path": "b.csv"}).fit.epochs == 3
    assert repr(LEAST) == before


def test_an_override_reaches_into_a_list_by_number() -> None:
    assert parse_job(WHOLE, {"data.sources.1.path": "x.parquet"}).data.sources[1].path == "x.parquet"
    assert parse_job(WHOLE, {"data.key.0": "vendor"}).data.key == ["vendor", "fare"]


@pytest.mark.parametrize("key", ["data.sources.1.path", "data.sources.-1.path", "data.sources.first.path", "data.sources.1"])
def test_an_override_outside_a_list_is_refused(key) -> None:
    with pytest.raises(JobError, match="points outside a list") as caught:
        apply_overrides(LEAST, {key: 1})
    assert "a number below 1" in str(caught.value)


@pytest.mark.parametrize("key", ["name.first", "name.first.second", "data.sources.0.path.x"])
def test_an_override_through_a_plain_value_is_refused(key) -> None:
    with pytest.raises(JobError, match="plain value") as caught:
        apply_overrides(LEAST, {key: 1})
    assert f'"{key}"' in str(caught.value)


def test_an_override_makes_the_parts_that_it_leads_through() -> None:
    assert parse_job(LEAST, {"fit.optimizer.name": "sgd", "gate.require.auc.at_least": 0.5}).gate.require["auc"].at_least == 0.5


def test_a_typo_in_an_override_is_a_fault_like_any_other() -> None:
    with pytest.raises(JobError, match=r'fit.epoch: unknown key. Did you mean "epochs"'):
        parse_job(LEAST, {"fit.epoch": 3})


@pytest.mark.parametrize("key", ["", ".", "fit.", ".fit", "fit..epochs"])
def test_a_malformed_key_of_an_override_is_a_fault(key) -> None:
    with pytest.raises(JobError):
        parse_job(LEAST, {key: 3})


# ---- digests


def test_the_digest_of_a_job_ignores_the_order_of_its_keys() -> None:
    turned = dict(reversed(LEAST.items()))
    assert job_digest(parse_job(LEAST)) == job_digest(parse_job(turned))


def test_the_digest_of_a_job_changes_with_every_value() -> None:
    digests = {job_digest(parse_job(LEAST, changes)) for changes in ({}, {"seed": 1}, {"fit.epochs": 3}, {"data.where": "true"})}
    assert len(digests) == 4


def test_a_digest_is_the_sha256_of_canonical_json() -> None:
    # printf '{"a":[1,2],"b":null}' | sha256sum
    assert digest({"b": None, "a": [1, 2]}) == "f25109c4111335e4a32d49373585e7a788ff5b10e70023f7004b170e7f84716a"


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.booleans())))
def test_a_digest_depends_on_content_alone(value) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))


def test_the_nearest_word_is_suggested_else_all_are_listed() -> None:
    assert nearest("epoch", ["seed", "epochs"]) == ' Did you mean "epochs"?'
    assert nearest("zzz", ["b", "a"]) == " Known: a, b."
    assert nearest("zzz", []) == ""


def test_unions_of_sections_are_told_apart_by_kind() -> None:
    for field in (Job.model_fields["data"].annotation.model_fields["sources"],):
        assert get_origin(field.annotation) is list
        assert get_args(field.annotation)
    assert isinstance(parse_job(LEAST).data.sources[0], CsvSource)
    assert SplitConfig().test == 0.2
