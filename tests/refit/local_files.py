"""Files of this machine in folders of three levels, for the tests of what lists and reads them."""

import pytest

from refit.config import Located
from refit.sources.locations import list_files

HERE = Located(path="unused")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with files in folders of three levels."""
    for name in ("a.csv", "b.csv", "c.txt", "sub/d.csv", "sub/deep/e.csv", ".hidden/f.csv", "sub/.g.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def file_at(path):
    (found,) = list_files(str(path), HERE)
    return found
