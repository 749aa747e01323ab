"""Memory: what is left of it, where it is swapped to, and whether processes wait for it.

Source: proc(5), and https://docs.kernel.org/accounting/psi.html and admin-guide/blockdev/zram.html.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from xnai.agents.inference.control_groups import memories
from xnai.deploy.doctor.finding import Case, Finding, fine, problem, warning
from xnai.deploy.units import size

_LOW, _VERY_LOW = 0.10, 0.03  # shares of the memory that are left
_SWAP_FULL = 0.9
_MUCH_ON_DISK = 0.1  # of the memory
_STALLED = 10.0  # percent of the last minute
_AVERAGE = re.compile(r"^(some|full) .*\bavg60=([\d.]+)", re.MULTILINE)
_LESS = "Run fewer agents or a smaller model, or give the machine more memory."


def left(case: Case) -> Iterator[Finding]:
    """How much memory the machine, or the container, has left."""
    facts = _facts(case)
    total, free = facts.get("MemTotal", 0), facts.get("MemAvailable", 0)
    where = "of the machine"
    if (granted := min(memories(case.root), default=None)) and granted.most < total:
        total, free, where = granted.most, min(free, granted.most - granted.used), "of the container"
    if not total:  # not Linux
        return
    what = f"{size(max(0, free))} of the {size(total)} memory {where} are available"
    if free < _VERY_LOW * total:
        yield problem("memory", f"{what}: the kernel is about to kill processes.", _LESS)
    elif free < _LOW * total:
        yield warning("memory", f"{what}.", _LESS)
    else:
        yield fine("memory", f"{what}.")


def swap(case: Case) -> Iterator[Finding]:
    """Where memory is swapped to, and how full that is."""
    try:
        rows = [line.split() for line in (case.root / "proc/swaps").read_text().splitlines()[1:]]
    except OSError:  # not Linux
        return
    areas = {row[0]: (int(row[2]) << 10, int(row[3]) << 10) for row in rows if len(row) >= 4}
    if not areas:
        yield fine("swap", "There is no swap and no zRAM.")
        return
    full = sum(used for _, used in areas.values()) > _SWAP_FULL * sum(room for room, _ in areas.values())
    on_disk = sum(used for name, (_, used) in areas.items() if "/zram" not in name)
    what = "; ".join(_area(case, name, *sizes) for name, sizes in areas.items())
    if full:
        yield warning("swap", f"The swap is nearly full: {what}.", _LESS)
    elif on_disk > _MUCH_ON_DISK * _facts(case).get("MemTotal", 0):
        do = f"{_LESS} zRAM swaps into memory, a hundred times as fast as a disk."
        yield warning("swap", f"Much memory lies on a disk: {what}.", do)
    else:
        yield fine("swap", f"{what}.")


def pressure(case: Case) -> Iterator[Finding]:
    """How long processes waited for memory in the last minute."""
    try:
        text = (case.root / "proc/pressure/memory").read_text()
    except OSError:  # an older kernel, or one that was started without it
        yield fine("pressure", "The kernel does not tell how long processes wait for memory.")
        return
    shares = {kind: float(share) for kind, share in _AVERAGE.findall(text)}
    some, full = shares.get("some", 0.0), shares.get("full", 0.0)
    what = f"Processes waited for memory in {some:.0f} % of the last minute, all of them in {full:.0f} %"
    if full > _STALLED:
        yield problem("pressure", f"{what}.", _LESS)
    elif some > _STALLED:
        yield warning("pressure", f"{what}.", _LESS)
    else:
        yield fine("pressure", f"{what}.")


def _facts(case: Case) -> dict[str, int]:
    """What /proc/meminfo says, in bytes."""
    try:
        text = (case.root / "proc/meminfo").read_text()
    except OSError:
        return {}
    return {name: int(kib) << 10 for name, kib in re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE)}


def _area(case: Case, name: str, room: int, used: int) -> str:
    kind = "zRAM" if "/zram" in name else "disk"
    return f"{size(used)} of {size(room)} used on {kind} {name}{_ratio(case, name)}"


def _ratio(case: Case, name: str) -> str:
    """How far zRAM presses what it holds."""
    try:
        stored, pressed = (
            (case.root / "sys/block" / name.rpartition("/")[2] / "mm_stat").read_text().split()[:2]
        )
    except (OSError, ValueError):
        return ""
    return f", pressed to a {int(stored) / int(pressed):.1f}th" if int(pressed) else ""
