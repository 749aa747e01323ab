"""What `xnai doctor` makes of memory in states that no test may bring about, read from files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from xnai.deploy.doctor import Case, Finding, limits, memory
from xnai.deploy.settings import Settings

SWAPS = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
MEMORY = "MemTotal:       16000000 kB\nMemFree:         100000 kB\nMemAvailable:    {} kB\n"
STALLS = (
    "some avg10=0.00 avg60={:.2f} avg300=0.00 total=1\nfull avg10=0.00 avg60={:.2f} avg300=0.00 total=1\n"
)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(folder=tmp_path / ".xnai", file=None, settings=Settings(agents={}), root=tmp_path)


def write(case: Case, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        file = case.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def one(findings: list[Finding]) -> tuple[str, str]:
    (finding,) = findings
    return finding.level, finding.what


@pytest.mark.parametrize(
    ("available", "level"), [(8_000_000, "fine"), (1_000_000, "warning"), (300_000, "problem")]
)
def test_memory_that_runs_out_is_found(case: Case, available: int, level: str) -> None:
    write(case, {"proc/meminfo": MEMORY.format(available)})
    assert one([*memory.left(case)])[0] == level


@pytest.mark.parametrize(
    ("used", "level"), [(100 << 20, "fine"), (960 << 20, "warning"), (1020 << 20, "problem")]
)
@pytest.mark.parametrize("version", [1, 2])
def test_the_memory_of_a_container_is_that_of_its_control_group(
    case: Case, version: int, used: int, level: str
) -> None:
    write(case, {"proc/meminfo": MEMORY.format(8_000_000)})
    if version == 2:
        write(
            case,
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": f"{1 << 30}\n",
                "sys/fs/cgroup/a/memory.current": f"{used}\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/b/memory.current": "1\n",
            },
        )
    else:
        write(
            case,
            {
                "proc/self/cgroup": "9:name=systemd:/\n4:memory:/inside\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{1 << 30}\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{used}\n",
            },
        )
    assert one([*memory.left(case)])[0] == level
    assert "1 GiB memory of the container" in one([*memory.left(case)])[1]


@pytest.mark.parametrize(
    ("rows", "level", "words"),
    [
        ("", "fine", "no swap and no zRAM"),
        ("/dev/zram0 partition 8000000 4000000 100\n", "fine", "zRAM /dev/zram0, pressed to a 3.0th"),
        ("/dev/zram0 partition 8000000 7900000 100\n", "warning", "nearly full"),
        ("/swapfile file 8000000 400000 -2\n", "fine", "on disk /swapfile"),
        ("/swapfile file 8000000 4000000 -2\n", "warning", "Much memory lies on a disk"),
        ("/dev/zram0 partition 800000 1 9\n/swapfile file 8000000 4000000 -2\n", "warning", "on a disk"),
    ],
)
def test_swap_on_a_disk_and_swap_that_is_full_are_found(
    case: Case, rows: str, level: str, words: str
) -> None:
    write(
        case,
        {
            "proc/meminfo": MEMORY.format(8_000_000),
            "proc/swaps": SWAPS + rows,
            "sys/block/zram0/mm_stat": "3000000000 1000000000 1100000000 0 0 0 0 0 0\n",
        },
    )
    found = one([*memory.swap(case)])
    assert found[0] == level
    assert words in found[1]


@pytest.mark.parametrize(
    ("some", "full", "level"), [(0, 0, "fine"), (9, 9, "fine"), (30, 2, "warning"), (60, 40, "problem")]
)
def test_processes_that_wait_for_memory_are_found(case: Case, some: float, full: float, level: str) -> None:
    write(case, {"proc/pressure/memory": STALLS.format(some, full)})
    assert one([*memory.pressure(case)]) == (
        level,
        f"Processes waited for memory in {some} % of the last minute, all of them in {full} %.",
    )


def test_a_kernel_that_tells_nothing_is_no_finding(case: Case) -> None:
    assert one([*memory.pressure(case)])[0] == "fine"
    assert [*memory.left(case), *memory.swap(case)] == []


@pytest.mark.parametrize(
    ("files", "level"),
    [
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, "fine"),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, "warning"),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "90000 100000\n"}, "warning"),
        (
            {
                "proc/self/cgroup": "1:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "25000\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            "warning",
        ),
        ({"proc/self/cgroup": "garbage\n\n0::\n", "sys/fs/cgroup/cpu.max": "many some\n"}, "fine"),
    ],
)
def test_the_smallest_limit_of_processor_time_holds(case: Case, files: Mapping[str, str], level: str) -> None:
    write(case, files)
    assert one([*limits.processors(case)])[0] == level
