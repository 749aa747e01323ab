"""The engine's loop: takes what has come in, and lets the models compute one batch each in turn."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue

import msgspec

from xnai.agents.inference.cores import cpus
from xnai.agents.inference.engine.embedding import VectorModel, fits
from xnai.agents.inference.engine.generating import TextModel
from xnai.agents.inference.engine.governor import ROOM, Governor, Look, Pressure, affordable
from xnai.agents.inference.engine.jobs import URGENT, Phase
from xnai.agents.inference.engine.llama import Abort
from xnai.agents.inference.engine.loading import Loaded, Opener
from xnai.agents.inference.engine.machine import Neighbours, Stalls
from xnai.agents.inference.engine.model import Arrival
from xnai.agents.inference.engine.models import Models
from xnai.agents.inference.engine.outbox import Outbox
from xnai.agents.inference.engine.spinning import Spins
from xnai.agents.inference.engine.turns import Turns
from xnai.agents.inference.errors import InferenceError
from xnai.agents.inference.frames import (
    Ask,
    Drop,
    Embed,
    Frame,
    Generate,
    Open,
    Refused,
    Setup,
    Status,
)
from xnai.agents.inference.memory import available
from xnai.protocol.errors import InvalidPayload

_log = logging.getLogger(__name__)
_LOOK, _IDLE_LOOK = 0.5, 5.0  # seconds between two looks at the machine
_LEAST = 0.1  # seconds of computing that tell a speed
_STEADY = 0.7  # of the time since the last look was spent computing
_QUIET = 0.2  # what a new pace on the quiet machine weighs against earlier ones


class Engine:
    """All models of a process, and what they compute.

    Attributes:
        inbox: where the thread that reads leaves what came in.
        abort: ends the batch that is computed now.
    """

    def __init__(
        self, setup: Setup, send: Callable[[list[Frame]], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.inbox: SimpleQueue[Arrival] = SimpleQueue()
        self.abort = Abort()
        self._clock = clock
        self._out = Outbox(send)
        opener = Opener(setup, self.abort, out=self._out, clock=clock)
        self.models = Models(setup, opener, out=self._out, wake=self._wake, clock=clock)
        self._turns = Turns()
        self._governor, self._spins = Governor(opener.threads), Spins()
        self._spin()
        self._pressure = Pressure(self.models.reserve)
        self._neighbours, self._stalls = Neighbours(), Stalls()
        self._gap = setup.gap
        self._others = self._pace = self._looked = self._busy = 0.0

    def computes(self, id: int) -> bool:
        """Whether the batch that is computed now may be broken off if this request is not wanted any more."""
        return any(id in each.model.computing for each in self.models.loaded())

    def run(self) -> None:
        """Computes for ever."""
        pause: float | None = None
        while True:
            self._take(pause)
            for arrival in self.models.tend(self._clock()):
                self._accept(arrival)
            pause = self._compute()
            self._out.send()
            if (now := self._clock()) - self._looked >= _LOOK:
                self._look(now)  # last: whoever comes after a pause does not wait for it
                self._out.send()
                pause = 0.0

    def _wake(self) -> None:
        self.inbox.put(Arrival(None, 0.0))

    def _take(self, pause: float | None) -> None:
        """Takes what has come in. With nothing to compute, waits for it so long, for ever if None."""
        try:
            if pause != 0:
                self._accept(self.inbox.get(timeout=pause))
            while not self.inbox.empty():
                self._accept(self.inbox.get_nowait())
        except Empty:
            pass
        self.abort.clear()

    def _accept(self, arrival: Arrival) -> None:
        frame = arrival.frame
        try:
            if isinstance(frame, Open):
                self.models.open(frame)
            elif isinstance(frame, Generate):
                self._generate(frame, arrival)
            elif isinstance(frame, Embed):
                self._embed(frame, arrival)
            elif isinstance(frame, Drop):
                if not self.models.drop(frame.id):
                    for each in self.models.loaded():
                        each.model.drop(frame.id)
            elif isinstance(frame, Ask):
                self._out.put(self._status(frame.id))
        except (InferenceError, InvalidPayload) as error:
            id = getattr(frame, "id", 0)
            self._out.put(Refused(id, error.code, str(error), model=getattr(frame, "name", "")))

    def _generate(self, ask: Generate, arrival: Arrival) -> None:
        loaded = self.models.ready(ask.model)
        if not loaded:
            self.models.defer(arrival)
            return
        if not isinstance(loaded.model, TextModel):
            raise InferenceError(f"{ask.model} is a model for embeddings: it does not generate text")
        prepared = arrival.prepared
        if not prepared or prepared.model is not loaded:  # it was read before the model went and came back
            prepared = loaded.read(ask)
        loaded.model.take(ask, prepared.prompt, prepared.matcher, arrived=arrival.at)

    def _embed(self, ask: Embed, arrival: Arrival) -> None:
        loaded = self.models.ready(ask.model)
        if not loaded:
            self.models.defer(arrival)
            return
        if not isinstance(loaded.model, VectorModel):
            raise InferenceError(f"{ask.model} generates text: it does not embed")
        if not fits(ask.texts, loaded.model.context.context):
            raise InferenceError(
                f"a text is longer than the {loaded.model.context.context} tokens of {ask.model}"
            )
        loaded.model.take(ask, arrival.at)

    def _compute(self) -> float | None:
        """One batch of one model; 0 if there may be another, else in how many seconds; None for never."""
        waiting = {each.name: each for each in self.models.loaded() if each.model.requests}
        if not waiting:
            return self._pause()
        several = len(waiting) > 1
        name = self._turns.choose({name: several and _urgent(each) for name, each in waiting.items()})
        chosen = waiting[name]
        began = self._clock()
        model = chosen.model
        if isinstance(model, TextModel):
            pause = model.step(lambda: several or not self.inbox.empty())
        else:
            pause = model.step(self._gap / 2 if several else math.inf)  # an answer goes on between two
        chosen.used = self._clock()
        self._turns.charge(name, chosen.used - began)
        if several or pause == 0:
            return 0.0
        ends = [end for end in (pause, self._pause()) if end is not None]
        return min(ends, default=None)

    def _pause(self) -> float | None:
        """Seconds until something has to be done though nobody asks: a deadline, or a look at the machine."""
        if not self.models.loaded() and not self.models.deferred:
            return None
        soonest = self.models.soonest()
        look = _LOOK if self.models.level or self.models.deferred else _IDLE_LOOK
        return look if soonest is None else min(look, max(1e-3, soonest - self._clock()))

    # The machine

    def _look(self, now: float) -> None:
        """How busy the machine is, and how short of memory, and what that means."""
        # What others do while nothing is computed keeps nobody from computing.
        busy = self.models.busy_before + sum(each.model.busy for each in self.models.loaded())
        steady = busy - self._busy >= _STEADY * (now - self._looked)
        self._looked, self._busy = now, busy
        others = self._neighbours.cores()
        self._others = others if steady else 0.0
        self._pace = self._speed()
        cores = max(len(cpus()), self.models.opener.most_threads)
        threads = self._governor.look(Look(cores=cores, others=self._others, pace=self._pace or None))
        if threads != self.models.opener.threads:
            self.models.opener.threads = threads
            for each in self.models.loaded():
                each.model.context.use(threads)
        self._spin()
        for each in self.models.loaded():
            self._limit(each)
        mapped = sum(each.weights.mapped for each in self.models.loaded())
        before = self.models.level
        level = self._pressure.look(available(mapped=mapped), self._stalls.share())
        self.models.relieve(level, now)
        if level != before:
            _log.warning(
                "memory is short" if level > before else "memory is less short", extra={"level": level}
            )

    def _spin(self) -> None:
        if self._governor.short:
            self._spins.shorten()
        else:
            self._spins.lengthen()

    def _speed(self) -> float:
        """The pace since the last look, of all models; 0 if too little was computed."""
        whole = [0.0, 0.0]
        for each in self.models.loaded():
            model = each.model
            if not isinstance(model, TextModel) or not model.meter.took:
                continue
            meter = model.meter
            pace = meter.expected / meter.took
            full = self._governor.threads == self.models.opener.most_threads
            if full and self._others < ROOM and meter.took >= _LEAST:
                each.quiet += _QUIET * (pace - each.quiet)
            whole[0] += meter.expected / each.quiet
            whole[1] += meter.took
            meter.expected = meter.took = 0.0
        return whole[0] / whole[1] if whole[1] >= _LEAST else 0.0

    def _limit(self, each: Loaded) -> None:
        """Fewer sequences compute where the machine is so busy that streams would wait too long."""
        model = each.model
        if not isinstance(model, TextModel):
            return
        most = each.size[0]
        bound = max(self._gap, 2 * model.meter.usual.decode(most))
        slots = affordable(most, model.speeds.decode, bound) if self._governor.strained else most
        if slots > model.limits.slots:
            slots = model.limits.slots + 1  # the others may be back at once
        if slots != model.limits.slots:
            model.limits = msgspec.structs.replace(model.limits, slots=slots)

    def _status(self, id: int) -> Status:
        texts = [each.model for each in self.models.loaded() if isinstance(each.model, TextModel)]
        jobs = [request.job for model in texts for request in model.requests.values()]
        counts = Counter(job.phase for job in jobs)
        models = [each.model for each in self.models.loaded()]
        streams = [model.streams.stats() for model in texts]
        past = self.models.past
        return Status(
            id,
            running=counts[Phase.RUNNING],
            waiting=counts[Phase.QUEUED] + self.models.deferred,
            paused=counts[Phase.PAUSED],
            waiting_tokens=sum(job.prompt for job in jobs if job.phase is Phase.QUEUED),
            hits=past["hits"] + sum(figures.hits for figures in streams),
            prompts=past["prompts"] + sum(figures.prompts for figures in streams),
            hit_tokens=past["hit_tokens"] + sum(figures.hit_tokens for figures in streams),
            prompt_tokens=past["prompt_tokens"] + sum(figures.prompt_tokens for figures in streams),
            steps=past["steps"] + sum(model.steps for model in models),
            busy=self.models.busy_before + sum(model.busy for model in models),
            generated=past["generated"] + sum(model.generated for model in texts),
            prefill=max((model.speeds.prefill_rate for model in texts), default=0.0),
            decode=max((model.speeds.decode_rate for model in texts), default=0.0),
            threads=self.models.opener.threads,
            slots=sum(model.limits.slots for model in texts),
            memory=_memory(),
            loaded=tuple(each.name for each in self.models.loaded()),
        )


def _urgent(each: Loaded) -> bool:
    return any(request.job.lane == URGENT for request in each.model.requests.values())


def _memory() -> int:
    """Bytes of this process that are in memory."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
