"""Deployment files: every fault is named by line, column and key, and all of a file's faults together."""

from pathlib import Path

import pytest

from refit.errors import JobError, RequestError
from refit.jobfile import parse_assignments, read_deployments, read_job

ROOT = Path(__file__).resolve().parents[2]
LEAST = """\
deployments:
  - name: penguins
    entrypoint: flows/retrain.py:retrain
    parameters:
      job:
        name: penguins
        data: {sources: [{kind: csv, path: "data/penguins.csv"}]}
        target: {column: species}
"""
TWO = LEAST + LEAST.removeprefix("deployments:\n").replace("name: penguins", "name: seals", 1)
DATE_KEY = ()


@pytest.fixture
def write(tmp_path):
    def write(text, name="job.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refusal(path, **arguments):
    with pytest.raises(JobError) as caught:
        read_job(path, **arguments)
    assert str(path) in str(caught.value)
    return str(caught.value)


# ---- what is read


def test_the_least_file_is_read(write) -> None:
    (found,) = read_deployments(write(LEAST))
    assert (found.name, found.entrypoint, found.job.name) == ("penguins", "flows/retrain.py:retrain", "penguins")
    assert found.raw["parameters"]["job"]["target"] == {"column": "species"}


@pytest.mark.parametrize("path", sorted((ROOT / "deployments").glob("*.yaml")), ids=lambda path: path.name)
def test_a_shipped_deployment_is_valid(path) -> None:
    found = read_deployments(path)
    assert found
    assert all(deployment.job.name == deployment.name for deployment in found)


def test_overrides_of_the_file_count(write) -> None:
    text = LEAST.replace("      job:", "      overrides: {fit.epochs: 3, data.sources.0.path: b.csv}\n      job:")
    job = read_job(write(text))
    assert (job.fit.epochs, job.data.sources[0].path) == (3, "b.csv")


def test_overrides_of_the_caller_win_over_those_of_the_file(write) -> None:
    text = LEAST.replace("      job:", "      overrides: {fit.epochs: 3, seed: 1}\n      job:")
    job = read_job(write(text), {"fit.epochs": 4})
    assert (job.fit.epochs, job.seed) == (4, 1)


def test_one_of_two_deployments_is_chosen_by_name(write) -> None:
    assert read_job(write(TWO), deployment="seals").name == "penguins"
    assert [found.name for found in read_deployments(write(TWO))] == ["penguins", "seals"]


def test_which_of_two_deployments_is_meant_must_be_said(write) -> None:
    with pytest.raises(RequestError, match="has 2 deployments: penguins, seals") as caught:
        read_job(write(TWO))
    assert "--deployment" in str(caught.value)


def test_an_unknown_deployment_gets_a_suggestion(write) -> None:
    with pytest.raises(RequestError, match=r'no deployment "seal".*"seals"'):
        read_job(write(TWO), deployment="seal")


# ---- faults with their places


def test_an_unknown_key_is_named_with_its_place_and_the_nearest_key(write) -> None:
    text = refusal(write(LEAST + "        fit: {epochs: 3, batchsize: 4}\n"))
    assert 'line 9, column 26, deployments.0.parameters.job.fit.batchsize: unknown key. Did you mean "batch_size"?' in text


def test_all_faults_of_a_file_are_named_together(write) -> None:
    text = refusal(
        write(
            "deployments:\n"
            "  - name: penguins\n"
            "    entrypoint: flows/retrain.py:retrain\n"
            "    work_pol: x\n"
            "    parameters:\n"
            "      jobs: {}\n"
            "      job:\n"
            "        name: ../penguins\n"
            "        data:\n"
            "          sources: [{kind: csv}]\n"
            "        target: {colum: species}\n"
            "        seed: -1\n"
        )
    )
    lines = text.splitlines()
    assert "7 faults:" in lines[0]
    expected = [
        ("line 4, column 5, deployments.0.work_pol", "work_pool"),
        ("line 6, column 7, deployments.0.parameters.jobs", "job"),
        ("line 8, column 9, deployments.0.parameters.job.name", "pattern"),
        ("line 10, column 21, deployments.0.parameters.job.data.sources.0.path", "required"),
        ("line 11, column 9, deployments.0.parameters.job.target.column", "required"),
        ("line 11, column 18, deployments.0.parameters.job.target.colum", "column"),
        ("line 12, column 9, deployments.0.parameters.job.seed", "Received: -1"),
    ]
    for (place, says), line in zip(
        expected, sorted(lines[1:], key=lambda line: [int(n.split()[-1]) for n in line.split(",")[:2]]), strict=True
    ):
        assert line.startswith(f"  - {place}:")
        assert says in line


def test_faults_of_two_deployments_are_named_together(write) -> None:
    text = refusal(write(TWO.replace("column: species", "colum: species")))
    assert "deployments.0.parameters.job.target.colum:" in text
    assert "deployments.1.parameters.job.target.colum:" in text


def test_a_rule_across_keys_is_named_at_the_innermost_part_that_stands_in_the_file(write) -> None:
    text = refusal(write(LEAST + "        split: {validation: 0.6, test: 0.6}\n"))
    assert "line 9, column 9, deployments.0.parameters.job.split: validation + test must leave rows" in text


def test_a_key_that_stands_twice_is_refused_with_both_places(write) -> None:
    text = refusal(write(LEAST + "        seed: 1\n        seed: 2\n"))
    assert "line 10, column 9, deployments.0.parameters.job.seed: " in text
    assert "in line 9" in text


def test_the_same_key_in_two_deployments_is_no_repetition(write) -> None:
    assert len(read_deployments(write(TWO))) == 2


def test_a_missing_file_is_named_with_the_nearest_one(write) -> None:
    path = write(LEAST, "penguins.yaml")
    text = refusal(path.with_name("pengiuns.yaml"))
    assert "there is no such file" in text
    assert str(path) in text


def test_a_missing_file_in_a_missing_folder_is_refused(tmp_path) -> None:
    assert "there is no such file" in refusal(tmp_path / "none" / "job.yaml")


def test_a_folder_is_no_file(tmp_path) -> None:
    assert "cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"a: [", b"a: b: c", b"\t- x", b'"', b"%x", b"- a\nb", b"a: *nowhere", b"a: \x07", b"--- 1\n--- 2\n"])
def test_what_is_no_yaml_is_refused(write, content) -> None:
    assert "this is no YAML" in refusal(write(content))


def test_what_is_no_yaml_is_refused_with_its_place(write) -> None:
    assert "line 3" in refusal(write("a: 1\nb: [1,\nc: }\n"))


def test_a_binary_file_is_refused(write) -> None:
    assert "UTF-8" in refusal(write(b"\xff\xfe\x00a"))


@pytest.mark.parametrize(
    "text",
    ["", "\n", "# nothing\n", "null", "3", "text", "[]", "{}", "deployments:", "deployments: []", "deployments: {}", "deployments: 3"],
)
def test_a_file_without_deployments_is_refused(write, text) -> None:
    assert 'a deployment file has a list under "deployments"' in refusal(write(text))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("name: penguins\n    entry", "name: 3\n    entry", 'needs "name"'),
        ("  - name: penguins\n    entry", "  - entry", 'needs "name"'),
        ("entrypoint: flows/retrain.py:retrain", "entrypoint: ''", 'needs "entrypoint"'),
        ("parameters:\n      job:", "parameters:\n      jobb:", 'mapping under "parameters.job"'),
        ("  - name", "  - 3\n  - name", "a deployment is a mapping"),
        ("  - name", "  -\n  - name", "a deployment is a mapping"),
    ],
)
def test_a_deployment_without_its_parts_is_refused(write, old, new, says) -> None:
    assert says in refusal(write(LEAST.replace(old, new, 1)))


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf"])
def test_a_number_that_is_none_is_refused(write, number) -> None:
    assert "fit.optimizer.learning_rate" in refusal(write(LEAST + f"        fit: {{optimizer: {{learning_rate: {number}}}}}\n"))


