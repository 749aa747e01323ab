"""Why a handler is stopped before its end."""

from __future__ import annotations

import enum


class Stop(enum.Enum):
    """The reasons, each with an outcome or none of its own."""

    CANCELED = "canceled"
    DEADLINE = "past its deadline"
    CAP = "over its cap"
    ENDED_ELSEWHERE = "ended elsewhere"
    HANDED_BACK = "handed back"
