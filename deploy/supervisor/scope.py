"""A control group of our own from systemd: a transient scope that holds us, and is ours to divide.

As `systemd-run --scope -p Delegate=yes` makes one, but for processes that run already, for which it has no
word. Source: https://systemd.io/CONTROL_GROUP_INTERFACE.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import anyio

_SYSTEMD = "org.freedesktop.systemd1"
_PATIENCE = 5  # seconds
_TRY_AGAIN = 0.02


class NotOurs(OSError):
    """Our control group cannot be divided; the sentence says why. Nobody but this supervisor sees it."""


async def move_into_scope(name: str, group: Path, pids: Sequence[int]) -> None:
    """Have systemd move these processes, us among them, out of `group` into a scope of this name.

    It is one of the user, or of the machine where we are root. What systemd runs as a service stays where it
    is: it would no longer be listened to.

    Raises:
        NotOurs: there is none to be had.
    """
    if group.suffix == ".service":
        raise NotOurs("the unit of our service lacks Delegate=yes")
    if group.suffix != ".scope":
        raise NotOurs("our control group is not ours to divide")
    manager = "--system" if os.geteuid() == 0 else "--user"
    call = ("call", _SYSTEMD, "/org/freedesktop/systemd1", f"{_SYSTEMD}.Manager", "StartTransientUnit")
    members = ("PIDs", "au", str(len(pids)), *map(str, pids))
    about = ("Delegate", "b", "true", "Description", "s", "The agents of xnai up")
    words = [*call, "ssa(sv)a(sa(sv))", name, "fail", "3", *members, *about, "0"]
    try:
        done = await anyio.run_process(
            ["busctl", manager, f"--timeout={_PATIENCE}", *words], stderr=subprocess.PIPE, check=False
        )
    except OSError:
        raise NotOurs("our control group is not ours to divide, and no systemd can be asked") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise NotOurs(f"our control group is not ours to divide, and systemd makes no other: {said}")
    with anyio.move_on_after(_PATIENCE):  # systemd answers when it has begun
        while name not in Path("/proc/self/cgroup").read_text():  # noqa: ASYNC110  # a file
            await anyio.sleep(_TRY_AGAIN)
        return
    raise NotOurs(f"systemd did not move us into {name} within {_PATIENCE} s")
