"""How much memory a process may still take.

Pages of files that the system keeps count as free: they are given up on demand, and a cache that was just read or
written is most of them. The limits of control groups (containers, batch systems) count beside the machine's own.
"""

import os
from pathlib import Path

PROCESSES = "FEATCACHE_PROCESSES"
"""Environment variable: how many processes share the machine's memory, this one among them; unset is one."""


def available_bytes(root: Path = Path("/")) -> int:
    """Return how many bytes can be taken without swapping, or being killed for it; a share of them, among several.

    Args:
        root: folder that holds ``proc`` and ``sys``.
    """
    return _left(root) // int(os.environ.get(PROCESSES, "1"))


def _left(root: Path) -> int:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        [available] = [line for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError):  # not Linux: half of what the machine has
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min(1024 * int(available.split()[1]), *_left_in_groups(root))


def _left_in_groups(root: Path) -> list[int]:
    """Return what is left of the limit of each control group that the process is in; of both versions."""
    left = [2**62]
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return left
    for membership in memberships:
        _, controllers, path = [*membership.split(":", 2), "", ""][:3]
        if not controllers:
            top, names, prefix = root / "sys/fs/cgroup", ("memory.max", "memory.current"), ""
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            top, prefix = root / "sys/fs/cgroup/memory", "total_"
        else:
            continue
        own = Path(path.lstrip("/"))
        for group in (own, *own.parents):
            try:
                limit, used = ((top / group / name).read_text().strip() for name in names)
                stat = dict(line.split() for line in (top / group / "memory.stat").read_text().splitlines())
                files = sum(int(stat.get(f"{prefix}{name}_file", 0)) for name in ("inactive", "active"))
                left += [] if limit == "max" else [max(0, int(limit) - int(used) + files)]
            except (OSError, ValueError):
                continue  # the topmost has no limit, and in a container those above are not shown
    return left
