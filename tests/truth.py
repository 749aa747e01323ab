"""What `xnai ps` and `xnai agents` say, held against /proc: what a stack tells of itself has to be true."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
from terminal import PATIENCE, command, processes_of

Row = dict[str, Any]
WELL = ("consuming", "progressing")
_SERVES = re.compile(r" run (?:\S*/)?(\w+)\.py ")
_ROUNDED = 0.2  # seconds: uptime has one digit, /proc counts ticks, and a process begins a bit before it runs


class Stack:
    """The stack of one folder, as a test knows it.

    Attributes:
        stopped: processes that got a SIGSTOP.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stopped = set[int]()

    def processes(self, agent: str | None = None) -> dict[int, str]:
        """The processes of its agents, or of one, and of which agent each is."""
        found = {
            pid: match.group(1)
            for pid, words in processes_of(self.folder).items()
            if (match := _SERVES.search(words))
        }
        return {pid: name for pid, name in found.items() if agent in (None, name)}

    def broker(self) -> int:
        """Its nats-server."""
        running = processes_of(self.folder).items()
        (pid,) = (pid for pid, words in running if "nats-server" in words.split()[0])
        return pid

    async def does(self, *words: str, stdin: bytes = b"") -> Any:
        """What a command says as JSON."""
        done = await command(*words, "--json", folder=self.folder, stdin=stdin)
        assert done.status == 0, done.err
        return json.loads(done.out)

    async def ps(self) -> list[Row]:
        """What `xnai ps` says, which is true whatever happens meanwhile."""
        before = self.processes()
        here, ages = set(processes_of(self.folder)), {pid: age(pid) for pid in before}
        rows: list[Row] = await self.does("ps")
        here |= set(processes_of(self.folder))
        after = self.processes()
        shown = {row["pid"]: row["name"] for row in rows if row["pid"] is not None}
        assert {*before.items()} & {*after.items()} <= {*shown.items()}
        assert set(shown) <= here
        assert all(name == (before | after).get(pid, name) for pid, name in shown.items())
        for row in rows:
            assert (row["pid"] is None) == (row["level"] in ("dead", "waiting")), row
            if row["pid"] is not None:
                assert row["memory_mb"] > 5, row
                assert row["uptime"] + _ROUNDED >= (ages.get(row["pid"]) or 0.0), row
            if row["level"] == "dead":
                assert row["last_error"], row
            if row["pid"] in self.stopped:
                assert (row["level"], row["instance"]) == ("process", None), row
        return rows

    async def until_ps(self, fits: Callable[[list[Row]], bool]) -> list[Row]:
        """Ask until it says what is expected: a busy machine takes a while to come to that."""
        rows: list[Row] = []
        with anyio.move_on_after(PATIENCE):
            while not fits(rows := await self.ps()):
                pass
            return rows
        raise AssertionError(f"xnai ps goes on to say {rows}")

    async def until_well(self, **restarts: list[int]) -> list[Row]:
        """Ask until these agents have all their processes at work: one for each number, of its restarts."""
        return await self.until_ps(
            lambda rows: (
                all(row["level"] in WELL for row in rows)
                and {row["name"] for row in rows} == set(restarts)
                and all(sorted(column(rows, name, "restarts")) == restarts[name] for name in restarts)
            )
        )

    async def until_agents(self, expected: set[int]) -> dict[int, Row]:
        """Ask `xnai agents` until these hold cards, and supervisors besides; returns what they say."""
        held: dict[int, Row] = {}
        with anyio.move_on_after(PATIENCE):
            while set(held) != expected:
                cards = await self.does("agents")
                said = [card["capabilities"]["extensions"][0]["params"] for card in cards]
                held = {each["pid"]: each for each in said if "supervisor" not in each["roles"]}
            return held
        raise AssertionError(f"xnai agents goes on to say {held}, and not {expected}")


def column(rows: list[Row], agent: str, name: str) -> list[Any]:
    """One value of each process of an agent."""
    return [row[name] for row in rows if row["name"] == agent]


def age(pid: int) -> float | None:
    """Seconds since a process began; None if it has ended."""
    try:
        said = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    ticks = int(said.rpartition(b") ")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def public_keys(members: list[Row], machine: str) -> dict[str, list[str]]:
    """The keys of those who live on a machine, of which `xnai keys` tells."""
    return {each["name"]: each["keys"] for each in members if each["machine"] == machine}
