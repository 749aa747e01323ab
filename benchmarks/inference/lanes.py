"""Who waits for whom: an urgent request, a long prompt beside a stream, a sender that asks for too much."""

from __future__ import annotations

import statistics
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise

import anyio
import msgspec

from benchmarks.harness import Figure, Size, figure, rounds
from benchmarks.inference.ours import STATUS, Ours, ours
from benchmarks.inference.shapes import model
from benchmarks.inference.workloads import Words, once
from xnai.agents.inference.cores import physical_cores
from xnai.agents.inference.requests import InferenceStatus

BOUND = 0.1  # seconds; the agent's own default
STREAMS, SENDERS, GREED = 16, 10, 50
_ENDLESS = 1_000_000  # tokens: an answer ends with the context
_URGENT = 9  # requests in a round
_LONG = 3_050  # words, which are 4,000 tokens
_LOOK_EVERY = 0.005
_PATIENCE = 60.0


class Beside(msgspec.Struct, frozen=True):
    """A long prompt beside a stream.

    Attributes:
        gap: the longest that the stream waited for a token. beside, alone: until the prompt's first token,
            beside the stream, and where nothing else is computed. Seconds.
    """

    gap: float
    beside: float
    alone: float


@asynccontextmanager
async def _streams(callers: Sequence[Ours], words: Words) -> AsyncIterator[list[list[float]]]:
    """Answers that do not end, one of each caller. On entry each has begun; at the end they are canceled."""
    heard: list[list[float]] = [[] for _ in callers]
    async with anyio.create_task_group() as tasks:
        for caller, times in zip(callers, heard, strict=True):
            tasks.start_soon(caller.ask, words.text(8), _ENDLESS, times)
        await _until(lambda: all(heard))
        yield heard
        tasks.cancel_scope.cancel()


async def _until(happened: Callable[[], bool]) -> None:
    with anyio.fail_after(_PATIENCE):
        while not happened():  # noqa: ASYNC110  # the times come in without a word
            await anyio.sleep(_LOOK_EVERY)


async def _idle(caller: Ours) -> None:
    """Returns once the engine has nothing to do."""
    with anyio.fail_after(_PATIENCE):
        while True:
            status = await caller.bus.call(STATUS, None, InferenceStatus)
            if not status.running + status.waiting + status.paused:
                return
            await anyio.sleep(_LOOK_EVERY)


async def inference_urgent(size: Size) -> Figure:
    """Milliseconds to the first token of an urgent request while 16 answers are streamed in the background.

    Less is better. The floor: the same where nothing else is computed.
    """
    pairs = []
    stack = ours(model(size.shape), context=1_024, threads=physical_cores(), slots=STREAMS)
    async with stack as up, up.caller(lane="urgent") as urgent, up.caller(lane="background") as background:

        async def first(words: Words) -> float:
            traces = [await urgent.ask(words.text(48), 1) for _ in range(_URGENT)]
            return statistics.median(trace.first for trace in traces) * 1e3

        for number in range(size.crowds):
            words = Words(f"urgent {number}")
            await _idle(urgent)
            idle = await first(words)
            async with _streams([background] * STREAMS, words):
                pairs.append((await first(words), idle))
    return figure("inference_urgent", pairs, unit="ms", bar=0.5, less_is_better=True)


@once
async def _long_prompts(size: Size) -> list[Beside]:
    found = []
    stack = ours(model(size.shape), context=5_120, threads=physical_cores(), slots=4)
    async with stack as up, up.caller() as reader, up.caller() as asker:
        for number in range(size.talks):
            words = Words(f"long {number}")
            await _idle(asker)
            alone = (await asker.ask(words.text(_LONG), 1)).first
            async with _streams([reader], words) as (heard,):
                asked = await asker.ask(words.text(_LONG), 1)
                until = asked.times[0]
                await _until(lambda heard=heard, until=until: heard[-1] > until)  # type: ignore[misc]
                gaps = (later - sooner for sooner, later in pairwise(heard) if later > asked.began)
                found.append(Beside(max(gaps), asked.first, alone))
    return found


async def inference_longest_gap(size: Size) -> Figure:
    """The longest that a stream waits for its next token while a prompt of 4,000 tokens is computed, ms.

    Less is better. The floor: the bound in the settings, 100.
    """
    pairs = [(each.gap * 1e3, BOUND * 1e3) for each in await _long_prompts(size)]
    return figure("inference_longest_gap", pairs, unit="ms", bar=1 / 1.25, less_is_better=True)


async def inference_long_prompt(size: Size) -> Figure:
    """Seconds to that prompt's first token. Less is better. The floor: where nothing else is computed."""
    pairs = [(each.beside, each.alone) for each in await _long_prompts(size)]
    return figure("inference_long_prompt", pairs, unit="s", bar=0.5, less_is_better=True)


async def inference_fair_share(size: Size) -> Figure:
    """Seconds until the slowest of nine senders has its answers, while a tenth asks for 50 times as many.

    Less is better. The floor: the tenth asks for as many as each of them.
    """
    names = [f"sender-{number}" for number in range(SENDERS)]
    stack = ours(model(size.shape), names, context=512, threads=physical_cores(), slots=4)
    async with stack as up, AsyncExitStack() as callers:
        greedy, *others = [await callers.enter_async_context(up.caller(name)) for name in names]

        async def even(number: int) -> float:
            return await _slowest(greedy, others, Words(f"even {number}"), greed=1)

        async def uneven(number: int) -> float:
            return await _slowest(greedy, others, Words(f"uneven {number}"), greed=GREED)

        measured = await rounds({"uneven": uneven, "even": even}, size.crowds)
    pairs = [(values["uneven"], values["even"]) for values in measured]
    return figure("inference_fair_share", pairs, unit="s", bar=1 / 1.25, less_is_better=True)


async def _slowest(greedy: Ours, others: Sequence[Ours], words: Words, *, greed: int) -> float:
    """Seconds from the first request to the last answer of the others, each of whom asks twice at once."""
    ends: list[float] = []
    began: list[float] = []

    async def ask(caller: Ours) -> None:
        trace = await caller.ask(words.text(24), 16)
        began.append(trace.began)
        ends.append(trace.times[-1])

    await _idle(greedy)
    async with anyio.create_task_group() as all_alive:
        for _ in range(2 * greed):
            all_alive.start_soon(greedy.ask, words.text(24), 16)
        async with anyio.create_task_group() as others_alive:
            for caller in _twice(others):
                others_alive.start_soon(ask, caller)
        all_alive.cancel_scope.cancel()
    return max(ends) - min(began)


def _twice(callers: Sequence[Ours]) -> Iterator[Ours]:
    yield from callers
    yield from callers
