"""What a model costs on this machine: measured once when it is first opened, and remembered."""

from __future__ import annotations

import os
import platform
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from xnai.agents.inference.cores import cpus
from xnai.agents.inference.engine.batches import Batch
from xnai.agents.inference.engine.llama import Context, Weights, open_context
from xnai.agents.inference.engine.machine import Neighbours
from xnai.agents.inference.engine.speeds import Figures, Speeds

MOST = 16  # sequences that are tried
_PAYS = 1.1  # more sequences pay if together they are faster by so much
_USUAL = 4  # where the machine is too busy to tell
LENGTH, _PROMPTS, _TIMES = 256, (32, 128), 3
_CALM = 0.15  # of the cores are busy with something else, at most
_APART = 7919  # tokens of what is computed, so that they are various ones
_LONGEST = 5.0  # seconds after which no larger number is tried


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured: how many sequences pay, and what steps cost.

    Attributes:
        calm: nothing else kept the machine busy meanwhile.
        of: the file, the machine, and the way to compute.
    """

    slots: int
    speeds: Figures
    calm: bool = True
    of: str = ""


class Way(NamedTuple):
    """How a model computes: the threads, and whether with flash attention."""

    threads: int
    fast: bool


def figures_of(path: Path, weights: Weights, way: Way, *, folder: Path | None, most: int = MOST) -> Measured:
    """The figures of this file on this machine: from the folder, or measured with at most so many sequences.

    What was measured on a busy machine is not remembered: it is measured again the next time. With `most` 0
    nothing is measured.
    """
    identity = _identity(path, way)
    place = folder / f"{path.stem[:64]}-{zlib.crc32(identity.encode()):08x}.json" if folder else None
    if place:
        try:
            known = msgspec.json.decode(place.read_bytes(), type=Measured)
        except (OSError, msgspec.MsgspecError):
            known = None
        if known and known.of == identity:
            return known
    if not most:
        return Measured(slots=_USUAL, speeds=Figures(), calm=False)
    with open_context(weights, context=LENGTH, sequences=most, threads=way.threads, fast=way.fast) as context:
        measured = measure(context)
    if place and measured.calm and most == MOST:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            half = place.with_suffix(f".{os.getpid()}")
            half.write_bytes(msgspec.json.encode(msgspec.structs.replace(measured, of=identity)))
            half.replace(place)
        except OSError:
            pass
    return measured


def measure(context: Context) -> Measured:
    """Computes prompts, and steps of 1, 2, 4, … sequences: two may be slower than one, eight faster again."""
    batch = Batch(512)
    words = np.arange(LENGTH, dtype=np.int32) * _APART % context.weights.vocabulary.size
    speeds = Speeds()
    started, others = time.monotonic(), Neighbours()

    def timed(lengths: Sequence[int]) -> float:
        """Seconds of a batch with a sequence of each length: the least of some, since others disturb it."""
        batch.clear()
        for sequence, length in enumerate(lengths):
            batch.add(words[:length], 0, sequence, wanted=1)
        return min(_computed(context, batch) for _ in range(_TIMES))

    for length in _PROMPTS:
        speeds.observe(0, length, 0, timed([length]))
    rates: dict[int, float] = {}
    count = 1
    while count <= context.sequences and time.monotonic() - started < _LONGEST:
        took = timed([1] * count)
        speeds.observe(count, 0, 0, took)
        rates[count] = count / took
        count *= 2
    slots = min(count for count, rate in rates.items() if rate * _PAYS >= max(rates.values()))
    # The time that this process computed would not tell: short waits at barriers are spent asleep.
    calm = others.cores() <= _CALM * len(cpus())
    return Measured(slots=slots if calm else max(slots, _USUAL), speeds=speeds.figures, calm=calm)


def _computed(context: Context, batch: Batch) -> float:
    """Seconds that a batch takes at the beginning of its sequences."""
    for sequence in range(context.sequences):
        context.cut(sequence, 0)
    started = time.monotonic()
    context.decode(batch)
    context.logits(batch.size - 1)  # waits for what is computed
    return time.monotonic() - started


def _identity(path: Path, way: Way) -> str:
    """Another one for another file, machine, number of threads or way to compute."""
    found = path.stat()
    words = (
        str(path.resolve()),
        found.st_size,
        found.st_mtime_ns,
        *way,
        platform.machine(),
        _processor(),
    )
    return repr(words)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
