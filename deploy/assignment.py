"""What one agent's process has to do: as `xnai up` says on its stdin, or the settings of its folder.

On stdin, because others may read arguments, and children inherit the environment.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from xnai.bus import Limits
from xnai.bus.locating import Address
from xnai.deploy.environment import variables
from xnai.deploy.folders import find_settings, parse_settings, stack_folder
from xnai.protocol.errors import InvalidSettings

_PR_SET_PDEATHSIG = 1


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """One agent's part of the settings, checked.

    Attributes:
        name: under which the settings know the agent; its module must agree.
        folder: the stack's `.xnai`.
        at: where the broker is; without, the bus is looked for as `open_bus` does.
        roles: that the broker lets it serve besides its name; None where it lets everybody do everything.
        word: stands before what this process declares of itself, so that only it can say that.
        concurrency: instead of what the module says; None leaves that.
        settings: for the module's `configure`.
        nice, oom_score_adj: what the process sets for itself.
    """

    name: str
    folder: str
    at: Address | None = None
    roles: tuple[str, ...] | None = None
    word: str = ""
    concurrency: int | None = None
    limits: Limits = Limits()
    settings: dict[str, Any] = {}
    nice: int | None = None
    oom_score_adj: int | None = None


def write(assignment: Assignment) -> bytes:
    """To be sent to the child's stdin, which is then closed."""
    return msgspec.json.encode(assignment)


def receive(parent: int) -> Assignment:
    """What our parent wants of us; from now on this process ends when it does (on Linux, at once).

    Raises:
        InvalidSettings: stdin holds no assignment, or the system refuses a part of it.
    """
    die_with(parent)
    try:
        assignment = msgspec.json.decode(sys.stdin.buffer.read(), type=Assignment)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidSettings(
            f"--parent is for `xnai up`, which says on stdin what to do: {error}."
        ) from error
    _rank(assignment)
    sys.path.insert(
        0, str(Path(assignment.folder).parent)
    )  # modules beside the settings, whatever its folder
    return assignment


def _rank(assignment: Assignment) -> None:
    """Set what the kernel goes by when processors or memory are short."""
    key = "nice"
    try:
        if assignment.nice is not None:
            os.setpriority(os.PRIO_PROCESS, 0, assignment.nice)
        key = "oom_score_adj"
        if assignment.oom_score_adj is not None:
            Path("/proc/self/oom_score_adj").write_text(str(assignment.oom_score_adj))
    except OSError as error:
        value = getattr(assignment, key)
        raise InvalidSettings(
            f"agents.{assignment.name}.{key}: {value} is refused: {error.strerror}."
        ) from error


def look_up(agent: str, folder: Path) -> Assignment:
    """What the settings of `folder` say about an agent that somebody started by hand.

    The model that checks them is large: it is imported only where they say something.

    Raises:
        InvalidSettings: they cannot be used.
    """
    place = str(stack_folder(folder))
    file, ours = find_settings(folder), variables()
    tables = parse_settings(file) if file else {}
    concerned = "limits" in tables or agent in tables.get("agents", {})
    if not concerned and not any(name.startswith("XNAI_LIMITS_") for name in ours):
        return Assignment(name=agent, folder=place)

    from xnai.deploy.settings import AgentTable, read_settings

    settings = read_settings(file, ours)
    table = settings.agents.get(agent, AgentTable())
    return Assignment(
        name=agent,
        folder=place,
        concurrency=table.concurrency,
        limits=settings.limits.limits(),
        settings=table.settings,
    )


def die_with(parent: int) -> None:
    """From now on this process ends when `parent` does (on Linux, at once), or now if that is no more.

    Its broker dies with it, so there is nobody to hand tasks back to: SIGKILL, as after a power cut.
    """
    if sys.platform == "linux":
        import ctypes  # only here is it worth its time

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)
