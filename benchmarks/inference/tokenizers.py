"""Two real tokenizers, out of Python packages, as the lists that a GGUF wants.

Sources: SentencePiece's `ModelProto` (https://github.com/google/sentencepiece, sentencepiece_model.proto), of
which only the pieces are read; tiktoken's file of ranks; GPT-2's spelling of bytes (`bytes_to_unicode`).
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Sequence
from functools import cache

import msgspec

_NORMAL, _CONTROL, _UNUSED = 1, 3, 5  # kinds of tokens, of llama.cpp and of SentencePiece alike
_NEVER = 1 << 40


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens of a model.

    Attributes:
        kind, pre: what llama.cpp calls this sort of tokenizer, and how it cuts a text before.
        scores: of SentencePiece. merges: of byte pairs, the first one first.
        begin, end: the tokens that begin and end a text.
        adds_begin: whether a text gets the first of them.
    """

    kind: str
    pre: str = "default"
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float] = ()
    merges: Sequence[str] = ()
    begin: int
    end: int
    adds_begin: bool

    def words(self) -> list[str]:
        """What is one token each at the beginning of a word, plain letters only, three and more."""
        marks = ("\u2581", "\u0120")
        found = [token[1:] for token in self.tokens if token.startswith(marks)]
        return sorted({word for word in found if len(word) > 2 and word.isascii() and word.isalpha()})


def sentence_pieces(model: bytes) -> Vocabulary:
    """The vocabulary in a SentencePiece model, such as Mistral's and Llama's."""
    pieces = [dict(_fields(entry)) for number, entry in _fields(model) if number == 1]
    return Vocabulary(
        kind="llama",
        tokens=[piece[1].decode() for piece in pieces],
        scores=[struct.unpack("<f", piece.get(2, bytes(4)))[0] for piece in pieces],
        types=[piece[3][0] if 3 in piece else _NORMAL for piece in pieces],
        begin=1,
        end=2,
        adds_begin=True,
    )


def byte_pairs(ranks: bytes, size: int) -> Vocabulary:
    """The vocabulary in a file of ranks, such as Qwen's, filled up to `size` with tokens that nobody uses."""
    lines = (line.split() for line in ranks.splitlines() if line)
    by_token = {base64.b64decode(token): int(rank) for token, rank in lines}
    order = sorted(by_token, key=by_token.__getitem__)
    tokens = [_spelled(token) for token in order] + ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    types = [_NORMAL] * len(order) + [_CONTROL] * 3
    spare = size - len(tokens)
    return Vocabulary(
        kind="gpt2",
        pre="qwen2",
        tokens=tokens + [f"<|unused_{number}|>" for number in range(spare)],
        types=types + [_UNUSED] * spare,
        merges=[f"{_spelled(left)} {_spelled(right)}" for left, right in _merges(order, by_token)],
        begin=len(order),
        end=len(order) + 2,
        adds_begin=False,
    )


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each field of a protocol buffer; of a number only its lowest byte."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        match key & 7:
            case 0:
                value, at = _varint(message, at)
                yield key >> 3, bytes([value & 0xFF])
                continue
            case 1:
                length = 8
            case 5:
                length = 4
            case 2:
                length, at = _varint(message, at)
            case other:
                raise ValueError(f"a field is written in way {other}")
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _merges(order: Sequence[bytes], ranks: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The pair that each token is made of: what is left of its bytes when all earlier pairs are merged."""
    for token in order:
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            pairs = [ranks.get(parts[at] + parts[at + 1], _NEVER) for at in range(len(parts) - 1)]
            best = min(range(len(pairs)), key=pairs.__getitem__)
            if pairs[best] >= ranks[token]:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            yield parts[0], parts[1]


def _spelled(token: bytes) -> str:
    return "".join(map(_alphabet().__getitem__, token))


@cache
def _alphabet() -> list[str]:
    """A letter for each byte: itself where it is one that can be seen, else one from 256 on."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]
