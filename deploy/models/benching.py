"""How fast a model is on this machine: an engine of its own, as the inference agent starts it, is asked."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

import anyio
import msgspec

from xnai.agents.inference.engine_process import BadFrame, EngineProcess, start_engine
from xnai.agents.inference.errors import InferenceError
from xnai.agents.inference.frames import (
    Done,
    Frame,
    FromEngine,
    Generate,
    Open,
    Opened,
    Refused,
    Sampling,
    Setup,
)
from xnai.deploy.loop import run

CONTEXT = 1024  # of each slot while it is measured
MOST_SLOTS, TRIED_SLOTS = 64, 16  # that may be asked for, and that the engine tries by itself
_ANSWER = 64  # tokens
_PROMPT, _SHORT = 1500, 32  # letters
_OPENING, _SILENCE = 600.0, 300.0  # seconds
_LETTERS = "aeinorst "

_T = TypeVar("_T", bound=Frame)


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens a second of so many sequences together."""

    sequences: int
    tokens: float


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured.

    Attributes:
        slots: sequences that pay on this machine, or as many as were asked for.
        prefill: tokens a second of a prompt.
        decode: tokens a second of answers, of 1, 2, 4, … sequences, up to the slots.
    """

    slots: int
    prefill: float
    decode: tuple[Rate, ...]


def measure(path: Path, *, slots: int = 0, threads: int = 0) -> Speed:
    """Open a model in an engine and let it compute. `slots` 0 lets the engine find how many pay.

    Raises:
        InferenceError: it cannot be opened, or does not answer.
    """

    async def in_an_engine() -> Speed | InferenceError:
        async with start_engine() as process, aclosing(process.frames()) as frames:
            try:
                return await _measured(_Engine(process, frames), path, slots=slots, threads=threads)
            except InferenceError as error:  # raised below, where it does not become an ExceptionGroup
                return error
            except BadFrame as error:
                return InferenceError(f"The engine sent what is no frame: {error}.")

    found = run(in_an_engine)
    if isinstance(found, InferenceError):
        raise found
    return found


async def _measured(engine: _Engine, path: Path, *, slots: int, threads: int) -> Speed:
    engine.send(Setup(threads=threads))
    engine.send(Open("model", str(path), context=CONTEXT, slots=slots, kept=0))
    (opened,) = await engine.expect(Opened, 1, timeout=_OPENING)
    await engine.generate(1, letters=_SHORT, answer=8)  # whatever only the first request costs
    (prompt,) = await engine.generate(1, letters=_PROMPT, answer=1)
    rates = []
    for count in _counts(opened.slots):
        answers = await engine.generate(count, letters=_SHORT, answer=_ANSWER)
        tokens = sum(each.tokens_out - 1 for each in answers)
        rates.append(Rate(sequences=count, tokens=tokens / max(_span(answers), 1e-9)))
    return Speed(slots=opened.slots, prefill=prompt.tokens_in / max(prompt.first, 1e-9), decode=tuple(rates))


def _counts(slots: int) -> list[int]:
    """1, 2, 4, … and the slots themselves."""
    return sorted({slots, *(1 << power for power in range(slots.bit_length()) if 1 << power <= slots)})


def _span(answers: Sequence[Done]) -> float:
    """Seconds from the first token of any to the last of all; they arrived together."""
    return max(each.first + each.took for each in answers) - min(each.first for each in answers)


class _Engine:
    """One life of an engine, asked for many answers at once. If it dies, that is what there is to say."""

    def __init__(self, process: EngineProcess, frames: AsyncGenerator[FromEngine, None]) -> None:
        self._process, self._frames = process, frames
        self._random, self._id = random.Random(0), 0

    def send(self, frame: Frame) -> None:
        self._process.post(frame)

    async def generate(self, count: int, *, letters: int, answer: int) -> list[Done]:
        """So many answers at once, to different prompts."""
        for _ in range(count):
            self._id += 1
            text = "".join(self._random.choices(_LETTERS, k=letters))
            self.send(
                Generate(
                    self._id,
                    "model",
                    (text,),
                    begin=True,
                    max_tokens=answer,
                    sampling=Sampling(temperature=1.0, seed=self._id),
                    sender=str(self._id),
                    cache=False,
                    truncate="start",
                )
            )
        return await self.expect(Done, count, timeout=_SILENCE)

    async def expect(self, kind: type[_T], count: int, *, timeout: float) -> list[_T]:
        """The next frames of a kind; others are passed over, and no two are further apart than `timeout`."""
        found: list[_T] = []
        while len(found) < count:
            frame: FromEngine | None = None
            with anyio.move_on_after(timeout) as waiting:
                frame = await anext(self._frames, None)
            if waiting.cancelled_caught:
                raise InferenceError(f"The engine said nothing for {timeout:.0f} seconds.")
            if frame is None:
                raise InferenceError(f"The engine {(await self._process.end()).how}.")
            if isinstance(frame, Refused):
                raise InferenceError(f"The engine refuses: {frame.sentence.rstrip('.')}.")
            if isinstance(frame, kind):
                found.append(frame)
        return found
