"""What one computation of llama.cpp is given: tokens, and where they stand."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xnai.agents.inference.engine.bindings import lib

Tokens = NDArray[np.int32]


class Batch:
    """Tokens of several sequences for one decode, in memory that is allocated once."""

    def __init__(self, capacity: int) -> None:
        self.size = 0
        self._token, self._position, self._sequence = (np.zeros(capacity, np.int32) for _ in range(3))
        self._one, self._wanted = np.ones(capacity, np.int32), np.zeros(capacity, np.int8)
        first = self._sequence.ctypes.data
        pointers = (ctypes.POINTER(ctypes.c_int32) * capacity)(
            *(ctypes.cast(first + 4 * index, ctypes.POINTER(ctypes.c_int32)) for index in range(capacity))
        )
        self._pointers = pointers  # C reads it at each decode

        def place(array: NDArray[Any], kind: Any) -> Any:
            return array.ctypes.data_as(ctypes.POINTER(kind))

        self.c = lib.llama_batch(
            0,
            place(self._token, ctypes.c_int32),
            None,
            place(self._position, ctypes.c_int32),
            place(self._one, ctypes.c_int32),
            ctypes.cast(pointers, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            place(self._wanted, ctypes.c_int8),
        )

    def clear(self) -> None:
        self.size = 0

    def add(self, tokens: Sequence[int] | Tokens, position: int, sequence: int, *, wanted: int) -> int:
        """Appends tokens of one sequence, of which the last `wanted` get logits.

        Returns the row of the last of them.
        """
        start, end = self.size, self.size + len(tokens)
        if end == start + 1:  # by far the most; slices take three times as long
            self._token[start], self._position[start] = tokens[0], position
            self._sequence[start], self._wanted[start] = sequence, wanted
            self.size = end
            return start
        self._token[start:end] = tokens
        self._position[start:end] = np.arange(position, position + len(tokens))
        self._sequence[start:end] = sequence
        self._wanted[start:end] = 0
        if wanted:
            self._wanted[end - wanted : end] = 1
        self.size = end
        return end - 1

    def go_on(self, tokens: Sequence[int]) -> None:
        """One token for each sequence, behind the one that stands here: all rows are of one token each."""
        self._token[: self.size] = tokens
        self._position[: self.size] += 1
