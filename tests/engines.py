"""An engine process, driven by frames."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from xnai.agents.inference.frames import (
    Ask,
    Counted,
    Done,
    Drop,
    Embed,
    Frame,
    FrameReader,
    FromEngine,
    Generate,
    Open,
    Opened,
    Refused,
    Setup,
    Status,
    Text,
    ToEngine,
    Unloaded,
    Vectors,
    encode_frame,
)

PATIENCE = 60.0
MODEL = "model"


class EngineProcess:
    """Sends frames and reads what comes back; nothing waits longer than PATIENCE."""

    def __init__(self, connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._connection = connection
        self._reader, self._decoder = FrameReader(), msgspec.msgpack.Decoder(FromEngine)
        self._read: list[FromEngine] = []
        self._ids = itertools.count(1)
        connection.settimeout(PATIENCE)

    def send(self, *frames: ToEngine) -> None:
        self._connection.sendall(b"".join(map(encode_frame, frames)))

    def receive(self, fits: Callable[[FromEngine], bool] = lambda _: True) -> FromEngine:
        """The next frame that fits; the others stay to be received."""
        seen = 0
        while True:
            for place in range(seen, len(self._read)):
                if fits(self._read[place]):
                    return self._read.pop(place)
            seen = len(self._read)
            data = self._connection.recv(1 << 20)
            if not data:
                raise EOFError(f"the engine has ended: {self.process.wait(PATIENCE)}")
            self._read += map(self._decoder.decode, self._reader.feed(data))

    def open(self, path: Path, *, name: str = MODEL, **options: Any) -> Opened | Refused:
        self.send(Open(name, str(path), **options))
        while not isinstance(found := self.receive(), Opened | Refused):
            assert isinstance(found, Unloaded)
        return found

    def begin(self, prompt: str, tokens: int = 16, *, model: str = MODEL, **options: Any) -> int:
        """Ask for text; returns the id."""
        id = next(self._ids)
        self.send(Generate(id, model, (prompt,), True, tokens, **options))
        return id

    def begin_vectors(self, texts: Sequence[tuple[int, ...]], *, model: str = MODEL) -> int:
        """Ask for the vectors of texts that are tokens; returns the id."""
        id = next(self._ids)
        self.send(Embed(id, model, tuple(texts)))
        return id

    def until(self, ids: Iterable[int]) -> dict[int, list[Frame]]:
        """What is said of these requests until all have ended."""
        found: dict[int, list[Frame]] = {id: [] for id in ids}
        left = set(found)
        while left:
            frame = self.receive(lambda frame: _about(frame) in found)
            found[_about(frame)].append(frame)
            if isinstance(frame, Done | Refused | Vectors | Counted):
                left.discard(_about(frame))
        return found

    def hear(self, id: int, kind: type[Any]) -> Any:
        """The next frame of a kind about a request."""
        return self.receive(lambda frame: isinstance(frame, kind) and _about(frame) == id)

    def end(self, id: int) -> list[Frame]:
        """What is said of a request until it has ended."""
        return self.until([id])[id]

    def say(self, prompt: str, tokens: int = 16, **options: Any) -> str:
        """The text that follows a prompt."""
        return text_of(self.end(self.begin(prompt, tokens, **options)))

    def vectors(self, texts: Sequence[tuple[int, ...]], *, model: str = MODEL) -> NDArray[np.float32]:
        """The vectors of texts that are tokens: (texts, dimensions)."""
        (said,) = self.end(self.begin_vectors(texts, model=model))
        assert isinstance(said, Vectors), said
        return np.frombuffer(said.data, "<f4").reshape(len(texts), said.dimensions)

    def drop(self, id: int) -> None:
        self.send(Drop(id))

    def status(self) -> Status:
        """How things stand, once all that was sent before has been taken."""
        id = next(self._ids)
        self.send(Ask(id))
        found = self.hear(id, Status)
        assert isinstance(found, Status)
        return found


def _about(frame: FromEngine) -> int:
    """Which request it is about; 0 for none."""
    return 0 if isinstance(frame, Opened) else frame.id


def text_of(frames: Iterable[Frame]) -> str:
    return "".join(frame.text for frame in frames if isinstance(frame, Text))


def tokens_of(frames: Iterable[Frame]) -> tuple[int, ...]:
    return tuple(token for frame in frames if isinstance(frame, Text) for token in frame.tokens)


def end_of(frames: list[Frame]) -> Done:
    last = frames[-1]
    assert isinstance(last, Done), last
    return last


@contextmanager
def engine(setup: Setup | None = None) -> Iterator[EngineProcess]:
    """A process of its own, which ends with the block."""
    ours, theirs = socket.socketpair()
    with ours:
        command = [sys.executable, "-m", "xnai.agents.inference.engine", str(theirs.fileno())]
        with theirs:
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        try:
            found = EngineProcess(ours, process)
            found.send(setup or Setup(threads=1))
            yield found
        finally:
            ours.close()
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()
                process.wait()
