"""The floor for one caller: prompt, decode, likeliest token, the next one, and nothing else.

    python -m benchmarks.inference.minimal MODEL CONTEXT THREADS

It says `"ready"`, answers each line of its input, the JSON of [prompt, tokens], with what it measured itself:
[seconds to the first token, seconds from there to the last, tokens], and ends with its input. No token ends
an answer. Attention is computed as our engine does it where answers are to be exact.
"""

from __future__ import annotations

import ctypes
import sys
import time
from typing import Any

import llama_cpp as lib
import msgspec
import numpy as np

_BATCH = 512


class Loop:
    """A model with a context of one sequence."""

    def __init__(self, path: str, *, context: int, threads: int) -> None:
        self._model: Any = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        settings = lib.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, _BATCH, _BATCH
        settings.n_threads = settings.n_threads_batch = threads
        settings.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context: Any = lib.llama_init_from_model(self._model, settings)
        self._vocabulary: Any = lib.llama_model_get_vocab(self._model)
        self._size = lib.llama_vocab_n_tokens(self._vocabulary)

    def generate(self, prompt: str, count: int) -> tuple[float, float, int]:
        """As the module says."""
        began = time.perf_counter()
        lib.llama_memory_clear(lib.llama_get_memory(self._context), False)
        tokens = self._tokenize(prompt)
        for start in range(0, len(tokens), _BATCH):
            token = self._decode(tokens[start : start + _BATCH])
        first = time.perf_counter()
        for _ in range(count - 1):
            token = self._decode([token])
        return first - began, time.perf_counter() - first, count

    def _tokenize(self, text: str) -> list[int]:
        data = text.encode()
        room = len(data) + 8
        tokens = (ctypes.c_int32 * room)()
        return tokens[: lib.llama_tokenize(self._vocabulary, data, len(data), tokens, room, True, True)]

    def _decode(self, tokens: list[int]) -> int:
        data = (ctypes.c_int32 * len(tokens))(*tokens)
        assert lib.llama_decode(self._context, lib.llama_batch_get_one(data, len(tokens))) == 0
        row = lib.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(row, (self._size,)).argmax())


def main() -> None:
    silent = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(silent, ctypes.c_void_p(0))
    lib.llama_backend_init()
    path, context, threads = sys.argv[1:]
    loop = Loop(path, context=int(context), threads=int(threads))
    print('"ready"', flush=True)
    for line in sys.stdin:
        measured = loop.generate(*msgspec.json.decode(line, type=tuple[str, int]))
        print(msgspec.json.encode(measured).decode(), flush=True)


if __name__ == "__main__":
    main()
