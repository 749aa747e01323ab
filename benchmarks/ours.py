"""Worker and caller on this project's bus, each to be a process of its own, told what to do by lines.

    python -m benchmarks.ours echo|hold URL [TOKEN]    serves that agent
    python -m benchmarks.ours caller URL [TOKEN]       does what `Caller` can
    python -m benchmarks.ours listener URL [TOKEN]     counts outcomes

A folder of keys may stand for the token.

Each says `"ready"` first, answers every line of its input with one line of JSON, and ends with its input.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from benchmarks.agents import AGENTS, held
from xnai.agents import serve
from xnai.bus import Bus, open_bus
from xnai.bus.locating import Address
from xnai.bus.parser import Frame
from xnai.protocol import subjects
from xnai.protocol.events import OUTCOME

_AT_ONCE = 500


def say(value: object) -> None:
    print(msgspec.json.encode(value).decode(), flush=True)


async def obey(actor: object) -> None:
    """Do what the lines say: a verb, the name of a method, and numbers."""
    say("ready")
    while line := await anyio.to_thread.run_sync(sys.stdin.readline):
        verb, *numbers = line.split()
        say(await getattr(actor, verb)(*map(int, numbers)))


class Caller:
    """Does slices of work; each method is a verb."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._held: list[str] = []

    async def _call(self) -> None:
        assert await self._bus.call("echo.upper", "hello", str) == "HELLO"

    async def throughput(self, tasks: int, in_flight: int) -> float:
        """Tasks per second, with so many calls in flight."""
        left = tasks

        async def caller() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await self._call()

        began = time.perf_counter()
        async with anyio.create_task_group() as tasks_alive:
            for _ in range(in_flight):
                tasks_alive.start_soon(caller)
        return tasks / (time.perf_counter() - began)

    async def latency(self, tasks: int) -> list[float]:
        """Milliseconds of each call, one after another."""
        times = []
        for _ in range(tasks):
            began = time.perf_counter()
            await self._call()
            times.append((time.perf_counter() - began) * 1e3)
        return times

    async def declare(self) -> None:
        await self._bus.declare("echo")

    async def send(self, tasks: int, in_flight: int = 64) -> None:
        """Store so many tasks."""
        left = tasks

        async def sender() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await self._bus.send("echo.upper", "hello")

        async with anyio.create_task_group() as senders:
            for _ in range(in_flight):
                senders.start_soon(sender)

    async def fill(self, outcomes: int) -> int:
        """Put so many outcomes into the log as bare publishes; how many messages it then holds."""
        client, publisher = self._bus.transport.client, self._bus.publisher
        body = b'{"id":"%d","status":{"state":"TASK_STATE_COMPLETED"},"filler":"' + b"x" * 500 + b'"}'
        for number in range(outcomes):
            subject = f"{subjects.log('echo', 'filler', f'task-{number}')[:-2]}.00000000.echo.{OUTCOME}"
            if (
                number % _AT_ONCE == _AT_ONCE - 1 or number == outcomes - 1
            ):  # the server drops what comes faster than it can store
                await publisher.store(subject, body % number)
            else:
                await client.send(subject, body % number)
        info = await self._bus.api.stream_info(subjects.log_stream("echo"))
        return int(info["state"]["messages"])

    async def hold(self, tasks: int) -> None:
        """Send so many tasks that wait to be cancelled."""
        self._held = [await self._bus.send("hold.hold", number) for number in range(tasks)]

    async def cancel(self) -> dict[str, float]:
        """Cancel them one after another: when each cancel was called, by the machine's monotonic clock."""
        began = {}
        for id in self._held:
            began[id] = time.monotonic()
            await self._bus.cancel(id)
        return began


class Listener:
    """Counts the outcomes of everybody."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._heard = anyio.Event()

    def take(self, frame: Frame) -> None:
        self._times.append(time.monotonic())
        self._heard.set()

    async def drained(self, tasks: int) -> float:
        """Once so many outcomes were stored: outcomes a second, from the first to the last."""
        with anyio.fail_after(120):
            while len(self._times) < tasks:
                self._heard = anyio.Event()
                await self._heard.wait()
        first, last = self._times[0], self._times[tasks - 1]
        self._times.clear()
        return (tasks - 1) / (last - first)


async def main(*words: str) -> None:
    role, url, *secret = words
    shown = secret[0] if secret else None
    is_known = shown is not None and Path(shown).is_dir()
    at = Address(url=url, key=shown) if is_known else Address(url=url, token=shown)
    async with open_bus(at, name=role) as bus:
        if role == "caller":
            await obey(Caller(bus))
        elif role == "listener":
            await bus.declare("echo")
            listener = Listener()
            async with bus.transport.listen(subjects.live_kind("echo", OUTCOME), listener.take):
                await bus.transport.flush()
                await obey(listener)
        else:
            async with serve(AGENTS[role], bus):
                await obey(held)


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:], backend_options={"use_uvloop": True})
