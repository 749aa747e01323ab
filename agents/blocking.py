"""Naming what blocks the event loop: a thread that looks at it from outside, while tasks run."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from xnai.agents.agent import Agent

log = logging.getLogger(__name__)
BLOCKED_AFTER = 1.0


class LoopGuard:
    """Says in the log which skill keeps the loop from turning for more than a second, and where.

    While a handler blocks, no task is kept alive: after the ack wait another process gets them.
    """

    def __init__(self, agent: Agent) -> None:
        self._skills = {skill.handler.__code__: skill.name for skill in agent.skills.values()}
        self._agent = agent.name
        self._beat = 0.0  # 0 while nothing runs
        self._told = 0.0
        self._over = threading.Event()

    def beat(self) -> None:
        """The loop turns."""
        self._beat = time.monotonic()

    def rest(self) -> None:
        """Nothing runs: there is nothing to watch."""
        self._beat = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(
            target=self._watch, args=(threading.get_ident(),), name="xnai-loop-guard", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join(timeout=BLOCKED_AFTER)

    def _watch(self, loop_thread: int) -> None:
        while not self._over.wait(BLOCKED_AFTER):
            beat = self._beat
            if beat and beat != self._told and time.monotonic() - beat > BLOCKED_AFTER:
                self._told = beat  # once for each time that it stops
                self._tell(sys._current_frames().get(loop_thread))

    def _tell(self, frame: FrameType | None) -> None:
        place = f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "an unknown place"
        skill = None
        while frame is not None and skill is None:
            skill = self._skills.get(frame.f_code)
            frame = frame.f_back
        who = f"the skill {skill} of {self._agent}" if skill else f"something in {self._agent}"
        log.error("%s blocks the event loop at %s: use a plain def, which gets a thread", who, place)
