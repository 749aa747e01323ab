"""How soon the engine is free again when nobody wants an answer any more, at the engine's own pipe."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import anyio

from benchmarks.harness import Figure, Size, figure, percentile
from benchmarks.inference.pipe import Answering, Engine, engine
from benchmarks.inference.shapes import model
from benchmarks.inference.workloads import Words
from xnai.agents.inference.cores import physical_cores
from xnai.agents.inference.frames import Setup
from xnai.agents.inference.memory import micro_batch

_ENDLESS = 1_000
_LONG = 900  # words, which are some micro-batches
_GROUPS = 2
_SHARE = 0.99
Drop = Callable[[Engine, Words], Awaitable[float]]
"""Begins an answer, wants it no more, and says after how many milliseconds the engine had ended it."""


async def inference_cancel_decode(size: Size) -> Figure:
    """From the moment at which an answer is not wanted any more until its slot is free, p99 ms.

    Less is better. The floor: one token.
    """

    async def drop(driver: Engine, words: Words) -> float:
        answering = await driver.begin(words.text(8), _ENDLESS)
        await answering.pieces(2)
        return await _freed(driver, answering)

    return await _measure(size, "inference_cancel_decode", drop, _token)


async def inference_cancel_prefill(size: Size) -> Figure:
    """The same while its prompt is computed. The floor: one micro-batch."""

    async def drop(driver: Engine, words: Words) -> float:
        answering = await driver.begin(words.text(_LONG), 1)
        await anyio.sleep(random.uniform(0.01, 0.2))  # any moment of its computation, half a second long
        return await _freed(driver, answering)

    return await _measure(size, "inference_cancel_prefill", drop, _micro_batch)


async def inference_cancel_queued(size: Size) -> Figure:
    """For how many of the requests that are not wanted any more while they wait something was computed.

    One is added on both sides. Less is better. The floor: none.
    """
    pairs = []
    async with _engine(size) as driver:
        for group in range(_GROUPS):
            before = (await driver.status()).prompts
            for number in range(size.drops):
                words = Words(f"queued {group} {number}")
                running = await driver.begin(words.text(8), _ENDLESS)
                await running.pieces(1)
                waiting = await driver.begin(words.text(8), _ENDLESS)
                await _freed(driver, waiting)
                await _freed(driver, running)
            computed = (await driver.status()).prompts - before - size.drops
            pairs.append((1.0 + computed, 1.0))
    return figure("inference_cancel_queued", pairs, unit="requests, and one", bar=1.0, less_is_better=True)


async def _measure(size: Size, name: str, drop: Drop, floor: Drop) -> Figure:
    pairs = []
    async with _engine(size) as driver:
        for group in range(_GROUPS):
            least = await floor(driver, Words(f"{name} {group}"))
            found = [await drop(driver, Words(f"{name} {group} {number}")) for number in range(size.drops)]
            pairs.append((percentile(found, _SHARE), least))
    return figure(name, pairs, unit="ms", bar=1.0, less_is_better=True)


@asynccontextmanager
async def _engine(size: Size) -> AsyncIterator[Engine]:
    """With one slot; each token leaves at once."""
    setup = Setup(threads=physical_cores(), flush=0.0)
    async with engine(model(size.shape), setup, slots=1, kept=0, context=2_048) as driver:
        await driver.ask(Words("to warm up").text(8), 8)
        yield driver


async def _freed(driver: Engine, answering: Answering) -> float:
    """Milliseconds until the engine has ended it."""
    began = time.perf_counter()
    await driver.drop(answering)
    await answering.end()
    return (answering.at - began) * 1e3


async def _token(driver: Engine, words: Words) -> float:
    """Milliseconds of one, p99 as well."""
    heard = (await driver.ask(words.text(8), 128)).times
    return percentile([(later - sooner) * 1e3 for sooner, later in pairwise(heard)], _SHARE)


async def _micro_batch(driver: Engine, words: Words) -> float:
    """Milliseconds of one."""
    answering = await driver.begin(words.text(_LONG), 1)
    done = await answering.end()
    return float(done.first * 1e3 * micro_batch(flash=False) / done.tokens_in)
