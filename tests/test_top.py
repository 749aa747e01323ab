"""`xnai top`: what it shows, on a terminal again and again, and what it leaves behind there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest
from stacks import processes, write_agent, write_stack
from terminal import PATIENCE, XNAI, command, environment, processes_of, program, up

from xnai.agents.inference.requests import InferenceStatus, LoadedModel
from xnai.deploy.supervisor.orders import Row
from xnai.deploy.table import width_of
from xnai.deploy.top.lines import page
from xnai.deploy.top.sample import Sample

STATUS = InferenceStatus(
    running=3,
    waiting=12,
    paused=1,
    waiting_tokens=4310,
    slots=4,
    threads=2,
    prefill=1210.4,
    decode=90.2,
    answered=1204,
    refused=3,
    generated=48_301,
    prompts=100,
    prompt_hits=71,
    prompt_tokens=1000,
    hit_tokens=620,
    shared=12,
    reused=5,
    memory=212_000_000,
    restarts=1,
    load=0.87,
)
MODEL = LoadedModel(
    name="small", kind="generate", loaded=True, context=8192, slots=4, weights=16_000_000, kv=40_000_000
)
ROWS = [
    Row(name="inference", pid=4711, level="progressing", uptime=75.0, memory_mb=88.0, done=7, failed=0),
    Row(name="maths", level="dead", restarts=3, last_error="it\nended with status -9 " * 9),
]
WHOLE = Sample(at=1_000.0, agents=ROWS, inference=STATUS, models=(MODEL,))

AGENT = f"""
import msgspec
from xnai.agents.inference.requests import InferenceStatus, LoadedModel, Models

answered = 0

@agent.skill
async def status() -> InferenceStatus:
    global answered
    answered += 1
    said = msgspec.json.decode({msgspec.json.encode(STATUS)!r}, type=InferenceStatus)
    return msgspec.structs.replace(said, answered=answered, generated=answered)

@agent.skill
async def models() -> Models:
    model = msgspec.json.decode({msgspec.json.encode(MODEL)!r}, type=LoadedModel)
    return Models(embedding="e", dimensions=4, models=(model,))
"""


def texts(sample: Sample, before: Sample | None = None, *, width: int = 200, height: int = 99) -> list[str]:
    return ["  ".join(text for text, _ in line) for line in page(sample, before, width=width, height=height)]


# What is shown


def test_the_agent_its_models_and_the_processes_are_shown() -> None:
    lines = texts(WHOLE)
    assert lines[1:8] == [
        "slots     [###-] 3 of 4, 2 threads",
        "load      87%",
        "queue     3 running, 12 waiting (4,310 tokens), 1 paused",
        "speed     prefill 1,210 tokens/s, decode 90 tokens/s",
        "cache     hits: 71% of prompts, 62% of their tokens; 12 shared, 5 reused",
        "answers   1,204 given, 3 refused, 48,301 tokens",
        "engine    212 MB, 1 restart",
    ]
    assert lines[9:11] == [
        "MODEL  KIND      STATE   SLOTS  CONTEXT  MB  PREFILL/S  DECODE/S",
        "small  generate  loaded      4     8192  56  -          -",
    ]
    assert lines[12].split()[:7] == ["AGENT", "LEVEL", "RUNNING", "DONE", "FAILED", "RESTARTS", "UP"]
    assert lines[13].split() == ["inference", "progressing", "-", "7", "0", "0", "1m", "88", "4711", "-"]
    assert "it\\nended" in lines[14]


def test_what_was_answered_between_two_looks_is_a_speed() -> None:
    later = msgspec.structs.replace(
        WHOLE, at=1_004.0, inference=msgspec.structs.replace(STATUS, generated=48_701)
    )
    assert texts(later, WHOLE)[2] == "load      87%, 100 tokens/s now"
    assert texts(WHOLE, later)[2] == "load      87%"  # an agent that was started again counts from 0


def test_what_cannot_be_seen_is_said() -> None:
    assert texts(Sample(at=0.0))[1] == "There is no inference agent on this bus."
    assert texts(Sample(at=0.0, trouble=["It is\n\x1b[2J gone."]))[1] == "It is \\x1b[2J gone."


@pytest.mark.parametrize("height", [1, 2, 7, 12, 16])
@pytest.mark.parametrize("width", [1, 2, 9, 20, 41, 80, 300])
def test_no_window_is_too_small(width: int, height: int) -> None:
    lines = texts(WHOLE, width=width, height=height)
    assert len(lines) == min(height, 15)
    assert max(map(width_of, lines)) <= width


def test_a_low_window_says_how_much_more_there_is() -> None:
    lines, whole = texts(WHOLE, height=7), texts(WHOLE)
    assert lines == [*whole[:6], f"{len(whole) - 6} more lines: make the window higher"]


def test_a_narrow_window_keeps_the_columns_that_come_first() -> None:
    heads = [texts(WHOLE, width=width)[12].split() for width in (120, 70, 30)]
    assert [head[-1] for head in heads] == ["ERROR", "PID", "LEVEL"]


# On a real stack


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_agent(tmp_path, "inference", AGENT)
    return write_stack(tmp_path, inference="")


class Terminal:
    """A terminal of a size, what stands on it, and `xnai top` in it."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self.usual = self.modes()
        self.process: subprocess.Popen[bytes] | None = None
        self.said = b""

    async def shows(self, pattern: str) -> str:
        """Wait until the last whole screen is like this; returns it, without its colours."""
        with anyio.fail_after(PATIENCE):
            while not re.search(pattern, self.screen()):
                await self._read()
        return self.screen()

    def screen(self) -> str:
        whole = self.said.rpartition(b"\x1b[J")[0].rpartition(b"\x1b[H")[2].decode()
        return re.sub(r"\x1b\[[\d;]*[mK]", "", whole).replace("\r\n", "\n")

    def press(self, keys: bytes) -> None:
        os.write(self._handle, keys)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._handle, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    async def ends(self) -> int:
        """The status, once all that was printed is read."""
        assert self.process is not None
        with anyio.fail_after(PATIENCE):
            while b"\x1b[?1049l" not in self.said:
                await self._read()
            return await anyio.to_thread.run_sync(self.process.wait)

    def modes(self) -> list[object]:
        """How the terminal treats what is typed."""
        return termios.tcgetattr(self._handle)

    async def _read(self) -> None:
        await anyio.wait_readable(self._handle)
        self.said += os.read(self._handle, 65_536)


