"""Runs that were trained on forgotten rows are told exactly, with their models."""

import numpy as np

from refit.schema import KEY_HASH
from tests.refit.shop import in_its_folder as in_its_folder  # a fixture
from tests.refit.shop import made_once as made_once  # a fixture
from tests.refit.shop import shop as shop  # a fixture
from tests.refit.shop import three as three  # a fixture


def test_runs_that_had_the_rows_are_told_exactly_with_their_versions(shop, three) -> None:
    paths = [shop.run(snapshot, run=f"20260101-00000{n}-aaaa") for n, snapshot in enumerate(three)]
    train, validation, test = (set(np.load(paths[0].split_dir / f"{side}.keys.npy").tolist()) for side in ("train", "validation", "test"))
    id_of = {row[KEY_HASH]: row["id"] for row in shop.rows(three[0], "id", KEY_HASH)}
    shop.publish("20260101-000000-aaaa", 1)
    shop.publish("20260101-000002-aaaa", 2)
    gone = [id_of[min(train)], id_of[min(validation)], id_of[min(test)]]
    erasure = shop.forget(where=f"id IN ({', '.join(map(str, gone))})")
    assert [(run.run[:15], run.num_rows, run.versions, run.serves) for run in erasure.runs] == [
        ("20260101-000000", 2, (1,), None),
        ("20260101-000001", 2, (), None),
        ("20260101-000002", 2, (2,), 2),
    ]
    assert "rollback" in erasure.runs[2].remedy


def test_a_row_that_was_only_tested_on_names_no_run(shop, three) -> None:
    paths = shop.run(three[0])
    id_of = {row[KEY_HASH]: row["id"] for row in shop.rows(three[0], "id", KEY_HASH)}
    tested = id_of[int(np.load(paths.split_dir / "test.keys.npy")[0])]
    assert shop.forget(key=[str(tested)]).runs == ()


def test_a_run_without_a_list_of_its_rows_is_named_where_its_snapshot_had_them(shop, three) -> None:
    (shop.run(three[0]).split_dir / "train.keys.npy").unlink()
    assert shop.forget(key=["70"]).runs == ()
    assert [(run.job, run.num_rows) for run in shop.forget(key=["7"]).runs] == [("people", None)]


def test_the_runs_are_told_again_by_a_second_request(shop, three) -> None:
    paths = shop.run(three[0])
    id_of = {row[KEY_HASH]: row["id"] for row in shop.rows(three[0], "id", KEY_HASH)}
    trained = str(id_of[int(np.load(paths.split_dir / "train.keys.npy")[0])])
    assert shop.forget(key=[trained]).runs == shop.forget(key=[trained]).runs != ()