def test_a_name_that_leads_out_of_its_folder_is_refused(write) -> None:
    assert "job.name" in refusal(write(LEAST.replace("        name: penguins", "        name: ../penguins")))


def test_a_value_of_yamls_own_types_is_refused_like_any_other(write) -> None:
    assert "job.seed" in refusal(write(LEAST + "        seed: 2026-01-01\n"))
    assert "job.seed" in refusal(write(LEAST + "        seed: !!binary aGVsbG8=\n"))


@pytest.mark.parametrize("overrides", ["3", "[1]", "text"])
def test_overrides_that_are_no_mapping_are_refused(write, overrides) -> None:
    assert "overrides" in refusal(write(LEAST.replace("      job:", f"      overrides: {overrides}\n      job:")))


@pytest.mark.parametrize("key", ["3", "null", "[a, b]", "true", pytest.param("2026-01-01", marks=DATE_KEY)])
def test_a_key_that_is_no_text_is_refused(write, key) -> None:
    refusal(write(LEAST + f"        ? {key}\n        : 1\n"))


def test_a_yaml_merge_is_read_as_yaml_means_it(write) -> None:
    text = LEAST.replace("deployments:", "x-fit: &fit {epochs: 3}\ndeployments:") + "        fit: {<<: *fit, batch_size: 4}\n"
    job = read_job(write(text))
    assert (job.fit.epochs, job.fit.batch_size) == (3, 4)


