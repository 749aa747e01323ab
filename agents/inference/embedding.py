"""Texts to vectors, with all-MiniLM-L6-v2 or another sentence model of the BERT family."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from xnai.agents.inference.errors import Cancelled, ModelInvalid, ModelMissing
from xnai.agents.inference.llama import CancelFlag, Llama, open_llama
from xnai.agents.inference.minilm import COMMAND, tokenizer_path
from xnai.protocol.errors import InvalidPayload

_LONGEST = 256  # word pieces: all-MiniLM-L6-v2 was trained on no more
_TEXTS, _TOKENS = 8, 512  # in one decode: every token is compared with all others of it, so more is slower
_TOKENIZED_AT_ONCE = 64  # texts: between two such calls the cancel flag is looked at
_CANCELLED = "the embedding was cancelled"


class EmbeddingModel:
    """An open embedding model; made by `open_embedding_model`. One call at a time, from any thread.

    Attributes:
        dimensions: the length of a vector, 384 for all-MiniLM-L6-v2.
    """

    def __init__(self, llama: Llama, tokenizer: Tokenizer) -> None:
        self._llama, self._tokenizer = llama, tokenizer
        self.dimensions = llama.dimensions

    def embed(self, texts: Sequence[str], *, cancel: CancelFlag | None = None) -> NDArray[np.float32]:
        """One vector of length 1 per text, in their order: (texts, dimensions).

        Only the first 256 word pieces of a text count. The empty text has a vector too. The same list gives
        the same numbers; in another list the numbers of a text may differ by 1e-4. Raises Cancelled, and
        InvalidPayload for a text that is no valid Unicode.
        """
        cancel = cancel or CancelFlag()
        pieces = [piece for some in _parts(texts) for piece in self._pieces(some, cancel)]
        vectors = np.empty((len(texts), self.dimensions), np.float32)
        for group in _groups(pieces):
            found = self._llama.embed([pieces[index] for index in group], cancel)
            if found is None:
                raise Cancelled(_CANCELLED)
            vectors[group] = found
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    def _pieces(self, texts: Sequence[str], cancel: CancelFlag) -> list[list[int]]:
        if cancel.is_set():
            raise Cancelled(_CANCELLED)
        try:
            return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidPayload("a text to embed is no valid Unicode") from error


@contextmanager
def open_embedding_model(path: Path, *, threads: int | None = None) -> Iterator[EmbeddingModel]:
    """Opens a GGUF with its tokenizer beside it, as `prepare_minilm` makes them, and closes it at the end.

    `threads` defaults to the physical cores there are. Raises ModelMissing and ModelInvalid.
    """
    with open_llama(path, context=_TOKENS, threads=threads, texts=_TEXTS) as llama:
        if llama.memory:
            raise ModelInvalid(f"{path} is a model that generates text, not one for embeddings")
        tokenizer = _open_tokenizer(tokenizer_path(path), longest=min(_LONGEST, llama.context))
        yield EmbeddingModel(llama, tokenizer)


def _open_tokenizer(path: Path, *, longest: int) -> Tokenizer:
    if not path.exists():
        raise ModelMissing(f"there is no tokenizer {path}; run `{COMMAND}`")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific, whatever is wrong with the file
        raise ModelInvalid(f"{path} is no tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    return tokenizer


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    return (texts[at : at + _TOKENIZED_AT_ONCE] for at in range(0, len(texts), _TOKENIZED_AT_ONCE))


def _groups(pieces: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Which texts, by index, go through the model together: of like length, within what one decode takes."""
    group: list[int] = []
    tokens = 0
    for index in sorted(range(len(pieces)), key=lambda index: len(pieces[index])):
        if group and (len(group) == _TEXTS or tokens + len(pieces[index]) > _TOKENS):
            yield group
            group, tokens = [], 0
        group.append(index)
        tokens += len(pieces[index])
    if group:
        yield group
