"""States of sequences that were evicted, in memory and in a folder, for when their tokens come again.

A file is one state: `MAGIC`, the SHA-256 of what follows, the length of a header (four bytes, little endian),
the header (MessagePack) and the state as llama.cpp wrote it. Its name is a hash of the model and the tokens.
Whatever is wrong with a file or with the disk is as if the state had never been saved.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from xnai.agents.inference.engine.radix import Tokens

MAGIC = b"xnai-kv1"
SUFFIX = ".state"
PART = ".part"

_LENGTH = struct.Struct("<I")
_LONGEST_HEADER = 16 << 20  # bytes

_log = logging.getLogger(__name__)


class _Header(msgspec.Struct, frozen=True, array_like=True):
    """Of which model a state is, the tokens (int32 little endian), and how many bytes it has."""

    identity: str
    tokens: bytes
    size: int


_encoder, _decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(_Header)


class SavedStates:
    """The saved states of one model.

    Attributes:
        in_memory: bytes held in memory.
    """

    def __init__(self, identity: str, *, memory: int, folder: Path | None = None, disk: int = 0) -> None:
        """Bounded by bytes in memory and in the folder, which several models and engines may share.

        The identity names all that a state depends on: the model's hash, the settings of its context, and the
        version of llama.cpp. The folder is made when first needed. What is in it tells what was asked, so
        nobody else may read it.
        """
        self.in_memory = 0
        self._identity, self._memory, self._folder, self._disk = identity, memory, folder, disk
        self._held: dict[str, tuple[Tokens, bytes]] = {}  # least recently used first
        self._prefix = hashlib.sha256(identity.encode()).hexdigest()[:16]

    def found(self) -> list[tuple[str, Tokens]]:
        """Keys and tokens of the states that earlier engines left in the folder; removes what is useless."""
        for part in self._files(PART):
            _remove(part)  # whoever is still writing it will find it gone, and go on without
        states = []
        for path in self._files(SUFFIX):
            if path.name.startswith(self._prefix):
                if (tokens := self._read_tokens(path)) is None:
                    _remove(path)
                else:
                    states.append((path.name.removesuffix(SUFFIX), tokens))
        self._make_room(0)
        return [(key, tokens) for key, tokens in states if self._path(key).exists()]

    def put(self, tokens: Tokens, state: bytes) -> tuple[str, tuple[str, ...]]:
        """Saves a state. Returns its key, "" if it fits nowhere, and the keys that were lost for it."""
        key = self._key(tokens)
        self._forget(key)
        lost: list[str] = []
        if len(state) > self._memory:
            return (key if self._write(key, tokens, state) else ""), ()
        while self.in_memory + len(state) > self._memory:
            oldest = next(iter(self._held))
            if not self._write(oldest, *self._held[oldest]):
                lost.append(oldest)
            self._forget(oldest)
        self._held[key] = (tokens.copy(), state)
        self.in_memory += len(state)
        return key, tuple(lost)

    def get(self, key: str) -> bytes | None:
        """The state, or None if it is gone."""
        if held := self._held.pop(key, None):
            self._held[key] = held  # the most recently used now
            return held[1]
        return self._read(key)

    def drop(self, key: str) -> None:
        """Gives up a state."""
        self._forget(key)
        if self._folder:
            _remove(self._path(key))

    def write_all(self) -> None:
        """Moves what is in memory into the folder, as far as it fits: the engine ends."""
        for key in list(self._held):
            self._write(key, *self._held[key])
            self._forget(key)

    def _forget(self, key: str) -> None:
        if held := self._held.pop(key, None):
            self.in_memory -= len(held[1])

    def _key(self, tokens: Tokens) -> str:
        return f"{self._prefix}-{hashlib.sha256(_as_bytes(tokens)).hexdigest()[:32]}"

    # Files

    def _path(self, key: str) -> Path:
        assert self._folder
        return self._folder / f"{key}{SUFFIX}"

    def _files(self, suffix: str) -> list[Path]:
        if not self._folder:
            return []
        try:
            return sorted(path for path in self._folder.iterdir() if path.suffix == suffix)
        except OSError:
            return []

    def _make_room(self, size: int) -> None:
        """Removes the oldest files of any model until so many bytes more fit."""
        files = []
        for path in self._files(SUFFIX):
            with suppress(OSError):
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        files.sort()
        over = sum(length for _, length, _ in files) + size - self._disk
        for _, length, path in files:
            if over <= 0:
                return
            _remove(path)
            over -= length

    def _write(self, key: str, tokens: Tokens, state: bytes) -> bool:
        """Writes a file; False if it cannot be."""
        header = _encoder.encode(_Header(self._identity, _as_bytes(tokens), len(state)))
        parts = (_LENGTH.pack(len(header)), header, state)
        size = len(MAGIC) + hashlib.sha256().digest_size + sum(map(len, parts))
        if not self._folder or size > self._disk:
            return False
        self._make_room(size)
        path = self._path(key)
        part = path.with_suffix(f".{os.getpid()}{PART}")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(part, "wb", opener=_private) as file:
                file.write(MAGIC)
                file.write(_digest(*parts))
                file.writelines(parts)
            part.replace(path)
        except OSError as error:
            _log.warning("a state was not saved", extra={"path": str(path), "reason": str(error)})
            _remove(part)
            return False
        return True

    def _read(self, key: str) -> bytes | None:
        """The state in a file, if all of it is there and as it was written."""
        if not self._folder:
            return None
        path = self._path(key)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        start = len(MAGIC) + hashlib.sha256().digest_size
        if data[:start] == MAGIC + _digest(memoryview(data)[start:]):
            (length,) = _LENGTH.unpack_from(data, start)
            return data[start + _LENGTH.size + length :]
        _log.warning("a saved state is damaged and was removed", extra={"path": str(path)})
        _remove(path)
        return None

    def _read_tokens(self, path: Path) -> Tokens | None:
        """The tokens of a file that is as long as it says, and named for its model and them."""
        try:
            with path.open("rb") as file:
                header = _read_header(file)
                whole = file.tell() + header.size == path.stat().st_size
        except (OSError, ValueError):
            return None
        if not whole or header.identity != self._identity or len(header.tokens) % 4:
            return None
        tokens = np.frombuffer(header.tokens, "<i4").astype(np.int32)
        return tokens if path.name == f"{self._key(tokens)}{SUFFIX}" else None


def _read_header(file: BinaryIO) -> _Header:
    """Reads up to the state.

    Raises ValueError.
    """
    start = file.read(len(MAGIC) + hashlib.sha256().digest_size + _LENGTH.size)
    if not start.startswith(MAGIC) or len(start) < len(MAGIC) + hashlib.sha256().digest_size + _LENGTH.size:
        raise ValueError("not a saved state")
    (length,) = _LENGTH.unpack(start[-_LENGTH.size :])
    if length > _LONGEST_HEADER:
        raise ValueError("the header is too long")
    try:
        return _decoder.decode(file.read(length))
    except msgspec.MsgspecError as error:
        raise ValueError("not the header of a saved state") from error


def _as_bytes(tokens: Tokens) -> bytes:
    return tokens.astype("<i4").tobytes()


def _digest(*parts: bytes | memoryview) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
