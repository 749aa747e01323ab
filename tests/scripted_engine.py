"""A program that speaks the engine's frames and computes nothing: for faults that are hard to make real.

`python scripted_engine.py FD`. It answers a prompt with the prompt's own text, each byte a token, and text
leaves in whole characters. A few letters in a prompt are orders:

    |   say nothing more, in the first life only
    ½   say half of it and nothing more, in the first life only
    †   die before this is said, in every life (it is three tokens)
    ~   say bytes that are no frame
    …   stop to read and to speak, in the first life only
    ?   as the first letter, wait in the queue, in the first life only

In the folder that Setup names it makes `lives` as it starts, and `held` as it says nothing more. A model
whose path ends with "deadly" kills it as it is opened, one that ends with "deadly-once" in the first life.
"""

from __future__ import annotations

import codecs
import os
import signal
import socket
import sys
import time
from pathlib import Path

import msgspec

from xnai.agents.inference.frames import (
    Ask,
    Count,
    Counted,
    Done,
    Drop,
    Embed,
    Frame,
    FrameReader,
    Generate,
    Open,
    Opened,
    Queued,
    Refused,
    Setup,
    Status,
    Text,
    ToEngine,
    Vectors,
    encode_frame,
)
from xnai.agents.inference.requests import Finish

DEADLY, HALF = "†".encode(), "½".encode()


class Script:
    """One life."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._first, self._folder = True, Path()
        self._held: dict[int, Generate] = {}

    def take(self, frame: ToEngine) -> None:
        if isinstance(frame, Setup):
            self._folder = Path(frame.folder)
            self._first = not (self._folder / "lives").exists()
            (self._folder / "lives").touch()
        elif isinstance(frame, Open):
            self._open(frame)
        elif isinstance(frame, Generate):
            self._generate(frame)
        elif isinstance(frame, Embed):
            self._say(Vectors(frame.id, 1, b"\0\0\x80?" * len(frame.texts)))
        elif isinstance(frame, Count):
            self._say(Counted(frame.id, bytes(4 * len("".join(frame.pieces)))))
        elif isinstance(frame, Ask):
            self._say(Status(frame.id, running=len(self._held)))
        elif isinstance(frame, Drop):
            self._held.pop(frame.id, None)
            self._say(Done(frame.id, "canceled"))

    def _open(self, frame: Open) -> None:
        if frame.path.endswith("missing"):
            return self._say(Refused(0, "model_missing", f"There is no {frame.path}.", model=frame.name))
        if frame.path.endswith("deadly") or (self._first and frame.path.endswith("deadly-once")):
            die("it does not like this model")
        self._say(Opened(frame.name, frame.context, 1 if frame.embeds else 0, 1))

    def _generate(self, frame: Generate) -> None:
        said = bytes(frame.said)
        text = "".join(frame.pieces).encode()
        decode = codecs.getincrementaldecoder("utf-8")().decode
        decode(said)
        if self._first and text.startswith(b"?"):
            self._hold(frame)
            return self._say(Queued(frame.id, len(text), 0, 60.0))
        if text == b"busy":
            return self._say(Refused(frame.id, "busy", "The queue is full.", 2.5))
        for at in range(len(said), min(len(text), frame.max_tokens)):
            if self._first and text[at:].startswith((b"|", HALF[1:])):
                return self._hold(frame)
            if self._first and text[at:].startswith("…".encode()):
                time.sleep(3600)
            if text[at:].startswith(DEADLY):
                die("it does not like this prompt")
            if text[at:].startswith(b"~"):
                self._connection.sendall(b"\xff" * 16)
            self._say(Text(frame.id, decode(text[at : at + 1]), (text[at],)))
        finish: Finish = "stop" if len(text) <= frame.max_tokens else "length"
        self._say(Done(frame.id, finish, len(text), 0, min(len(text), frame.max_tokens)))

    def _hold(self, frame: Generate) -> None:
        self._held[frame.id] = frame
        (self._folder / "held").touch()

    def _say(self, frame: Frame) -> None:
        self._connection.sendall(encode_frame(frame))


def die(why: str) -> None:
    sys.stderr.write(f"{why}\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    decode = msgspec.msgpack.Decoder(ToEngine).decode
    script, reader = Script(connection), FrameReader()
    while data := connection.recv(1 << 16):
        for body in reader.feed(data):
            script.take(decode(body))


if __name__ == "__main__":
    main()
