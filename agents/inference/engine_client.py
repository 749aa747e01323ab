"""The engine as the agent uses it: started again when it dies, with its models, and no request is lost.

What waited is asked again, what was being answered goes on behind the tokens that came: `Generate.said`. The
engine puts these through its own text decoder and says nothing of what that gives, so that text which the
dead engine held back (half a character, the beginning of a stop string) comes from the new one. A request
during which the engine died twice is refused.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import TypeVar

import anyio
import msgspec

from xnai.agents.inference.engine_process import ENGINE, BadFrame, EngineProcess, start_engine
from xnai.agents.inference.engine_requests import POISONED, Opening, Request, Said, as_error
from xnai.agents.inference.errors import (
    EngineLost,
    InferenceError,
    ModelInvalid,
    ModelMissing,
    RequestPoisoned,
)
from xnai.agents.inference.frames import (
    Ask,
    Count,
    Counted,
    Done,
    Drop,
    Embed,
    FromEngine,
    Generate,
    Loading,
    Open,
    Opened,
    Queued,
    Refused,
    Setup,
    Status,
    Text,
    Unloaded,
    Vectors,
)
from xnai.bus.background import background_tasks

log = logging.getLogger(__name__)
A = TypeVar("A", Vectors, Counted, Status)
_LOADING = 600.0  # seconds of silence that are borne while a model is loaded
_QUICK = 10.0  # seconds: an engine that lives no longer has died quickly
_QUICK_DEATHS = 6  # in a row, and it is given up
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 5.0  # seconds before the third start in a row, and before any


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
        self._openings: dict[str, Opening] = {}
        self._requests: dict[int, Request] = {}
        self._ids = itertools.count(1)
        self._silent = 0.0
        self._loading = ""

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
            raise as_error(opening.refused)
        assert opening.opened is not None
        return opening.opened

    def holds(self, name: str) -> bool:
        """Whether this model is open, or will be as soon as there is an engine again."""
        return name in self._openings

    async def generate(self, frame: Generate) -> AsyncGenerator[Said, None]:
        """What the engine says about an answer, with Done at last. Whoever leaves before drops it.

        The frame's id is replaced. Raises Reject if it is refused, InferenceError if it failed.
        """
        with self._asking(frame) as request:
            await self._drain()
            async for answer in request.answers:
                if isinstance(answer, Refused):
                    raise as_error(answer)
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
                    raise as_error(answer)
                if isinstance(answer, kind):
                    return answer
                if isinstance(answer, Done):
                    break
        raise InferenceError("The engine gave no answer in time.")

    @contextmanager
    def _asking(self, frame: Generate | Embed | Count | Ask) -> Iterator[Request]:
        id = next(self._ids)
        request = self._requests[id] = Request(frame, id)
        if request.model is not None and request.model not in self._openings:
            sentence = f"The engine has no model {request.model} open."
            request.take(Refused(id, ModelMissing.code, sentence))
        self._send(request)
        try:
            yield request
        finally:
            del self._requests[id]
            request.close()
            if request.sent and not request.ended and self._process:
                self._process.post(Drop(id))

    def want(self, frame: Open) -> Opening:
        """Have it open as soon as there is an engine."""
        opening = self._openings.get(frame.name)
        if opening is None:
            opening = self._openings[frame.name] = Opening(frame)
            if self._process:
                self._process.post(frame)
        return opening

    def _send(self, request: Request) -> None:
        """Send it, if the engine is there and has its model open; otherwise it is sent once that is so."""
        there = request.model is None or request.model in self.opened
        if self._process and there and not request.ended:
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
            loading = self._loading or len(self.opened) < len(self._openings)
            if self._silent >= (_LOADING if loading else self._patience):
                log.error("the engine has said nothing for %g s and is killed", round(self._silent, 1))
                return process.kill()

    def _take(self, frame: FromEngine) -> None:
        if isinstance(frame, Opened):
            self._take_opened(frame)
        elif isinstance(frame, Loading):
            self._loading = frame.name
        elif isinstance(frame, Unloaded):
            self._loading = ""
            self.opened[frame.name] = msgspec.structs.replace(self.opened[frame.name], loaded=False)
        elif isinstance(frame, Refused) and not frame.id:
            self._refuse_model(frame)
        elif request := self._requests.get(frame.id):
            request.take(frame)

    def _take_opened(self, frame: Opened) -> None:
        self._loading = ""
        self.opened[frame.name] = frame
        if opening := self._openings.get(frame.name):
            opening.opened = frame
            if frame.loaded:
                opening.deaths = 0
            opening.answered.set()
        for request in self._requests.values():
            if request.model == frame.name and not request.sent:
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
        unread = next((one for one in self._openings.values() if one.frame.name not in self.opened), None)
        loading = self._openings.get(self._loading, unread)
        self._loading = ""
        self.opened.clear()
        if loading and crashed:
            loading.deaths += 1
            if loading.deaths >= POISONED:
                sentence = f"The engine died {loading.deaths} times while it opened {loading.frame.path}."
                self._refuse_model(Refused(0, ModelInvalid.code, sentence, None, loading.frame.name))
        for request in self._requests.values():
            if request.died(blamed=loading is None):
                digest = request.digest()
                log.error("the engine died %d times during a request: SHA-256 %s", request.deaths, digest)
                sentence = f"The engine died {request.deaths} times during this request (SHA-256 {digest})."
                request.take(Refused(request.frame.id, RequestPoisoned.code, sentence))
