"""The machine: which core is whose, and what a process has used of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# All that this process may run on, as it was at the start.
CORES = tuple(sorted(os.sched_getaffinity(0)))
SERVER_CORES = frozenset(CORES[:1])
LOAD_CORES = frozenset(CORES[-1:])
ALL_CORES = frozenset(CORES)

_TICKS = os.sysconf("SC_CLK_TCK")
# The least processor time that the kernel tells of a process, unless it is none.
TICK_SECONDS = 1 / _TICKS


@contextmanager
def on(cores: frozenset[int]) -> Iterator[None]:
    """Run on these cores until the block ends: what is started there stays there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def tree(pid: int) -> list[int]:
    """Return a process and all that it has started."""
    found = [pid]
    with suppress(FileNotFoundError, ProcessLookupError):  # threads come and go
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += tree(int(child))
    return found


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process and its children have used."""
    total = 0
    for each in tree(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def megabytes(pid: int) -> dict[str, float]:
    """Return the memory of a process: `rss`, all that it has resident, and `pss`, shared pages divided."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Rss", "Pss"):
            found[name.lower()] = int(rest.split()[0]) / 1024
    return found


def description() -> str:
    """Return what the machine is."""
    model = "an unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{model}, {len(CORES)} cores to use, {system}"
