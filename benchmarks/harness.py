"""Comparing two programs that stand side by side: pairs of short slices in turns, medians, quartiles.

The machine may be noisy. What both sides of a pair feel alike falls out of their ratio, so only ratios mean
anything, and both are taken within a second of each other, in an order drawn by chance.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import anyio
import msgspec
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from xnai.bus.server import find_binary

ROOT = Path(__file__).resolve().parent.parent
_LONGEST_LINE = 1 << 20
_LONGEST_ANSWER = 180.0  # seconds
_STOPPING = 10.0
_NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"
"""With it our modules are compiled at each start, while those of installed packages are not."""

Measure = Callable[[], Awaitable[float]]
Pairs = Sequence[tuple[float, float]]
T = TypeVar("T")


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured. The defaults are what the bars are about; tests take less.

    Attributes:
        pairs, slices: how many pairs of long measurements, and of short ones.
        tasks, calls: of one short slice, at once and one after another.
        backlog, small_backlog: tasks that wait before a worker starts.
        stored: outcomes in a grown log.
        agents, window: processes that idle, and for how many seconds in each of ten samples.
        settling: seconds after which a process that has started is idle, and a task is no longer fresh.
        cancels: tasks that are cancelled in one slice.
        together, fleet: agents of a stack that comes up, and of one that is measured while it is.
        answers: pairs of short answers of a model.
        crowds, talks: rounds of many callers, with one prompt each and with several.
        drops: answers that are ended early.
        shape, wide: models by their names in `benchmarks.inference.shapes`; one with a larger vocabulary.
    """

    pairs: int = 7
    slices: int = 31
    tasks: int = 1_500
    calls: int = 150
    backlog: int = 10_000
    small_backlog: int = 500
    stored: int = 200_000
    agents: int = 20
    window: float = 3.0
    settling: float = 1.0
    cancels: int = 100
    together: int = 10
    fleet: int = 50
    answers: int = 150
    crowds: int = 9
    talks: int = 5
    drops: int = 50
    shape: str = "medium"
    wide: str = "medium150"


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """What is printed: medians of both sides and of the ratios; more than 1 is better.

    Attributes:
        floor: what ours is compared with: the raw program, another state of ours, or a limit.
        bar: the least ratio that is good enough.
        quartiles: of the ratios.
        pairs: how many there were.
    """

    name: str
    ours: float
    floor: float
    ratio: float
    unit: str
    bar: float
    holds: bool
    quartiles: tuple[float, float]
    pairs: int


def figure(name: str, pairs: Pairs, *, unit: str, bar: float, less_is_better: bool = False) -> Figure:
    """The figure of pairs (ours, floor). The ratio is floor / ours where less is better."""
    ratios = [floor / ours if less_is_better else ours / floor for ours, floor in pairs]
    lower, middle, upper = (round(each, 3) for each in statistics.quantiles(ratios, n=4, method="inclusive"))
    bar = round(bar, 3)  # what is printed is what is compared
    return Figure(
        name=name,
        ours=_rounded(statistics.median(ours for ours, _ in pairs)),
        floor=_rounded(statistics.median(floor for _, floor in pairs)),
        ratio=middle,
        unit=unit,
        bar=bar,
        holds=middle >= bar,
        quartiles=(lower, upper),
        pairs=len(pairs),
    )


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


async def in_turns(ours: Measure, floor: Measure, count: int) -> list[tuple[float, float]]:
    """So many pairs, each of both measurements, in an order drawn anew each time."""
    pairs = []
    for _ in range(count):
        values: dict[Measure, float] = {}
        for measure in random.sample((ours, floor), 2):
            values[measure] = await measure()
        pairs.append((values[ours], values[floor]))
    return pairs


async def rounds(sides: Mapping[str, Callable[[int], Awaitable[T]]], count: int) -> list[dict[str, T]]:
    """As `in_turns` for any number of sides: what each gave in each round, of which it is told the number."""
    found = []
    for number in range(count):
        values = {}
        for name in random.sample(sorted(sides), len(sides)):
            values[name] = await sides[name](number)
        found.append(values)
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all do not exceed."""
    return sorted(values)[max(0, round(share * len(values)) - 1)]


class Program:
    """A process that does what the lines of its input say and answers each with one line of JSON."""

    def __init__(self, process: Process) -> None:
        assert process.stdout is not None
        self._process = process
        self._lines = BufferedByteReceiveStream(process.stdout)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, *words: object) -> Any:
        """Its answer; TimeoutError after three minutes, anyio.IncompleteRead when it has died."""
        await self.tell(*words)
        return await self.answer()

    async def tell(self, *words: object) -> None:
        """One line of its input."""
        assert self._process.stdin is not None
        await self._process.stdin.send(" ".join(map(str, words)).encode() + b"\n")

    async def line(self, patience: float = _LONGEST_ANSWER) -> str:
        """Its next line, as it is."""
        with anyio.fail_after(patience):
            return (await self._lines.receive_until(b"\n", _LONGEST_LINE)).decode()

    async def answer(self, patience: float = _LONGEST_ANSWER) -> Any:
        return msgspec.json.decode(await self.line(patience))


def plain_environment() -> dict[str, str]:
    """Ours, without what would lead to another bus or keep bytecode from being written."""
    return {
        name: value
        for name, value in os.environ.items()
        if name != _NO_BYTECODE and not name.startswith("XNAI_")
    }


@asynccontextmanager
async def program(
    *arguments: object, stdin: int | None = subprocess.PIPE, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Program]:
    """A Python program, `python -m` with these arguments, that ends with the context.

    The end of its input tells it to; one without input is told by SIGTERM.
    """
    command = [sys.executable, "-m", *map(str, arguments)]
    process = await anyio.open_process(
        command, cwd=ROOT, env={**plain_environment(), **(environment or {})}, stdin=stdin, stderr=None
    )
    async with ended(process):
        yield Program(process)


@asynccontextmanager
async def driven(*arguments: object) -> AsyncIterator[Program]:
    """As `program`, one that says "ready" first. On entry it has."""
    async with program(*arguments) as started:
        said = await started.answer()
        assert said == "ready", said
        yield started


@asynccontextmanager
async def ended(process: Process) -> AsyncIterator[None]:
    """Ends a program with the context; one that does not heed it is killed."""
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            if process.stdin is not None:
                await process.stdin.aclose()
            else:
                process.terminate()
            with anyio.move_on_after(_STOPPING):
                await process.wait()
            if process.returncode is None:
                process.kill()
            await process.aclose()


@asynccontextmanager
async def bare_server(*flags: str) -> AsyncIterator[dict[str, list[str]]]:
    """A nats-server with a store and without anything else; yields its addresses by protocol."""
    with tempfile.TemporaryDirectory(prefix="xnai-bench-") as folder:
        command = [find_binary(), "-js", "-a", "127.0.0.1", "-p", "-1", *flags]
        command += ["--ports_file_dir", folder, "-sd", folder]
        process = await anyio.open_process(
            command, stdin=None, stdout=None, stderr=subprocess.DEVNULL, start_new_session=True
        )
        async with ended(process):
            yield await _ports(Path(folder))


async def _ports(folder: Path) -> dict[str, list[str]]:
    until = time.monotonic() + _STOPPING
    while time.monotonic() < until:
        for file in folder.glob("*.ports"):
            if text := file.read_bytes():
                return msgspec.json.decode(text, type=dict[str, list[str]])
        await anyio.sleep(0.005)
    raise TimeoutError("nats-server did not come up")
