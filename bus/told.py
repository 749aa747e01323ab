"""What a reader of a stream was given already, against what a new attempt yields."""

from __future__ import annotations

import msgspec

from xnai.protocol.a2a import Part
from xnai.protocol.envelope import encode
from xnai.protocol.errors import StreamChanged


class Told:
    """The chunks that were handed out. Texts that follow each other are one text, however it was cut."""

    def __init__(self, id: str) -> None:
        self._id = id
        self._chunks: list[str | int] = []  # a text, or the hash of another part
        self._at, self._within = 0, 0  # how far the attempt has come: chunks, and characters of that one

    def start_over(self) -> None:
        """Another attempt begins, or the same one is read again."""
        self._at, self._within = 0, 0

    @property
    def repeated(self) -> bool:
        """Whether the attempt has yielded all that was handed out."""
        return all(chunk == "" for chunk in self._chunks[self._at :])

    def new(self, part: Part) -> Part | None:
        """What of the attempt's next chunk was not handed out before, which it is now.

        Raises:
            StreamChanged: it is not what was handed out in its place.
        """
        if part.text is not None:
            return self._new_text(part, part.text)
        mark = hash(encode(part))
        if self._at == len(self._chunks):
            self._append(mark)
            return part
        if self._chunks[self._at] != mark:
            raise self._changed()
        self._at += 1
        return None

    def _new_text(self, part: Part, text: str) -> Part | None:
        whole = text
        while text and self._at < len(self._chunks):
            told = self._chunks[self._at]
            if not isinstance(told, str):
                raise self._changed()
            held = told[self._within : self._within + len(text)]
            if not text.startswith(held):
                raise self._changed()
            text = text[len(held) :]
            self._within += len(held)
            if self._within == len(told):
                self._at, self._within = self._at + 1, 0
        if not text and (whole or self._at < len(self._chunks)):
            return None
        self._append(text)
        return part if text is whole else msgspec.structs.replace(part, text=text)

    def _append(self, chunk: str | int) -> None:
        self._chunks.append(chunk)
        self._at = len(self._chunks)

    def _changed(self) -> StreamChanged:
        return StreamChanged(f"A new attempt of {self._id} yields something else than before.")
