"""Reads the header of a GGUF, before C++ code that a damaged one may end the process of.

Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import mmap
import os
import struct
from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path

import msgspec

from xnai.agents.inference.errors import ModelInvalid, ModelMissing

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_STRING, _ARRAY = 8, 9
_SCALARS: Mapping[int, struct.Struct] = {
    kind: struct.Struct(f"<{code}")
    for kind, code in {
        0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
    }.items()
}  # fmt: skip

# What a header may claim, so that a hostile one is refused soon.
_MOST_ITEMS = 1 << 24  # of a list; the largest vocabularies have 2^18
_MOST_TOKENS = 1 << 21
_MOST_PAIRS = _MOST_TENSORS = 1 << 17
_LONGEST_KEY = 1 << 16  # by the specification
_LONGEST_TENSOR_NAME = 1 << 8  # four times what it says
_LONGEST_TEXT = 1 << 20  # of a value; chat templates have 2^15
_LONGEST_KEPT_LIST = 1 << 12
_MOST_KEPT = 1 << 24  # bytes of all values
_MOST_LAYERS = 512  # LLAMA_MAX_LAYERS
_GUESSED = 1024  # llama.cpp's file type for "look at the tensors"

# Per ggml type: its name, weights in a block, bytes of a block (ggml-common.h). Others are retired.
_BLOCKS: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
    28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}  # fmt: skip

# `general.file_type` (llama_ftype in llama.h).
_FILE_TYPES: Mapping[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16",
    36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4", 39: "NVFP4", 40: "Q1_0",
}  # fmt: skip

Value = int | float | bool | str | list[int]


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What stands before the weights.

    Attributes:
        values: the metadata: numbers, texts of at most 1 MiB and short lists of whole numbers. Of other
            lists the length stands under their key.
        parameters: weights of all tensors.
        tensor_bytes: what they take.
        file_bytes: what the whole file takes.
        types: how many bytes there are of each ggml type.
    """

    values: dict[str, Value]
    parameters: int
    tensor_bytes: int
    file_bytes: int
    types: dict[str, int]


def check_gguf(path: Path) -> None:
    """Returns if the file is a GGUF, version 2 or 3, whose header and tensors all lie inside it.

    Raises ModelMissing if there is no such file, and ModelInvalid with the reason. Reads the header only.
    """
    read_header(path)


def read_header(path: Path) -> Header:
    """The header of a GGUF, checked as by `check_gguf`.

    Raises ModelMissing and ModelInvalid.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < 24:
                raise ModelInvalid(f"{path} is too short to be a GGUF")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Cursor(path, data).read()
    except FileNotFoundError as error:
        raise ModelMissing(f"there is no model file {path}") from error
    except OSError as error:
        raise ModelInvalid(f"{path} cannot be read: {error.strerror}") from error


class GgufInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a GGUF says of its model; 0, "" and None where it does not say it.

    Attributes:
        architecture: `llama`, `qwen3`, `bert` and the like.
        quantization: of most weights: `Q4_K_M`, `Q8_0`, `F16`.
        context: tokens for which it was trained.
        kv_heads: of each layer; 0 for a layer that remembers no keys and values.
        key_length, value_length: numbers of one head, per token and layer.
        state_bytes: what a sequence of a recurrent model holds, however long it is.
        window: tokens that the layers with a sliding window look back; 0 if all look at all.
        experts, experts_used: of a mixture; 0 if it is none.
        causal: False for a model that only embeds.
        tokenizer: its kind: `llama` (SentencePiece), `gpt2` (byte pairs), `bert` (word pieces).
        tensor_bytes: what the weights take, in the file and in memory.
    """

    architecture: str
    name: str
    parameters: int
    quantization: str
    context: int
    layers: int
    heads: int
    kv_heads: tuple[int, ...]
    key_length: int
    value_length: int
    embedding: int
    feed_forward: int
    vocabulary: int
    tokenizer: str
    chat_template: str | None
    state_bytes: int
    window: int
    experts: int
    experts_used: int
    causal: bool
    file_bytes: int
    tensor_bytes: int


