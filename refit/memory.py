"""How much memory this process may still take."""

import os
from pathlib import Path

_LIMITS = (  # of a container: its limit, its use, and the name of what the use counts that can be given up at once
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)


def available_bytes(*, meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that is free or can be freed without swapping, of the machine and of the container around the process.

    Source: https://docs.kernel.org/filesystems/proc.html#meminfo, https://docs.kernel.org/admin-guide/cgroup-v2.html#memory
    """
    return min([_of_machine(meminfo), *(left for names in _LIMITS if (left := _of_container(cgroup, *names)) is not None)])


def _of_machine(meminfo: Path) -> int:
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _of_container(cgroup: Path, limit: str, used: str, reclaimable: str) -> int | None:
    """What a limit leaves; None: there is none."""
    path = cgroup / limit
    if not path.exists() or path.read_text().strip() == "max":
        return None
    told = (path.parent / "memory.stat").read_text().splitlines()
    cached = next((int(line.split()[1]) for line in told if line.split()[0] == reclaimable), 0)
    return max(0, int(path.read_text()) - int((cgroup / used).read_text()) + cached)
