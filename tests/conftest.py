"""What all tests share: the event loop of production, and a fresh broker."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from typing import Any

import pytest

from xnai.agents.testing import fresh_server
from xnai.bus import Server


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every async test runs under AnyIO."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function):
            item.add_marker(pytest.mark.anyio)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A real nats-server with an empty store."""
    async with fresh_server() as running:
        yield running
