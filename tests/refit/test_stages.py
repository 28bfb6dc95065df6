"""A stage that is done is not repeated; one that raised leaves nothing and is."""

import logging

import pytest

from refit.errors import CorruptRecordError
from refit.layout import Layout
from refit.records import PublishRecord, SplitRecord
from refit.stages import STAGES, forget_stages, read_seconds, read_stage, run_stage


class Worker:
    def __init__(self, record, *, fails=0):
        self.record, self.fails, self.calls = record, fails, 0

    def __call__(self):
        self.calls += 1
        if self.calls <= self.fails:
            raise RuntimeError("interrupted")
        return self.record


@pytest.fixture
def run(tmp_path):
    return Layout(tmp_path).run("job", "r1")


def test_a_stage_that_is_done_is_not_repeated(run) -> None:
    worker = Worker(PublishRecord(version=3))
    first = run_stage(run, "publish", PublishRecord, worker)
    second = run_stage(run, "publish", PublishRecord, worker)
    assert first == second == PublishRecord(version=3)
    assert worker.calls == 1


def test_a_stage_that_raised_is_repeated(run) -> None:
    worker = Worker(PublishRecord(version=3), fails=1)
    with pytest.raises(RuntimeError, match="interrupted"):
        run_stage(run, "publish", PublishRecord, worker)
    assert read_stage(run, "publish", PublishRecord) is None
    assert run_stage(run, "publish", PublishRecord, worker).version == 3
    assert worker.calls == 2


def test_an_interrupt_leaves_no_record(run) -> None:
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(run, "fit", PublishRecord, stop)
    assert not run.stages_dir.exists() or not list(run.stages_dir.iterdir())


def test_a_stage_that_was_forgotten_is_repeated(run) -> None:
    worker = Worker(PublishRecord(version=3))
    run_stage(run, "publish", PublishRecord, worker)
    forget_stages(run, "publish", "gate")
    run_stage(run, "publish", PublishRecord, worker)
    assert worker.calls == 2


def test_stages_of_two_runs_do_not_know_each_other(tmp_path) -> None:
    worker = Worker(PublishRecord(version=3))
    for name in ("r1", "r2"):
        run_stage(Layout(tmp_path).run("job", name), "publish", PublishRecord, worker)
    assert worker.calls == 2


def test_seconds_are_kept_for_complete_stages_in_order(run) -> None:
    for name in ("publish", "ingest"):
        run_stage(run, name, PublishRecord, Worker(PublishRecord(version=None)))
    seconds = read_seconds(run)
    assert list(seconds) == ["ingest", "publish"]
    assert all(0 <= value < 5 for value in seconds.values())


def test_a_run_without_stages_has_no_seconds(run) -> None:
    assert read_seconds(run) == {}
    assert len(set(STAGES)) == len(STAGES)


def test_a_stage_is_told_in_the_log_once_done_and_once_skipped(run, caplog) -> None:
    with caplog.at_level(logging.INFO, logger="refit.stages"):
        for _ in range(2):
            run_stage(run, "publish", PublishRecord, Worker(PublishRecord(version=3)))
    assert caplog.messages[0].startswith("publish: version 3 (0.")
    assert caplog.messages[1] == "publish: done before the interruption"


@pytest.mark.parametrize("content", ["", "{}", '{"seconds": 1.0, "record": {}}', '{"seconds": 1.0, "record": {"version": "x"}}'])
def test_a_damaged_record_of_a_stage_is_no_reason_to_repeat_it_in_silence(run, content) -> None:
    run.stages_dir.mkdir(parents=True)
    run.stage("publish").write_text(content)
    worker = Worker(PublishRecord(version=3))
    with pytest.raises(CorruptRecordError) as caught:
        run_stage(run, "publish", PublishRecord, worker)
    assert str(run.stage("publish")) in str(caught.value)
    assert worker.calls == 0


def test_seconds_of_a_damaged_stage_are_refused_by_name(run) -> None:
    run.stages_dir.mkdir(parents=True)
    run.stage("publish").write_text("{")
    with pytest.raises(CorruptRecordError):
        read_seconds(run)


def test_a_record_of_another_kind_is_no_record_of_this_stage(run) -> None:
    run_stage(run, "split", PublishRecord, Worker(PublishRecord(version=3)))
    with pytest.raises(CorruptRecordError):
        read_stage(run, "split", SplitRecord)