# ---- overrides


def test_a_typo_in_an_override_is_named_as_the_override(write) -> None:
    text = refusal(write(LEAST), overrides={"fit.epoch": 3})
    assert 'override fit.epoch: unknown key. Did you mean "epochs"?' in text


def test_a_wrong_value_of_an_override_is_named_as_the_override(write) -> None:
    assert "override fit.epochs: " in refusal(write(LEAST), overrides={"fit.epochs": "many"})


def test_all_faults_of_the_overrides_are_named_together(write) -> None:
    text = refusal(write(LEAST), overrides={"fit.epoch": 3, "sed": 1})
    assert "2 faults:" in text
    assert "override fit.epoch" in text
    assert "override sed" in text


def test_an_override_through_a_plain_value_is_refused(write) -> None:
    with pytest.raises(JobError, match="plain value"):
        read_job(write(LEAST), {"name.first": 3})


def test_an_override_that_breaks_a_rule_across_keys_is_named(write) -> None:
    assert "override split.test (split)" in refusal(write(LEAST), overrides={"split.test": 0.9})


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("fit.epochs=3", "fit.epochs", 3),
        ("a=0.1", "a", 0.1),
        ("a=true", "a", True),
        ("a=[64, 32]", "a", [64, 32]),
        ("a={name: sgd}", "a", {"name": "sgd"}),
        ("a=text", "a", "text"),
        ("a=x=y", "a", "x=y"),
        ("a=", "a", None),
        ("a=null", "a", None),
        (" a =1", "a", 1),
        ("a='3'", "a", "3"),
    ],
)
def test_a_word_is_a_key_and_a_value_in_yaml(word, key, value) -> None:
    assert parse_assignments([word]) == {key: value}


def test_the_last_of_two_words_with_one_key_counts() -> None:
    assert parse_assignments(["a=1", "b=2", "a=3"]) == {"a": 3, "b": 2}


@pytest.mark.parametrize("word", ["", "fit.epochs", "=3", " =3", "a=[1", "a={", "a=: :"])
def test_a_word_that_is_no_assignment_is_refused(word) -> None:
    with pytest.raises(RequestError) as caught:
        parse_assignments([word])
    assert caught.value.received
