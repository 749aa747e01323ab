"""A model that embeds, and the texts that it computes together, one batch after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from xnai.agents.inference.engine.batches import Batch
from xnai.agents.inference.engine.jobs import Job, Ledger, job_of
from xnai.agents.inference.engine.llama import Context
from xnai.agents.inference.engine.outbox import Outbox
from xnai.agents.inference.frames import Done, Embed, Vectors

TEXTS, TOKENS = 8, 512  # in one batch: every token is compared with all others of it, so more is slower

_LATELY = 0.3  # what the speed of a batch weighs against those before


class Embedding:
    """A request while the engine holds it. `left` are the texts to compute, by index, the longest last."""

    def __init__(self, ask: Embed, job: Job, dimensions: int) -> None:
        self.ask, self.job = ask, job
        self.vectors: NDArray[np.float32] = np.zeros((len(ask.texts), dimensions), np.float32)
        self.left = sorted(range(len(ask.texts)), key=lambda index: -len(ask.texts[index]))


class VectorModel:
    """The requests for one model that embeds.

    Attributes:
        computing: the ids of the requests that are in the batch that is computed now. Read by the thread
            that reads.
    """

    def __init__(
        self,
        context: Context,
        *,
        ledger: Ledger,
        out: Outbox,
        clock: Callable[[], float],
    ) -> None:
        self.context = context
        self.computing: frozenset[int] = frozenset()
        self.requests: dict[int, Embedding] = {}
        self.steps = 0
        self.busy = self._rate = 0.0
        self._ledger, self._out, self._clock = ledger, out, clock
        self._batch = Batch(TOKENS)

    def take(self, ask: Embed, arrived: float) -> None:
        """A request; each of its texts fits into the context."""
        job = job_of(ask, arrived, prompt=sum(map(len, ask.texts)))
        request = Embedding(ask, job, self.context.weights.dimensions)
        self._ledger.arrive(job)
        self.requests[ask.id] = request
        if not request.left:
            self._finish(request)

    def drop(self, id: int) -> bool:
        """Ends a request where it is; False if there is none of this id."""
        if (request := self.requests.pop(id, None)) is None:
            return False
        self._ledger.leave(request.job)
        self._out.put(Done(id, "canceled"))
        return True

    def step(self, seconds: float = math.inf) -> float | None:
        """Computes one batch, of about so many seconds at most.

        Returns 0 if there may be another, None if nobody waits.
        """
        began = self._clock()
        self._drop_late(began)
        if not self.requests:
            return None
        chosen = self._choose(min(TOKENS, seconds * self._rate) if self._rate else TOKENS)
        self._batch.clear()
        for sequence, (request, index) in enumerate(chosen):
            text = request.ask.texts[index]
            self._batch.add(text, 0, sequence, wanted=len(text))
        self.computing = frozenset(request.ask.id for request, _ in chosen)
        self._ledger.begin()
        done = self.context.encode(self._batch)
        self.computing = frozenset()
        self.steps += 1
        took = self._clock() - began
        self.busy += took
        if not done:
            for request, index in reversed(chosen):
                request.left.append(index)
            return 0.0
        if took > 0:
            self._rate = self._rate or self._batch.size / took
            self._rate += _LATELY * (self._batch.size / took - self._rate)
        for sequence, (request, index) in enumerate(chosen):
            request.vectors[index] = self.context.vector(sequence)
            request.job.todo -= len(request.ask.texts[index])
            self._ledger.charge(request.job, len(request.ask.texts[index]))
        for request in {id(request): request for request, _ in chosen}.values():
            if not request.left:
                self._finish(request)
        return 0.0

    def _drop_late(self, now: float) -> None:
        for request in list(self.requests.values()):
            if request.job.deadline is not None and request.job.deadline <= now:
                del self.requests[request.ask.id]
                self._ledger.leave(request.job)
                self._out.put(Done(request.ask.id, "deadline"))

    def _choose(self, most: float) -> list[tuple[Embedding, int]]:
        """Which texts go through the model together: of the requests whose turn it is, shortest first."""
        chosen: list[tuple[Embedding, int]] = []
        tokens = 0
        for request in self._in_turn():
            while request.left:
                length = len(request.ask.texts[request.left[-1]])
                if chosen and (len(chosen) == TEXTS or tokens + length > most):
                    return chosen
                chosen.append((request, request.left.pop()))
                tokens += length
        return chosen

    def _in_turn(self) -> Iterator[Embedding]:
        def rank(request: Embedding) -> tuple[int, float, float]:
            return request.job.lane, self._ledger.used(request.job), request.job.arrived

        yield from sorted(self.requests.values(), key=rank)

    def _finish(self, request: Embedding) -> None:
        del self.requests[request.ask.id]
        self._ledger.leave(request.job)
        vectors = request.vectors
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        data = vectors.astype("<f4").tobytes()
        self._out.put(Vectors(request.ask.id, self.context.weights.dimensions, data))

    def close(self) -> None:
        """Nothing is held in C."""


def fits(texts: Sequence[Sequence[int]], context: int) -> bool:
    """Whether each text can be embedded: it has a token, and not more than the model takes."""
    return all(0 < len(text) <= min(context, TOKENS) for text in texts)
