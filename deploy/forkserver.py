"""A process that has imported what every agent needs, and forks one agent process after another.

`python -P -m xnai.deploy.forkserver FD PARENT ROOM`, started by `xnai.deploy.starting` and nobody else. It
has no event loop, no threads, no connections: what it forks is as a fresh interpreter is after its imports.
Each process that it makes is the child of *its* parent (CLONE_PARENT): the supervisor waits for it itself, it
dies with the supervisor, and lives on when the fork server ends.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import importlib
import os
import signal
import socket
import sys

import msgspec

from xnai.deploy.assignment import die_with
from xnai.deploy.environment import adopt
from xnai.deploy.signals import STOPPING
from xnai.deploy.starting import CLONE, Made, Order

PRELOADED = (
    "anyio._backends._asyncio",
    "nkeys",
    "uvloop",
    "xnai.agents.vitals",
    "xnai.bus.finding",
    "xnai.deploy.cli",
    "xnai.deploy.commands.run",
    "xnai.deploy.loading",
    "xnai.deploy.logs",
    "xnai.deploy.loop",
    "xnai.deploy.notify",
    "xnai.deploy.reading",
    "xnai.deploy.signals",
)
_CLONE_PARENT = 0x8000
_ARG_START, _ARG_END = 47, 48  # fields of /proc/PID/stat, counted from 0
_LONGEST = 1 << 16


def main(handle: int, parent: int) -> Order | None:
    """Fork until our parent has no more orders; in a process that was forked, return what it is to do."""
    gc.disable()  # importing makes nothing that could be collected
    die_with(parent)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # a service manager sends them to all: we end last
    os.closerange(3, handle)  # whoever started us may have let more through
    os.closerange(handle + 1, os.sysconf("SC_OPEN_MAX"))
    for name in PRELOADED:
        importlib.import_module(name)
    libc = ctypes.PyDLL(None)
    place = _room_for_arguments()
    _entitle(place, [sys.executable, "-P", "-m", "xnai.deploy.forkserver"])
    gc.freeze()  # what stands here is shared by all: marking it would copy it
    gc.enable()
    with socket.socket(fileno=handle) as orders:
        orders.sendall(b"\n")
        while (received := _receive(orders)) is not None:
            order, streams = received
            made = _fork(libc, order)
            if made is None:
                orders.close()
                _become(order, streams, place)
                return order
            for stream in streams:
                os.close(stream)
            orders.sendall(msgspec.json.encode(made) + b"\n")
    return None


def _receive(orders: socket.socket) -> tuple[Order, list[int]] | None:
    """The next order, a line of JSON, and the file descriptors that came with it."""
    data, streams, _, _ = socket.recv_fds(orders, _LONGEST, 3)
    while data and not data.endswith(b"\n"):
        more = orders.recv(_LONGEST)
        data = data + more if more else b""
    return (msgspec.json.decode(data, type=Order), streams) if data else None


def _fork(libc: ctypes.PyDLL, order: Order) -> Made | None:
    """None in the new process, as `os.fork` returns 0 there."""
    ours = os.getcwd()
    try:
        os.chdir(order.cwd)
    except OSError as error:
        return Made(errno=error.errno or errno.ENOENT)
    api, number = ctypes.pythonapi, CLONE[os.uname().machine]
    api.PyOS_BeforeFork()
    pid = libc.syscall(number, _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        api.PyOS_AfterFork_Child()
        return None
    api.PyOS_AfterFork_Parent()
    os.chdir(ours)
    return Made(pid=max(pid, 0))  # without one, the plain way is tried


def _become(order: Order, streams: list[int], place: tuple[int, int]) -> None:
    """Be what a plain start would have made."""
    os.setsid()  # a Ctrl-C at the terminal is for the supervisor to pass on, in order
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    adopt(order.env)
    arguments = [sys.executable, "-P", "-m", order.module, *order.words]
    _entitle(place, arguments)
    module = importlib.import_module(order.module)
    sys.argv[:] = [module.__file__ or order.module, *order.words]
    sys.orig_argv[:] = arguments
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def _room_for_arguments() -> tuple[int, int]:
    """Where the arguments of this process stand in its memory, from and to."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return int(fields[_ARG_START - 2]), int(fields[_ARG_END - 2])


def _entitle(place: tuple[int, int], arguments: list[str]) -> None:
    """Show other arguments to `ps`: as one text, because the last byte of the place is not 0 (proc(5))."""
    start, end = place
    if end <= start:  # the kernel does not tell
        return
    text = os.fsencode(" ".join(arguments))[: end - start - 2]
    ctypes.memmove(start, text + b"\0" * (end - start - len(text) - 1) + b"\xff", end - start)


if __name__ == "__main__":
    order = main(int(sys.argv[1]), int(sys.argv[2]))
    if order is not None:
        importlib.import_module(order.module).main(order.words)
