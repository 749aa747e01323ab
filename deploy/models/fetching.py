"""Fetching one file: gone on with whatever broke it off, compared with its SHA-256, whole or not there."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx
import msgspec

from xnai.agents.inference.errors import FetchFailed, ModelInvalid
from xnai.agents.inference.gguf_file import check_gguf
from xnai.deploy.models.errors import ChecksumWrong, DiskFull, HubUnreachable
from xnai.deploy.models.hub import Hub
from xnai.deploy.models.naming import HubFile
from xnai.deploy.units import size as in_words

PART = ".part"
_SPARE = 64 << 20  # bytes of the disk that stay free
_BLOCK = 1 << 20
_MOST_BREAKS = 20
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")

Advance = Callable[[int, int | None], None]
"""Hears how many bytes there are, and how many there will be if that is known."""


class _Origin(msgspec.Struct, frozen=True):
    """Of which content a half file is the beginning."""

    url: str
    sha256: str | None
    etag: str | None


class _BrokenOff(Exception):
    """The connection ended before the file did."""


def fetch(hub: Hub, file: HubFile, target: Path, advance: Advance) -> str:
    """Fetch a file to `target`, which must not exist; returns its SHA-256.

    A half file that an earlier call left is gone on with if it is of the same content. Killed at any
    moment it leaves `target` whole or not there.

    Raises:
        FetchFailed: one of those in `xnai.deploy.models.errors`, or the file is no GGUF.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _half(target) as part:
            download = _Download(hub, file, target, part=part, advance=advance)
            _check_room(target, file, have=download.have)
            digest = download.run()
            os.fsync(part.fileno())
            _check_header(target)
            os.replace(_part_of(target), target)
            _origin_of(target).unlink(missing_ok=True)
            _sync_folder(target.parent)
    except OSError as error:
        if isinstance(error, FetchFailed):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"The disk under {target.parent} is full; what has come is kept, go on when there is room."
            ) from error
        raise FetchFailed(f"{target.parent} cannot be written: {error.strerror}.") from error
    return digest


