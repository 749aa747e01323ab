"""Reading what the server sends, quicker for messages: they are cut out of the bytes as they came.

nats-py's parser matches three patterns and moves the rest of its buffer for each message, and hands it over
in a coroutine. This one takes whole messages and leaves every other line (INFO, PING, PONG, -ERR) to it.
Source: the NATS client protocol, `MSG <subject> <sid> [reply] <size>` and `HMSG … <head size> <size>`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

_STATUS = re.compile(rb"NATS/1\.0 (\d{3})")
_FROM_A_STREAM = b"\r\nNats-Stream: "


class Frame(msgspec.Struct, gc=False):
    """A message as it came: `head` holds the bytes of its headers, unread."""

    subject: str
    reply: str
    data: bytes
    head: bytes

    @property
    def status(self) -> int:
        """The status of a frame that the server itself made, for example 404; 0 for a message.

        Whoever stored a message may have written a status into it.
        """
        found = _STATUS.match(self.head) if self.head and _FROM_A_STREAM not in self.head else None
        return int(found[1]) if found else 0

    def header(self, name: str) -> str:
        """The value of a header; empty when there is none.

        It is the last of that name: what the server says of a message stands behind what its writer said.
        """
        start = self.head.rfind(b"\r\n%b:" % name.encode())
        if start < 0:
            return ""
        start += len(name) + 3
        return self.head[start : self.head.index(b"\r\n", start)].decode().strip()


Deliver = Callable[[int, Frame], bool]
"""Gets the number of a subscription and its message; False when that is nats-py's own to handle."""


class MessageParser(Parser):
    """nats-py's parser, with a shorter way for messages."""

    def __init__(self, client: object, deliver: Deliver) -> None:
        super().__init__(client)
        self._deliver = deliver
        self._wanted = 0  # bytes that the message at the start of the buffer takes, once its line is known

    def reset(self) -> None:
        super().reset()
        self._wanted = 0

    async def parse(self, data: bytes = b"") -> None:
        """Deliver every whole message in what has come so far.

        Raises:
            ProtocolError: the bytes are not of this protocol.
        """
        if self.buf:
            self.buf.extend(data)
            if len(self.buf) < self._wanted:
                return
            data = bytes(self.buf)
            self.buf.clear()
        at = self._wanted = 0
        while at < len(data):
            end_of_line = data.find(b"\r\n", at)
            if end_of_line < 0:
                break
            body = end_of_line + 2
            if not data.startswith((b"MSG ", b"HMSG "), at):
                await self._other_line(data[at:body])
                at = body
                continue
            end = await self._message(data, at, end_of_line)
            if end < 0:
                break
            at = end
        self.buf.extend(data[at:])

    async def _message(self, data: bytes, at: int, end_of_line: int) -> int:
        """Deliver the message whose line begins at `at`; where it ends, or -1 when it is not all there."""
        kind, *words = data[at:end_of_line].split(b" ")
        body = end_of_line + 2
        try:
            subject, number, *words = words
            end = body + int(words.pop())
            end_of_head = body + int(words.pop()) if kind == b"HMSG" else body
            (reply,) = words or (b"",)
            subscription = int(number)
            frame = Frame(subject.decode(), reply.decode(), data[end_of_head:end], data[body:end_of_head])
        except (ValueError, IndexError) as error:
            raise ProtocolError(f"nats: malformed {kind.decode()}") from error
        if end + 2 > len(data):
            self._wanted = end + 2 - at
            return -1
        if not self._deliver(subscription, frame):
            await self.nc._process_msg(subscription, subject, reply, frame.data, frame.head or None)
        return end + 2

    async def _other_line(self, line: bytes) -> None:
        self.buf.extend(line)
        await super().parse()
        if self.buf:
            raise ProtocolError("nats: a line that is none")
