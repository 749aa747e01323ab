"""A model that is open in the engine, in memory or not, and the requests that wait until it is."""

from __future__ import annotations

from typing import NamedTuple

from xnai.agents.inference.engine.loading import Loaded, Prepared
from xnai.agents.inference.engine.swapping import Standing
from xnai.agents.inference.frames import Embed, Generate, Open, ToEngine
from xnai.agents.inference.gguf_file import GgufInfo


class Arrival(NamedTuple):
    """What came in, when, and what it brings if that is known already. Without a frame it wakes the loop."""

    frame: ToEngine | None
    at: float
    prepared: Prepared | None = None

    @property
    def end(self) -> float | None:
        """When its deadline is."""
        deadline = getattr(self.frame, "deadline", None)
        return None if deadline is None else self.at + deadline


class Model:
    """An open model, in memory or not.

    Attributes:
        loaded: None while it is not in memory.
        waiting: requests for it that wait until it is, or until it has another size.
        resting: it starts nothing new, so that it can go or shrink.
    """

    def __init__(self, wanted: Open, info: GgufInfo) -> None:
        self.wanted, self.info = wanted, info
        self.loaded: Loaded | None = None
        self.waiting: dict[int, Arrival] = {}
        self.resting = False

    @property
    def working(self) -> bool:
        """Whether it computes, or is about to."""
        return bool(self.loaded and (self.loaded.model.requests or (self.waiting and not self.resting)))

    @property
    def standing(self) -> Standing | None:
        """How it stands; None while it is not in memory."""
        if not self.loaded:
            return None
        return Standing(
            name=self.loaded.name,
            takes=self.loaded.takes,
            working=self.working,
            used=self.loaded.used,
            since=self.loaded.since,
        )

    @property
    def urgency(self) -> tuple[int, float]:
        """0 if a request that waits is urgent, else 1; and when the first came. Only while some wait."""
        asked = [one.frame for one in self.waiting.values() if isinstance(one.frame, Generate | Embed)]
        return min(1, *(frame.lane for frame in asked)), min(one.at for one in self.waiting.values())