@asynccontextmanager
async def terminal(folder: Path, *words: str, **env: str) -> AsyncIterator[Terminal]:
    """`xnai top` in a terminal of its own, of 100 columns and 30 lines."""
    ours, theirs = pty.openpty()
    window = Terminal(ours)
    window.resize(100, 30)
    window.process = process = subprocess.Popen(
        [*XNAI, "top", "--interval", "200ms", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env=environment({"TERM": "xterm", **env}),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  # one system call
    )
    try:
        yield window
    finally:
        process.kill()
        process.wait()
        os.close(theirs)
        os.close(ours)


async def test_it_goes_on_in_a_terminal_until_it_is_left_and_leaves_that_as_it_was(folder: Path) -> None:
    async with up(folder):
        async with terminal(folder) as window:
            first = await window.shows(r"answers   \d+ given")
            assert "\ninference  progressing" in first
            assert "\nsmall  generate  loaded" in first
            assert window.modes() != window.usual
            (count,) = re.findall(r"(\d+) given", first)
            await window.shows(rf"(?<!\d){int(count) + 2} given")
            assert b"\x1b[32m" in window.said
            window.resize(20, 5)
            small = (await window.shows(r"more lines")).split("\n")
            assert (len(small), max(map(len, small))) == (5, 20)
            window.press(b"xq")
            assert await window.ends() == 0
            assert window.modes() == window.usual
            assert window.said.startswith(b"\x1b[?1049h\x1b[?25l")
            assert window.said.endswith(b"\x1b[?25h\x1b[?1049l")
        async with terminal(folder, NO_COLOR="1") as window:
            await window.shows(r"answers   \d+ given")
            window.press(b"\x03")
            assert await window.ends() == 130
            assert window.modes() == window.usual
            assert not re.search(rb"\x1b\[\d*m", window.said)


async def test_without_a_terminal_it_looks_once_and_goes_on_only_if_told_to(folder: Path) -> None:
    async with up(folder):
        plain = await command("top", folder=folder)
        assert (plain.status, plain.err) == (0, "")
        assert "\nqueue     3 running, 12 waiting (4,310 tokens), 1 paused\n" in plain.out
        assert "\x1b" not in plain.out
        done = await command("top", "--json", folder=folder)
        sample = msgspec.json.decode(done.out, type=Sample)
        assert (sample.models, sample.trouble) == ((MODEL,), [])
        assert sample.inference is not None
        assert [row.name for row in sample.agents] == ["inference"]
        async with program("top", "--json", "--watch", "--interval", "0.2", folder=folder) as watching:
            await watching.says('"inference"', times=3)
            assert await watching.stop() == 130
        told = [msgspec.json.decode(line, type=Sample).inference for line in watching.out]
        counts = [said.answered for said in told if said]
        assert counts == list(range(counts[0], counts[0] + len(told)))


async def test_it_goes_on_when_the_broker_or_the_agent_was_killed(folder: Path) -> None:
    async with up(folder), terminal(folder) as window:
        await window.shows(r"answers   \d+ given")
        (broker,) = [pid for pid, words in processes_of(folder).items() if "nats-server" in words]
        os.kill(broker, signal.SIGKILL)
        (count,) = re.findall(r"(\d+) given", window.screen())
        await window.shows(rf"(?<!\d){int(count) + 3} given")
        (agent,) = processes(folder, "inference")
        os.kill(agent, signal.SIGKILL)
        await window.shows(r"(?s)answers   \d+ given.*\ninference  progressing +\d+ +\d+ +\d+ +1 ")
        window.press(b"q")
        assert await window.ends() == 0


async def test_without_a_stack_or_with_a_wrong_interval_it_ends_at_once(tmp_path: Path) -> None:
    write_stack(tmp_path)
    done = await command("top", folder=tmp_path)
    assert (done.status, done.out) == (3, "")
    assert done.err.startswith("error[no_bus]: No stack is up in")
    done = await command("top", "--interval", "1ms", folder=tmp_path)
    assert (done.status, done.out) == (2, "")
    assert "it must be from 200ms to 1h" in done.err
