"""Whether a stack is up in the folder, or was killed there, and who has its port."""

from __future__ import annotations

import errno
import fcntl
import socket
from collections.abc import Iterator
from pathlib import Path

from xnai.bus.locating import ADDRESS_FILE
from xnai.deploy.doctor.finding import Case, Finding, fine, problem


def is_up(folder: Path) -> bool:
    """Whether a process keeps up the stack of this `.xnai`: it holds the lock, which ends with it."""
    try:
        with (folder / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none, or it may not be read: then it is not ours to be up
        return False
    return False


def is_stopped(case: Case, pid: int) -> bool:
    """Whether a process is halted, by SIGSTOP or by Ctrl-Z (on Linux)."""
    try:
        said = (case.root / "proc" / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return False
    return said.rpartition(") ")[2][:1] == "T"


def killed(case: Case) -> Iterator[Finding]:
    """Whether a stack went without taking its things along."""
    if is_up(case.folder):
        yield fine("stack", f"The stack in {case.project} is up.")
        return
    left = [f"its address in {case.folder / ADDRESS_FILE}"] if (case.folder / ADDRESS_FILE).exists() else []
    left += [f"its nats-server, process {pid}" for pid in servers(case)]
    if left:
        what = f"The stack in {case.project} was killed, and left {' and '.join(left)}."
        yield problem(
            "stack", what, "Start it again with `xnai up`, which clears that away; no task is lost."
        )
    else:
        yield fine("stack", f"No stack is up in {case.project}; `xnai up` starts it.")


def servers(case: Case) -> Iterator[int]:
    """The nats-servers that still run on the data of this stack (on Linux)."""
    ours = str(case.folder / "server" / "nats-server.conf").encode()
    for file in (case.folder / "server").glob("ports/*.ports"):
        pid = file.stem.rpartition("_")[2]
        if pid.isdecimal():
            try:
                words = (case.root / "proc" / pid / "cmdline").read_bytes()
            except OSError:  # it has ended
                continue
            if ours in words:
                yield int(pid)


def port(case: Case) -> Iterator[Finding]:
    """Whether our server gets the port that the settings want."""
    wanted = case.settings.server.port
    if case.settings.server.url is not None:
        yield fine("port", "The broker is an outside one: no port is needed here.")
    elif wanted == 0:
        has = _read(case.folder / "server" / "port") if is_up(case.folder) else ""
        yield fine("port", f"The server has port {has}." if has else "The server takes a free port.")
    elif is_up(case.folder) and _read(case.folder / "server" / "port") == str(wanted):
        yield fine("port", f"Port {wanted} is in the hands of our server.")
    elif (error := _refusal(wanted)) is None:
        yield fine("port", f"Port {wanted} is free.")
    elif error.errno == errno.EADDRINUSE:
        do = f"Set another port in [server] of xnai.toml, or 0; `ss -ltnp sport = :{wanted}` says who has it."
        yield problem("port", f"Port {wanted} is taken by another program.", do)
    else:
        do = "Set a port above 1023 in [server] of xnai.toml, or 0."
        yield problem("port", f"Port {wanted} cannot be had: {error.strerror}.", do)


def _refusal(port: int) -> OSError | None:
    """Why a server could not listen on this port of the loopback, if it could not."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error
    return None


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
