"""The run: a stack as `xnai up` makes it, callers that never rest, an engine that is killed now and then."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import anyio
import msgspec

from benchmarks import stack
from benchmarks.harness import Program, plain_environment
from benchmarks.processes import resident
from benchmarks.soak.book import Book, Memory, Verdict
from benchmarks.soak.callers import AGENT, ask
from benchmarks.soak.cases import SENDERS, Case, Mix
from xnai.agents.inference.requests import InferenceStatus
from xnai.bus import Bus, open_bus
from xnai.bus.locating import ADDRESS_FILE, STACK_FOLDER, read_address
from xnai.deploy.supervisor.asking import view
from xnai.deploy.supervisor.logfiles import FOLDER as LOGS
from xnai.deploy.supervisor.orders import Row
from xnai.protocol import TaskState
from xnai.protocol.events import OUTCOME

AGENT_BOUND, ENGINE_BOUND = 8.0, 12.0  # MB in 10,000 requests
_WARM = 0.2  # the share of the run behind which memory has to be steady
_LOOK_EVERY = 0.5
_SAMPLED = 200  # tasks whose whole story is read at the end
_QUIET = 120.0  # seconds in which all must have ended, once nobody asks any more
_CONTEXT = 1_024


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How long, and how much.

    Attributes:
        seconds, requests: it goes on until both are over.
        callers: that ask at the same time, each one thing after the other.
        kills: how often the engine is killed.
        queue: how many requests may wait in it.
    """

    model: Path
    seconds: float = 600.0
    requests: int = 20_000
    seed: int = 1
    callers: int = 24
    kills: int = 10
    queue: int = 48


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What is printed, and whether all of it holds."""

    lines: list[str]
    verdicts: list[Verdict]

    @property
    def holds(self) -> bool:
        return all(verdict.holds for verdict in self.verdicts)


async def soak(plan: Plan) -> Report:
    """Ask, kill, compare; about twice as long as planned at most on a slow machine, or TimeoutError."""
    book = Book()
    async with _open_stack(plan) as place, AsyncExitStack() as links:
        buses = {
            name: await links.enter_async_context(open_bus(place.address, name=name)) for name in SENDERS
        }
        run = _Run(plan, book, place, buses)
        return await run.through()


class _Stack:
    """The stack, and who is who in it."""

    def __init__(self, folder: Path, program: Program) -> None:
        self.folder, self.program = folder, program
        self.address = read_address(folder / STACK_FOLDER / ADDRESS_FILE)

    async def agent(self) -> Row:
        (row,) = [row for row in (await view(self.folder)).rows if row.name == AGENT]
        return row

    def log(self) -> str:
        """What the agent has printed lately."""
        return (self.folder / STACK_FOLDER / LOGS / f"{AGENT}.log").read_text(errors="replace")

    def engine(self, agent: int) -> int | None:
        """The engine's process, if there is one now."""
        with suppress(OSError):  # a thread of the agent has just ended
            for pid, words in stack.family(agent):
                if "agents.inference.engine" in words:
                    return pid
        return None


