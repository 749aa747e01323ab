"""What the engine says: gathered, and sent after each step, or before one that takes long."""

from __future__ import annotations

from collections.abc import Callable

from xnai.agents.inference.frames import Frame


class Outbox:
    """Frames that leave together. `send` of whoever carries them is done with the list when it returns."""

    def __init__(self, send: Callable[[list[Frame]], None]) -> None:
        self._send = send
        self._frames: list[Frame] = []
        self.put = self._frames.append

    def send(self) -> None:
        """Lets all of them leave."""
        if self._frames:
            self._send(self._frames)
            self._frames.clear()
