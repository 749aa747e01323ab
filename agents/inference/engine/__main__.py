"""`python -m xnai.agents.inference.engine FD`: an engine that speaks frames over the socket with this number.

One thread reads what comes in and makes tokens of prompts, mostly in C; the main thread computes. It ends
when the other end of the socket closes.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
import time

import msgspec

from xnai.agents.inference.engine.generating import TextModel
from xnai.agents.inference.engine.loop import Engine
from xnai.agents.inference.engine.model import Arrival
from xnai.agents.inference.engine.slices import take_long_slices, take_usual_slices
from xnai.agents.inference.errors import InferenceError, ModelMissing
from xnai.agents.inference.frames import (
    Count,
    Counted,
    Drop,
    Frame,
    FrameReader,
    Generate,
    Refused,
    Setup,
    ToEngine,
    encode_frame,
)
from xnai.protocol.errors import InvalidPayload

_READ = 1 << 20  # bytes
_SWITCH = 0.0002  # seconds that a thread may keep the GIL from the one that computes


class Port:
    """The socket, written to by both threads."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._writing = threading.Lock()
        self._reader = FrameReader()
        self._decoder = msgspec.msgpack.Decoder(ToEngine)

    def send(self, frames: list[Frame]) -> None:
        """Writes frames; ends the process if nobody is there to read them."""
        data = b"".join(map(encode_frame, frames))
        try:
            with self._writing:
                self._connection.sendall(data)
        except OSError:
            os._exit(0)

    def receive(self) -> list[ToEngine]:
        """The next frames; ends the process if there are no more."""
        try:
            data = self._connection.recv(_READ)
        except OSError:
            data = b""
        if not data:
            os._exit(0)
        return [self._decoder.decode(body) for body in self._reader.feed(data)]


def read(port: Port, engine: Engine) -> None:
    """Hands over what comes in, for ever."""
    take_usual_slices()
    while True:
        for frame in port.receive():
            at = time.monotonic()
            try:
                _hand_over(frame, at, port, engine)
            except (InferenceError, InvalidPayload) as error:
                port.send([Refused(getattr(frame, "id", 0), error.code, str(error))])


def _hand_over(frame: ToEngine, at: float, port: Port, engine: Engine) -> None:
    if isinstance(frame, Count):
        with engine.models.vocabulary(frame.model) as vocabulary:
            tokens = vocabulary.tokenize(frame.pieces, begin=frame.begin)
        return port.send([Counted(frame.id, tokens.tobytes())])
    prepared = None
    if isinstance(frame, Generate):
        with engine.models.reading:
            try:
                loaded = engine.models.get(frame.model)
            except ModelMissing:
                loaded = None  # it may come: the loop knows
            if loaded and isinstance(loaded.model, TextModel):
                prepared = loaded.read(frame)
    engine.inbox.put(Arrival(frame, at, prepared))
    if isinstance(frame, Drop) and engine.computes(frame.id):
        engine.abort.set()


def _end(failed: threading.ExceptHookArgs) -> None:
    sys.excepthook(failed.exc_type, failed.exc_value or failed.exc_type(), failed.exc_traceback)
    os._exit(1)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the agent's to end this
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.setswitchinterval(_SWITCH)
    port = Port(socket.socket(fileno=int(sys.argv[1])))
    first: list[ToEngine] = []
    while not first:
        first = port.receive()
    setup = first[0]
    if not isinstance(setup, Setup):
        sys.exit("the first frame says how the engine behaves")
    if setup.nice:
        os.nice(setup.nice)
    take_long_slices()
    engine = Engine(setup, port.send)
    for frame in first[1:]:
        _hand_over(frame, time.monotonic(), port, engine)
    gc.freeze()  # what was imported stays: looking through it would take as long as some tokens
    threading.excepthook = _end  # half an engine would wait for ever
    threading.Thread(target=read, args=(port, engine), daemon=True).start()
    engine.run()


if __name__ == "__main__":
    main()
