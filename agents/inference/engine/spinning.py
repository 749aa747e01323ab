"""How long llama.cpp's threads spin at a barrier before they sleep, changed while the process runs.

GNU's OpenMP reads GOMP_SPINCOUNT once. But while there are more OpenMP threads than CPUs it spins for no more
than 100 rounds, as the description of that variable says. So a team of threads that do nothing, and sleep,
makes all others spin briefly, until it is gone.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from pathlib import Path
from typing import Any

from xnai.agents.inference.cores import cpus

_log = logging.getLogger(__name__)


class Spins:
    """How long waiting threads spin. Changes nothing where llama.cpp uses another OpenMP, or none."""

    def __init__(self) -> None:
        self._library = _library()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def short(self) -> bool:
        return self._thread is not None

    def shorten(self) -> None:
        """Threads that wait sleep almost at once: those that are waited for need the cores."""
        if self._library and not self._thread:
            self._end.clear()
            started = threading.Event()
            self._thread = threading.Thread(target=self._crowd, args=(started,), daemon=True)
            self._thread.start()
            started.wait()

    def lengthen(self) -> None:
        """Threads that wait spin as GOMP_SPINCOUNT says."""
        if self._thread:
            self._end.set()  # the team ends with its thread
            self._thread.join()
            self._thread = None

    def _crowd(self, started: threading.Event) -> None:
        nothing = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p)
        self._library.GOMP_parallel(nothing, None, len(cpus()) + 1, 0)
        started.set()
        self._end.wait()


def _library() -> Any:
    """GNU's OpenMP as it is loaded in this process; None if it is not."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
        path = next((line.split(maxsplit=5)[5] for line in lines if "libgomp" in line), None)
        library = ctypes.CDLL(path) if path else None
        if library:
            library.GOMP_parallel.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
            library.GOMP_parallel.restype = None
    except (OSError, AttributeError) as error:
        _log.debug("threads spin as long as they do", extra={"reason": str(error)})
        return None
    return library
