"""How fast a model is on this machine: an engine of its own, as the inference agent starts it, is asked."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from xnai.agents.inference.errors import InferenceError
from xnai.agents.inference.frames import (
    Done,
    Frame,
    FrameReader,
    FromEngine,
    Generate,
    Open,
    Opened,
    Refused,
    Sampling,
    Setup,
    encode_frame,
)
from xnai.deploy.environment import for_child

CONTEXT = 1024  # of each slot while it is measured
MOST_SLOTS, TRIED_SLOTS = 64, 16  # that may be asked for, and that the engine tries by itself
_ANSWER = 64  # tokens
_PROMPT, _SHORT = 1500, 32  # letters
_OPENING, _SILENCE, _LEAVING = 600.0, 300.0, 10.0  # seconds
_READ = 1 << 16
_LETTERS = "aeinorst "

_T = TypeVar("_T", bound=Frame)


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens a second of so many sequences together."""

    sequences: int
    tokens: float


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured.

    Attributes:
        slots: sequences that pay on this machine, or as many as were asked for.
        prefill: tokens a second of a prompt.
        decode: tokens a second of answers, of 1, 2, 4, … sequences, up to the slots.
    """

    slots: int
    prefill: float
    decode: tuple[Rate, ...]


def measure(path: Path, *, slots: int = 0, threads: int = 0) -> Speed:
    """Open a model in an engine and let it compute. `slots` 0 lets the engine find how many pay.

    Raises:
        InferenceError: it cannot be opened, or does not answer.
    """
    with _engine() as engine:
        engine.send(
            Setup(threads=threads),
            Open("model", str(path), context=CONTEXT, slots=slots, kept=0),
        )
        opened = engine.expect(Opened, 1, timeout=_OPENING)[0]
        engine.generate(1, letters=_SHORT, answer=8)  # whatever only the first request costs
        (prompt,) = engine.generate(1, letters=_PROMPT, answer=1)
        rates = []
        for count in _counts(opened.slots):
            answers = engine.generate(count, letters=_SHORT, answer=_ANSWER)
            tokens = sum(each.tokens_out - 1 for each in answers)
            rates.append(Rate(sequences=count, tokens=tokens / max(_span(answers), 1e-9)))
        return Speed(
            slots=opened.slots, prefill=prompt.tokens_in / max(prompt.first, 1e-9), decode=tuple(rates)
        )


def _counts(slots: int) -> list[int]:
    """1, 2, 4, … and the slots themselves."""
    return sorted({slots, *(1 << power for power in range(slots.bit_length()) if 1 << power <= slots)})


def _span(answers: Sequence[Done]) -> float:
    """Seconds from the first token of any to the last of all; they arrived together."""
    return max(each.first + each.took for each in answers) - min(each.first for each in answers)


class _Engine:
    """The other end of the socket."""

    def __init__(self, connection: socket.socket, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self._connection, self._process, self._log = connection, process, log
        self._reader, self._decoder = FrameReader(), msgspec.msgpack.Decoder(FromEngine)
        self._random, self._id = random.Random(0), 0

    def send(self, *frames: Frame) -> None:
        try:
            self._connection.sendall(b"".join(map(encode_frame, frames)))
        except OSError as error:
            raise self._ended() from error

    def generate(self, count: int, *, letters: int, answer: int) -> list[Done]:
        """So many answers at once, to different prompts."""
        frames = []
        for _ in range(count):
            self._id += 1
            text = "".join(self._random.choices(_LETTERS, k=letters))
            frame = Generate(
                self._id,
                "model",
                (text,),
                begin=True,
                max_tokens=answer,
                sampling=Sampling(temperature=1.0, seed=self._id),
                sender=str(self._id),
                cache=False,
                truncate="start",
            )
            frames.append(frame)
        self.send(*frames)
        return self.expect(Done, count, timeout=_SILENCE)

    def expect(self, kind: type[_T], count: int, *, timeout: float) -> list[_T]:
        """The next frames of a kind; others are passed over, and no two are further apart than `timeout`."""
        found: list[_T] = []
        self._connection.settimeout(timeout)
        while len(found) < count:
            try:
                data = self._connection.recv(_READ)
            except TimeoutError:
                raise InferenceError(f"The engine said nothing for {timeout:.0f} seconds.") from None
            except OSError as error:
                raise self._ended() from error
            if not data:
                raise self._ended()
            for frame in map(self._decoder.decode, self._reader.feed(data)):
                if isinstance(frame, Refused):
                    raise InferenceError(f"The engine refuses: {frame.sentence.rstrip('.')}.")
                if isinstance(frame, kind):
                    found.append(frame)
        return found

    def _ended(self) -> InferenceError:
        self._log.seek(0)
        last = self._log.read().decode(errors="replace").strip().rpartition("\n")[2]
        return InferenceError(f"The engine ended: {last or 'it said nothing'}.")


@contextmanager
def _engine() -> Iterator[_Engine]:
    ours, theirs = socket.socketpair()
    with ours, tempfile.TemporaryFile() as log:
        command = [sys.executable, "-P", "-m", "xnai.agents.inference.engine", str(theirs.fileno())]
        with theirs:
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=log, env=for_child({}))
        try:
            yield _Engine(ours, process, log)
        finally:
            ours.close()
            try:
                process.wait(_LEAVING)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
