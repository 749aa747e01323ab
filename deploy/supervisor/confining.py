"""What a process of an agent may take of memory and processors, kept by the kernel where it lets us.

A process gets a control group below our own: one that is delegated to us, as root has it and a unit of
systemd with Delegate=yes, or a scope that systemd makes for us. A group that holds processes cannot be
divided, so we move into a leaf beside those of the agents.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html, and https://systemd.io/CGROUP_DELEGATION.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import anyio
import msgspec

from xnai.deploy.supervisor.families import families
from xnai.deploy.supervisor.scope import NotOurs, move_into_scope

DRAINED_AT = 0.9
"""The share of its memory at which a process is asked to leave: it needs time, and memory, to do so."""
_PERIOD = 100_000  # microseconds
_CONTROLLERS = ("memory", "cpu")
_OURS = "xnai-"
_EMPTYING = 2.0  # seconds that the kernel has to end what was killed
_TRY_AGAIN = 0.01


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """What a process may take, together with those that it starts.

    Attributes:
        memory: bytes; None for any.
        cpu: processors; None for any.
    """

    memory: int | None = None
    cpu: float | None = None


class Confined:
    """The control group of one process of an agent, with what that starts."""

    def __init__(self, place: Path, controllers: Iterable[str]) -> None:
        self.place = place
        self.quota = Quota()
        self._controllers = set(controllers)

    def limit(self, quota: Quota) -> None:
        """Keep it to this from now on."""
        self.quota = quota
        if "memory" in self._controllers:
            most = quota.memory  # without memory.high: what that slows down can neither go on nor leave
            _write(self.place / "memory.max", "max" if most is None else most)
            with suppress(FileNotFoundError):  # without swap there is nothing to keep it from
                _write(self.place / "memory.swap.max", "max" if most is None else 0)
        if "cpu" in self._controllers:
            share = "max" if quota.cpu is None else int(quota.cpu * _PERIOD)
            _write(self.place / "cpu.max", f"{share} {_PERIOD}")

    @property
    def killed(self) -> int:
        """How many of its processes the kernel ended because they held too much."""
        return _counts(self.place / "memory.events").get("oom_kill", 0)

    def close(self) -> None:
        """End what is left in it; the group goes when that has ended."""
        with suppress(OSError):  # before Linux 5.14 there is no such file
            _write(self.place / "cgroup.kill", 1)
        _remove(self.place)


class ControlGroups:
    """Those of one supervisor. They are made when the first agent is to be kept to something."""

    def __init__(self) -> None:
        self._base: Path | None = None
        self._leaf: Path | None = None
        self._enabled: list[str] = []
        self._why: str | None = None
        self.controllers: tuple[str, ...] = ()

    async def prepare(self) -> str | None:
        """Make groups possible; returns why they are not. It is tried once."""
        if self._base is None and self._why is None:
            try:
                self._base = await self._prepared()
            except OSError as error:
                self._why = error.strerror or str(error)
        return self._why

    async def _prepared(self) -> Path:
        """Our own group, ready to be divided."""
        base = _own_group()
        if not _is_ours(base):
            await move_into_scope(f"{_OURS}{os.getpid()}.scope", base, _family())
            base = _own_group()
        _sweep(base)
        available = (base / "cgroup.controllers").read_text().split()
        self.controllers = tuple(name for name in _CONTROLLERS if name in available)
        if not self.controllers:
            raise NotOurs("our control group has neither memory nor processors to divide")
        self._divide(base)
        return base

    def _divide(self, base: Path) -> None:
        if (base / "cgroup.type").exists():  # all but the first of the machine: that may hold processes too
            self._leaf = base / f"{_OURS}{os.getpid()}-supervisor"
            self._leaf.mkdir()
        try:
            if self._leaf:
                _move_all(base, self._leaf)
            had = (base / "cgroup.subtree_control").read_text().split()
            for name in self.controllers:
                _write(base / "cgroup.subtree_control", f"+{name}")
                if name not in had:
                    self._enabled.append(name)
        except OSError:
            self._leave(base)
            raise

    def confine(self, label: str, pid: int, quota: Quota) -> Confined | None:
        """Keep a process and those below it to a quota; None where that cannot be, or need not."""
        if self._base is None:
            return None
        place = self._base / f"{_OURS}{os.getpid()}-{label}-{pid}"
        if quota == Quota() and not place.exists():
            return None
        _sweep(self._base)
        place.mkdir(exist_ok=True)
        confined = Confined(place, self.controllers)
        confined.limit(quota)
        for each in families([pid])[pid]:
            with suppress(ProcessLookupError):  # it has ended, which is seen elsewhere
                _write(place / "cgroup.procs", each)
        return confined

    async def close(self) -> None:
        """Leave our own group as it was, when all agents have left."""
        if (base := self._base) is None:
            return
        self._base = None
        left = [place for place in base.glob(f"{_OURS}{os.getpid()}-*") if place != self._leaf]
        with anyio.move_on_after(_EMPTYING):
            while left := [place for place in left if not _remove(place)]:  # noqa: ASYNC110  # nobody tells
                await anyio.sleep(_TRY_AGAIN)
        self._leave(base)

    def _leave(self, base: Path) -> None:
        """Give up dividing: another supervisor may go on with it, and what is not to be had is left."""
        with suppress(OSError):
            for name in self._enabled:
                _write(base / "cgroup.subtree_control", f"-{name}")
            if self._leaf:
                _move_all(self._leaf, base)
        if self._leaf:
            _remove(self._leaf)


def _own_group() -> Path:
    """Our control group of version 2.

    Raises:
        NotOurs: the system has none.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        raise NotOurs("this system has no control groups") from None
    ours = next((line[3:] for line in lines if line.startswith("0::")), None)
    mounts = [words for words in mounts if words[words.index("-") + 1] == "cgroup2"]
    for root, mounted in ((Path(words[3]), Path(words[4])) for words in mounts):
        if ours is not None and Path(ours).is_relative_to(root):
            return mounted / Path(ours).relative_to(root)
    raise NotOurs("this system has no control groups of version 2")


def _family() -> list[int]:
    return families([os.getpid()])[os.getpid()]


def _is_ours(group: Path) -> bool:
    """Whether we may divide it: nobody else's processes are in it, unless it is the first of the machine."""
    if not all(os.access(group / name, os.W_OK) for name in ("", "cgroup.procs", "cgroup.subtree_control")):
        return False
    return not (group / "cgroup.type").exists() or set(_family()).issuperset(_members(group))


def _members(group: Path) -> list[int]:
    return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]


def _move_all(source: Path, target: Path) -> None:
    """Move all processes of a group to another one, those included that they start meanwhile."""
    while pids := _members(source):
        for pid in pids:
            with suppress(ProcessLookupError):
                _write(target / "cgroup.procs", pid)


def _sweep(base: Path) -> None:
    """Remove the groups of processes, and of supervisors, that have ended."""
    for place in base.glob(f"{_OURS}*"):
        words = place.name.removeprefix(_OURS).split("-")
        if any(word.isdecimal() and not Path("/proc", word).exists() for word in (words[0], words[-1])):
            _remove(place)


def _remove(place: Path) -> bool:
    """Remove a group; False while a process is in it."""
    try:
        place.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _counts(file: Path) -> dict[str, int]:
    try:
        pairs = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {name: int(count) for name, count in pairs}


def _write(file: Path, value: object) -> None:
    file.write_text(str(value))
