"""At a terminal: commands as real processes, what they print, and what they leave behind."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.abc import ByteReceiveStream, Process

from xnai.bus.background import background_tasks
from xnai.deploy.members import lines

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
XNAI = (sys.executable, "-P", "-m", "xnai.deploy.cli")
PATIENCE = 60.0  # a bound for what hangs; a loaded machine takes a while
_STOP = 30.0

SMALL = """
[limits]
log = "16MiB"
blobs = "16MiB"
"""


def settings(*agents: str, more: str = SMALL) -> str:
    """A settings file with these examples as agents."""
    tables = [f'[agents.{name}]\nmodule = "{EXAMPLES / name}.py"\n' for name in agents]
    return "\n".join([more, *tables])


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, without what would lead to another bus, and with `extra`."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("XNAI_")}
    return {**ours, "PYTHONUNBUFFERED": "1", **(extra or {})}


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str


async def command(
    *words: str | Path,
    folder: Path,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    program: tuple[str, ...] = XNAI,
) -> Done:
    """Run `xnai` with these words to its end."""
    with anyio.fail_after(PATIENCE):
        done = await anyio.run_process(
            [*program, *map(str, words)], input=stdin, cwd=folder, env=environment(env), check=False
        )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


class Program:
    """A process that goes on, and what it has printed, line by line."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.out, self.err = list[str](), list[str]()
        self._news = anyio.Event()

    @property
    def pid(self) -> int:
        return self.process.pid

    async def says(self, words: str, *, times: int = 1) -> str:
        """Wait until so many lines with these words stand on stdout or stderr; returns the last."""
        return await self._until(lambda line: words in line, times)

    async def prints(self, line: str) -> None:
        """Wait until exactly this line stands there."""
        await self._until(lambda printed: printed == line, 1)

    async def _until(self, fits: Callable[[str], bool], times: int) -> str:
        with anyio.move_on_after(PATIENCE):
            while len(found := [line for line in (*self.out, *self.err) if fits(line)]) < times:
                if self._news.is_set():
                    self._news = anyio.Event()
                await self._news.wait()
            return found[-1]
        raise TimeoutError("it said:\n" + "\n".join((*self.out, *self.err)[-60:]))

    async def ends(self) -> int:
        """Wait for the end; returns the exit status."""
        with anyio.fail_after(PATIENCE):
            return await self.process.wait()

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return await self.ends()

    async def read(self, stream: ByteReceiveStream, into: list[str]) -> None:
        async for line in lines(stream):
            into.append(line)
            self._news.set()


@asynccontextmanager
async def program(
    *words: str | Path, folder: Path, env: Mapping[str, str] | None = None, start: tuple[str, ...] = XNAI
) -> AsyncIterator[Program]:
    """A command that goes on; at the end it is asked to stop, and killed if it does not."""
    process = await anyio.open_process(
        [*start, *map(str, words)], stdin=None, cwd=folder, env=environment(env)
    )
    running = Program(process)
    assert process.stdout is not None
    assert process.stderr is not None
    async with process, background_tasks() as tasks:
        tasks.start_soon(running.read, process.stdout, running.out)
        tasks.start_soon(running.read, process.stderr, running.err)
        try:
            yield running
        finally:
            with anyio.move_on_after(_STOP, shield=True):
                if process.returncode is None:
                    process.terminate()
                await process.wait()


@asynccontextmanager
async def up(folder: Path, *options: str, env: Mapping[str, str] | None = None) -> AsyncIterator[Program]:
    """A stack that is ready."""
    async with program("up", *options, folder=folder, env=env) as stack:
        await stack.prints("ready")
        yield stack


def processes_of(folder: Path) -> dict[int, str]:
    """The processes that run in a folder or were told of it, by id, and their arguments."""
    found = {}
    for place in Path("/proc").iterdir():
        if place.name.isdecimal() and int(place.name) != os.getpid():
            try:
                words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                works_in = (place / "cwd").readlink()
            except OSError:  # it has just ended, or is not ours
                continue
            if words and (str(folder) in words or works_in.is_relative_to(folder)):
                found[int(place.name)] = words
    return found


def is_there(pid: int) -> bool:
    """Whether a process lives; one that has ended and nobody asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def until(condition: Callable[[], bool]) -> None:
    """Poll a file or /proc, of which nobody tells."""
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110  # there is no event to wait for
            await anyio.sleep(0.02)


def copy_examples(folder: Path) -> None:
    """The examples as a user has them: beside the settings."""
    shutil.copytree(EXAMPLES, folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