class _Run:
    """One run on one stack."""

    def __init__(self, plan: Plan, book: Book, place: _Stack, buses: dict[str, Bus]) -> None:
        self._plan, self._book, self._place, self._buses = plan, book, place, buses
        self._mix = Mix(plan.seed, context=_CONTEXT, queue=plan.queue)
        self._numbers = itertools.count()
        self._began = 0.0

    async def through(self) -> Report:
        agent = await self._place.agent()
        assert agent.pid is not None
        for case in self._mix.alone():
            await self._ask(case)
        self._began = time.monotonic()
        with anyio.fail_after(2 * self._plan.seconds + self._plan.requests / 5 + _QUIET):
            async with anyio.create_task_group() as watching:
                watching.start_soon(self._watch, agent.pid)
                watching.start_soon(self._kill, agent.pid)
                async with anyio.create_task_group() as callers:
                    for _ in range(self._plan.callers):
                        callers.start_soon(self._call_on)
                watching.cancel_scope.cancel()
        took = time.monotonic() - self._began
        status = await self._quiet()
        verdicts = await self._verdicts(status, agent)
        return Report(lines=[self._head(took, status), *self._book.lines()], verdicts=verdicts)

    def _progress(self) -> float:
        """How much of the run is over: 1 at its end."""
        seconds = (time.monotonic() - self._began) / max(self._plan.seconds, 1e-3)
        return min(seconds, len(self._book.told) / max(self._plan.requests, 1))

    async def _call_on(self) -> None:
        while self._progress() < 1:
            async with anyio.create_task_group() as tasks:
                for case in self._mix.next():
                    tasks.start_soon(self._ask, case)

    async def _ask(self, case: Case) -> None:
        self._book.write(await ask(self._buses[case.sender], case, f"soak-{next(self._numbers)}"))

    async def _watch(self, agent: int) -> None:
        """Write down what the agent and its engine hold, for ever."""
        while True:
            if engine := self._place.engine(agent):
                with suppress(OSError, IndexError):  # it has just been killed
                    held = Memory(time.monotonic(), resident(agent), resident(engine), engine)
                    self._book.memory.append(held)
            await anyio.sleep(_LOOK_EVERY)

    async def _kill(self, agent: int) -> None:
        """Kill the engine at even distances."""
        for number in range(self._plan.kills):
            engine = None
            while engine is None or self._progress() < (number + 1) / (self._plan.kills + 1):
                await anyio.sleep(_LOOK_EVERY / 5)
                engine = self._place.engine(agent)
            self._book.kills.append(time.monotonic())
            os.kill(engine, signal.SIGKILL)

    async def _quiet(self) -> InferenceStatus:
        """How things stand once nobody asks any more, and what was left behind has been dropped."""
        look = Case(kind="status", skill="status", payload=None, may=frozenset({"seen"}))
        status = InferenceStatus(running=-1)
        with anyio.move_on_after(_QUIET):
            while status.running or status.waiting or status.paused:
                await anyio.sleep(_LOOK_EVERY)
                told = await ask(self._buses[look.sender], look, f"soak-{next(self._numbers)}")
                status = told.value or status
                self._book.write(told)
        return status

    async def _verdicts(self, status: InferenceStatus, before: Row) -> list[Verdict]:
        book, plan = self._book, self._plan
        rows = await self._rows()
        agent = await self._place.agent()
        completed = sum(state is TaskState.COMPLETED for state in rows.values())
        left = f"{status.running} running, {status.waiting} waiting, {status.paused} paused"
        traces = self._place.log().count("Traceback (most recent call last)")
        same = agent.pid == before.pid and status.restarts == len(book.kills)
        warm = self._began + _WARM * plan.seconds
        return [
            book.outcomes(rows),
            Verdict(
                "no outcome twice", agent.done == completed, f"{agent.done} stored, {completed} completed"
            ),
            await self._stories(),
            book.behaved(),
            book.same_answers(),
            Verdict("nothing left", (status.running, status.waiting, status.paused) == (0, 0, 0), left),
            Verdict("no traceback", not traces, f"{traces} in the log of the agent"),
            Verdict("died when killed", same, f"{len(book.kills)} kills, {status.restarts} restarts"),
            book.steady("agent", warm=warm, bound=AGENT_BOUND),
            book.steady("engine", warm=warm, bound=ENGINE_BOUND),
        ]

    async def _rows(self) -> dict[tuple[str, str], TaskState]:
        """The state of each request as the broker holds it, once all have ended."""
        rows: dict[tuple[str, str], TaskState] = {}
        with anyio.move_on_after(_QUIET):
            while not rows or any(not state.terminal for state in rows.values()):
                for name, bus in self._buses.items():
                    async for row in bus.tasks.all(agent=AGENT):
                        rows[name, row.id] = row.state
        return rows

    async def _stories(self) -> Verdict:
        """Of some requests, the events that are stored: one outcome, and nothing behind it."""
        keys = random.Random(self._plan.seed).sample(
            list(self._book.told), min(_SAMPLED, len(self._book.told))
        )
        wrong = 0
        for sender, id in keys:
            with anyio.fail_after(_QUIET):
                kinds = [event.kind async for event in self._buses[sender].subscribe(id)]
            wrong += kinds.count(OUTCOME) != 1 or kinds[-1] != OUTCOME
        return Verdict("stories end once", not wrong, f"{wrong} of {len(keys)} do not")

    def _head(self, took: float, status: InferenceStatus) -> str:
        asked, kills = len(self._book.told), len(self._book.kills)
        return (
            f"seed {self._plan.seed}: {asked:,} requests in {took:.0f} s, {asked / took:.1f} a second; "
            f"the engine was killed {kills} times; {status.shared:,} answers shared, {status.reused:,} reused"
        )


@asynccontextmanager
async def _open_stack(plan: Plan) -> AsyncIterator[_Stack]:
    """A stack with the inference agent alone, and keys for those who ask."""
    with tempfile.TemporaryDirectory(prefix="xnai-soak-") as name:
        folder = Path(name)
        settings = {
            "model": str(plan.model),
            "context": _CONTEXT,
            "slots": 8,
            "queue": plan.queue,
            "cache": 5.0,
            "cache_size": 1,
        }
        lines = [f"{key} = {msgspec.json.encode(value).decode()}" for key, value in settings.items()]
        (folder / "xnai.toml").write_text("\n".join(["[agents.inference.settings]", *lines, ""]))
        async with stack.up(folder) as program:
            for sender in SENDERS:
                words = [sys.executable, "-P", "-m", "xnai.deploy.cli", "keys", "add", sender]
                await anyio.run_process(words, cwd=folder, env=plain_environment())
            yield _Stack(folder, program)
