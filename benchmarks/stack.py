"""Whole stacks as `xnai up` runs them: how fast they come up, what they hold and take, how they come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from shutil import rmtree

import anyio

from benchmarks.harness import Figure, Program, Size, driven, ended, figure, in_turns, plain_environment
from benchmarks.processes import cpu, resident
from benchmarks.stages import FLOOR, floor_server
from xnai.bus import open_bus
from xnai.bus.locating import ADDRESS_FILE, STACK_FOLDER, Address, read_address

UP_BAR = 1 / 1.5
MOST_MEMORY = 45.0  # MB, of the supervisor
MOST_CPU = 5.0  # per cent of one core
MOST_MEMORY_OF_ALL = 2_200.0  # MB
LONGEST_SILENCE = 3.0  # seconds
XNAI = (sys.executable, "-P", "-m", "xnai.deploy.cli")
_SAMPLES = 10
_PATIENCE = 60.0
_LOOK_EVERY = 0.005
_AGENT = """\
from xnai.agents import Agent

agent = Agent("{name}")


@agent.skill
async def upper(text: str) -> str:
    return text.upper()
"""


async def up_ten_agents(size: Size) -> Figure:
    """Milliseconds from the command `xnai up` in an empty folder to ten agents consuming. Less is better.

    The floor: a server and ten raw nats-py programs, started together, until each has connected, bound a
    consumer and pulled.
    """
    with _folder(size.together) as folder:

        async def ours() -> float:
            rmtree(folder / STACK_FOLDER, ignore_errors=True)
            began = time.perf_counter()
            async with up(folder):
                return (time.perf_counter() - began) * 1e3

        async def raw() -> float:
            began = time.perf_counter()
            async with AsyncExitStack() as stack:
                url = await stack.enter_async_context(floor_server())

                async def program() -> None:
                    await stack.enter_async_context(driven(FLOOR, "start", url))

                async with anyio.create_task_group() as programs:
                    for _ in range(size.together):
                        programs.start_soon(program)
                return (time.perf_counter() - began) * 1e3

        await ours()
        await raw()
        pairs = await in_turns(ours, raw, 2 * size.pairs)
    return figure("up_ten_agents", pairs, unit="ms", bar=UP_BAR, less_is_better=True)


async def supervisor_memory_mb(size: Size) -> Figure:
    """Resident memory of `xnai up` with ten agents. Less is better. The floor: 45."""
    pairs = []
    with _folder(size.together) as folder:
        for _ in range(size.pairs):
            async with up(folder) as stack:
                await anyio.sleep(size.settling)
                pairs.append((resident(stack.pid), MOST_MEMORY))
    return figure("supervisor_memory_mb", pairs, unit="MB", bar=1.0, less_is_better=True)


async def fifty_idle_cpu(size: Size) -> Figure:
    """What 50 agents, their supervisor and its fork server take of one core while nothing is asked.

    Less is better. The floor: 5 %. The broker is apart: its share hangs on `sync_interval`.
    """
    pairs = []
    with _folder(size.fleet) as folder:
        async with up(folder) as stack:
            await anyio.sleep(size.settling)
            ours = [pid for pid, words in family(stack.pid) if "nats-server" not in words]
            for _ in range(_SAMPLES):
                began, before = time.perf_counter(), sum(map(cpu, ours))
                await anyio.sleep(size.window)
                used = max(sum(map(cpu, ours)) - before, 1e-9)  # in a short window none may have run
                pairs.append((100 * used / (time.perf_counter() - began), MOST_CPU))
    return figure("fifty_idle_cpu", pairs, unit="% of a core", bar=1.0, less_is_better=True)


async def fifty_memory_mb(size: Size) -> Figure:
    """Memory of a stack with 50 agents, broker and all: what is shared counts once (PSS). Less is better.

    The floor: 2,200.
    """
    pairs = []
    with _folder(size.fleet) as folder:
        for _ in range(2):
            async with up(folder) as stack:
                await anyio.sleep(size.settling)
                pairs.append((sum(share(pid) for pid, _ in family(stack.pid)), MOST_MEMORY_OF_ALL))
    return figure("fifty_memory_mb", pairs, unit="MB", bar=1.0, less_is_better=True)


async def broker_restart(size: Size) -> Figure:
    """Seconds from the moment at which a broker that was killed listens again until 50 agents have each
    answered a task. Less is better. The floor: 3."""
    pairs = []
    with _folder(size.fleet) as folder:
        async with up(folder) as stack:
            where = read_address(folder / STACK_FOLDER / ADDRESS_FILE)
            for _ in range(size.pairs):
                await anyio.sleep(size.settling)
                pairs.append((await _restart(stack, where, size.fleet), LONGEST_SILENCE))
    return figure("broker_restart", pairs, unit="s", bar=1.0, less_is_better=True)


async def _restart(stack: Program, where: Address, agents: int) -> float:
    (broker,) = [pid for pid, words in family(stack.pid) if "nats-server" in words]
    os.kill(broker, signal.SIGKILL)
    with anyio.fail_after(_PATIENCE):
        while not await _listens(where, broker):  # noqa: ASYNC110  # nobody tells of it
            await anyio.sleep(_LOOK_EVERY)
        began = time.perf_counter()
        async with open_bus(where) as bus:

            async def ask(number: int) -> None:
                assert await bus.call(f"agent-{number}.upper", "hello", str) == "HELLO"

            async with anyio.create_task_group() as asked:
                for number in range(agents):
                    asked.start_soon(ask, number)
    return time.perf_counter() - began


async def _listens(where: Address, before: int) -> bool:
    """Whether a broker answers there that is another one than before."""
    pids = [pid for pid, words in family(where.pid or 0) if "nats-server" in words]
    if pids in ([], [before]):
        return False
    try:
        await (await anyio.connect_tcp("127.0.0.1", int(where.url.rpartition(":")[2]))).aclose()
    except OSError:
        return False
    return True


@contextmanager
def _folder(agents: int) -> Iterator[Path]:
    """A folder whose settings have so many agents, each with a module of its own."""
    with tempfile.TemporaryDirectory(prefix="xnai-bench-") as place:
        folder, tables = Path(place), ['[limits]\nlog = "16MiB"\nblobs = "16MiB"\n']
        for number in range(agents):
            name = f"agent-{number}"
            (folder / f"{name}.py").write_text(_AGENT.format(name=name))
            tables.append(f'[agents.{name}]\nmodule = "{name}.py"\n')
        (folder / "xnai.toml").write_text("\n".join(tables))
        yield folder


@asynccontextmanager
async def up(folder: Path) -> AsyncIterator[Program]:
    """`xnai up`; on entry all its agents consume."""
    command = [*XNAI, "up", "--json"]
    process = await anyio.open_process(
        command, cwd=folder, env=plain_environment(), stdin=None, stderr=subprocess.DEVNULL
    )
    async with ended(process):
        stack = Program(process)
        facts = await stack.answer()
        assert "missing" not in facts, facts
        yield stack


def family(pid: int) -> list[tuple[int, str]]:
    """A process and its children, with their arguments."""
    found = [(pid, arguments(pid))]
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [(int(child), arguments(int(child))) for child in (task / "children").read_text().split()]
    return found


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """All processes that it and its children have started, with their arguments."""
    for child, words in family(pid)[1:]:
        yield child, words
        yield from descendants(child)


def arguments(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except FileNotFoundError:  # it has just ended
        return ""


def share(pid: int) -> float:
    """Megabytes of a process, where n processes share a page an n-th of it."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("Pss:")]
    return int(line.split()[1]) * 1024 / 1e6
