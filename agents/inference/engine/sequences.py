"""The KV cache of one model: what the books in `prefixes` decide is done here, also with saved states."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

import msgspec

from xnai.agents.inference.engine.batches import Tokens
from xnai.agents.inference.engine.llama import Context
from xnai.agents.inference.engine.prefixes import Costs, Evicted, Opening, Stats, Streams

if TYPE_CHECKING:
    from xnai.agents.inference.engine.saved import SavedStates

# Bytes a second, measured (17 ms and 3 ms for 12 MB), and the least that llama.cpp takes for a copy.
_COPIED, _SAVED, _RESTORED = 4e9, 0.7e9, 4e9
_SOON = 60e-6


class Sequences:
    """The sequences of a context."""

    def __init__(
        self, context: Context, saved: SavedStates | None = None, *, token_bytes: int, spare: bool = False
    ) -> None:
        """`token_bytes` is what a token takes here. What `saved` holds from before is known at once.

        With `spare`, one sequence is left free where none has to run in it, so that others can be moved.
        """
        self._context, self._saved = context, saved
        self._books = Streams(
            context.sequences,
            spare=spare,
            costs=Costs(
                # A whole sequence, however little it holds.
                copy=_SOON + context.context * token_bytes / _COPIED,
                save=token_bytes / _SAVED if saved else math.inf,
                restore=token_bytes / _RESTORED,
            ),
        )
        for key, tokens in saved.found() if saved else ():
            self._books.remember(key, tokens)

    def longest(self, prompt: Tokens) -> int:
        """How many tokens of a prompt need not be computed."""
        return self._books.longest(prompt)

    def open(self, prompt: Tokens, *, cache: bool) -> tuple[int, int] | None:
        """A sequence, and how many tokens of the prompt it holds; None if all are taken."""
        opening = self._books.open(prompt, cache=cache)
        if opening is None:
            return None
        # Before anything else is saved, which may push it out.
        state = self._saved.get(opening.restore) if self._saved and opening.restore else None
        self._clear(opening.evicted)
        if opening.copy_from is not None:
            self._context.copy(opening.copy_from, opening.seq)
        keep = opening.keep if opening.restore is None else self._restore(opening, opening.restore, state)
        self._context.cut(opening.seq, keep)
        return opening.seq, keep

    def bring_together(self, computing: Set[int], worth: float) -> dict[int, int]:
        """Makes neighbours of these sequences if that takes no more than so many seconds.

        Returns what moved, these and others: from where to where.
        """
        most = int(worth / self._books.costs.copy)
        moved = self._books.bring_together(computing, most) if most else ()
        for source, target in moved:
            self._context.copy(source, target)
            self._context.cut(source, 0)
        return dict(moved)

    def hold(self, sequence: int, tokens: Tokens) -> None:
        """So many further tokens have been computed."""
        if len(tokens) == 1:
            self._books.append(sequence, int(tokens[0]))
        else:
            self._books.extend(sequence, tokens)

    def cut(self, sequence: int, keep: int) -> None:
        """Forgets what was computed behind the tokens that it is known to hold."""
        self._context.cut(sequence, keep)

    def length(self, sequence: int) -> int:
        """The tokens that it really holds, also after an abort."""
        return self._context.length(sequence)

    def keep(self, sequence: int, *, pin: bool) -> None:
        """Nobody computes in it, and what it holds waits for others."""
        self._clear(self._books.keep(sequence, pin=pin))

    def drop(self, sequence: int) -> None:
        """Nobody computes in it, and nobody wants what it holds."""
        self._books.drop(sequence)
        self._context.cut(sequence, 0)

    def shrink(self, most: int) -> None:
        """Keeps at most so many for others from now on."""
        self._clear(self._books.shrink(most))

    def prefill_costs(self, seconds: float) -> None:
        """What a token of a prompt takes: saved states are worth what they save."""
        self._books.costs = msgspec.structs.replace(self._books.costs, prefill=seconds)

    def stats(self) -> Stats:
        return self._books.stats()

    def close(self) -> None:
        """What is kept, or saved in memory, goes to the disk, as far as it may."""
        if self._saved:
            self.shrink(0)
            self._saved.write_all()

    def _clear(self, evicted: Sequence[Evicted]) -> None:
        for each in evicted:
            if self._saved and each.tokens is not None:
                key, lost = self._saved.put(each.tokens, self._context.state(each.seq))
                for gone in lost:
                    self._books.forget(gone)
                if key:
                    for useless in self._books.remember(key, each.tokens):
                        self._saved.drop(useless)
            self._context.cut(each.seq, each.keep)

    def _restore(self, opening: Opening, key: str, state: bytes | None) -> int:
        if state is not None and self._context.restore(opening.seq, state):
            return opening.keep
        self._books.forget(key)
        self._books.truncate(opening.seq, 0)
        return 0
