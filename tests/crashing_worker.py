"""An agent that stops at a named point of a task, where a test kills it: `crashing_worker.py BY OPTIONS`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import anyio
import anyio.to_thread
import msgspec
from history import At, Started
from witness import LIMITS, READY, say

from xnai.agents import Agent, Context, serve
from xnai.bus import open_bus
from xnai.protocol import Envelope

AGENT = "phoenix"
WORKER = "crashing_worker.py"
RECEIVED, WORKING, PUBLISHED = "received", "working", "outcome published"
IN_THE_HANDLER, MIDWAY, STOPPED, FROZEN = "in the handler", "midway", "stopped", "frozen"
BEFORE_MIDWAY = 3


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Where to stop, the first time that the point is reached, and how.

    Attributes:
        point: its name; empty for nowhere.
        until_told: go on when a line comes on stdin, instead of never.
        blocking: meanwhile the event loop stands still, as it does when the handler computes.
        freeze_after: so many points, of whatever name, after which all tasks stop for ever where they are
            next; 0 for never.
    """

    point: str = ""
    until_told: bool = False
    blocking: bool = False
    freeze_after: int = 0


class Stops:
    """Says where the process is, and stops it where it was told to."""

    def __init__(self, by: str, options: Options) -> None:
        self._by, self._options, self._point = by, options, options.point
        self._left = options.freeze_after

    @contextmanager
    def begin(self, ctx: Context) -> Iterator[None]:
        """A handler says that it begins, and whether it was stopped."""
        say(Started(id=ctx.task.id, by=self._by, attempt=ctx.attempt))
        try:
            yield
        except (anyio.get_cancelled_exc_class(), GeneratorExit):
            say(At(id=ctx.task.id, by=self._by, point=STOPPED))
            raise

    async def probe(self, point: str, task: Envelope) -> None:
        say(At(id=task.id, by=self._by, point=point))
        if self._options.freeze_after:
            await self._freeze(task)
        if point != self._point:
            return
        self._point = ""
        if not self._options.until_told:
            await anyio.sleep_forever()
        elif self._options.blocking:
            sys.stdin.readline()
        else:
            await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)

    async def _freeze(self, task: Envelope) -> None:
        self._left -= 1
        if self._left == 0:
            say(At(id=task.id, by=self._by, point=FROZEN))
        if self._left <= 0:
            await anyio.sleep_forever()


def phoenix(by: str, stops: Stops) -> Agent:
    """The agent, in one process of which the handlers say `by`."""
    agent = Agent(AGENT)

    @agent.skill
    async def work(n: int, ctx: Context) -> str:
        """Answers what tells the attempts apart."""
        with stops.begin(ctx):
            await stops.probe(IN_THE_HANDLER, ctx.task)
        return f"{n} by {by} in attempt {ctx.attempt}"

    @agent.skill
    async def report(n: int, ctx: Context) -> str:
        """Says `n` times where it stands."""
        with stops.begin(ctx):
            for number in range(n):
                if number == BEFORE_MIDWAY:
                    await stops.probe(MIDWAY, ctx.task)
                await ctx.progress(f"{number} of {n}")
        return f"{n} by {by} in attempt {ctx.attempt}"

    @agent.skill
    async def count(n: int, ctx: Context) -> AsyncIterator[int]:
        """Yields the numbers below `n`, the same in each attempt, and reports between them."""
        with stops.begin(ctx):
            for number in range(n):
                if number == BEFORE_MIDWAY:
                    await stops.probe(MIDWAY, ctx.task)
                yield number
                await ctx.progress(f"{number} of {n}")

    @agent.skill(max_attempts=2)
    async def kill(n: int, ctx: Context) -> None:
        """Ends its own process."""
        with stops.begin(ctx):
            os.kill(os.getpid(), signal.SIGKILL)

    return agent


async def main(by: str, options: Options) -> None:
    stops = Stops(by, options)
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async with (
            open_bus(name=AGENT) as bus,
            serve(phoenix(by, stops), bus, limits=LIMITS, probe=stops.probe),
        ):
            say(At(id="", by=by, point=READY))
            async for _ in signals:
                return


if __name__ == "__main__":
    anyio.run(
        main,
        sys.argv[1],
        msgspec.json.decode(sys.argv[2], type=Options),
        backend_options={"use_uvloop": True},
    )
