"""Answering tasks: declare an agent, serve it, and what its handlers are given."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xnai.agents.agent import Agent
    from xnai.agents.context import Context
    from xnai.agents.skills import Backoff
    from xnai.agents.worker import Worker, serve
    from xnai.protocol.errors import Reject
    from xnai.protocol.payload import Whole

__all__ = ["Agent", "Backoff", "Context", "Reject", "Whole", "Worker", "serve"]

_HOMES = {
    "Agent": "xnai.agents.agent",
    "Backoff": "xnai.agents.skills",
    "Context": "xnai.agents.context",
    "Reject": "xnai.protocol.errors",
    "Whole": "xnai.protocol.payload",
    "Worker": "xnai.agents.worker",
    "serve": "xnai.agents.worker",
}


def __getattr__(name: str) -> object:
    # Imported when it is asked for: the engine's process needs nothing of the bus, which takes a third of a
    # second and 11 MB.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
