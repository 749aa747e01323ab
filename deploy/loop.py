"""Running what is asynchronous: the one place that chooses the event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

T = TypeVar("T")


def run(work: Callable[[], Awaitable[T]]) -> T:
    """Run `work` on AnyIO's asyncio backend with uvloop."""
    return anyio.run(work, backend="asyncio", backend_options={"use_uvloop": True})
