"""The engine's thread that computes gives way to whoever wakes up; the one that answers does not."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import pytest
from engines import engine

from xnai.agents.inference.engine.slices import LONGEST, slice_of

_KERNEL = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))


@pytest.mark.skipif(platform.system() != "Linux" or _KERNEL < (6, 12), reason="no slices can be asked for")
def test_who_computes_has_long_slices_and_who_answers_has_usual_ones() -> None:
    with engine() as found:
        found.status()  # may come with the first frames, read before that thread starts
        found.status()
        threads = [int(path.name) for path in Path(f"/proc/{found.process.pid}/task").iterdir()]
        slices = {thread: slice_of(thread) for thread in threads}
    assert slices.pop(found.process.pid) == LONGEST
    assert slice_of(os.getpid()) in slices.values()
