"""Rows of raw files predicted by published models: what ingestion reads, what evaluation scores, whole files or none."""

import csv
import gzip
import json
import shutil
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from refit.errors import (
    AlreadyRunningError,
    CorruptRecordError,
    DataError,
    JobError,
    NothingThereError,
    RefusedError,
    RequestError,
    SchemaMismatchError,
    UnknownNameError,
)
from refit.evaluation import score_rows
from refit.export import raw_columns
from refit.layout import Layout
from refit.prediction import PredictionRecord, predict
from refit.prediction_files import Places, working_aside
from refit.schema import column_of
from refit.served import Request, find_served
from refit.splits import read_rows
from tests.refit.published import FIT, SALES, pictures, publish, publish_pictures, publish_prices, publish_sales, tensors, write_sales


@pytest.fixture(scope="module")
def sales(tmp_path_factory):
    return publish_sales(tmp_path_factory.mktemp("sales"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return publish_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def prices(tmp_path_factory):
    return publish_prices(tmp_path_factory.mktemp("prices"))


def ask(model, source, output, **more):
    served = find_served(model.layout, model.run.job.name)
    return predict(served, Request(str(source), output, **more), model.layout)


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def edit(path, change):
    """Change the rows of a table of sales, without its header."""
    with path.open(newline="", encoding="latin-1") as file:
        header, *rows = csv.reader(file, delimiter=";")
    header, rows = change(header, rows)
    with path.open("w", newline="", encoding="latin-1") as file:
        csv.writer(file, delimiter=";").writerows([header, *rows])
    return path


# ---- predictions


def test_predictions_are_those_of_the_evaluation(sales, tmp_path):
    source = sales.run.job.data.sources[0].path
    record = ask(sales, source, tmp_path / "out.parquet")
    found = pq.read_table(tmp_path / "out.parquet")
    columns = ["id", *(feature.name for feature in sales.plan.features)]
    test = read_rows(sales.snapshot, sales.layout, sales.run.paths, "test", columns).table
    expected = score_rows(sales.run.paths.saved_model, raw_columns(test, sales.plan.features), sales.plan.target)
    rows = found.take(pa.array(np.searchsorted(found["id"].to_numpy(), test["id"].to_numpy())))
    scores = np.stack([rows[f"probability_{name}"].to_numpy() for name in sales.plan.target.classes], axis=1)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert rows["score"].to_pylist() == rows[f"probability_{sales.plan.target.classes[1]}"].to_pylist()
    assert (record.num_read, record.num_rejected, record.num_scored) == (400, 0, 400)


def test_rows_keep_their_order_and_their_columns(sales, tmp_path):
    path = write_sales(tmp_path / "new.csv", num_rows=9_000, first=500, seed=1)
    record = ask(sales, path, tmp_path / "out.parquet", batch_rows=512)
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.column_names == [*SALES, "label", "score", "probability_0", "probability_1"]
    assert found["id"].to_pylist() == list(range(500, 9_500))
    assert record.predictions == ("label", "score", "probability_0", "probability_1")
    assert (found["zip"].type, found["sold"].type, found["cost"].type) == (pa.string(), pa.timestamp("us"), pa.float64())
    assert found["zip"].null_count  # NA is the job's own word for a missing value


def test_the_size_of_batches_changes_nothing(sales, tmp_path):
    path = write_sales(tmp_path / "new.csv", num_rows=300, seed=2)
    for rows in (1, 7, 300, 1000):
        ask(sales, path, tmp_path / f"{rows}.parquet", batch_rows=rows)
    first = pq.read_table(tmp_path / "1.parquet")["score"].to_numpy()
    for rows in (7, 300, 1000):
        np.testing.assert_allclose(pq.read_table(tmp_path / f"{rows}.parquet")["score"].to_numpy(), first, atol=1e-6)


def test_the_target_and_what_it_is_made_of_are_not_needed(sales, tmp_path):
    whole = write_sales(tmp_path / "whole.csv", num_rows=50, seed=3)
    lean = edit(shutil.copy(whole, tmp_path / "lean.csv"), lambda header, rows: (header[1:-1], [row[1:-1] for row in rows]))
    ask(sales, whole, tmp_path / "whole.parquet")
    record = ask(sales, lean, tmp_path / "lean.parquet")
    one, other = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("whole", "lean"))
    assert other.column_names[:6] == SALES[1:-1]
    assert one["score"] == other["score"]
    assert record.num_scored == 50  # those that the job's "where" would filter from what is learned, too


def test_a_regression_has_a_prediction(prices, tmp_path):
    path = tmp_path / "new.json"
    path.write_text('[{"size": 100, "rooms": 2, "note": "a"}, {"size": "80.5", "rooms": null, "note": {"deep": [1]}}]')
    ask(prices, path, tmp_path / "out.csv")
    assert [list(row) for row in read_csv(tmp_path / "out.csv")] == [["size", "rooms", "note", "prediction"]] * 2
    assert [(row["size"], row["rooms"], row["note"]) for row in read_csv(tmp_path / "out.csv")] == [
        ("100", "2", "a"),
        ("80.5", "", '{"deep":[1]}'),
    ]


def test_an_optional_column_may_be_missing(prices, tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("size\n100\n50\n")
    ask(prices, path, tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").column_names == ["size", "prediction"]


def test_images_and_selected_columns_are_predicted(images, tmp_path):
    pq.write_table(pictures(60, seed=1).drop_columns("side"), tmp_path / "new.parquet")
    record = ask(images, tmp_path / "new.parquet", tmp_path / "out.parquet")
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.column_names == ["n", "Raw", "picture", "label", "probability_low", "probability_middle", "probability_top"]
    assert column_of(found.schema.field("picture")).shape == (8, 8, 1)
    assert set(found["label"].to_pylist()) <= {"low", "middle", "top"}
    ask(images, tmp_path / "new.parquet", tmp_path / "out.csv")
    left_out = ask(images, tmp_path / "new.parquet", tmp_path / "out.jsonl").left_out
    assert (left_out, record.left_out) == (("picture",), ())
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == [row["label"] for row in read_csv(tmp_path / "out.csv")] == found["label"].to_pylist()
    assert "picture" not in lines[0]


def test_columns_that_nobody_asked_for_come_along_as_they_are(prices, tmp_path):
    odd = {
        "list": pa.array([[1, 2], None, []]),
        "price of yesterday": pa.array([float("inf"), float("nan"), 1.0]),
        "huge": pa.array([2**64 - 1, 0, None], pa.uint64()),
        "exact": pa.array([Decimal("1.10"), None, Decimal("2.25")]),
        "word": pa.array(["a", "b", None]).dictionary_encode(),
        "code": tensors(np.arange(6, dtype=np.int8).reshape(3, 2)),
    }
    pq.write_table(pa.table({"size": [1, 2, 3], "rooms": [1, 1, 1], **odd}), tmp_path / "new.parquet")
    record = ask(prices, tmp_path / "new.parquet", tmp_path / "out.parquet")
    found = pq.read_table(tmp_path / "out.parquet")
    assert record.num_rejected == 0
    assert found["list"].to_pylist() == [[1, 2], None, []]
    assert found["huge"].to_pylist() == [2**64 - 1, 0, None]
    assert found["exact"].to_pylist() == [Decimal("1.10"), None, Decimal("2.25")]
    assert found["word"].to_pylist() == ["a", "b", None]
    assert found["price of yesterday"].to_pylist()[0] == float("inf")
    assert column_of(found.schema.field("code")).shape == (2,)
    assert ask(prices, tmp_path / "new.parquet", tmp_path / "out.csv").left_out == ("list", "code")


def test_names_that_the_input_has_already_are_told(sales, tmp_path):
    path = edit(
        write_sales(tmp_path / "new.csv", num_rows=5),
        lambda header, rows: ([*header, "Label", "refit_label", "score", "returned"], [[*row, "a", "b", "c", "d"] for row in rows]),
    )
    record = ask(sales, path, tmp_path / "out.csv")
    assert record.renamed == {"label": "refit_refit_label", "score": "refit_score"}
    (row, *_) = read_csv(tmp_path / "out.csv")
    assert (row["Label"], row["refit_label"], row["score"], row["returned"]) == ("a", "b", "c", "d")
    assert row["refit_refit_label"] in ("0", "1")


def test_unseen_words_and_missing_values_are_predicted(sales, tmp_path):
    def spoil(header, rows):
        rows[0][3:6] = ["Atlantis", "99999", "never heard"]
        rows[1][1:7] = ["NA"] * 6
        return header, rows

    record = ask(sales, edit(write_sales(tmp_path / "new.csv", num_rows=5), spoil), tmp_path / "out.parquet")
    assert record.num_scored == 5
    assert np.isfinite(pq.read_table(tmp_path / "out.parquet")["score"].to_numpy()).all()


def test_several_files_are_one_input(sales, tmp_path):
    for part in range(3):
        write_sales(tmp_path / f"part-{part}.csv", num_rows=40, first=100 * part, seed=part)
    record = ask(sales, tmp_path / "part-*.csv", tmp_path / "out.parquet")
    ids = pq.read_table(tmp_path / "out.parquet")["id"].to_pylist()
    assert ids == [100 * part + row for part in range(3) for row in range(40)]
    assert [one.num_read for one in record.inputs] == [40, 40, 40]


def test_several_files_have_the_same_columns(sales, tmp_path):
    write_sales(tmp_path / "part-0.csv", num_rows=4)
    edit(write_sales(tmp_path / "part-1.csv", num_rows=4), lambda header, rows: (header[1:], [row[1:] for row in rows]))
    with pytest.raises(SchemaMismatchError, match="do not have the same columns"):
        ask(sales, tmp_path / "part-*.csv", tmp_path / "out.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part-0.csv", "part-1.csv"]


def test_a_compressed_file_and_other_options_are_read(sales, tmp_path):
    path = write_sales(tmp_path / "new.csv", num_rows=30, delimiter="|")
    (tmp_path / "new.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    record = ask(sales, tmp_path / "new.csv.gz", tmp_path / "out.parquet", options={"delimiter": "|"})
    assert record.num_scored == 30
    with pytest.raises(JobError, match='Did you mean "delimiter"'):
        ask(sales, path, tmp_path / "other.parquet", options={"delimeter": "|"})


# ---- dirt


def test_bad_rows_go_to_the_rejects_with_their_places(sales, tmp_path):
    def spoil(header, rows):
        rows[4][1] = "twelve"
        rows[7] = rows[7][:3]
        rows[9][4] = "0\n1"  # no fault: a line end within quotes
        rows[11][7] = "a target that is never cast"
        return header, rows

    path = edit(write_sales(tmp_path / "new.csv", num_rows=300, seed=4), spoil)
    record = ask(sales, path, tmp_path / "out.parquet")
    assert (record.num_read, record.num_rejected, record.num_scored) == (300, 2, 298)
    rejects = pq.read_table(tmp_path / "out.parquet.rejects.parquet").to_pylist()
    assert {(one["line"], one["column"], one["value"]) for one in rejects} == {(6, "Total Price", "twelve"), (9, None, None)}
    assert all(one["file"] == str(path) for one in rejects)
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == [n for n in range(300) if n not in (4, 7)]


def test_too_many_bad_rows_fail_and_leave_their_rejects(sales, tmp_path):
    def spoil(header, rows):
        return header, [[*row[:1], "twelve", *row[2:]] if number % 10 == 0 else row for number, row in enumerate(rows)]

    path = edit(write_sales(tmp_path / "new.csv", num_rows=100), spoil)
    with pytest.raises(DataError, match="10 of 100 rows cannot be used") as error:
        ask(sales, path, tmp_path / "out.csv")
    assert "--max-rejected-fraction" in str(error.value)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["new.csv", "out.csv.rejects.parquet"]
    record = ask(sales, path, tmp_path / "out.csv", max_rejected_fraction=0.2)
    assert (record.num_rejected, len(read_csv(tmp_path / "out.csv"))) == (10, 90)


def test_a_file_of_nothing_but_a_header_gives_an_empty_output(sales, tmp_path):
    path = write_sales(tmp_path / "new.csv", num_rows=0)
    for name in ("out.csv", "out.parquet"):
        assert ask(sales, path, tmp_path / name).num_scored == 0
    empty = pq.read_table(tmp_path / "out.parquet")
    assert empty.column_names == [*SALES, "label", "score", "probability_0", "probability_1"]
    assert pa_csv.read_csv(tmp_path / "out.csv").column_names == empty.column_names


def test_an_empty_parquet_file_gives_an_empty_output(images, tmp_path):
    pq.write_table(pictures(4).slice(0, 0), tmp_path / "new.parquet")
    ask(images, tmp_path / "new.parquet", tmp_path / "out.parquet")
    found = pq.read_table(tmp_path / "out.parquet")
    assert (len(found), found.column_names[-3:]) == (0, ["probability_low", "probability_middle", "probability_top"])


def test_missing_columns_are_told_together_with_the_nearest(sales, tmp_path):
    def spoil(header, rows):
        return ["id", "total price", "cast", "shop", "zip", "word", "sold", "state"], rows

    path = edit(write_sales(tmp_path / "new.csv", num_rows=3), spoil)
    with pytest.raises(SchemaMismatchError) as error:
        ask(sales, path, tmp_path / "out.csv")
    for told in (
        '"Total Price" (is it "total price"?)',
        '"words" (is it "word"?)',
        '"margin", which is made by profit',
        '"cost" (is it "cast"?)',
    ):
        assert told in str(error.value)
    assert "state" not in str(error.value).split("Received")[0]


@pytest.mark.parametrize("text", ["", "PAR1 no", "id;Total Price"])
def test_what_is_no_file_of_its_kind_is_refused(sales, tmp_path, text):
    path = tmp_path / "new.parquet"
    path.write_text(text)
    with pytest.raises(RefusedError, match="cannot be read as Parquet"):
        ask(sales, path, tmp_path / "out.csv")


def test_a_column_that_derive_makes_cannot_be_given(sales, tmp_path):
    path = edit(write_sales(tmp_path / "new.csv", num_rows=3), lambda header, rows: ([*header, "margin"], [[*row, "1"] for row in rows]))
    with pytest.raises(SchemaMismatchError, match=r"made by data\.derive"):
        ask(sales, path, tmp_path / "out.csv")


def test_images_of_another_shape_are_refused(images, tmp_path):
    table = pictures(4).drop_columns("picture").append_column("picture", tensors(np.zeros((4, 4, 4, 1), np.uint8)))
    pq.write_table(table, tmp_path / "new.parquet")
    with pytest.raises(SchemaMismatchError, match="another shape"):
        ask(images, tmp_path / "new.parquet", tmp_path / "out.parquet")


# ---- files


def test_the_record_lies_beside_the_output(sales, tmp_path):
    path = write_sales(tmp_path / "new.csv", num_rows=200)
    record = ask(sales, path, tmp_path / "out.csv")
    assert PredictionRecord.read(tmp_path / "out.csv.refit.json") == record
    assert (record.model, record.version, record.run) == ("sales", 1, sales.run.id)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["new.csv", "out.csv", "out.csv.refit.json"]
    again = ask(sales, path, tmp_path / "again.csv")
    assert again.inputs == record.inputs
    assert again.drift == record.drift


def test_an_output_is_replaced_only_when_asked(sales, tmp_path):
    path, output = write_sales(tmp_path / "new.csv", num_rows=20), tmp_path / "out.csv"
    output.write_text("mine")
    with pytest.raises(RequestError, match="--force"):
        ask(sales, path, output)
    assert output.read_text() == "mine"
    (tmp_path / "out.csv.rejects.parquet").write_text("of an earlier output")
    ask(sales, path, output, force=True)
    assert len(read_csv(output)) == 20
    assert not (tmp_path / "out.csv.rejects.parquet").exists()


@pytest.mark.parametrize(
    ("output", "told"),
    [("out.xlsx", "format"), ("none/out.csv", "does not exist"), ("folder.csv", "folder"), ("new.csv", "replace the input")],
)
def test_an_output_that_cannot_be_is_refused_at_once(sales, tmp_path, output, told):
    (tmp_path / "folder.csv").mkdir()
    path = write_sales(tmp_path / "new.csv", num_rows=2)
    with pytest.raises(RequestError, match=told):
        ask(sales, path, tmp_path / output, force=True)


def test_two_do_not_write_one_output(sales, tmp_path):
    path = write_sales(tmp_path / "new.csv", num_rows=2)
    with working_aside(Places(tmp_path / "out.csv")), pytest.raises(AlreadyRunningError):
        ask(sales, path, tmp_path / "out.csv")


def test_an_error_in_the_middle_leaves_nothing(sales, tmp_path):
    path = write_sales(tmp_path / "new.csv", num_rows=3_000)

    def stop(progress):
        if progress.num_done > 1_000:
            raise KeyboardInterrupt

    served = find_served(sales.layout, "sales")
    with pytest.raises(KeyboardInterrupt):
        predict(served, Request(str(path), tmp_path / "out.csv", batch_rows=100), sales.layout, on_progress=stop)
    assert [found.name for found in tmp_path.iterdir()] == ["new.csv"]


# ---- drift


def test_drift_is_measured_against_what_the_model_learned_from(sales, tmp_path):
    same = ask(sales, write_sales(tmp_path / "same.csv", num_rows=400, seed=9), tmp_path / "same.parquet")
    assert (same.drift.drifted, same.drift.champion, same.drift.num_old) == ([], 1, sales.snapshot.num_rows)
    assert {column.name for column in same.drift.columns} == {feature.name for feature in sales.plan.features}

    def move(header, rows):
        return header, [[row[0], "900", row[2], "Atlantis", *row[4:]] for row in rows]

    moved = ask(sales, edit(write_sales(tmp_path / "moved.csv", num_rows=400, seed=9), move), tmp_path / "moved.parquet")
    assert {"Total Price", "shop"} <= {column.name for column in moved.drift.drifted}


def test_without_the_training_data_there_are_predictions_but_no_drift(sales, tmp_path):
    home = shutil.copytree(sales.layout.home, tmp_path / "home")
    shutil.rmtree(home / "data")
    path = write_sales(tmp_path / "new.csv", num_rows=10)
    record = predict(find_served(Layout(home), "sales"), Request(str(path), tmp_path / "out.csv"), Layout(home))
    assert (record.num_scored, record.drift.columns) == (10, ())
    assert record.drift.why_not


# ---- which model


def test_an_unknown_model_or_version_is_told_with_the_nearest(sales):
    with pytest.raises(UnknownNameError, match='Did you mean "sales"'):
        find_served(sales.layout, "sale")
    with pytest.raises(UnknownNameError, match="no version 7"):
        find_served(sales.layout, "sales", 7)
    assert find_served(sales.layout, "sales", 1).run == sales.run.id


@pytest.mark.parametrize("name", ["../sales", "/etc", "sales/1", ""])
def test_a_name_leads_nowhere_else(sales, name):
    with pytest.raises(RequestError, match="cannot be used as a name"):
        find_served(sales.layout, name)


def test_a_version_whose_run_is_gone_is_told(sales, tmp_path):
    home = shutil.copytree(sales.layout.home, tmp_path / "home")
    foreign = home / "models" / "foreign" / "1"
    foreign.mkdir(parents=True)
    with pytest.raises(RequestError, match="not made by a run"):
        find_served(Layout(home), "foreign")
    (home / "runs" / "sales" / sales.run.id / "stages" / "convert.json").unlink()
    with pytest.raises(CorruptRecordError, match="no record of its data"):
        find_served(Layout(home), "sales")
    shutil.rmtree(home / "runs")
    with pytest.raises(RequestError, match="is gone"):
        find_served(Layout(home), "sales")


def test_an_input_that_is_not_there_or_not_told_is_named(sales, tmp_path):
    for name, error in (("none.csv", NothingThereError), ("none", RequestError)):
        with pytest.raises(error):
            ask(sales, tmp_path / name, tmp_path / "out.csv")
    with pytest.raises(RequestError, match="no kind of input"):
        ask(sales, tmp_path / "none.csv", tmp_path / "out.csv", kind="sql")


@pytest.mark.slow
@pytest.mark.parametrize("store", ["decoded", "encoded"])
def test_image_files_are_predicted(tmp_path, store):
    for row in pictures(120).select(["n", "side", "picture"]).to_pylist():
        for folder in (tmp_path / "learned" / row["side"], tmp_path / "asked" / "new"):
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.array(row["picture"], np.uint8).reshape(8, 8)
            Image.fromarray(pixels).save(folder / f"{row['n']:03}.png")
    (tmp_path / "asked" / "new" / "bad.png").write_text("no image")
    source = {"kind": "images", "path": str(tmp_path / "learned"), "shape": [8, 8, 1], "store": store}
    features = {"image": {"kind": "image", "resize": [8, 8], "color": "grey"}}
    model = {"build": "models.convnet:build_model", "options": {"filters": [4], "hidden_units": 8}}
    tree = {"name": "files", "data": {"sources": [source]}, "features": features, "target": {"column": "label"}, "model": model, "fit": FIT}
    published = publish(tree, tmp_path / "home")
    record = ask(published, tmp_path / "asked", tmp_path / "out.csv")
    rows = read_csv(tmp_path / "out.csv")
    assert (record.num_scored, record.num_rejected, record.left_out) == (120, 1, ("image",))
    assert [row["path"] for row in rows] == [f"new/{number:03}.png" for number in range(120)]
    assert {row["refit_label"] for row in rows} <= {"top", "middle", "low"}
