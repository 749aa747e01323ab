"""Looks whether a file is a whole GGUF, before C++ code that may end the process reads it.

Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import mmap
import os
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path

from xnai.agents.inference.errors import ModelInvalid, ModelMissing

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_STRING, _ARRAY = 8, 9
_SCALAR_BYTES: Mapping[int, int] = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_MOST_ITEMS = 1 << 24  # of a list, so that a hostile one is refused soon; the largest vocabularies have 2^18

# Per ggml type: weights in a block, bytes of a block (ggml-common.h). Numbers not listed are retired.
_BLOCKS: Mapping[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18), 42: (64, 18),
}  # fmt: skip


def check_gguf(path: Path) -> None:
    """Returns if the file is a GGUF, version 2 or 3, whose header and tensors all lie inside it.

    Raises ModelMissing if there is no such file, and ModelInvalid with the reason. Reads the header only.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < 24:
                raise ModelInvalid(f"{path} is too short to be a GGUF")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _Header(path, data).check()
    except FileNotFoundError as error:
        raise ModelMissing(f"there is no model file {path}") from error
    except OSError as error:
        raise ModelInvalid(f"{path} cannot be read: {error.strerror}") from error


class _Header:
    """A cursor over the header. Each step is checked against the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at, self._end = path, data, 0, len(data)
        self._alignment = 32

    def check(self) -> None:
        if self._take(4) != b"GGUF":
            raise self._invalid("it does not begin with the letters GGUF")
        if (version := self._u32()) not in (2, 3):
            raise self._invalid(f"version {version} of the format is not supported (2 and 3 are)")
        tensors, pairs = self._u64(), self._u64()
        for _ in range(pairs):
            self._pair()
        ends = [self._tensor() for _ in range(tensors)]
        start = -(-self._at // self._alignment) * self._alignment
        if not ends:
            raise self._invalid("it holds no tensors")
        if (missing := start + max(ends) - self._end) > 0:
            raise self._invalid(f"it is truncated: {missing} bytes of weights are missing")

    def _pair(self) -> None:
        key, kind = self._string(), self._u32()
        value = self._value(kind)
        if key == b"general.alignment":
            alignment = int.from_bytes(value, "little")
            if kind != 4 or alignment == 0 or alignment & (alignment - 1):
                raise self._invalid("its alignment is no power of two")
            self._alignment = alignment
        if key == b"split.count" and int.from_bytes(value, "little") > 1:
            raise self._invalid("it is one part of several; merge them with llama-gguf-split --merge")

    def _value(self, kind: int) -> bytes:
        """Skips a value; the bytes of it, if it is no array."""
        if kind in _SCALAR_BYTES:
            return self._take(_SCALAR_BYTES[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise self._invalid(f"a value has the unknown type {kind}")
        item, count = self._u32(), self._u64()
        if count > _MOST_ITEMS:
            raise self._invalid(f"a list claims {count} items")
        if item == _STRING:
            for _ in range(count):
                self._skip(self._u64())
        elif item in _SCALAR_BYTES:
            self._skip(count * _SCALAR_BYTES[item])
        else:
            raise self._invalid(f"a list has items of the type {item}")
        return b""

    def _tensor(self) -> int:
        """Reads the description of a tensor; where it ends, in bytes after the start of the weights."""
        name = self._string().decode(errors="replace")
        if (dimensions := self._u32()) > 4:
            raise self._invalid(f"tensor {name!r} has {dimensions} dimensions")
        shape = [self._u64() for _ in range(dimensions)]
        kind, offset = self._u32(), self._u64()
        if kind not in _BLOCKS:
            raise self._invalid(f"tensor {name!r} has the unknown type {kind}")
        weights, block = _BLOCKS[kind]
        if not shape or 0 in shape or shape[0] % weights:
            raise self._invalid(f"tensor {name!r} cannot have the shape {shape}")
        if offset % self._alignment:
            raise self._invalid(f"tensor {name!r} is not aligned")
        return offset + prod(shape) // weights * block

    def _string(self) -> bytes:
        return self._take(self._u64())

    def _u32(self) -> int:
        return int(_U32.unpack(self._take(4))[0])

    def _u64(self) -> int:
        return int(_U64.unpack(self._take(8))[0])

    def _take(self, count: int) -> bytes:
        start = self._at
        self._skip(count)
        return self._data[start : self._at]

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > self._end:
            raise self._invalid("it is truncated: its header goes on after its end")

    def _invalid(self, reason: str) -> ModelInvalid:
        return ModelInvalid(f"{self._path} is not a GGUF that can be used: {reason}")
