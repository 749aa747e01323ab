"""Texts to the word pieces of an embedding model, with the tokenizer that lies beside its GGUF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.to_thread
from tokenizers import Tokenizer

from xnai.agents.inference.errors import ModelInvalid, ModelMissing
from xnai.agents.inference.gguf_file import read_gguf
from xnai.agents.inference.minilm import COMMAND, tokenizer_path
from xnai.protocol.errors import InvalidPayload

LONGEST = 256  # word pieces: all-MiniLM-L6-v2 was trained on no more
_AT_ONCE = 64  # texts: between two such calls whoever asked may leave
_FEW = 2_000  # characters: in less time than a thread takes to be woken

Pieces = tuple[tuple[int, ...], ...]


class WordPieces:
    """Makes word pieces of texts, as many of each as the model has learned, LONGEST at the most."""

    def __init__(self, model: Path) -> None:
        """Opens the tokenizer beside a GGUF; raises ModelMissing and ModelInvalid."""
        longest = min(LONGEST, read_gguf(model).context or LONGEST)
        path = tokenizer_path(model)
        if not path.exists():
            raise ModelMissing(f"there is no tokenizer {path}; run `{COMMAND}`")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more specific
            raise ModelInvalid(f"{path} is no tokenizer: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(longest)

    async def of(self, texts: Sequence[str]) -> Pieces:
        """The word pieces of each text. Raises InvalidPayload for one that is no valid Unicode."""
        if sum(map(len, texts)) <= _FEW:
            return self._pieces(texts)
        found: list[tuple[int, ...]] = []
        for at in range(0, len(texts), _AT_ONCE):
            found += await anyio.to_thread.run_sync(self._pieces, texts[at : at + _AT_ONCE])
        return tuple(found)

    def _pieces(self, texts: Sequence[str]) -> Pieces:
        try:
            return tuple(tuple(found.ids) for found in self._tokenizer.encode_batch_fast(list(texts)))
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidPayload("a text to embed is no valid Unicode") from error
