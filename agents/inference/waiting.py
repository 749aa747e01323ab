"""Telling those who follow a request how long it waits, if that is worth a word, and not too often."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import anyio

from xnai.agents.context import Context
from xnai.agents.inference.frames import Queued
from xnai.protocol.errors import Unavailable

_NOTICEABLE = 1.0  # seconds of waiting that are worth a word
_SELDOM = 2.0  # seconds between two words
_LOOK = 0.5  # seconds between two looks at all that wait


class Place:
    """Where a request stands in the queue, as the engine said last; None once it is computed."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._queued: Queued | None = None
        self._began, self._told = time.monotonic(), 0.0
        self._said = ""

    def __call__(self, queued: Queued | None) -> None:
        self._queued = queued

    async def tell(self) -> None:
        """Say it as the progress of the task, where it is due."""
        now = time.monotonic()
        if self._queued is None or now - self._began < _NOTICEABLE or now - self._told < _SELDOM:
            return
        text = (
            f"waiting at position {self._queued.position + 1}, to start in about {self._queued.start:.0f} s"
        )
        if text != self._said:
            self._told, self._said = now, text
            with suppress(Unavailable):  # only a view
                await self._ctx.progress(text)


class Waiting:
    """The requests of an agent that may wait."""

    def __init__(self) -> None:
        self._places: set[Place] = set()

    @contextmanager
    def place(self, ctx: Context) -> Iterator[Place]:
        """Tell of a request while the context is open."""
        place = Place(ctx)
        self._places.add(place)
        try:
            yield place
        finally:
            self._places.remove(place)

    async def run(self) -> None:
        """Look at all of them, for ever."""
        while True:
            await anyio.sleep(_LOOK)
            for place in list(self._places):
                if place in self._places:
                    await place.tell()
