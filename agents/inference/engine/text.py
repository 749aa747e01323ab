"""From the bytes of tokens to the text that may leave."""

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns bytes, cut anywhere, into whole characters, and ends before the first stop string.

    What could still become a stop string is held back until it is decided. Bytes that no UTF-8 text has
    become U+FFFD; a character cut off by the end is dropped.

    Attributes:
        stopped: a stop string was found; neither it nor what follows has left.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._cut = False  # in the middle of a character
        self._held = ""

    def push(self, data: bytes) -> str:
        """The text that may leave now, often empty."""
        if self._cut or not data.isascii():
            text = self._decoder.decode(data)
            self._cut = bool(self._decoder.getstate()[0])
        else:
            text = data.decode()
        if not self._stop:
            return text
        self._held += text
        found = [at for at in map(self._held.find, self._stop) if at >= 0]
        if found:
            self.stopped = True
            return self._release(min(found), then="")
        return self._release(len(self._held) - self._undecided())

    def flush(self) -> str:
        """What was held back, once no bytes follow."""
        return self._release(len(self._held))

    def _release(self, at: int, *, then: str | None = None) -> str:
        text, rest = self._held[:at], self._held[at:]
        self._held = rest if then is None else then
        return text

    def _undecided(self) -> int:
        """The length of the longest end of the held text with which a stop string begins."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
