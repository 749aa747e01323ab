"""Prompt look-up decoding: what an answer quotes is guessed from the prompt, and checked in one batch.

An answer that repeats three tokens of its prompt, or of itself, may well go on as they did. The guess is fed
together with the next token, and what the model would have chosen anyway is kept: the answer is the same.

Source: https://github.com/apoorvumang/prompt-lookup-decoding (the idea; it is what transformers and vLLM call
n-gram speculation).
"""

from __future__ import annotations

from collections.abc import Sequence

from xnai.agents.inference.engine.batches import Tokens

WIDEST = 8  # guessed tokens in a batch
_GRAM = 3  # tokens that have to be the same
_WIDTHS = (WIDEST, 3)  # how many are guessed, the first that pays
_FADE = 0.2  # weight of the newest figure
_PATIENCE = 48  # tokens until what did not pay is tried again
_PAYS = 1.05  # by so much it has to be faster


class Costs:
    """Seconds of a step of one sequence by the tokens in it, learned from all requests of a model."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def observe(self, tokens: int, took: float) -> None:
        before = self._seconds.get(tokens, took)
        self._seconds[tokens] = before + _FADE * (took - before)

    def ratio(self, tokens: int) -> float | None:
        """The cost of a step of so many tokens over that of one; None for not known yet."""
        one, more = self._seconds.get(1), self._seconds.get(tokens)
        return more / one if one and more else None


class Drafts:
    """Guesses for one answer."""

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self._places: dict[tuple[int, ...], int] = {}
        self._indexed = 0
        self._accepted: dict[int, float] = {}
        self._rest = 0

    def guess(self, content: Tokens, room: int) -> Sequence[int]:
        """The tokens that may follow this text, at most `room`; none where guessing does not pay."""
        end = len(content)
        if end <= _GRAM or room < 1:
            return ()
        tokens = content[max(0, self._indexed - _GRAM) :].tolist()
        first = max(0, self._indexed - _GRAM)
        for start in range(len(tokens) - _GRAM):  # the last three are what is looked up
            self._places[tuple(tokens[start : start + _GRAM])] = first + start + _GRAM
        self._indexed = end - 1
        if self._rest:
            self._rest -= 1
            return ()
        place = self._places.get(tuple(tokens[-_GRAM:]))
        if place is None:
            return ()
        width = self._width()
        if not width:
            return ()
        return tuple(content[place : place + min(width, room)].tolist())

    def learn(self, guessed: int, accepted: int) -> None:
        """So many of the guessed tokens were right."""
        before = self._accepted.get(guessed, float(accepted))
        self._accepted[guessed] = before + _FADE * (accepted - before)

    def _width(self) -> int:
        """How many to guess: the most that pay, the widest until something is known."""
        for width in _WIDTHS:
            accepted, cost = self._accepted.get(width), self._costs.ratio(width + 1)
            if accepted is None or cost is None or (1 + accepted) / cost >= _PAYS:
                return width
        self._accepted.clear()
        self._rest = _PATIENCE
        return 0
