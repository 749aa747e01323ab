"""Every error that this project raises, one tree.

    XnaiError
    ├── InvalidName (ValueError)          invalid_name        a name or id that cannot stand in a subject
    ├── InvalidArgument (ValueError)      invalid_argument    a number or option out of its range
    ├── InvalidPayload (ValueError)       invalid_payload     a value that does not fit the type asked for
    │   └── InvalidResult                 invalid_result      an answer that does not fit the type asked for
    ├── MalformedMessage                  malformed_message   bytes of a peer that are no message
    ├── InvalidAgent (ValueError)         invalid_agent       an agent or skill that cannot be served
    ├── InvalidSettings (ValueError)      invalid_settings    a settings file or variable that cannot be used
    ├── Unavailable (ConnectionError)     unavailable         the broker did not confirm; try again later
    │   ├── NoBus                         no_bus              there is no bus to connect to
    │   ├── NotAllowed                    not_allowed         the broker refuses the login or the request
    │   ├── ServerTooOld                  server_too_old      the broker lacks what "one outcome" rests on
    │   ├── NotConsuming                  not_consuming       an agent has its link, but can take no tasks
    │   └── Busy                          busy                a queue, log or blob store is full
    ├── UnknownAgent (LookupError)        unknown_agent       no queue of that name was ever declared
    ├── UnknownTask (LookupError)         unknown_task        no queue and no log holds that id
    ├── IdConflict                        id_conflict         the id belongs to another task
    ├── TaskNotCancelable                 task_not_cancelable the task has ended
    ├── GateClosed                        gate_closed         the log refused an event: another stands there
    ├── StreamChanged                     stream_changed      a new attempt yields other chunks
    ├── CallTimeout (TimeoutError)        timeout             no outcome is known in time
    ├── Reject                            handler_error       raised by a handler: never try this task again
    └── TaskFailed                        (of the outcome)    the task ended in another state than completed
        ├── TaskCanceled                  canceled
        ├── TaskRejected                  (of the outcome)
        └── DeadlineExceeded (TimeoutError)  deadline_exceeded

Codes are stable: programs may compare them, sentences may change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from xnai.protocol.a2a import Task


class XnaiError(Exception):
    """The root. `str(error)` is one sentence for a person, `error.code` is stable for programs."""

    code: ClassVar[str] = "error"


class InvalidName(XnaiError, ValueError):
    """A name or an id that cannot stand in a subject."""

    code = "invalid_name"


class InvalidPayload(XnaiError, ValueError):
    """A value does not fit the type it was asked to have."""

    code = "invalid_payload"


class InvalidResult(InvalidPayload):
    """An answer does not fit the type it was asked to have."""

    code = "invalid_result"


class InvalidArgument(XnaiError, ValueError):
    """A number or an option is out of its range."""

    code = "invalid_argument"


class MalformedMessage(XnaiError):
    """Bytes of a peer do not form the message that the subject promises."""

    code = "malformed_message"


class InvalidAgent(XnaiError, ValueError):
    """An agent or a skill cannot be declared the way it is written."""

    code = "invalid_agent"


class InvalidSettings(XnaiError, ValueError):
    """A settings file or an environment variable cannot be used."""

    code = "invalid_settings"


class Unavailable(XnaiError, ConnectionError):
    """The broker did not confirm a message: it may or may not be stored."""

    code = "unavailable"


class NoBus(Unavailable):
    """There is no bus to connect to."""

    code = "no_bus"


class NotAllowed(Unavailable):
    """The broker refuses these credentials, or what was asked with them."""

    code = "not_allowed"


class ServerTooOld(Unavailable):
    """The broker is older than 2.12 and would silently ignore the gate before the outcome."""

    code = "server_too_old"


class NotConsuming(Unavailable):
    """An agent can take no tasks although it has its link: its queue is gone, or does not answer."""

    code = "not_consuming"


class Busy(Unavailable):
    """A queue, a log or the blob store is full. Nothing was stored."""

    code = "busy"


class UnknownAgent(XnaiError, LookupError):
    """No queue of this name was ever declared."""

    code = "unknown_agent"


class UnknownTask(XnaiError, LookupError):
    """No queue and no log holds a task of ours with this id."""

    code = "unknown_task"


class IdConflict(XnaiError):
    """The id given belongs to a task with another agent, skill or payload."""

    code = "id_conflict"


class TaskNotCancelable(XnaiError):
    """The task has ended: there is nothing to cancel."""

    code = "task_not_cancelable"


class GateClosed(XnaiError):
    """The log holds an event where this one asked to be the first. Nothing was stored."""

    code = "gate_closed"


class StreamChanged(XnaiError):
    """A new attempt yields other chunks than those already handed out."""

    code = "stream_changed"


class CallTimeout(XnaiError, TimeoutError):
    """No outcome is known in time, and the broker could not be asked for one."""

    code = "timeout"


class Reject(XnaiError):
    """Raised by a handler: this attempt is the last, end the task as REJECTED.

    Attributes:
        code: what the outcome says, for programs.
        retry_after: seconds after which the same request may succeed; None if it is hopeless.
    """

    code = "handler_error"

    def __init__(
        self, message: str = "", *, code: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        if code is not None:
            self.code = code  # type: ignore[misc]  # as of TaskFailed


class TaskFailed(XnaiError):
    """A task ended in another state than completed.

    Attributes:
        task: the outcome as it is stored, an A2A Task.
        code: the stable code in it; `"failed"` when a foreign writer gave none.
        retryable: whether the same request may succeed later.
        retry_after: seconds after which it may, if the agent has said so.
    """

    def __init__(
        self,
        task: Task,
        *,
        code: str,
        message: str,
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.task = task
        self.code = code  # type: ignore[misc]  # the class says what a code is, the outcome which one
        self.retryable = retryable


class TaskCanceled(TaskFailed):
    """The owner canceled the task, or the caller left."""


class TaskRejected(TaskFailed):
    """The agent refused the task before any work: trying again cannot help."""


class DeadlineExceeded(TaskFailed, TimeoutError):
    """The deadline passed before the task was done; the outcome says so and is final."""
