"""What the process says to whoever started it: the exit status, and one sentence for an error."""

from __future__ import annotations

import enum

from xnai.protocol.errors import (
    CallTimeout,
    DeadlineExceeded,
    InvalidArgument,
    InvalidName,
    TaskFailed,
    Unavailable,
    XnaiError,
)


class Status(enum.IntEnum):
    """Exit statuses; stable, programs compare them."""

    DONE = 0
    FAILURE = 1
    USAGE = 2
    NO_BUS = 3
    TASK_FAILED = 4
    TIMEOUT = 5
    INTERRUPTED = 130


_BY_ERROR: tuple[tuple[type[XnaiError], Status], ...] = (
    (DeadlineExceeded, Status.TIMEOUT),
    (CallTimeout, Status.TIMEOUT),
    (TaskFailed, Status.TASK_FAILED),
    (Unavailable, Status.NO_BUS),
    (InvalidArgument, Status.USAGE),
    (InvalidName, Status.USAGE),
)


def status_of(error: XnaiError) -> Status:
    """The exit status for an error that ends a command."""
    return next((status for kind, status in _BY_ERROR if isinstance(error, kind)), Status.FAILURE)


def innermost(error: BaseException) -> BaseException:
    """The error to speak of: the first of a group, that of ours where there is one."""
    while isinstance(error, BaseExceptionGroup):
        ours = error.subgroup(XnaiError)
        error = (ours or error).exceptions[0]
    return error
