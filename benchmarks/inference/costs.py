"""What else is paid for: a schema, vectors, memory, and neighbours on the same machine."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec

from benchmarks.harness import Figure, Size, driven, ended, figure, in_turns
from benchmarks.inference.ours import EMBED, MODELS, Ours, ours
from benchmarks.inference.shapes import SHAPES, model
from benchmarks.inference.targets import Target, Trace
from benchmarks.inference.workloads import Words, compared, pairs_of, together
from benchmarks.processes import resident
from benchmarks.stack import descendants
from xnai.agents.inference.cores import physical_cores
from xnai.agents.inference.minilm import default_cache, prepare_minilm
from xnai.agents.inference.requests import Embeddings, Models

MOST_MEMORY = 120.0  # MB
NEIGHBOURS = 2
TEXTS, WORDS = 32, 19  # 26 tokens a text
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 40, "maxLength": 80},
        "kind": {"enum": ["question", "answer", "remark"]},
        "score": {"type": "integer", "minimum": 0, "maximum": 100},
        "reasons": {
            "type": "array",
            "items": {"type": "string", "minLength": 40, "maxLength": 80},
            "minItems": 2,
            "maxItems": 2,
        },
    },
    "required": ["title", "kind", "score", "reasons"],
    "additionalProperties": False,
}
"""An answer that ends by itself, after some sixty tokens."""
_MOST_TOKENS, _CONTEXT = 400, 1_024
_BLOCK = 4_096  # kilobytes
_WINDOW, _SETTLING = 2.5, 2.0  # seconds


async def inference_json_schema(size: Size) -> Figure:
    """Tokens a second of an answer that follows a JSON Schema, with a vocabulary of 150,000.

    The floor: one that may be anything, as long.
    """
    path, tokenizer = model(size.wide), SHAPES[size.wide].tokenizer
    async with AsyncExitStack() as stack:
        up = await stack.enter_async_context(ours(path, context=_CONTEXT, threads=physical_cores(), slots=4))
        targets: dict[str, Target] = {
            "ours": await stack.enter_async_context(up.caller(json_schema=SCHEMA)),
            "free": await stack.enter_async_context(up.caller()),
        }

        async def ask(target: Target, words: Words) -> Trace:
            return await target.ask(words.text(16), _MOST_TOKENS if target is targets["ours"] else 64)

        measured = await compared(targets, ask, size.answers, tokenizer=tokenizer)
    pairs = pairs_of(measured, lambda trace: trace.speed, floor="free")
    return figure("inference_json_schema", pairs, unit="tokens/s", bar=0.96)


async def inference_embeddings(size: Size) -> Figure:
    """Texts a second, 32 short ones in a request. The floor: `Llama.embed` with the same model and texts."""
    minilm, threads = prepare_minilm(default_cache()), physical_cores()
    peer = driven("benchmarks.inference.locked", minilm, 512, threads, "embed")
    async with ours(None, threads=threads) as up, up.caller() as caller, peer as llama:
        words = Words("texts")

        async def our() -> float:
            texts = words.texts(TEXTS, words=WORDS)
            began = time.perf_counter()
            found = await caller.bus.call(EMBED, texts, Embeddings)
            assert len(found.vectors) == TEXTS
            return TEXTS / (time.perf_counter() - began)

        async def floor() -> float:
            texts = msgspec.json.encode(words.texts(TEXTS, words=WORDS)).decode()
            began = time.perf_counter()
            assert await llama.ask(texts) == TEXTS
            return TEXTS / (time.perf_counter() - began)

        await our()
        await floor()
        pairs = await in_turns(our, floor, 3 * size.crowds)
    return figure("inference_embeddings", pairs, unit="texts/s", bar=1.8)


async def inference_memory_mb(size: Size) -> Figure:
    """Resident memory of agent and engine, without the model, its KV cache and llama.cpp's own buffers.

    Less is better. The floor: 120. All slots have been used.
    """
    pairs = []
    for number in range(2):
        stack = ours(model(size.shape), context=_CONTEXT, threads=physical_cores(), slots=4)
        async with stack as up, up.caller() as caller:
            prompts = Words(f"memory {number}").texts(8, words=500)
            await together(caller, prompts, tokens=32)
            told = await caller.bus.call(MODELS, None, Models)
            most = sum(each.kv + each.buffers for each in told.models if each.loaded) / 1e6
            pids = [pid for pid, line in descendants(up.pid) if "inference" in line]
            files, blocks = (sum(found) for found in zip(*map(_theirs, pids), strict=True))
            pairs.append((sum(map(resident, pids)) - files - min(blocks, most), MOST_MEMORY))
    return figure("inference_memory_mb", pairs, unit="MB", bar=1.0, less_is_better=True)


def _theirs(pid: int) -> tuple[float, float]:
    """Megabytes of a process that are in memory: of mapped models, and of large blocks without a file.

    Those of llama.cpp hold the KV cache and its buffers, of which a part is never touched.
    """
    files = blocks = 0.0
    name, kilobytes = "", 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            name = words[5] if len(words) > 5 else ""
        elif words[0] == "Size:":
            kilobytes = int(words[1])
        elif words[0] == "Rss:" and name.endswith(".gguf"):
            files += int(words[1]) * 1024 / 1e6
        elif words[0] == "Rss:" and not name and kilobytes >= _BLOCK:
            blocks += int(words[1]) * 1024 / 1e6
    return files, blocks


async def inference_neighbours(size: Size) -> Figure:
    """Tokens a second of one caller, beside two processes that compute without end.

    The floor: without them.
    """
    stack = ours(model(size.shape), context=_CONTEXT, threads=physical_cores(), slots=4)
    async with stack as up, up.caller() as caller:
        words = Words("neighbours")
        await _rate(caller, words)

        async def beside() -> float:
            async with _neighbours():
                return await _rate(caller, words)

        pairs = await in_turns(beside, lambda: _rate(caller, words), size.talks)
    return figure("inference_neighbours", pairs, unit="tokens/s", bar=0.4)


async def _rate(caller: Ours, words: Words) -> float:
    """Tokens a second over some seconds, after others in which whoever steps back has done so."""
    await _for(_SETTLING, caller, words)
    return await _for(_WINDOW, caller, words)


async def _for(seconds: float, caller: Ours, words: Words) -> float:
    made, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        made += (await caller.ask(words.text(8), 32)).tokens
    return made / took


@asynccontextmanager
async def _neighbours() -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for _ in range(NEIGHBOURS):
            endless = [sys.executable, "-c", "while True: pass"]
            process = await anyio.open_process(endless, stdin=None, stdout=subprocess.DEVNULL)
            await stack.enter_async_context(ended(process))
        yield
