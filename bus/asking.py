"""Asking the keeper, and answering for it: questions of one answer, in JSON."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec

from xnai.bus.background import background_tasks
from xnai.bus.parser import Frame
from xnai.bus.transport import NoResponders, Transport
from xnai.protocol.errors import (
    Busy,
    InvalidArgument,
    InvalidPayload,
    InvalidSettings,
    NotAllowed,
    Unavailable,
    XnaiError,
)

log = logging.getLogger(__name__)
_QUEUE = "keepers"  # several may run: one of them answers
_TIMEOUT = 20.0
_COMING_BACK = 5.0  # seconds that a keeper may need after the broker was away, or keys have changed
_TRY_AGAIN = 0.1
_AT_ONCE = 32  # questions that are looked into; the others wait
_MOST_WAITING = 256  # questions of one asker
_LONGEST = 64 << 10  # bytes of a question
_UNFORESEEN = (ValueError, TypeError, LookupError, RecursionError, msgspec.MsgspecError)
_TOLD = (Busy, InvalidArgument, InvalidSettings, NotAllowed)
_KINDS: dict[str, type[XnaiError]] = {kind.code: kind for kind in _TOLD}
Answer = Callable[[list[str], bytes], Awaitable[object]]
"""Gets the tokens of the subject and what was asked; what it returns is the answer."""


class Fault(msgspec.Struct, frozen=True):
    """Why not."""

    code: str
    message: str


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """The keeper's answer to a question of one answer."""

    result: msgspec.Raw = msgspec.Raw(b"null")
    error: Fault | None = None


_read_reply = msgspec.json.Decoder(Reply).decode


async def ask_keeper(
    transport: Transport, subject: str, question: object = None, *, timeout: float = _TIMEOUT
) -> bytes:
    """The keeper's answer, as JSON. One that has lost its link, as we may have just now, is waited for.

    Raises:
        Unavailable: no keeper comes, or it does not answer.
        NotAllowed: the broker or the keeper forbids it.
        Busy, InvalidArgument, InvalidSettings: the keeper says so.
    """
    asked = msgspec.json.encode(question)
    until = time.monotonic() + min(timeout, _COMING_BACK)
    while True:
        try:
            frame = await transport.request(subject, asked, timeout=timeout)
            break
        except NoResponders:
            if time.monotonic() >= until:
                raise Unavailable("No keeper answers: it runs inside `xnai up`.") from None
        await anyio.sleep(_TRY_AGAIN)
    reply = _read_reply(frame.data)
    if reply.error is not None:
        raise _KINDS.get(reply.error.code, Unavailable)(reply.error.message)
    return bytes(reply.result)


@asynccontextmanager
async def answering(
    transport: Transport, subject: str, answer: Answer, *, asker: int = -1
) -> AsyncIterator[None]:
    """Answer what is asked on `subject`, a pattern, while the context is open; errors of ours are told.

    Args:
        asker: which token names who asks. Nobody's questions keep those of others waiting for long.
    """
    async with background_tasks() as tasks:
        limiter = anyio.Semaphore(_AT_ONCE)
        waiting: Counter[str] = Counter()

        async def reply(frame: Frame) -> None:
            tokens = frame.subject.split(".")
            try:
                async with limiter:
                    result: Any = await answer(tokens, frame.data)
                said = Reply(result=msgspec.Raw(msgspec.json.encode(result)))
            except XnaiError as error:
                said = Reply(error=Fault(error.code, str(error)))
            except _UNFORESEEN:  # whatever was asked, the next who asks is answered
                log.exception("a question could not be answered", extra={"subject": frame.subject})
                said = Reply(error=Fault(Unavailable.code, "The keeper could not answer this question."))
            finally:
                waiting[tokens[asker]] -= 1
            try:
                transport.client.post(frame.reply, msgspec.json.encode(said))
            except (Unavailable, InvalidPayload) as error:  # whoever asked asks again, or for less
                log.warning("an answer could not be sent: %s", error, extra={"subject": frame.subject})

        def heard(frame: Frame) -> None:
            if not frame.reply:
                return
            who = frame.subject.split(".")[asker]
            if waiting[who] >= _MOST_WAITING or len(frame.data) > _LONGEST:
                fault = Fault(Busy.code, "Too much is asked of the keeper at once.")
                transport.client.post(frame.reply, msgspec.json.encode(Reply(error=fault)))
                return
            waiting[who] += 1
            tasks.start_soon(reply, frame)

        async with transport.listen(subject, heard, queue=_QUEUE):
            yield
