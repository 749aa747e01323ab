"""Texts to the word pieces of an embedding model, with the tokenizer that lies beside its GGUF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from xnai.agents.inference.errors import ModelInvalid, ModelMissing
from xnai.agents.inference.gguf_file import read_gguf
from xnai.agents.inference.minilm import COMMAND, tokenizer_path
from xnai.protocol.errors import InvalidPayload

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LONGEST = 256  # word pieces: all-MiniLM-L6-v2 was trained on no more
_AT_ONCE = 64  # texts: between two such calls whoever asked may leave
_FEW = 2_000  # characters: in less time than a thread takes to be woken

Pieces = tuple[tuple[int, ...], ...]


class WordPieces:
    """Makes word pieces of texts, as many of each as the model has learned, LONGEST at the most.

    The tokenizer takes eleven megabytes, and is read with the first texts unless `open` was called.
    """

    def __init__(self, model: Path) -> None:
        """Of the tokenizer beside a GGUF; raises ModelMissing and ModelInvalid."""
        self._longest = min(LONGEST, read_gguf(model).context or LONGEST)
        self._path = tokenizer_path(model)
        self._tokenizer: Tokenizer | None = None
        if not self._path.exists():
            raise ModelMissing(f"there is no tokenizer {self._path}; run `{COMMAND}`")

    def open(self) -> Tokenizer:
        """Read the tokenizer, in some tenths of a second; raises ModelInvalid."""
        if self._tokenizer is None:
            from tokenizers import Tokenizer  # a library that few need before

            try:
                tokenizer = Tokenizer.from_file(str(self._path))
            except Exception as error:  # the library raises nothing more specific
                raise ModelInvalid(f"{self._path} is no tokenizer: {error}") from error
            tokenizer.no_padding()
            tokenizer.enable_truncation(self._longest)
            self._tokenizer = tokenizer
        return self._tokenizer

    async def of(self, texts: Sequence[str]) -> Pieces:
        """The word pieces of each text.

        Raises:
            InvalidPayload: one is no valid Unicode.
            ModelInvalid: the tokenizer cannot be read.
        """
        if self._tokenizer is not None and sum(map(len, texts)) <= _FEW:
            return self._pieces(texts)
        found: list[tuple[int, ...]] = []
        for at in range(0, len(texts), _AT_ONCE):
            found += await anyio.to_thread.run_sync(self._pieces, texts[at : at + _AT_ONCE])
        return tuple(found)

    def _pieces(self, texts: Sequence[str]) -> Pieces:
        try:
            return tuple(tuple(found.ids) for found in self.open().encode_batch_fast(list(texts)))
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidPayload("a text to embed is no valid Unicode") from error
