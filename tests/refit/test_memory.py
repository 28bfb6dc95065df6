"""Memory that is left: of the machine, and of the container around the process."""

import pytest

from refit.memory import available_bytes

MEMINFO = "MemTotal:       2000 kB\nMemFree:         100 kB\nMemAvailable:   1000 kB\n"


@pytest.fixture
def machine(tmp_path):
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "memory").mkdir()
    return tmp_path


def left(machine):
    return available_bytes(meminfo=machine / "meminfo", cgroup=machine)


def test_without_a_container_the_machine_tells(machine):
    assert left(machine) == 1000 * 1024


def test_a_container_allows_less(machine):
    (machine / "memory.max").write_text("500000\n")
    (machine / "memory.current").write_text("300000\n")
    (machine / "memory.stat").write_text("anon 1\ninactive_file 50000\n")
    assert left(machine) == 250_000


def test_a_container_without_a_limit_allows_all(machine):
    (machine / "memory.max").write_text("max\n")
    assert left(machine) == 1000 * 1024


def test_older_containers_tell_in_files_of_other_names(machine):
    (machine / "memory" / "memory.limit_in_bytes").write_text("500000\n")
    (machine / "memory" / "memory.usage_in_bytes").write_text("300000\n")
    (machine / "memory" / "memory.stat").write_text("total_inactive_file 100\n")
    assert left(machine) == 200_100


def test_where_the_kernel_tells_nothing_half_of_the_memory_counts(tmp_path):
    assert available_bytes(meminfo=tmp_path / "none", cgroup=tmp_path) > 1 << 20


def test_this_machine_has_memory_left():
    assert available_bytes() > 1 << 20
