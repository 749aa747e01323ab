"""How much memory a model will take, and how much there is: arithmetic, before anything is loaded.

The KV cache is counted as llama.cpp's `llama_kv_cache` lays it out. The compute buffers are bounded by the
largest results that live at once in its graph: what is planned was never less than what llama.cpp allocated.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
from pathlib import Path

import msgspec

from xnai.agents.inference.control_groups import memories
from xnai.agents.inference.gguf_file import GgufInfo
from xnai.protocol.errors import InvalidArgument

KV_TYPES = {"f32": (1, 4), "f16": (1, 2), "bf16": (1, 2), "q8_0": (32, 34), "q4_0": (32, 18)}
"""Numbers in a block of a KV cache, and its bytes."""

_CELLS = 256  # to a multiple of which llama.cpp rounds the context
_FLOAT = 4
_LARGEST_RESERVE = 2 << 30


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a model takes, in bytes.

    Attributes:
        weights: mapped from the file; the kernel may drop and read them again, which is slow. What llama.cpp
            copies into another order (Q4_0, Q4_K) counts once: the pages that it came from may go.
        kv: of all sequences, together with the state of recurrent layers.
        compute: llama.cpp's buffers for one batch, and for what comes out of it.
        kv_per_token: of one sequence.
        context, sequences: what it was planned for; the context is that of each sequence, rounded up.
        estimate: why it may take less or more than planned; None where the arithmetic is known to hold.
    """

    weights: int
    kv: int
    compute: int
    kv_per_token: int
    context: int
    sequences: int
    estimate: str | None = None

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.compute


def micro_batch(*, flash: bool) -> int:
    """The tokens that the engine has llama.cpp compute at once.

    Without flash attention each of them is compared with all that the last of them sees, needed or not.
    """
    return 512 if flash else 256


def plan_memory(
    info: GgufInfo,
    context: int,
    sequences: int = 1,
    *,
    kv_type: str = "f16",
    batch: int | None = None,
    flash: bool = False,
) -> MemoryPlan:
    """What this model takes with so many sequences of `context` tokens each.

    `batch` is the tokens of one micro-batch (`n_ubatch`), by default the engine's; `flash` whether flash
    attention is on.

    Raises:
        InvalidArgument: a number is below 1, or the KV type is none that is known.
    """
    batch = micro_batch(flash=flash) if batch is None else batch
    if min(context, sequences, batch) < 1:
        raise InvalidArgument("A context, a number of sequences and a batch are at least 1.")
    if kv_type not in KV_TYPES:
        raise InvalidArgument(f"{kv_type!r} is no type of a KV cache: use one of {', '.join(KV_TYPES)}.")
    cells = -(-context // _CELLS) * _CELLS
    per_token = _kv_per_token(info, kv_type) if info.causal else 0
    return MemoryPlan(
        weights=info.tensor_bytes,
        kv=sequences * (cells * per_token + info.state_bytes),
        compute=_compute(info, cells, min(batch, cells * sequences), flash=flash) + _outputs(info, sequences),
        kv_per_token=per_token,
        context=cells,
        sequences=sequences,
        estimate=_doubt(info),
    )


def _kv_per_token(info: GgufInfo, kv_type: str) -> int:
    numbers, size = KV_TYPES[kv_type]
    return sum(
        -(-heads * length // numbers) * size
        for heads in info.kv_heads
        for length in (info.key_length, info.value_length)
    )


def _compute(info: GgufInfo, cells: int, tokens: int, *, flash: bool) -> int:
    """The largest result of the graph, with those that live beside it."""
    attention = 0 if flash else info.heads * cells
    feed_forward = 2 * info.feed_forward * max(info.experts_used, 1)
    heads = max(info.kv_heads, default=0)
    width = max(info.embedding, info.heads * info.key_length)
    beside = 5 * width + heads * (info.key_length + info.value_length)
    largest = max(attention, info.vocabulary, feed_forward)
    mask = cells if info.causal else tokens
    return _FLOAT * tokens * (largest + mask + beside)


def _outputs(info: GgufInfo, sequences: int) -> int:
    return _FLOAT * sequences * (info.vocabulary + info.embedding)


def _doubt(info: GgufInfo) -> str | None:
    if not info.layers or not info.embedding:
        return "the file does not say how its layers are made"
    if info.window:
        return "layers with a sliding window may take less"
    if info.state_bytes or 0 in info.kv_heads:
        return "it has recurrent layers"
    if info.experts:
        return "the buffers of a mixture of experts depend on which are chosen"
    return None


def most_sequences(info: GgufInfo, context: int, most: int, room: int, *, flash: bool = False) -> int:
    """How many sequences of `context` tokens, at most `most`, fit with the model into so many bytes."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if plan_memory(info, context, middle, flash=flash).total <= room:
            low = middle
        else:
            high = middle - 1
    return low


# What there is


def available(root: Path = Path("/"), *, mapped: int = 0) -> int:
    """Bytes of memory that this process may still take, without swapping.

    What /proc/meminfo says, and no more than what the memory limits of its cgroup and of those above it (v1
    and v2) leave; what they hold of files that nobody has used lately counts as free, except for `mapped`
    bytes of weights that are in use. Where there is no /proc, the memory of the machine. `root` is where proc
    and sys are found.
    """
    try:
        said = re.search(r"^MemAvailable: +(\d+) kB$", (root / "proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        said = None
    free = int(said[1]) << 10 if said else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # Mapped weights count as used already once the kernel has found them in use.
    left = [group.most - group.used + max(0, group.files - mapped) for group in memories(root)]
    return max(0, min([free - mapped, *left]))


def usual_reserve(free: int) -> int:
    """What to leave of so much free memory to everybody else: a fifth, at most 2 GiB."""
    return min(free // 5, _LARGEST_RESERVE)


def fits(plan: MemoryPlan, free: int, *, reserve: int = 0) -> str | None:
    """None if the plan fits into so many bytes less the reserve; otherwise the arithmetic."""
    if plan.total <= free - reserve:
        return None
    unit, scale = ("GiB", 1 << 30) if plan.total >= 1 << 30 else ("MiB", 1 << 20)
    needs, weights, kv, buffers, left, kept = (
        _short(count / scale) for count in (plan.total, plan.weights, plan.kv, plan.compute, free, reserve)
    )
    tokens = f"{plan.sequences} x {plan.context:,} tokens x {_short(plan.kv_per_token / 1024)} KiB = {kv}"
    less = f", less a reserve of {kept}" if reserve else ""
    doubt = f" ({plan.estimate})" if plan.estimate else ""
    return (
        f"needs {needs} {unit}: weights {weights}, {tokens}, buffers {buffers}{doubt}; {left} are free{less}"
    )


def give_back() -> None:
    """Return to the system what this process has freed, and Python's cycles: some megabytes behind a start.

    ctypes leaves cycles, which hold buffers. GNU's C library keeps what is freed until it is told to let go.
    """
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _short(number: float) -> str:
    """With one decimal where it matters."""
    return f"{number:,.1f}" if number < 100 else f"{number:,.0f}"
