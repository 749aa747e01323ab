"""Somebody with a key who speaks the protocol of NATS as he likes: subjects, headers, replies are his own."""

from __future__ import annotations

import base64
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.abc
import msgspec
import nkeys  # type: ignore[import-untyped]

PATIENCE = 60.0


class Heard(msgspec.Struct, frozen=True):
    """A message as it came; `place` is what we listened on."""

    place: str
    subject: str
    reply: str
    head: bytes
    data: bytes


class Intruder:
    """One connection. After `settle` the server has said whatever it has to say about what went before."""

    def __init__(self, stream: anyio.abc.ByteStream, name: str, key: str) -> None:
        self.name, self.key = name, key
        self.inbox = f"_INBOX_{name}.raw"
        self.errors: list[str] = []
        self.heard: list[Heard] = []
        self.closed = False
        self._stream, self._buffer = stream, b""
        self._places: dict[str, str] = {}
        self._numbers = itertools.count(1)
        self._pongs = self._pinged = 0
        self._wants_pong = False
        self._writing = anyio.Lock()
        self._news = anyio.Event()

    async def say(self, text: str | bytes) -> None:
        """Exactly these bytes; nothing happens once the server has hung up."""
        try:
            async with self._writing:
                await self._stream.send(text if isinstance(text, bytes) else text.encode())
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            self.closed = True
            self._tell()

    async def post(self, subject: str, data: bytes = b"", *, reply: str = "", head: str | bytes = "") -> None:
        """A message; `head` holds header lines, or if bytes the whole block of headers."""
        if not head:
            return await self.say(f"PUB {subject} {reply} {len(data)}\r\n".encode() + data + b"\r\n")
        block = head if isinstance(head, bytes) else f"NATS/1.0\r\n{head}\r\n".encode()
        line = f"HPUB {subject} {reply} {len(block)} {len(block) + len(data)}\r\n"
        await self.say(line.encode() + block + data + b"\r\n")

    async def listen(self, subject: str) -> None:
        number = str(next(self._numbers))
        self._places[number] = subject
        await self.say(f"SUB {subject} {number}\r\n")

    async def settle(self) -> list[str]:
        """All that the server complains about so far, once it has read everything."""
        self._pinged += 1
        wanted = self._pinged
        await self.say("PING\r\n")
        await self.until(lambda: self._pongs >= wanted or self.closed)
        return self.errors

    async def until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(PATIENCE):
            while not condition():
                self._news = anyio.Event()
                await self._news.wait()

    async def ask(self, subject: str, body: object = b"", *, head: str | bytes = "") -> Heard | None:
        """The first answer, or None where the server forbids the question."""
        place = f"{self.inbox}.{next(self._numbers)}"
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        before = len(self.errors)
        await self.post(subject, data, reply=place, head=head)
        await self.until(lambda: self.closed or len(self.errors) > before or bool(self.at(place)))
        return next(iter(self.at(place)), None)

    def at(self, place: str) -> list[Heard]:
        """What came to a reply subject of ours."""
        return [one for one in self.heard if one.subject == place]

    async def receive(self) -> None:
        """Take in what the server says, until it hangs up."""
        try:
            while True:
                self._buffer += await self._stream.receive()
                while self._take():
                    pass
                if self._wants_pong:
                    self._wants_pong = False
                    await self.say("PONG\r\n")
                self._tell()
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            self.closed = True
            self._tell()

    def _tell(self) -> None:
        self._news.set()

    def _take(self) -> bool:
        line, found, rest = self._buffer.partition(b"\r\n")
        if not found:
            return False
        words = line.decode().split(" ")
        if words[0] in ("MSG", "HMSG"):
            size = int(words[-1])
            if len(rest) < size + 2:
                return False
            head = int(words[-2]) if words[0] == "HMSG" else 0
            reply = words[3] if len(words) == (6 if words[0] == "HMSG" else 5) else ""
            place = self._places.get(words[2], "")
            self.heard.append(Heard(place, words[1], reply, rest[:head], rest[head:size]))
            self._buffer = rest[size + 2 :]
            return True
        self._buffer = rest
        if words[0] == "-ERR":
            self.errors.append(line.decode())
        elif words[0] == "PONG":
            self._pongs += 1
        elif words[0] == "PING":
            self._wants_pong = True
        return True


@asynccontextmanager
async def intruder(url: str, name: str, key: Path) -> AsyncIterator[Intruder]:
    """Somebody who holds the key of `name`."""
    at = urlsplit(url)
    async with await anyio.connect_tcp(at.hostname or "", at.port or 0) as stream:
        info = b""
        while b"\r\n" not in info:
            info += await stream.receive()
        nonce = msgspec.json.decode(info.split(b" ", 1)[1])["nonce"]
        pair = nkeys.from_seed(bytearray(key.read_bytes().strip()))
        said: dict[str, Any] = {
            "verbose": False,
            "pedantic": False,
            "headers": True,
            "no_responders": True,
            "protocol": 1,
            "nkey": pair.public_key.decode(),
            "sig": base64.b64encode(pair.sign(nonce.encode())).decode(),
        }
        who = Intruder(stream, name, pair.public_key.decode())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(who.receive)
            await who.say(b"CONNECT " + msgspec.json.encode(said) + b"\r\n")
            await who.listen(f"{who.inbox}.>")
            await who.settle()
            yield who
            tasks.cancel_scope.cancel()
