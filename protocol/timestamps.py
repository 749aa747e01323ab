"""Points in time on the wire: ISO 8601, UTC, milliseconds (`2026-01-31T12:00:00.000Z`).

In the program they are seconds since the epoch. Nothing here looks at a clock.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache

from xnai.protocol.errors import MalformedMessage


@lru_cache(maxsize=64)
def _whole_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def format_timestamp(seconds: float) -> str:
    """`seconds` since the epoch, as text, rounded to milliseconds."""
    whole, milliseconds = divmod(int(seconds * 1000 + 0.5), 1000)
    return f"{_whole_second(whole)}.{milliseconds:03}Z"


@lru_cache(maxsize=1024)
def parse_timestamp(text: str) -> float:
    """Seconds since the epoch. Text without a time zone is UTC.

    Raises:
        MalformedMessage: it is no ISO 8601 time.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise MalformedMessage(f"{text!r} is no ISO 8601 time.") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
