"""Many callers at the same time, against what else would answer them with the same model and threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial

from benchmarks.harness import Figure, Size, figure
from benchmarks.inference.ours import ours
from benchmarks.inference.shapes import model
from benchmarks.inference.targets import Target, Trace, bindings_server, llama_server, locked
from benchmarks.inference.workloads import (
    Words,
    aggregate,
    compared,
    conversations,
    in_turns_of,
    late_first,
    median_first,
    once,
    pairs_of,
    together,
    total,
)
from xnai.agents.inference.cores import physical_cores

CALLERS, SLOTS, AGENTS = 8, 16, 6
_GAP = 1.0  # seconds: none of the others bounds how long a stream may stand still, so neither do we here
_SHORT, _ANSWER = 48, 48  # words of a prompt, which are 64 tokens; tokens of an answer
_SYSTEM, _USER, _REPLY = 500, 20, 24  # words, words, tokens
_CONTEXT, _LONG_CONTEXT = 512, 2_048
Traces = list[Trace]
Rounds = list[dict[str, Traces]]


async def _short_prompts(target: Target, words: Words, *, callers: int) -> Traces:
    return await together(target, words.texts(callers, words=_SHORT), tokens=_ANSWER)


async def _talks(target: Target, words: Words, *, callers: int, turns: int) -> Traces:
    prompts = in_turns_of(words, callers, turns=turns, system=_SYSTEM, user=_USER)
    return await conversations(target, prompts, tokens=_REPLY)


async def inference_eight_callers(size: Size) -> Figure:
    """Tokens a second of 8 callers with short prompts of their own. The floor: `Llama` behind a lock."""
    medium, threads = model(size.shape), physical_cores()
    async with (
        ours(medium, context=_CONTEXT, threads=threads, slots=CALLERS, gap=_GAP) as stack,
        stack.caller() as our,
        locked(medium, context=_CONTEXT, threads=threads) as lock,
    ):
        targets: dict[str, Target] = {"ours": our, "lock": lock}
        measured = await compared(targets, partial(_short_prompts, callers=CALLERS), size.crowds)
    pairs = pairs_of(measured, aggregate, floor="lock")
    return figure("inference_eight_callers", pairs, unit="tokens/s", bar=1.4)


@once
async def _eight_talks(size: Size) -> Rounds:
    medium, threads = model(size.shape), physical_cores()
    async with (
        ours(medium, context=_LONG_CONTEXT, threads=threads, slots=CALLERS, gap=_GAP) as stack,
        stack.caller() as our,
        locked(medium, context=_LONG_CONTEXT, threads=threads) as lock,
        bindings_server(medium, context=_LONG_CONTEXT, threads=threads) as server,
    ):
        targets: dict[str, Target] = {"ours": our, "lock": lock, "server": server}
        return await compared(targets, partial(_talks, callers=CALLERS, turns=4), size.talks)


async def inference_eight_talks(size: Size) -> Figure:
    """Tokens a second of 8 callers of four turns with own prompts of 500 words. The floor: as before.

    The lock reads each prompt again at each turn, so that with three nobody could be three times as fast.
    """
    pairs = pairs_of(await _eight_talks(size), aggregate, floor="lock")
    return figure("inference_eight_talks", pairs, unit="tokens/s", bar=2.5)


async def inference_bindings_server(size: Size) -> Figure:
    """The same. The floor: the bindings' own server, `llama_cpp.server`."""
    pairs = pairs_of(await _eight_talks(size), aggregate, floor="server")
    return figure("inference_bindings_server", pairs, unit="tokens/s", bar=2.0)


@once
async def _sixteen_callers(size: Size) -> Rounds:
    medium, threads = model(size.shape), physical_cores()
    async with AsyncExitStack() as stack:
        targets: dict[str, Target] = {}
        for name in ("exact", "fast"):
            up = await stack.enter_async_context(
                ours(medium, context=_CONTEXT, threads=threads, slots=SLOTS, mode=name, gap=_GAP)
            )
            targets[name] = await stack.enter_async_context(up.caller())
        peer = llama_server(medium, slots=SLOTS, context=_CONTEXT, threads=threads)
        targets["server"] = await stack.enter_async_context(peer)
        return await compared(targets, partial(_short_prompts, callers=SLOTS), size.crowds)


async def inference_sixteen_callers(size: Size) -> Figure:
    """Tokens a second of 16 callers with short prompts of their own. The floor: llama.cpp's own server."""
    pairs = pairs_of(await _sixteen_callers(size), aggregate, ours="exact", floor="server")
    return figure("inference_sixteen_callers", pairs, unit="tokens/s", bar=0.8)


async def inference_sixteen_callers_fast(size: Size) -> Figure:
    """The same, where answers may depend on who else is answered."""
    pairs = pairs_of(await _sixteen_callers(size), aggregate, ours="fast", floor="server")
    return figure("inference_sixteen_callers_fast", pairs, unit="tokens/s", bar=0.9)


@once
async def _six_agents(size: Size) -> Rounds:
    medium, threads, slots = model(size.shape), physical_cores(), 4
    async with (
        ours(medium, context=_LONG_CONTEXT, threads=threads, slots=slots, gap=_GAP) as stack,
        stack.caller() as our,
        llama_server(medium, slots=slots, context=_LONG_CONTEXT, threads=threads) as server,
    ):
        targets: dict[str, Target] = {"ours": our, "server": server}
        return await compared(targets, partial(_talks, callers=AGENTS, turns=6), 4 * size.talks + 1)


async def _agents(size: Size, name: str, metric: Callable[[Sequence[Trace]], float], *, bar: float) -> Figure:
    pairs = pairs_of(await _six_agents(size), metric, floor="server")
    return figure(name, pairs, unit="s", bar=bar, less_is_better=True)


async def inference_agents_first_token(size: Size) -> Figure:
    """Median seconds to the first token of 6 agents of six turns with own prompts of 500 words, and 4 slots.

    Less is better. The floor: llama.cpp's own server with its cache of prompts.
    """
    return await _agents(size, "inference_agents_first_token", median_first, bar=3.0)


async def inference_agents_late_first_token(size: Size) -> Figure:
    """The same, for the tenth of the requests that waits longest."""
    return await _agents(size, "inference_agents_late_first_token", late_first, bar=1.0)


async def inference_agents_total(size: Size) -> Figure:
    """The same, until all have their last answer."""
    return await _agents(size, "inference_agents_total", total, bar=1 / 1.1)
