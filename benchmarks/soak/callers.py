"""Those who ask: each request once, with an id of its own, and what its caller was told."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import anyio
import msgspec

from benchmarks.soak.cases import CANCELED, LATE, LEFT, Case
from xnai.agents.inference.requests import Answer, Embeddings, InferenceStatus, Models
from xnai.bus import Bus
from xnai.protocol.errors import (
    DeadlineExceeded,
    TaskCanceled,
    TaskFailed,
    TaskNotCancelable,
    TaskRejected,
    UnknownTask,
    XnaiError,
)

AGENT = "inference"
_TYPES: dict[str, Any] = {
    "generate": Answer,
    "embed": Embeddings,
    "count": int,
    "status": InferenceStatus,
    "models": Models,
}
_HUNG = 60.0  # seconds behind the deadline
_SOON = 0.005


class Told(msgspec.Struct, kw_only=True):
    """What a caller was told.

    Attributes:
        outcome: in a word, or of an error in two, the second its code.
        value: the answer. chunks: of a stream, joined.
        began, took: when it was asked, by `time.monotonic`, and seconds from there.
    """

    case: Case
    id: str
    outcome: str = ""
    value: Any = None
    chunks: str | None = None
    began: float
    took: float = 0.0


async def ask(bus: Bus, case: Case, id: str) -> Told:
    """Ask, and wait for what comes of it. No error leaves; TimeoutError means that nothing ever came."""
    told = Told(case=case, id=id, began=time.monotonic())
    async with anyio.create_task_group() as tasks:
        if case.cancel is not None:
            tasks.start_soon(_cancel, bus, told, case.cancel)
        told.outcome = await _outcome(bus, told)
        told.took = time.monotonic() - told.began
    return told


async def _outcome(bus: Bus, told: Told) -> str:
    try:
        with anyio.fail_after(told.case.timeout + _HUNG):
            return await (_stream if told.case.streamed else _call)(bus, told)
    except TimeoutError as error:
        return LATE if isinstance(error, DeadlineExceeded) else "no outcome"
    except TaskCanceled:
        return CANCELED
    except TaskRejected as error:
        return f"refused {error.code}"
    except TaskFailed as error:
        return f"failed {error.code}"
    except XnaiError as error:
        return f"error {error.code}"


async def _call(bus: Bus, told: Told) -> str:
    case = told.case
    patience = None if case.leave is None else case.leave / 100
    with anyio.move_on_after(patience):
        told.value = await bus.call(
            f"{AGENT}.{case.skill}",
            case.payload,
            _TYPES[case.skill],
            timeout=case.timeout,
            lane=case.lane,
            id=told.id,
        )
        return _name(told.value)
    return LEFT


async def _stream(bus: Bus, told: Told) -> str:
    case, pieces = told.case, list[str]()
    to = f"{AGENT}.{case.skill}"
    chunks = bus.stream(to, case.payload, str | Answer, timeout=case.timeout, lane=case.lane, id=told.id)
    async with aclosing(chunks):
        async for chunk in chunks:
            if isinstance(chunk, Answer):
                told.value = chunk
            else:
                pieces.append(chunk)
            if len(pieces) == case.leave:
                return LEFT
    told.chunks = "".join(pieces)
    return _name(told.value)


def _name(value: object) -> str:
    names: dict[type, Callable[[Any], str]] = {
        Answer: lambda answer: str(answer.finish),
        Embeddings: lambda _: "vectors",
        int: lambda _: "counted",
    }
    return names.get(type(value), lambda _: "seen")(value)


async def _cancel(bus: Bus, told: Told, delay: float) -> None:
    """Cancel after so many seconds, or as soon as there is something to cancel."""
    await anyio.sleep(delay)
    while not told.outcome:
        try:
            await bus.cancel(told.id)
        except UnknownTask:
            await anyio.sleep(_SOON)
        except TaskNotCancelable:
            return
