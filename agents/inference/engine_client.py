"""The engine as the agent uses it: started again when it dies, with its models, and no request is lost.

What waited is asked again, what was being answered goes on behind the tokens that came: `Generate.said`. The
engine puts these through its own text decoder and says nothing of what that gives, so that text which the
dead engine held back (half a character, the beginning of a stop string) comes from the new one. A request
during which the engine died twice is refused.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import TypeVar

import anyio
import msgspec

from xnai.agents.inference.engine_process import ENGINE, BadFrame, EngineProcess, start_engine
from xnai.agents.inference.errors import EngineLost, InferenceError, ModelInvalid, RequestPoisoned
from xnai.agents.inference.frames import (
    Ask,
    Count,
    Counted,
    Done,
    Drop,
    Embed,
    FromEngine,
    Generate,
    Open,
    Opened,
    Queued,
    Refused,
    Setup,
    Status,
    Text,
    Vectors,
)
from xnai.bus.background import background_tasks
from xnai.protocol.errors import Reject, XnaiError

log = logging.getLogger(__name__)
A = TypeVar("A", Vectors, Counted, Status)
Said = Queued | Text | Done
_LOADING = 600.0  # seconds of silence that are borne while a model is loaded
_QUICK = 10.0  # seconds: an engine that lives no longer has died quickly
_QUICK_DEATHS = 6  # in a row, and it is given up
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 5.0  # seconds before the third start in a row, and before any
_POISONED = 2  # deaths of the engine during a request


class _Opening:
    """A model that is to be open in every life of the engine."""

    def __init__(self, frame: Open) -> None:
        self.frame = frame
        self.deaths = 0
        self.refused: Refused | None = None
        self.answered = anyio.Event()


class _Request:
    """A request that has not ended.

    Attributes:
        said: the tokens of its answer that have come.
        sent: whether the engine that lives now has it. waiting: whether it only waits there.
        ended: whether the engine has said its last word about it.
        deaths: of engines that computed it.
    """

    def __init__(self, frame: Generate | Embed | Count | Ask, id: int) -> None:
        deadline = getattr(frame, "deadline", None)
        self.frame = msgspec.structs.replace(frame, id=id)
        self.began = self.sent_at = time.monotonic()
        self.first = self.last = 0.0
        self._ends = None if deadline is None else self.began + deadline
        self.said: list[int] = list(getattr(frame, "said", ()))
        self.sent = self.waiting = self.ended = False
        self.deaths = 0
        self._tell, self.answers = anyio.create_memory_object_stream[FromEngine](math.inf)

    @property
    def model(self) -> str | None:
        return getattr(self.frame, "model", None)

    def to_send(self) -> Generate | Embed | Count | Ask:
        """The frame as it has to be now: with the time that is left, and behind what was said."""
        self.sent, self.sent_at = True, time.monotonic()
        if isinstance(self.frame, (Count, Ask)):
            return self.frame
        left = None if self._ends is None else max(0.0, self._ends - self.sent_at)
        if isinstance(self.frame, Embed):
            return msgspec.structs.replace(self.frame, deadline=left)
        return msgspec.structs.replace(self.frame, deadline=left, said=tuple(self.said))

    def take(self, frame: FromEngine) -> None:
        if isinstance(frame, Queued):
            self.waiting = True
        elif isinstance(frame, Text):
            self.waiting = False
            if frame.tokens:
                self.last = time.monotonic()
                self.first = self.first or self.last
                self.said += frame.tokens
        elif isinstance(frame, Done) and self.deaths:
            frame = self._timed(frame)
        self.ended = not isinstance(frame, (Queued, Text))
        self._tell.send_nowait(frame)

    def close(self) -> None:
        self._tell.close()
        self.answers.close()

    def died(self) -> bool:
        """The engine is dead; returns whether this may be why."""
        suspect = self.sent and not self.waiting
        self.sent = self.waiting = False
        self.deaths += suspect
        return self.deaths >= _POISONED

    def digest(self) -> str:
        """The SHA-256 of what was asked: the same for the same request, whoever sends it."""
        plain = {
            name: getattr(self.frame, name)
            for name in ("model", "pieces", "texts", "sampling", "rule")
            if hasattr(self.frame, name)
        }
        return hashlib.sha256(msgspec.msgpack.encode(plain)).hexdigest()

    def _timed(self, done: Done) -> Done:
        """As it was for whoever waits: the engine knows of its own life only."""
        first = self.first - self.began if self.first else 0.0
        waited = min(done.waited + self.sent_at - self.began, first or math.inf)
        return msgspec.structs.replace(done, waited=waited, first=first, took=self.last - self.first)


@asynccontextmanager
async def open_engine(
    setup: Setup,
    models: Sequence[Open] = (),
    *,
    command: Sequence[str] = ENGINE,
    patience: float = 120.0,
) -> AsyncIterator[Engine]:
    """An engine that has these models open, and is started again whenever it dies.

    Args:
        patience: seconds of silence after which one that should speak is taken for dead. A model that is
            loaded may take longer.

    Raises:
        ModelMissing, ModelInvalid, Reject: a model cannot be opened.
        EngineLost: in a group, now or later: it died too often in a row.
    """
    engine = Engine(setup, command, patience)
    async with background_tasks() as tasks:
        for model in models:
            engine.want(model)
        tasks.start_soon(engine.run)
        for model in models:
            await engine.open(model)
        yield engine


class Engine:
    """The engine, whichever process it is at the moment; use `open_engine`.

    Attributes:
        opened: the models that are open, by name.
        restarts: how often it was started again.
        pid: of its process; None while there is none.
    """

    def __init__(self, setup: Setup, command: Sequence[str], patience: float) -> None:
        self.opened: dict[str, Opened] = {}
        self.restarts = 0
        self._setup, self._command, self._patience = setup, command, patience
        self._process: EngineProcess | None = None
        self._openings: dict[str, _Opening] = {}
        self._requests: dict[int, _Request] = {}
        self._ids = itertools.count(1)
        self._silent = 0.0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def open(self, frame: Open) -> Opened:
        """Have a model open.

        Raises:
            ModelMissing, ModelInvalid, Reject: it cannot be opened.
        """
        opening = self.want(frame)
        await opening.answered.wait()
        if opening.refused:
            raise _refusal(opening.refused)
        return self.opened[frame.name]

    async def generate(self, frame: Generate) -> AsyncGenerator[Said, None]:
        """What the engine says about an answer, with Done at last. Whoever leaves before drops it.

        The frame's id is replaced. Raises Reject if it is refused, InferenceError if it failed.
        """
        with self._asking(frame) as request:
            await self._drain()
            async for answer in request.answers:
                if isinstance(answer, Refused):
                    raise _refusal(answer)
                if isinstance(answer, (Queued, Text, Done)):
                    yield answer
                if isinstance(answer, Done):
                    return

    async def embed(self, frame: Embed) -> Vectors:
        """The vectors of some texts. Raises as `generate`."""
        return await self._ask(frame, Vectors)

    async def count(self, frame: Count) -> Counted:
        """The tokens of a text. Raises as `generate`."""
        return await self._ask(frame, Counted)

    async def status(self) -> Status:
        """How things stand in the engine."""
        return await self._ask(Ask(0), Status)

    async def _ask(self, frame: Embed | Count | Ask, kind: type[A]) -> A:
        with self._asking(frame) as request:
            await self._drain()
            async for answer in request.answers:
                if isinstance(answer, Refused):
                    raise _refusal(answer)
                if isinstance(answer, kind):
                    return answer
                if isinstance(answer, Done):
                    break
        raise InferenceError("The engine gave no answer in time.")

    @contextmanager
    def _asking(self, frame: Generate | Embed | Count | Ask) -> Iterator[_Request]:
        id = next(self._ids)
        request = self._requests[id] = _Request(frame, id)
        self._send(request)
        try:
            yield request
        finally:
            del self._requests[id]
            request.close()
            if request.sent and not request.ended and self._process:
                self._process.post(Drop(id))

    def want(self, frame: Open) -> _Opening:
        """Have it open as soon as there is an engine."""
        opening = self._openings.get(frame.name)
        if opening is None:
            opening = self._openings[frame.name] = _Opening(frame)
            if self._process:
                self._process.post(frame)
        return opening

    def _send(self, request: _Request) -> None:
        """Send it, if the engine is there and has its model open; otherwise it is sent once that is so."""
        if self._process and (request.model is None or request.model in self.opened):
            self._process.post(request.to_send())

    async def _drain(self) -> None:
        if self._process:
            await self._process.drain()

    # Its lives

    async def run(self) -> None:
        """One life after the other; raises EngineLost."""
        quick = 0
        while True:
            began = time.monotonic()
            how = await self._live()
            quick = quick + 1 if time.monotonic() - began < _QUICK else 1
            if quick >= _QUICK_DEATHS:
                raise EngineLost(
                    f"The engine died {quick} times in a row, and is given up: at last it {how}."
                )
            log.error("the engine %s; it is started again", how)
            self.restarts += 1
            if quick > 2:
                await anyio.sleep(min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** (quick - 3)))

    async def _live(self) -> str:
        """One life; returns how it ended."""
        self._silent = 0.0
        bad = ""
        async with start_engine(self._command) as process:
            self._process = process
            process.post(self._setup)
            for opening in self._openings.values():
                process.post(opening.frame)
            for request in self._requests.values():
                self._send(request)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch, process)
                try:
                    async with aclosing(process.frames()) as frames:
                        async for frame in frames:
                            self._silent = 0.0
                            self._take(frame)
                except BadFrame as error:
                    bad = f"sent what is no frame ({error}) and was killed"
                tasks.cancel_scope.cancel()
            self._process = None
            process.kill()
            how, crashed = await process.end()
        self._bury(crashed=crashed)
        return bad or how

    async def _watch(self, process: EngineProcess) -> None:
        """Kill an engine that has stopped to speak. Time in which this process stood still does not count."""
        tick = self._patience / 60
        asked = False
        while True:
            await anyio.sleep(tick)
            self._silent += tick
            asked = asked and self._silent > tick
            if self._silent >= self._patience / 6 and not asked:
                asked = True
                process.post(Ask(0))
            loading = len(self.opened) < len(self._openings)
            if self._silent >= (_LOADING if loading else self._patience):
                log.error("the engine has said nothing for %g s and is killed", round(self._silent, 1))
                return process.kill()

    def _take(self, frame: FromEngine) -> None:
        if isinstance(frame, Opened):
            self._take_opened(frame)
        elif isinstance(frame, Refused) and not frame.id:
            self._refuse_model(frame)
        elif request := self._requests.get(frame.id):
            request.take(frame)

    def _take_opened(self, frame: Opened) -> None:
        self.opened[frame.name] = frame
        if opening := self._openings.get(frame.name):
            opening.deaths = 0
            opening.answered.set()
        for request in self._requests.values():
            if request.model == frame.name:
                self._send(request)

    def _refuse_model(self, frame: Refused) -> None:
        if opening := self._openings.pop(frame.model, None):
            opening.refused = frame
            opening.answered.set()
        for request in list(self._requests.values()):
            if request.model == frame.model:
                request.take(msgspec.structs.replace(frame, id=request.frame.id))

    def _bury(self, *, crashed: bool) -> None:
        """The engine is dead: see what it died of, as far as can be seen."""
        loading = next((one for one in self._openings.values() if one.frame.name not in self.opened), None)
        self.opened.clear()
        if loading and crashed:
            loading.deaths += 1
            if loading.deaths >= _POISONED:
                sentence = f"The engine died {loading.deaths} times while it opened {loading.frame.path}."
                self._refuse_model(Refused(0, ModelInvalid.code, sentence, None, loading.frame.name))
        for request in self._requests.values():
            if request.died():
                digest = request.digest()
                log.error("the engine died %d times during a request: SHA-256 %s", request.deaths, digest)
                sentence = f"The engine died {request.deaths} times during this request (SHA-256 {digest})."
                request.take(Refused(request.frame.id, RequestPoisoned.code, sentence))


def _refusal(frame: Refused) -> XnaiError:
    if frame.code == InferenceError.code:
        return InferenceError(frame.sentence)
    return Reject(frame.sentence, code=frame.code, retry_after=frame.retry_after)
