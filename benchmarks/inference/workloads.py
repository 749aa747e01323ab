"""What is asked of a target: prompts of words that nobody has sent before, many at a time or in turns."""

from __future__ import annotations

import random
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache, wraps
from typing import TypeVar

import anyio

from benchmarks.harness import Size, percentile, rounds
from benchmarks.inference.shapes import vocabulary
from benchmarks.inference.targets import Target, Trace

T = TypeVar("T")
_LONG = 0.16  # the share of words that are several tokens: 1.3 tokens a word, as in plain English


class Words:
    """Distinct texts of random words. The same seed gives the same ones."""

    def __init__(self, seed: str, tokenizer: str = "mistral") -> None:
        self._random = random.Random(seed)
        self._words = _words(tokenizer)

    def text(self, words: int) -> str:
        """So many words; a third more tokens."""
        return " ".join(self._word() for _ in range(words))

    def texts(self, count: int, *, words: int) -> list[str]:
        return [self.text(words) for _ in range(count)]

    def _word(self) -> str:
        parts = 2 if self._random.random() < _LONG else 1
        return "".join(self._random.choices(self._words, k=parts))


@cache
def _words(tokenizer: str) -> list[str]:
    return vocabulary(tokenizer).words()


Ask = Callable[[Target, Words], Awaitable[T]]


async def compared(
    targets: Mapping[str, Target], ask: Ask[T], count: int, *, tokenizer: str = "mistral"
) -> list[dict[str, T]]:
    """What each target gave in each of so many rounds: all are asked the same, and never the same again."""

    def side(target: Target) -> Callable[[int], Awaitable[T]]:
        return lambda number: ask(target, Words(f"{number} of {count}", tokenizer))

    for target in targets.values():
        await target.ask(Words("to warm up", tokenizer).text(48), 16)
    return await rounds({name: side(target) for name, target in targets.items()}, count)


def pairs_of(
    measured: Sequence[Mapping[str, T]], metric: Callable[[T], float], *, ours: str = "ours", floor: str
) -> list[tuple[float, float]]:
    return [(metric(values[ours]), metric(values[floor])) for values in measured]


def once(measure: Callable[[Size], Awaitable[T]]) -> Callable[[Size], Awaitable[T]]:
    """Measures once, however many figures are made of it."""
    kept: dict[Size, T] = {}

    @wraps(measure)
    async def remembered(size: Size) -> T:
        if size not in kept:
            kept[size] = await measure(size)
        return kept[size]

    return remembered


async def together(target: Target, prompts: Sequence[str], *, tokens: int) -> list[Trace]:
    """All prompts at the same time, each by a caller of its own."""
    return await conversations(target, [[prompt] for prompt in prompts], tokens=tokens)


async def conversations(target: Target, callers: Sequence[Sequence[str]], *, tokens: int) -> list[Trace]:
    """Callers at the same time, each with prompts one after another. The traces as they end."""
    traces: list[Trace] = []

    async def caller(prompts: Sequence[str]) -> None:
        for prompt in prompts:
            traces.append(await target.ask(prompt, tokens))

    async with anyio.create_task_group() as tasks:
        for prompts in callers:
            tasks.start_soon(caller, prompts)
    return traces


def in_turns_of(words: Words, callers: int, *, turns: int, system: int, user: int) -> list[list[str]]:
    """Prompts of callers that each go on with a text of their own: a system prompt, and more words each turn.

    What was answered is not among them: random weights say what no tokenizer would cut like that again.
    """
    found = []
    for _ in range(callers):
        prompts, prompt = [], words.text(system)
        for _ in range(turns):
            prompt = f"{prompt}\n{words.text(user)}"
            prompts.append(prompt)
        found.append(prompts)
    return found


def aggregate(traces: Sequence[Trace]) -> float:
    """Tokens of answers a second, of all callers together, from the first request to the last token."""
    took = max(trace.times[-1] for trace in traces) - min(trace.began for trace in traces)
    return sum(trace.tokens for trace in traces) / took


def total(traces: Sequence[Trace]) -> float:
    """Seconds from the first request to the last token."""
    return max(trace.times[-1] for trace in traces) - min(trace.began for trace in traces)


def median_first(traces: Sequence[Trace]) -> float:
    """Seconds to the first token."""
    return statistics.median(trace.first for trace in traces)


def late_first(traces: Sequence[Trace]) -> float:
    """Seconds to the first token that one in ten requests waits for longer."""
    return percentile([trace.first for trace in traces], 0.9)
