"""The wish to end: the first signal is obeyed in order, a second one at once."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator

STOPPING = (signal.SIGINT, signal.SIGTERM)


async def first_of(signals: AsyncIterator[signal.Signals]) -> signal.Signals:
    """Wait for a signal; the next one has the effect that it has on any program."""
    came = await anext(signals)
    for number in STOPPING:
        signal.signal(number, signal.SIG_DFL)
    return came
