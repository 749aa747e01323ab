"""Tasks that live as long as a context, and no longer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup


@asynccontextmanager
async def background_tasks() -> AsyncIterator[TaskGroup]:
    """A task group that is cancelled at the end of the context.

    An error of the context itself leaves it as it is, where a bare task group would wrap it in an
    ExceptionGroup; an error of one of the tasks is still raised as a group.
    """
    error: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        try:
            yield tasks
        except BaseException as raised:  # raised again below, once the tasks have ended
            error = raised
        tasks.cancel_scope.cancel()
    if error is not None:
        raise error