def read_gguf(path: Path) -> GgufInfo:
    """What the header of a GGUF says of its model, without llama.cpp; checked as by `check_gguf`.

    Raises ModelMissing and ModelInvalid.
    """
    header = read_header(path)
    says = _Metadata(path, header.values)
    layers = says.number("block_count")
    if layers > _MOST_LAYERS:
        raise says.invalid(f"it claims {layers} layers")
    heads = says.each_layer("attention.head_count", layers, default=0)
    most_heads, embedding = max(heads, default=0), says.number("embedding_length")
    head = embedding // most_heads if most_heads else 0
    types = header.types
    return GgufInfo(
        architecture=says.architecture,
        name=says.text("general.name"),
        parameters=header.parameters,
        quantization=_FILE_TYPES.get(
            says.number("general.file_type", _GUESSED), max(types, key=types.__getitem__)
        ),
        context=says.number("context_length"),
        layers=layers,
        heads=most_heads,
        kv_heads=says.each_layer("attention.head_count_kv", layers, default=most_heads),
        key_length=says.number("attention.key_length", head),
        value_length=says.number("attention.value_length", head),
        embedding=embedding,
        feed_forward=max(says.each_layer("feed_forward_length", layers, default=0), default=0),
        vocabulary=says.number("tokenizer.ggml.tokens", says.number("vocab_size")),
        tokenizer=says.text("tokenizer.ggml.model"),
        chat_template=says.text("tokenizer.chat_template") or None,
        state_bytes=_state_bytes(says, layers),
        window=says.number("attention.sliding_window"),
        experts=says.number("expert_count"),
        experts_used=says.number("expert_used_count"),
        causal=says.number("attention.causal", 1) != 0,
        file_bytes=header.file_bytes,
        tensor_bytes=header.tensor_bytes,
    )


def _state_bytes(says: "_Metadata", layers: int) -> int:
    """Of one sequence, float32, as llama.cpp's llama_hparams::n_embd_r and n_embd_s count them."""
    inner, state = says.number("ssm.inner_size"), says.number("ssm.state_size")
    if inner:
        convolution = max(says.number("ssm.conv_kernel") - 1, 0)
        groups = says.number("ssm.group_count")
        return 4 * layers * (convolution * (inner + 2 * groups * state) + state * inner)
    embedding, head = says.number("embedding_length"), says.number("wkv.head_size")
    return 4 * layers * embedding * (says.number("token_shift_count", 2) + head) if head else 0


class _Metadata:
    """Values by key; a key of the architecture may leave its name out. A value of another kind is refused."""

    def __init__(self, path: Path, values: Mapping[str, Value]) -> None:
        self._path, self._values = path, values
        self.architecture = ""
        self.architecture = self.text("general.architecture")

    def text(self, key: str) -> str:
        value = self._get(key, "")
        if not isinstance(value, str):
            raise self.invalid(f"{key} is no text")
        return value

    def number(self, key: str, default: int = 0) -> int:
        value = self._get(key, default)
        if isinstance(value, list) and value:
            value = max(value)
        if not isinstance(value, int) or value < 0:
            raise self.invalid(f"{key} is no whole number")
        return int(value)

    def each_layer(self, key: str, layers: int, *, default: int) -> tuple[int, ...]:
        """A number for each layer, which a file may give once for all."""
        value = self._get(key, default)
        if not isinstance(value, list):
            return (self.number(key, default),) * layers
        if len(value) < layers or min(value, default=0) < 0:
            raise self.invalid(f"{key} has not one number for each layer")
        return tuple(value[:layers])

    def invalid(self, reason: str) -> ModelInvalid:
        return ModelInvalid(f"{self._path} is not a GGUF that can be used: {reason}")

    def _get(self, key: str, default: Value) -> Value:
        return self._values.get(key, self._values.get(f"{self.architecture}.{key}", default))


