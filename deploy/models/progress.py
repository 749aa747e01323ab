"""How far a download is, on a terminal."""

from __future__ import annotations

import time

from xnai.deploy.bar import Bar
from xnai.deploy.units import span

_INTERVAL = 0.1  # seconds between two drawings
_MIB = 1 << 20


class Progress:
    """A bar with speed and time left. Use it as a context."""

    def __init__(self, name: str) -> None:
        self._name, self._bar = name, Bar()
        self._began = self._drawn = 0.0
        self._first: int | None = None

    def __enter__(self) -> Progress:
        self._bar.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.__exit__()

    def advance(self, have: int, total: int | None) -> None:
        """There are so many bytes of so many."""
        now = time.monotonic()
        if self._first is None:
            self._began, self._first = now, have
        if now - self._drawn < _INTERVAL and have != total:
            return
        self._drawn = now
        speed = (have - self._first) / max(now - self._began, 1e-9)
        left = f", {span(max((total - have) / speed, 1.0))} left" if total and speed else ""
        text = f"MiB {self._name}, {speed / _MIB:.1f} MiB/s{left}"
        self._bar.draw(have // _MIB, (total or have) // _MIB, text)
