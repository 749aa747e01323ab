"""The tokens of long texts, of which the beginning was read before: a conversation sends it again each turn.

SentencePiece's way to make tokens, as llama.cpp does it, joins two neighbours only where the vocabulary has
both in one token. Where none has a space behind anything else, a text may be cut between two words, and each
side gives the same tokens by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Lock

import numpy as np

from xnai.agents.inference.engine.batches import Tokens

_SPACE = "\u2581"
_SHORT = 1_024  # characters of a text that is read as a whole
_MOST = 1 << 20  # characters that are remembered
_TRIES = 256  # spaces at which a text might be cut


def may_be_cut(words: Iterable[tuple[str, bool]]) -> bool:
    """Whether texts of this vocabulary may be cut between words: letters or digits with a space between them.

    It is given as tokens, and whether each is special: looked for in a text before anything else, and what
    follows it is read like a beginning.
    """
    return not any(
        _SPACE in (word if special else word.lstrip(_SPACE))
        or (special and (" " in word or word[:1].isalnum() or word[-1:].isalnum()))
        for word, special in words
    )


class Beginnings:
    """Reads texts. Usable from several threads."""

    def __init__(self, read: Callable[[str, bool], Tokens], *, spaced: bool) -> None:
        """`read` gives the tokens of a text, which begins a prompt or not; `spaced`: with a space before."""
        self._read, self._spaced = read, spaced
        self._known: dict[tuple[bool, str], Tokens] = {}  # least recently used first
        self._size = 0
        self._lock = Lock()

    def tokens(self, text: str, begin: bool) -> Tokens:
        """The same as those of the text as a whole."""
        if len(text) < _SHORT:
            return self._read(text, begin)
        head, tokens = self._longest(text, begin=begin)
        cut = _last_cut(text, len(head))
        if cut > len(head):
            tokens = self._joined(tokens, text[len(head) : cut], begin=begin)
            self._remember(text[:cut], tokens, begin=begin)
        return self._joined(tokens, text[cut:], begin=begin)

    def _joined(self, tokens: Tokens | None, text: str, *, begin: bool) -> Tokens:
        if tokens is None:
            return self._read(text, begin)
        return np.concatenate([tokens, self._read(text[1:] if self._spaced else text, False)])

    def _longest(self, text: str, *, begin: bool) -> tuple[str, Tokens | None]:
        """What is known of the text's beginning."""
        with self._lock:
            found = [
                key
                for key in self._known
                if key[0] == begin and text.startswith(key[1]) and _is_cut(text, len(key[1]))
            ]
            if not found:
                return "", None
            key = max(found, key=lambda key: len(key[1]))
            tokens = self._known[key] = self._known.pop(key)
            return key[1], tokens

    def _remember(self, text: str, tokens: Tokens, *, begin: bool) -> None:
        with self._lock:
            self._size += len(text) * ((begin, text) not in self._known)
            self._known[begin, text] = tokens
            while self._size > _MOST:
                oldest = next(iter(self._known))
                del self._known[oldest]
                self._size -= len(oldest[1])


def _last_cut(text: str, least: int) -> int:
    """The last place behind `least` where the text may be cut; `least` if none is near the end."""
    at = len(text)
    for _ in range(_TRIES):
        at = text.rfind(" ", least + 1, at)
        if at < 0:
            break
        if _is_cut(text, at):
            return at
    return least


def _is_cut(text: str, at: int) -> bool:
    """Whether one word ends there, and with one space between another begins."""
    return text[at : at + 1] == " " and text[at - 1].isalnum() and text[at + 1 : at + 2].isalnum()
