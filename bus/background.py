"""Tasks that live as long as a context: no longer, and no shorter."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup, TaskStatus


@asynccontextmanager
async def background_tasks() -> AsyncIterator[TaskGroup]:
    """A task group that is cancelled at the end of the context, and not before.

    When the surroundings are cancelled, the context's own clean-up can still rely on its tasks. An error of
    the context leaves it as it is (a bare task group would wrap it in an ExceptionGroup); an error of one
    of the tasks is still raised as a group.
    """
    error: BaseException | None = None
    over = anyio.Event()
    async with anyio.create_task_group() as host:
        tasks: TaskGroup = await host.start(_hold, over)
        try:
            yield tasks
        except BaseException as raised:  # raised again below, once the tasks have ended
            error = raised
        over.set()
    if error is not None:
        raise error


async def _hold(over: anyio.Event, *, task_status: TaskStatus[TaskGroup]) -> None:
    with anyio.CancelScope(shield=True):
        async with anyio.create_task_group() as tasks:
            task_status.started(tasks)
            await over.wait()
            tasks.cancel_scope.cancel()
