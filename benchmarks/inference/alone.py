"""One caller: what the bus, the agent and the engine's process add to a loop that is alone with the model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from benchmarks.harness import Figure, Size, figure
from benchmarks.inference.ours import ours
from benchmarks.inference.shapes import model
from benchmarks.inference.targets import Target, Trace, minimal
from benchmarks.inference.workloads import Words, compared, pairs_of
from xnai.agents.inference.cores import physical_cores

MOST_DELAY = 4.0  # ms
_TOKENS, _CONTEXT = 20, 1_024
_CALM = 0.05  # seconds; the threads of the one before spin for a while, on cores that the next one wants
_LEAST = 0.01  # ms; where the first token comes sooner than from the loop


@asynccontextmanager
async def _both(size: Size) -> AsyncIterator[dict[str, Target]]:
    medium, threads = model(size.shape), physical_cores()
    async with (
        ours(medium, context=_CONTEXT, threads=threads, slots=4) as stack,
        stack.caller() as our,
        minimal(medium, context=_CONTEXT, threads=threads) as loop,
    ):
        yield {"ours": our, "loop": loop}


async def inference_one_caller(size: Size) -> Figure:
    """Tokens a second of one caller, from an answer's first token to its last. The floor: the loop alone."""

    async def ask(target: Target, words: Words) -> Trace:
        await anyio.sleep(_CALM)
        while True:
            trace = await target.ask(words.text(32), _TOKENS)
            # Chance may choose a token that ends the answer, or a first one that is no text by itself.
            if trace.tokens == _TOKENS and len(trace.times) > 1:
                return trace

    async with _both(size) as targets:
        measured = await compared(targets, ask, size.answers)
    pairs = pairs_of(measured, lambda trace: trace.rate, floor="loop")
    return figure("inference_one_caller", pairs, unit="tokens/s", bar=0.93)


async def inference_first_token(size: Size) -> Figure:
    """Milliseconds by which the first token comes later than from the loop alone. Less is better.

    The floor: 4. Prompts of eight words, so that their computation is short beside what comes on top.
    """

    async def ask(target: Target, words: Words) -> Trace:
        await anyio.sleep(_CALM)
        return await target.ask(words.text(8), 2)

    async with _both(size) as targets:
        measured = await compared(targets, ask, size.answers)
    times = pairs_of(measured, lambda trace: trace.first * 1e3, floor="loop")
    pairs = [(max(our - loop, _LEAST), MOST_DELAY) for our, loop in times]
    return figure("inference_first_token", pairs, unit="ms more", bar=1.0, less_is_better=True)