class _Cursor:
    """Steps over the header. Each step is checked against the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at, self._end = path, data, 0, len(data)
        self._alignment = 32
        self._parameters = self._kept = 0
        self._types: Counter[str] = Counter()

    def read(self) -> Header:
        if self._take(4) != b"GGUF":
            raise self._invalid("it does not begin with the letters GGUF")
        if (version := self._u32()) not in (2, 3):
            raise self._invalid(f"version {version} of the format is not supported (2 and 3 are)")
        tensors, pairs = self._u64(), self._u64()
        if tensors > _MOST_TENSORS or pairs > _MOST_PAIRS:
            raise self._invalid(f"it claims {tensors} tensors and {pairs} metadata values")
        values = dict(self._pair() for _ in range(pairs))
        ends = [self._tensor() for _ in range(tensors)]
        start = -(-self._at // self._alignment) * self._alignment
        if not ends:
            raise self._invalid("it holds no tensors")
        if (missing := start + max(ends) - self._end) > 0:
            raise self._invalid(f"it is truncated: {missing} bytes of weights are missing")
        return Header(
            values=values,
            parameters=self._parameters,
            tensor_bytes=self._types.total(),
            file_bytes=self._end,
            types=dict(self._types),
        )

    def _pair(self) -> tuple[str, Value]:
        key, kind = self._text(_LONGEST_KEY, "a key"), self._u32()
        value = self._value(kind, distinct=key == "tokenizer.ggml.tokens")
        if key == "general.alignment":
            if kind != 4 or not isinstance(value, int) or value == 0 or value & (value - 1):
                raise self._invalid("its alignment is no power of two")
            self._alignment = value
        if key == "split.count" and isinstance(value, int) and value > 1:
            raise self._invalid("it is one part of several; merge them with llama-gguf-split --merge")
        return key, value

    def _value(self, kind: int, *, distinct: bool) -> Value:
        if kind in _SCALARS:
            return self._scalar(kind)
        if kind == _STRING:
            return self._text(_LONGEST_TEXT, "a text")
        if kind == _ARRAY:
            return self._list(distinct=distinct)
        raise self._invalid(f"a value has the unknown type {kind}")

    def _list(self, *, distinct: bool) -> Value:
        """A short list of whole numbers; of another its length."""
        kind, count = self._u32(), self._u64()
        if count > _MOST_ITEMS:
            raise self._invalid(f"a list claims {count} items")
        if kind == _STRING and distinct:
            self._distinct(count)
        elif kind == _STRING:
            for _ in range(count):
                self._skip(self._u64())
        elif kind not in _SCALARS:
            raise self._invalid(f"a list has items of the type {kind}")
        elif count <= _LONGEST_KEPT_LIST and kind not in (6, 12):
            self._keep(64 * count)
            return [int(self._scalar(kind)) for _ in range(count)]
        else:
            self._skip(count * _SCALARS[kind].size)
        return count

    def _distinct(self, count: int) -> None:
        """Skips texts, of which only empty ones may come twice: otherwise llama.cpp ends the process."""
        if count > _MOST_TOKENS:
            raise self._invalid(f"its vocabulary claims {count} tokens")
        seen: set[bytes] = set()
        for number in range(count):
            length = self._u64()
            if length > _LONGEST_KEY:
                raise self._invalid(f"a token of it has {length} bytes")
            start = self._at
            self._skip(length)
            token = self._data[start : self._at].split(b"\0", 1)[0]  # C ends it there
            seen.add(token or b"\0%d" % number)
        if len(seen) < count:
            raise self._invalid("its vocabulary has a token twice")

    def _tensor(self) -> int:
        """Reads the description of a tensor; where it ends, in bytes after the start of the weights."""
        name = self._text(_LONGEST_TENSOR_NAME, "a tensor's name")
        if (dimensions := self._u32()) > 4:
            raise self._invalid(f"tensor {name!r} has {dimensions} dimensions")
        shape = [self._u64() for _ in range(dimensions)]
        kind, offset = self._u32(), self._u64()
        if kind not in _BLOCKS:
            raise self._invalid(f"tensor {name!r} has the unknown type {kind}")
        label, weights, block = _BLOCKS[kind]
        if not shape or 0 in shape or shape[0] % weights:
            raise self._invalid(f"tensor {name!r} cannot have the shape {shape}")
        if offset % self._alignment:
            raise self._invalid(f"tensor {name!r} is not aligned")
        size = prod(shape) // weights * block
        self._parameters += prod(shape)
        self._types[label] += size
        return offset + size

    def _text(self, longest: int, what: str) -> str:
        length, start = self._u64(), self._at
        self._skip(length)
        if length > longest:
            raise self._invalid(f"{what} of it has {length} bytes")
        self._keep(length)
        return self._data[start : self._at].decode(errors="replace")

    def _keep(self, size: int) -> None:
        self._kept += size
        if self._kept > _MOST_KEPT:
            raise self._invalid(f"its metadata has more than {_MOST_KEPT >> 20} MiB")

    def _scalar(self, kind: int) -> int | float | bool:
        number: int | float | bool = _SCALARS[kind].unpack(self._take(_SCALARS[kind].size))[0]
        return number

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
