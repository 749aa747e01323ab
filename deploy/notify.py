"""Telling systemd how we are: `READY=1`, `WATCHDOG=1` and `STOPPING=1`, as sd_notify(3) describes."""

from __future__ import annotations

import socket
from collections.abc import Callable

import anyio

from xnai.deploy.environment import variable


def notify(state: str) -> bool:
    """Send a state to the service manager; False when there is none that listens."""
    address = variable("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):  # a name in the abstract namespace
        address = f"\0{address[1:]}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.sendto(state.encode(), address)
        except OSError:
            return False
    return True


async def keep_notifying(is_well: Callable[[], bool]) -> None:
    """Feed the watchdog twice in each of its intervals, as long as `is_well` says so; until cancelled."""
    microseconds = variable("WATCHDOG_USEC") or ""
    if not microseconds.isdecimal() or not int(microseconds):
        return
    while True:
        if is_well():
            notify("WATCHDOG=1")
        await anyio.sleep(int(microseconds) / 2e6)
