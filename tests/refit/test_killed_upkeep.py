"""Killed at any instant, a removal or an erasure leaves a sound data set, and the same command finishes it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from refit.ingestion import read_head
from refit.layout import Layout
from refit.snapshots import read_snapshot
from tests.refit.shop import Shop, files, found, holding, three_snapshots
from tests.refit.shop import in_its_folder as in_its_folder  # a fixture
from tests.refit.shop import made_once as made_once  # a fixture
from tests.refit.shop import shop as shop  # a fixture
from tests.refit.shop import three as three  # a fixture

CHECKOUT = Path(__file__).parents[2]


KILLER = """\
import os, signal, sys, traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path
from refit.forgetting import Choice, forget_rows
from refit.layout import Layout
from refit.upkeep import remove_unneeded

action, template, folder, stride = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
EVENTS = {"os.rename", "os.remove", "os.truncate"}

def act(layout):
    if action == "gc":
        remove_unneeded(layout, "people", keep=1)
    else:
        choice = Choice(key=("7",))
        at = datetime(2026, 1, 2, tzinfo=UTC)
        forget_rows(layout, "people", choice, confirm=lambda plan: True, by="me", at=at, deletes_rejects=True)

def die_at(count):
    seen = [0]
    def hook(event, arguments):
        if event in EVENTS or (event == "open" and (arguments[2] or 0) & os.O_CREAT):
            seen[0] += 1
            if seen[0] > count:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

import shutil
count = 0
while True:
    home = folder / f"{count:03}"
    shutil.copytree(template, home)
    child = os.fork()
    if not child:
        try:
            die_at(count)
            act(Layout(home))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        sys.exit(os.WEXITSTATUS(status))
    count += stride
"""


@pytest.fixture
def kill_at_every_step(shop, tmp_path):
    """Does the action again and again, killed at the first change of a file, then at the second, and so on; the homes it leaves."""

    def kill(action, stride):
        folder = tmp_path / action
        folder.mkdir()
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)}
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", KILLER, action, shop.layout.home, folder, str(stride)],
            env=environment,
            check=True,
            timeout=300,
        )
        homes = []
        for home in sorted(folder.iterdir()):
            other = Shop(tmp_path)
            other.layout = Layout(home)
            other.home = other.layout.dataset("people")
            homes.append(other)
        return homes

    return kill


def states(shop, ids):
    """What each of the snapshots holds."""
    return [shop.rows(read_snapshot(shop.home, snapshot)) for snapshot in ids]


def prepare_kills(shop):
    snapshots = three_snapshots(shop)
    shop.write("c", list(range(61, 80)))
    shop.write("d", [None, 90], suffix="!")
    snapshots.append(shop.ingest(data__max_rejected_fraction=0.9))
    return [snapshot.id for snapshot in snapshots]


EVERY = [pytest.param(4, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)]


@pytest.mark.parametrize("stride", EVERY)
def test_killed_at_any_instant_a_removal_leaves_a_sound_data_set(shop, kill_at_every_step, stride) -> None:
    ids = prepare_kills(shop)
    newest = states(shop, ids[-1:])
    homes = kill_at_every_step("gc", stride)
    assert len(homes) > 6 / stride
    for home in homes:
        assert found(home.verify()) == []
        assert states(home, ids[-1:]) == newest
        home.gc(keep=1)
        assert (found(home.verify()), home.verify().notes, home.verify().num_snapshots) == ([], (), 1)


@pytest.mark.parametrize("stride", EVERY)
def test_killed_at_any_instant_an_erasure_leaves_old_or_new_and_is_finished_by_the_same_command(shop, kill_at_every_step, stride) -> None:
    ids = prepare_kills(shop)
    old = states(shop, ids)
    new = [[row for row in rows if row["id"] != 7] for rows in old]
    homes = kill_at_every_step("forget", stride)
    assert len(homes) > 24 / stride
    done = files(homes[-1].home)
    for home in homes:
        assert set(found(home.verify())) <= {"rows that were to be forgotten are still there: their erasure was interrupted."}
        assert all(rows in (o, n) for rows, o, n in zip(states(home, ids), old, new, strict=True))
        assert home.rows(read_head(home.home)) in (old[-1], new[-1])
        home.forget(key=["7"], deletes_rejects=True)
        assert states(home, ids) == new
        assert holding(home.home, "Hugo-7;") == []
        assert (found(home.verify()), len(home.verify().notes)) == ([], 1)
        assert files(home.home) == done
