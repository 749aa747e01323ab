"""How long the kernel lets a thread compute in one piece while others wait for the CPU.

Linux (from 6.12 on) gives a CPU to the one whose slice would end soonest. A thread with long slices therefore
gives way at once to whoever wakes up, and loses nothing of its share: that is what the priority is for.
Otherwise each process on the way of a token to its reader may wait for a tick of the clock, up to 4 ms.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import struct
import sys
from typing import Any

_log = logging.getLogger(__name__)
LONGEST = 100_000_000
"""Nanoseconds that Linux takes for a slice."""

_NUMBERS = {"x86_64": (314, 315), "aarch64": (274, 275), "riscv64": (274, 275)}
_SET, _GET = _NUMBERS.get(platform.machine(), (0, 0))  # of sched_setattr and sched_getattr
_KNOWN = sys.platform == "linux" and sys.maxsize > 1 << 32 and bool(_SET)
_ATTRIBUTES = struct.Struct("IIQiIQQQ")  # size, policy, flags, nice, priority, runtime, deadline, period


def take_long_slices() -> None:
    """This thread, and those that it starts from now on, give way to whoever wakes up."""
    _take(LONGEST)


def take_usual_slices() -> None:
    """This thread waits for its turn as all others do."""
    _take(0)


def slice_of(thread: int = 0) -> int:
    """The nanoseconds of a thread's slice; 0 where the kernel, which is Linux, does not say."""
    held = ctypes.create_string_buffer(_ATTRIBUTES.size)
    if not _KNOWN or _call(_GET, thread, held, _ATTRIBUTES.size, 0):
        return 0
    return int(_ATTRIBUTES.unpack(held.raw)[5])


def _take(nanoseconds: int) -> None:
    if not _KNOWN or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return  # whoever chose another policy meant it
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    asked = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, nanoseconds, 0, 0)
    if error := _call(_SET, 0, asked, 0):
        _log.debug("slices are as they are", extra={"reason": os.strerror(error)})


def _call(number: int, *arguments: Any) -> int:
    """0, or the number of the error."""
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.syscall(number, *arguments)
    return ctypes.get_errno() if failed else 0