class _Download:
    """A half file, and the rest of it."""

    def __init__(self, hub: Hub, file: HubFile, target: Path, *, part: IO[bytes], advance: Advance) -> None:
        self._hub, self._file, self._target, self._part, self._advance = hub, file, target, part, advance
        self._origin, self._digest = self._recall(), hashlib.sha256()
        self.have = os.fstat(part.fileno()).st_size
        if self._origin is None or (file.size is not None and self.have > file.size):
            self._begin_anew()

    def run(self) -> str:
        """Everything that is missing; the SHA-256 of the whole."""
        self._digest = self._hashed()
        for _ in range(_MOST_BREAKS):
            before = self.have
            try:
                self._go_on()
            except _BrokenOff as error:
                if self.have <= before:
                    raise HubUnreachable(f"{error} {self._kept()}") from error
                continue  # it goes on where it broke off
            except HubUnreachable as error:
                raise HubUnreachable(f"{error} {self._kept()}") from error
            sha256: str = self._digest.hexdigest()
            self._compare(sha256)
            return sha256
        raise HubUnreachable(f"The connection broke {_MOST_BREAKS} times. {self._kept()}")

    def _go_on(self) -> None:
        """One request for what is missing."""
        size, headers = self._file.size, {}
        if size is not None and self.have == size:
            return
        if self.have:
            headers["Range"] = f"bytes={self.have}-"
            if self._origin is not None and self._origin.etag:
                headers["If-Range"] = self._origin.etag
        with self._hub.get(self._file.url, headers) as response:
            total = size if size is not None else _total(response)
            if response.status_code != httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                if not self._continues(response):
                    self._begin_anew()
                self._note(response)
                self._read(response, total)
                return
        if self.have != total:
            self._begin_anew()
            self._go_on()  # which asks for no range now

    def _read(self, response: httpx.Response, total: int | None) -> None:
        try:
            for piece in response.iter_raw():
                self._part.write(piece)
                self._digest.update(piece)
                self.have += len(piece)
                self._advance(self.have, total)
                if total is not None and self.have > total:
                    self._throw_away()
                    raise ChecksumWrong(f"{response.url.host} sent more than the {total} bytes it promised.")
        except httpx.TransportError as error:
            self._part.flush()
            raise _BrokenOff(
                f"The connection to {response.url.host} broke: {str(error) or 'it said no reason'}."
            ) from error
        self._part.flush()
        if total is not None and self.have < total:
            raise _BrokenOff(f"{response.url.host} ended the file too early.")

    def _continues(self, response: httpx.Response) -> bool:
        """Whether the answer begins where the half file ends."""
        found = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        if response.status_code == httpx.codes.PARTIAL_CONTENT:
            if found is None or found[1] is None or int(found[1]) != self.have:
                raise HubUnreachable(f"{response.url.host} answers with another part than was asked for.")
            return True
        return self.have == 0 and response.status_code == httpx.codes.OK

    def _begin_anew(self) -> None:
        self._part.truncate(0)
        self.have, self._digest = 0, hashlib.sha256()

    def _hashed(self) -> Any:
        """The hash of what is here already."""
        digest = hashlib.sha256()
        self._part.seek(0)
        while block := self._part.read(_BLOCK):
            digest.update(block)
        return digest

    def _compare(self, sha256: str) -> None:
        if self._file.sha256 not in (None, sha256):
            self._throw_away()
            raise ChecksumWrong(
                f"{self._file.name} has the SHA-256 {sha256}, and the hub promises {self._file.sha256}: "
                "it was changed on its way, or at the hub. It is thrown away."
            )

    def _note(self, response: httpx.Response) -> None:
        etag = response.headers.get("ETag")
        strong = etag if etag and not etag.startswith("W/") else None
        origin = _Origin(self._file.url, self._file.sha256, strong)
        if origin != self._origin:
            _origin_of(self._target).write_bytes(msgspec.json.encode(origin))
            self._origin = origin

    def _recall(self) -> _Origin | None:
        """Of what the half file is a part, if that is still what is wanted."""
        try:
            origin = msgspec.json.decode(_origin_of(self._target).read_bytes(), type=_Origin)
        except (OSError, msgspec.MsgspecError):
            return None
        if self._file.sha256 is not None:
            return origin if origin.sha256 == self._file.sha256 else None
        return origin if origin.url == self._file.url and origin.etag else None

    def _throw_away(self) -> None:
        _origin_of(self._target).unlink(missing_ok=True)
        _part_of(self._target).unlink(missing_ok=True)

    def _kept(self) -> str:
        return f"{in_words(self.have)} of it are kept: the same command goes on from there."


@contextmanager
def _half(target: Path) -> Iterator[IO[bytes]]:
    """The half file, which one process at a time may hold."""
    with _part_of(target).open("ab+") as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FetchFailed(f"Another process is fetching {target.name} already.") from None
        yield part


def _check_room(target: Path, file: HubFile, *, have: int) -> None:
    free = shutil.disk_usage(target.parent).free
    missing = (file.size or 0) - have
    if missing > 0 and missing + _SPARE > free:
        raise DiskFull(
            f"{file.name} needs {in_words(missing)} more, and {in_words(free)} are free where "
            f"{target.parent} lies. Make room, or set XDG_CACHE_HOME to a larger disk."
        )


def _check_header(target: Path) -> None:
    try:
        check_gguf(_part_of(target))
    except ModelInvalid:
        _part_of(target).unlink()
        _origin_of(target).unlink(missing_ok=True)
        raise


def _total(response: httpx.Response) -> int | None:
    found = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    said = found[2] if found else response.headers.get("Content-Length", "")
    return int(said) if said.isdecimal() else None


def _part_of(target: Path) -> Path:
    return target.with_name(target.name + PART)


def _origin_of(target: Path) -> Path:
    return target.with_name(f"{target.name}{PART}.json")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
