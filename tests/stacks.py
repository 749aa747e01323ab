"""Folders with a stack of agents that a test writes, and their processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from terminal import SMALL, processes_of

from xnai.bus import Bus, open_bus
from xnai.bus.locating import ADDRESS_FILE, STACK_FOLDER, Address, read_address

QUICK = """
[supervisor]
quick_deaths = 2
first_delay = "10ms"
"""
_SKILL = "\n@agent.skill\nasync def pid() -> int:\n    import os\n    return os.getpid()\n"


def write_agent(folder: Path, name: str, source: str = "") -> None:
    """An agent `name` in `name.py`, with a skill that says which process answers."""
    head = f"import sys\nfrom xnai.agents import Agent\nagent = Agent({name!r})\n"
    (folder / f"{name}.py").write_text(f"{head}{source}{_SKILL}")


def write_stack(folder: Path, more: str = "", **tables: str) -> Path:
    """The settings of a stack with these agents, each with the lines of its table."""
    texts = [f'[agents.{name}]\nmodule = "{name}.py"\n{text}\n' for name, text in tables.items()]
    (folder / "xnai.toml").write_text("\n".join([SMALL, more, *texts]))
    return folder


def address(folder: Path) -> Address:
    """Where the broker of a stack listens."""
    return read_address(folder / STACK_FOLDER / ADDRESS_FILE)


@asynccontextmanager
async def visitor(folder: Path) -> AsyncIterator[Bus]:
    """A bus of the test on the stack of a folder."""
    async with open_bus(address(folder)) as bus:
        yield bus


def processes(folder: Path, name: str) -> list[int]:
    """The processes of an agent of `write_stack`."""
    return sorted(pid for pid, words in processes_of(folder).items() if f"{name}.py" in words)
