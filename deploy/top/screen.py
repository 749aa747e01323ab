"""A screen of a terminal that is drawn again and again, and leaves no trace behind."""

from __future__ import annotations

import os
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

import anyio

from xnai.deploy.table import GAP, Line, paint

# The sequences of xterm, which every terminal in use understands.
_ENTER, _LEAVE = (
    "\x1b[?1049h\x1b[?25l",
    "\x1b[?25h\x1b[?1049l",
)  # the other screen, without a cursor; and back
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
_USUAL = os.terminal_size((80, 24))
_LOCAL, _CHARACTERS = 3, 6  # where these stand in what termios gives


class Screen:
    """Shows lines on `stream`, from the top."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def size(self) -> os.terminal_size:
        """Columns and lines; what is usual where the terminal does not know."""
        try:
            said = os.get_terminal_size(self._stream.fileno())
        except OSError:
            return _USUAL
        return said if said.columns and said.lines else _USUAL

    def show(self, lines: list[Line]) -> None:
        """Show these, none of which may be wider than the screen, nor all of them higher."""
        texts = [as_text(line, self._stream) for line in lines]
        body = f"{_REST_OF_LINE}\n".join(texts)
        self._stream.write(f"{_HOME}{body}{_REST_OF_LINE}{_REST_OF_SCREEN}")
        self._stream.flush()


def as_text(line: Line, stream: TextIO) -> str:
    """A line, in colours where `stream` wants them."""
    return GAP.join(paint(text, tone, stream) for text, tone in line)


@contextmanager
def open_screen(stream: TextIO) -> Iterator[Screen]:
    """The other screen of a terminal; at the end everything is as it was."""
    stream.write(_ENTER)
    try:
        yield Screen(stream)
    finally:
        with suppress(OSError):  # the terminal may be gone
            stream.write(_LEAVE)
            stream.flush()


@contextmanager
def single_keys(keyboard: TextIO) -> Iterator[bool]:
    """Have keys come one by one, unseen, while the context is open. Whether this is a terminal at all."""
    if not keyboard.isatty():
        yield False
        return
    handle = keyboard.fileno()
    usual, ours = termios.tcgetattr(handle), termios.tcgetattr(handle)
    ours[_LOCAL] &= ~(termios.ECHO | termios.ICANON)
    # Who is put to sleep would leave the shell on our screen.
    ours[_CHARACTERS][termios.VSUSP] = b"\0"
    termios.tcsetattr(handle, termios.TCSADRAIN, ours)
    try:
        yield True
    finally:
        with suppress(termios.error):
            termios.tcsetattr(handle, termios.TCSAFLUSH, usual)


async def pressed(key: str, keyboard: TextIO) -> None:
    """Wait for a key. Whatever else is pressed is thrown away."""
    while True:
        await anyio.wait_readable(keyboard)
        said = os.read(keyboard.fileno(), 256)
        if key.encode() in said:
            return
        if not said:  # there will be no more
            await anyio.sleep_forever()
