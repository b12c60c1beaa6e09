"""How much memory is left: the machine's, and what control groups of both versions leave of it."""

from pathlib import Path

import pytest

from featcache.memory import PROCESSES, available_bytes

GIB = 2**30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "proc/meminfo", f"MemTotal: 99 kB\nMemFree: 1 kB\nMemAvailable: {8 * 2**20} kB\n")
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_this_machine_has_some_left() -> None:
    assert 0 < available_bytes() < 2**60


def test_without_groups_it_is_what_the_machine_has_available(root: Path) -> None:
    assert available_bytes(root) == 8 * GIB
    write(root, "proc/self/cgroup", "0::/user\n")
    assert available_bytes(root) == 8 * GIB


def test_several_processes_share_what_is_left(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROCESSES, "4")
    assert available_bytes(root) == 2 * GIB


def test_a_group_above_may_leave_less_and_files_in_memory_count_as_free(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/job/step\n")
    group = root / "sys/fs/cgroup/job"
    for folder, limit in ((group / "step", "max"), (group, str(4 * GIB))):
        write(folder, "memory.max", f"{limit}\n")
        write(folder, "memory.current", f"{3 * GIB}\n")
        write(folder, "memory.stat", f"anon 7\ninactive_file {GIB}\nactive_file {GIB // 2}\n")
    assert available_bytes(root) == 2.5 * GIB


def test_groups_of_the_first_version(root: Path) -> None:
    write(root, "proc/self/cgroup", "4:cpu,cpuacct:/job\n3:memory:/job\n1:name=systemd:/\n")
    group = root / "sys/fs/cgroup/memory/job"
    write(group, "memory.limit_in_bytes", f"{2 * GIB}\n")
    write(group, "memory.usage_in_bytes", f"{3 * GIB}\n")
    write(group, "memory.stat", f"cache 5\ntotal_inactive_file {GIB // 4}\ntotal_active_file {GIB // 4}\n")
    assert available_bytes(root) == 0


def test_a_system_that_does_not_tell_is_taken_to_have_half_left(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) > 0
