"""The engine's loop: takes what has come in, and lets the models compute one batch each in turn."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

from xnai.agents.inference.engine.embedding import VectorModel, fits
from xnai.agents.inference.engine.generating import TextModel
from xnai.agents.inference.engine.jobs import Phase
from xnai.agents.inference.engine.llama import Abort
from xnai.agents.inference.engine.loading import Loaded, Loader, Prepared
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
    ToEngine,
)
from xnai.protocol.errors import InvalidPayload


class Arrival(NamedTuple):
    """What came in, when, and what it brings if that is known already."""

    frame: ToEngine
    at: float
    prepared: Prepared | None = None


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
        self._send, self._clock = send, clock
        self._out: list[Frame] = []
        self.loader = Loader(setup, self.abort, emit=self._out.append, clock=clock)
        self._turns: dict[str, float] = {}

    def computes(self, id: int) -> bool:
        """Whether this request is in the batch that is computed now, and not at its last token."""
        return any(id in each.model.computing for each in self.loader.loaded())

    def run(self) -> None:
        """Computes for ever."""
        pause: float | None = None
        while True:
            self._take(pause)
            pause = self._compute()
            if self._out:
                self._send(self._out)
                self._out.clear()

    def _take(self, pause: float | None) -> None:
        """Takes what has come in. With nothing to compute, waits for it so long, for ever if None."""
        try:
            if pause != 0:
                self._accept(self.inbox.get(timeout=pause))
            while True:
                self._accept(self.inbox.get_nowait())
        except Empty:
            pass
        self.abort.clear()

    def _accept(self, arrival: Arrival) -> None:
        frame = arrival.frame
        try:
            if isinstance(frame, Open):
                self.loader.open(frame)
            elif isinstance(frame, Generate):
                self._generate(frame, arrival)
            elif isinstance(frame, Embed):
                self._embed(frame, arrival)
            elif isinstance(frame, Drop):
                for each in self.loader.loaded():
                    each.model.drop(frame.id)
            elif isinstance(frame, Ask):
                self._out.append(self._status(frame.id))
        except (InferenceError, InvalidPayload) as error:
            id = getattr(frame, "id", 0)
            self._out.append(Refused(id, error.code, str(error), model=getattr(frame, "name", "")))

    def _generate(self, ask: Generate, arrival: Arrival) -> None:
        loaded = self.loader.get(ask.model)
        if not isinstance(loaded.model, TextModel):
            raise InferenceError(f"{ask.model} is a model for embeddings: it does not generate text")
        prompt, matcher = arrival.prepared or loaded.read(ask)
        loaded.model.take(ask, prompt, matcher, arrived=arrival.at)

    def _embed(self, ask: Embed, arrival: Arrival) -> None:
        loaded = self.loader.get(ask.model)
        if not isinstance(loaded.model, VectorModel):
            raise InferenceError(f"{ask.model} generates text: it does not embed")
        if not fits(ask.texts, loaded.model.context.context):
            raise InferenceError(
                f"a text is longer than the {loaded.model.context.context} tokens of {ask.model}"
            )
        loaded.model.take(ask, arrival.at)

    def _compute(self) -> float | None:
        """One batch of one model; 0 if there may be another, else in how many seconds; None for never."""
        waiting = [each for each in self.loader.loaded() if each.model.requests]
        if not waiting:
            return None
        chosen = min(waiting, key=self._rank)
        self._turns = {each.name: self._turns.get(each.name, 0.0) for each in waiting}
        before = chosen.model.busy
        pause = chosen.model.step()
        # A model that comes back does not claim the time for which it had nothing to do.
        least = min((self._turns[each.name] for each in waiting), default=0.0)
        self._turns[chosen.name] = max(least, self._turns[chosen.name]) + chosen.model.busy - before
        return 0.0 if len(waiting) > 1 else pause

    def _rank(self, each: Loaded) -> tuple[int, float]:
        """Urgent requests first, then the model that has computed less."""
        lane = min(request.job.lane for request in each.model.requests.values())
        return min(lane, 1), self._turns.get(each.name, 0.0)

    def _status(self, id: int) -> Status:
        texts = [each.model for each in self.loader.loaded() if isinstance(each.model, TextModel)]
        jobs = [request.job for model in texts for request in model.requests.values()]
        counts = Counter(job.phase for job in jobs)
        models = [each.model for each in self.loader.loaded()]
        streams = [model.streams.stats() for model in texts]
        return Status(
            id,
            running=counts[Phase.RUNNING],
            waiting=counts[Phase.QUEUED],
            paused=counts[Phase.PAUSED],
            waiting_tokens=sum(job.prompt for job in jobs if job.phase is Phase.QUEUED),
            kept=sum(figures.kept for figures in streams),
            kept_tokens=sum(figures.kept_tokens for figures in streams),
            hits=sum(figures.hits for figures in streams),
            prompts=sum(figures.prompts for figures in streams),
            hit_tokens=sum(figures.hit_tokens for figures in streams),
            prompt_tokens=sum(figures.prompt_tokens for figures in streams),
            steps=sum(model.steps for model in models),
            busy=sum(model.busy for model in models),
            generated=sum(model.generated for model in texts),
            prefill=max((model.speeds.prefill_rate for model in texts), default=0.0),
            decode=max((model.speeds.decode_rate for model in texts), default=0.0),
            threads=self.loader.threads,
            slots=sum(model.limits.slots for model in texts),
            memory=_memory(),
        )


def _memory() -> int:
    """Bytes of this process that are in memory."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
