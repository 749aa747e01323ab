"""Playing a page of the documentation: its files are written, its commands run, what they print is compared.

- A block of `python`, `toml` or `markdown` is written to the file that stands last in backticks in the
  paragraph before it. Where that names none of this kind, the block is not a file.
- A block of `console` is what a person sees: `$ command`, then what it prints on stdout and stderr. `…`
  stands for anything within a line, with the spaces before it, and alone on a line for any lines. Two
  spaces and more stand for two and more: columns are as wide as what is in them.
- `xnai up` goes on in a terminal of its own; a block that begins without a command shows that terminal.
- `^C` is Ctrl-C, pressed once what stands above it is printed.
- Blocks of any other kind are not run.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, STDOUT

import anyio
from anyio.abc import Process
from terminal import PATIENCE, environment, until

SUFFIXES = {"python": ".py", "toml": ".toml", "markdown": ".md"}
CONSOLE = "console"
STACK = "xnai up"
INTERRUPT = "^C"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"`([\w./-]+\.\w+)`")
_ANY_LINES, _LINE_END = r"(?:.*\n)*?", r" *\n"


@dataclass(frozen=True)
class Block:
    """A fenced block: its kind, its text, and the file that the paragraph before it names for it."""

    kind: str
    text: str
    file: str | None


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    for found in _FENCE.finditer(page):
        kind, text = found.groups()
        paragraph = page[: found.start()].rstrip().rpartition("\n\n")[2]
        files = [file for file in _FILE.findall(paragraph) if file.endswith(SUFFIXES.get(kind, "\0"))]
        yield Block(kind, text, files[-1] if files else None)


@dataclass
class Step:
    """A command and what it prints, before and behind `^C`; None looks at the terminal of the stack."""

    command: str | None
    printed: list[str] = field(default_factory=list)
    behind: list[str] | None = None

    def add(self, line: str) -> None:
        if line == INTERRUPT:
            self.behind = []
        else:
            (self.printed if self.behind is None else self.behind).append(line)


def steps(text: str) -> list[Step]:
    """What a console block shows."""
    found: list[Step] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(Step(line.removeprefix("$ ")))
            continue
        if not found:
            found.append(Step(None))
        found[-1].add(line)
    return found


def shown(lines: Sequence[str]) -> str:
    """A regular expression for lines as they stand on a page."""
    return "".join(_ANY_LINES if line == "…" else f"{_line(line)}{_LINE_END}" for line in lines)


def _line(line: str) -> str:
    like = r".*?".join(map(re.escape, re.split(r" *…", line)))
    return re.sub(r"(?:\\ ){2,}", " {2,}", like)


class Screen:
    """A command in a terminal of its own, and what stands there."""

    def __init__(self, command: str, process: Process, file: Path) -> None:
        self._command, self._process, self._file = command, process, file
        self._seen = 0

    async def shows(self, pattern: str) -> None:
        """Wait until this stands behind what was seen before."""
        like = re.compile(pattern)
        with suppress(TimeoutError):
            await until(lambda: like.match(self._text()) is not None or self._process.returncode is not None)
        found = like.match(self._text())
        assert found is not None, self._other(pattern)
        self._seen += found.end()

    async def ends(self, pattern: str) -> int:
        """Wait for the end, when this and no more stands behind what was seen before; returns the status."""
        with anyio.fail_after(PATIENCE):
            status = await self._process.wait()
        assert re.fullmatch(pattern, self._text()), self._other(pattern)
        return status

    def interrupt(self) -> None:
        """Ctrl-C, which reaches all that runs in this terminal."""
        os.killpg(self._process.pid, signal.SIGINT)

    def _text(self) -> str:
        return self._file.read_bytes().decode(errors="replace")[self._seen :]

    def _other(self, pattern: str) -> str:
        return f"$ {self._command}\n{self._text()}\n-- is not what is shown:\n{pattern}"


@asynccontextmanager
async def screen(command: str, folder: Path, *, status: int = 0) -> AsyncIterator[Screen]:
    """A command behind one that ended with `status`; at the end of the context it is asked to stop."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    with tempfile.NamedTemporaryFile() as file:
        process = await anyio.open_process(
            ["bash", "-c", f"(exit {status}); {command}"],
            cwd=folder,
            env=environment({"PATH": path, "NO_COLOR": "1"}),
            stdin=DEVNULL,
            stdout=file,
            stderr=STDOUT,
            start_new_session=True,
        )
        async with process:
            try:
                yield Screen(command, process, Path(file.name))
            finally:
                with anyio.move_on_after(PATIENCE, shield=True):
                    if process.returncode is None:
                        os.killpg(process.pid, signal.SIGTERM)
                    await process.wait()


class Player:
    """A person who follows a page in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._status = 0
        self._terminals = AsyncExitStack()
        self._stack: Screen | None = None

    async def play(self, page: str) -> None:
        """Do all that the page shows.

        Raises:
            AssertionError: something else was printed; both are in the message.
        """
        async with self._terminals:
            for block in blocks(page):
                if block.kind == CONSOLE:
                    for step in steps(block.text):
                        await self._do(step)
                elif block.file is not None:
                    file = self._folder / block.file
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(block.text)

    async def _do(self, step: Step) -> None:
        if step.command is None:
            await self._look_at_the_stack(step)
        elif step.command == STACK:
            self._stack = await self._terminals.enter_async_context(screen(STACK, self._folder))
            await self._stack.shows(shown(step.printed))
        else:
            async with screen(step.command, self._folder, status=self._status) as terminal:
                if step.behind is not None:
                    await terminal.shows(shown(step.printed).removesuffix(_LINE_END))
                    terminal.interrupt()
                    self._status = await terminal.ends(f".*\n?{shown(step.behind)}")
                else:
                    self._status = await terminal.ends(shown(step.printed))

    async def _look_at_the_stack(self, step: Step) -> None:
        assert self._stack is not None
        await self._stack.shows(_ANY_LINES + shown(step.printed))
        if step.behind is not None:
            self._stack.interrupt()
            await self._stack.shows(_ANY_LINES + shown(step.behind))
            assert await self._stack.ends(r"(?:.*\n)*") == 0
