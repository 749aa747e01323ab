"""A caller that stops at a named point, where a test kills it: `crashing_caller.py BY OPTIONS`."""

from __future__ import annotations

import signal
import sys

import anyio
import msgspec
from crashing_worker import AGENT
from history import AnyRecord, At, Heard, Sent, Yielded
from witness import CALLER, READY, TIMEOUT, ask, follow, read, say

from xnai.bus import open_bus
from xnai.protocol.events import OUTCOME

CALLING = "crashing_caller.py"
BEFORE, SENT, HEARD, READING = "before the send", "sent", "heard", "reading"
CHUNKS_READ = 3


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask, and where to stop.

    Attributes:
        id: of the task, the same for whoever asks again.
        skill, payload: what is asked.
        point: where to stop for ever; empty for nowhere.
        stepwise: send, listen and call one after the other, instead of all in one call.
        streams: read the answer as a stream.
    """

    id: str
    skill: str
    payload: int
    point: str = ""
    stepwise: bool = False
    streams: bool = False


class Steps:
    """Says what the process sees, and stops it where it was told to."""

    def __init__(self, by: str, options: Options) -> None:
        self._by, self._options = by, options
        self._read = 0

    def reach(self, point: str) -> None:
        say(At(id=self._options.id, by=self._by, point=point))
        if point == self._options.point:
            signal.pause()

    def write(self, record: AnyRecord) -> None:
        say(record)
        if isinstance(record, Heard) and record.kind == OUTCOME:
            self.reach(HEARD)
        if isinstance(record, Yielded):
            self._read += 1
            if self._read == CHUNKS_READ:
                self.reach(READING)


async def main(by: str, options: Options) -> None:
    to, id, steps = f"{AGENT}.{options.skill}", options.id, Steps(by, options)
    async with open_bus(name=CALLER) as bus:
        say(At(id="", by=by, point=READY))
        steps.reach(BEFORE)
        if options.stepwise:
            await bus.send(to, options.payload, id=id, ttl=TIMEOUT)
            say(Sent(id=id))
            steps.reach(SENT)
            await follow(bus, id, by=by, write=steps.write)
        asking = read if options.streams else ask
        await asking(bus, to, options.payload, id=id, by=by, write=steps.write)


if __name__ == "__main__":
    anyio.run(
        main,
        sys.argv[1],
        msgspec.json.decode(sys.argv[2], type=Options),
        backend_options={"use_uvloop": True},
    )
