"""What all tests share: the event loop of production, and a fresh broker."""

from __future__ import annotations

import inspect
import os
from collections.abc import AsyncIterator, Generator
from typing import Any

import pytest

from xnai.agents.testing import fresh_server
from xnai.bus import Server

# NumPy's threads wait for each other by spinning: on a busy machine for most of a minute. Read when it loads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


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


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Reports cross a pipe where tests run in several processes, and some quote names that are no Unicode."""
    return _encodable((yield))


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _encodable(item) for key, item in value.items()}
    return type(value)(map(_encodable, value)) if isinstance(value, list | tuple) else value
