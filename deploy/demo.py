"""The main job from end to end, on a stack of its own: `python -m xnai.deploy.demo [FOLDER]`.

Brings a stack up in a temporary folder, takes documents in (this project's and Python's manual, or FOLDER),
asks three questions, compares every cited passage with its source, and takes the stack down.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
from typing import Any, NoReturn

import anyio
import msgspec
from anyio.abc import Process

from xnai.agents.curation.documents import Document
from xnai.agents.curation.sources import TOPICS, read_sources
from xnai.bus import Bus, open_bus
from xnai.bus.background import background_tasks
from xnai.bus.locating import ADDRESS_FILE, login_name, read_address
from xnai.deploy.answering import Citation, citations
from xnai.deploy.commands.ask import search, show_passages
from xnai.deploy.commands.ingest import ingest, make_request
from xnai.deploy.environment import PREFIX, for_child
from xnai.deploy.loop import run
from xnai.deploy.members import lines
from xnai.deploy.output import complain, say, show
from xnai.deploy.signals import STOPPING, first_of
from xnai.deploy.statuses import Status, innermost
from xnai.protocol import XnaiError
from xnai.protocol.subjects import log_stream, task_stream

QUESTIONS = (
    "What happens to a task when the process that works on it is killed?",
    "How does the with statement work?",
    "Why can a task have only one outcome?",
)
_ROOT = Path(__file__).resolve().parent.parent
_READY_TIMEOUT, _STOP_TIMEOUT = 120.0, 60.0
_PASSAGES = 2  # shown for a question
_ERROR = re.compile(r"error\[\w+\]: (.*)")


class DemoFailed(XnaiError):
    """The main job did not succeed."""

    code = "demo_failed"


class Stack(msgspec.Struct, frozen=True):
    """What `xnai up --json` says once all agents take tasks."""

    ready: list[str]
    folder: str


class Clock:
    """Seconds since the last lap, and since the start."""

    def __init__(self) -> None:
        self._began = self._lap = time.monotonic()

    def lap(self) -> float:
        before, self._lap = self._lap, time.monotonic()
        return self._lap - before

    def total(self) -> float:
        return time.monotonic() - self._began


async def demo(paths: Sequence[str], questions: Sequence[str]) -> int:
    """Do it all; SIGINT and SIGTERM take the stack down at once.

    Raises:
        DemoFailed: a part of it did not work, and which.
    """
    with (
        tempfile.TemporaryDirectory(prefix="xnai-demo-") as folder,
        anyio.open_signal_receiver(*STOPPING) as signals,
        anyio.CancelScope() as scope,
    ):

        async def listen() -> None:
            await first_of(signals)
            tell("Taking the stack down.")
            scope.cancel()

        async with background_tasks() as tasks:
            tasks.start_soon(listen)
            await _demo(Path(folder), paths, questions)
    return Status.INTERRUPTED if scope.cancelled_caught else Status.DONE


async def _demo(folder: Path, paths: Sequence[str], questions: Sequence[str]) -> None:
    clock = Clock()
    tell("Bringing a stack up, each agent in a process of its own.")
    async with _stack_up(folder) as stack:
        tell(f"{', '.join(stack.ready)} take tasks after {clock.lap():.1f} s.\n")
        address = read_address(Path(stack.folder) / ADDRESS_FILE)
        async with open_bus(address, name=login_name()) as bus:
            tell(f"Taking in {', '.join(map(_shortened, paths))}.")
            await ingest(bus, make_request(paths), as_json=False)
            ingested = clock.lap()
            cited = [passage for question in questions for passage in await _ask(bus, question)]
            asked = clock.lap()
            _verify(cited, paths)
            tell(f"All {len(cited)} passages stand word for word in their sources.\n")
        async with open_bus(address.as_system(), name="demo") as bus:
            stored = await _stored(bus, stack.ready)
    names = ", ".join(("xnai up", "nats-server", *stack.ready))
    tell(
        f"processes  {2 + len(stack.ready)}: {names}\n"
        f"tasks      {stored[0]:,}, all done\n"
        f"messages   {sum(stored):,} stored by the broker: {stored[0]:,} tasks, {stored[1]:,} events\n"
        f"times      {ingested:.1f} s to take in, {asked / len(questions):.2f} s for a question, "
        f"{clock.total():.1f} s in all"
    )


def tell(text: str) -> None:
    """Print for the person who watches."""
    show(text, as_json=False)


def _shortened(path: str) -> str:
    return str(Path(path).relative_to(_ROOT)) if Path(path).is_relative_to(_ROOT) else path


# The stack


@asynccontextmanager
async def _stack_up(folder: Path) -> AsyncIterator[Stack]:
    """A stack with the default agents, in a folder that holds nothing, while the context is open.

    Raises:
        DemoFailed: it does not come up, or does not go down in order.
    """
    plain = {name: value for name, value in for_child({}).items() if not name.startswith(PREFIX)}
    process = await anyio.open_process(
        [sys.executable, "-P", "-m", "xnai.deploy.cli", "up", "--json"],
        cwd=folder,
        env=plain,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
        start_new_session=True,  # a Ctrl-C at the terminal is for us to pass on
    )
    assert process.stdout is not None
    said = lines(process.stdout)
    async with background_tasks() as tasks:
        try:
            stack = await _ready(said)
            tasks.start_soon(_overhear, said)
            yield stack
        finally:
            with anyio.CancelScope(shield=True):
                await _take_down(process)
    if process.returncode != 0:
        raise DemoFailed(f"The stack ended with status {process.returncode}.")


async def _ready(said: AsyncIterator[str]) -> Stack:
    """Wait until all agents take tasks; the first error that one of them names ends the wait."""
    last = "it said nothing."
    with anyio.move_on_after(_READY_TIMEOUT):
        async for last in said:
            if last.startswith("{"):
                return msgspec.json.decode(last, type=Stack)
            if error := _ERROR.search(last):
                raise DemoFailed(f"The stack does not come up: {error[1]}")
    raise DemoFailed(f"The stack does not come up. Its last words: {last}")


async def _overhear(said: AsyncIterator[str]) -> None:
    """Take what the stack goes on to say, so that it can go on saying it; pass on what went wrong."""
    async for line in said:
        if _ERROR.search(line):
            say(line)


async def _take_down(process: Process) -> None:
    process.terminate()
    with anyio.move_on_after(_STOP_TIMEOUT):
        await process.wait()
        return
    os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


# The questions


async def _ask(bus: Bus, question: str) -> tuple[Citation, ...]:
    found = citations(await search(bus, question, limit=_PASSAGES))
    tell(f"\n{question}\n")
    if not found:
        raise DemoFailed("Nothing was found: the documents hold no text.")
    show_passages(found)
    return found


def _verify(cited: Iterable[Citation], paths: Sequence[str]) -> None:
    """Compare passages with their sources, read anew. Raises DemoFailed."""
    spans: dict[str, list[Citation]] = {}
    for passage in cited:
        spans.setdefault(passage.source, []).append(passage)
    for item in read_sources(paths):
        if not isinstance(item, Document):
            continue
        for passage in spans.pop(item.source, ()):
            if item.text[passage.start : passage.end] != passage.text:
                raise DemoFailed(f"{passage.source} does not say what passage {passage.number} cites.")
    if spans:
        raise DemoFailed(f"Passages cite {', '.join(spans)}, and there is no such source.")


async def _stored(bus: Bus, agents: Iterable[str]) -> tuple[int, int]:
    """How many tasks, and how many events of tasks, the broker has stored."""
    tasks = [await bus.api.stream_info(task_stream(agent)) for agent in agents]
    events = [await bus.api.stream_info(log_stream(agent)) for agent in agents]
    return _last(tasks), _last(events)


def _last(streams: Iterable[dict[str, Any]]) -> int:
    return sum(stream["state"]["last_seq"] for stream in streams)


def _subject(folder: str | None) -> tuple[list[str], Sequence[str]]:
    """What to take in, and what to ask about it.

    Raises:
        UnknownSource: there is no such folder.
        DemoFailed: it holds no documents.
    """
    if folder is None:
        ours = [str(path) for path in (_ROOT / "docs", _ROOT / "README.md") if path.exists()]
        return [*ours, TOPICS], QUESTIONS
    paths = [os.path.abspath(folder)]
    titles: dict[str, None] = {}
    for item in read_sources(paths):
        if isinstance(item, Document):
            titles[item.title] = None
            titles.update(dict.fromkeys(heading.title for heading in item.headings if heading.title))
    if not titles:
        raise DemoFailed(f"{folder} holds no documents.")
    named = list(titles)
    chosen = dict.fromkeys((named[0], named[len(named) // 2], named[-1]))
    return paths, [f"What is said about {name}?" for name in chosen]


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="python -m xnai.deploy.demo", description=__doc__)
    parser.add_argument("folder", nargs="?", help="documents of your own")
    folder = parser.parse_args().folder
    try:
        sys.exit(run(functools.partial(demo, *_subject(folder))))
    except KeyboardInterrupt:
        sys.exit(Status.INTERRUPTED)
    except (XnaiError, OSError, ExceptionGroup) as raised:
        error = innermost(raised)
        if not isinstance(error, XnaiError | OSError):
            raise
        complain(getattr(error, "code", "failure"), " ".join(str(error).split()))
    sys.exit(Status.FAILURE)


if __name__ == "__main__":
    main()
