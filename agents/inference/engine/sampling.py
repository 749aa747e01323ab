"""How the next token is chosen, and how likely it was."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xnai.agents.inference.engine.batches import Tokens
from xnai.agents.inference.engine.bindings import lib
from xnai.agents.inference.engine.llama import Context, Vocabulary
from xnai.agents.inference.frames import Sampling
from xnai.agents.inference.requests import TokenLogprob

REMEMBERED = 64  # tokens that the penalties look back at
_WIDEST = 1024  # candidates for top_p and min_p: over a whole vocabulary they cost more than the token itself
_SEEDS = (1 << 32) - 1
_STEP = 0x9E3779B9  # the golden ratio of all: no two seeds of an answer are near


class Sampler:
    """Chooses the tokens of one answer; made by `sampler_of`.

    Attributes:
        remembers: whether a choice depends on those before it.
    """

    def __init__(self, context: Context, chain: Any, *, seed: int | None, remembers: bool) -> None:
        self._context, self._chain, self._seed, self.remembers = context, chain, seed, remembers
        self._drawn = 0

    def choose(self, row: int, place: int, *, again: bool = False) -> int:
        """The token that follows a row of the last batch, at a place of the answer, 0 for the first.

        Chance draws once for each place, so that an answer goes on in another engine, behind what was said,
        as it would have here. `again`: the first choice was refused; another one is drawn, by another seed.
        """
        if self._chain is None:
            return int(self._context.logits(row).argmax())
        if self._seed is None:
            return self._context.sample(self._chain, row)
        if again:
            return self._choose_again(self._seed, row, place)
        if self._drawn < place:
            self._skip(place - self._drawn)
        self._drawn = place + 1
        return self._context.sample(self._chain, row)

    def _choose_again(self, seed: int, row: int, place: int) -> int:
        last = lib.llama_sampler_chain_n(self._chain) - 1
        usual = lib.llama_sampler_chain_remove(self._chain, last)
        lib.llama_sampler_chain_add(self._chain, _chance(seed + (place + 1) * _STEP))
        token = self._context.sample(self._chain, row)
        lib.llama_sampler_free(lib.llama_sampler_chain_remove(self._chain, last))
        lib.llama_sampler_chain_add(self._chain, usual)
        return token

    def _skip(self, places: int) -> None:
        """Draws for places at which nothing was chosen: llama.cpp draws once, also from one candidate."""
        chance = lib.llama_sampler_chain_get(self._chain, lib.llama_sampler_chain_n(self._chain) - 1)
        only = lib.llama_token_data(0, 0.0, 0.0)
        candidates = lib.llama_token_data_array(ctypes.pointer(only), 1, -1, False)
        for _ in range(places):
            lib.llama_sampler_apply(chance, ctypes.byref(candidates))

    def accept(self, token: int) -> None:
        """This token follows, and was not chosen here."""
        if self.remembers:
            lib.llama_sampler_accept(self._chain, token)


@contextmanager
def sampler_of(context: Context, sampling: Sampling, before: Tokens) -> Iterator[Sampler]:
    """A sampler for an answer that goes on behind `before`."""
    penalties = (
        sampling.repeat_penalty != 1 or sampling.frequency_penalty != 0 or sampling.presence_penalty != 0
    )
    if sampling.temperature == 0 and not penalties:
        yield Sampler(
            context, None, seed=None, remembers=False
        )  # C's greedy sampler takes five times as long
        return
    chain: Any = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    try:
        for link in _links(sampling, context.weights.vocabulary.size, penalties=penalties):
            lib.llama_sampler_chain_add(chain, link)
        for token in before[-REMEMBERED:]:
            lib.llama_sampler_accept(chain, int(token))
        seed = sampling.seed if sampling.temperature else None
        yield Sampler(context, chain, seed=seed, remembers=penalties)
    finally:
        lib.llama_sampler_free(chain)


def _links(sampling: Sampling, size: int, *, penalties: bool) -> Iterator[Any]:
    if penalties:
        yield lib.llama_sampler_init_penalties(
            size,
            REMEMBERED,
            sampling.repeat_penalty,
            sampling.frequency_penalty,
            sampling.presence_penalty,
        )
    if sampling.temperature == 0:
        yield lib.llama_sampler_init_greedy()
        return
    narrow = sampling.top_p < 1 or sampling.min_p > 0
    if sampling.top_k or narrow:
        yield lib.llama_sampler_init_top_k(sampling.top_k or _WIDEST)
    if sampling.top_p < 1:
        yield lib.llama_sampler_init_top_p(sampling.top_p, 1)
    if sampling.min_p > 0:
        yield lib.llama_sampler_init_min_p(sampling.min_p, 1)
    yield lib.llama_sampler_init_temp(sampling.temperature)
    yield _chance(sampling.seed)


def _chance(seed: int) -> Any:
    return lib.llama_sampler_init_dist(seed % _SEEDS)  # llama.cpp takes the one behind these to mean any


def logprob_of(
    token: int, logits: NDArray[np.float32], alternatives: int, vocabulary: Vocabulary
) -> TokenLogprob:
    """How likely the token was, before any option, and which others were likely."""
    highest = float(logits.max())
    norm = highest + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))

    def named(each: int) -> tuple[str, float]:
        return vocabulary.piece(each).decode(errors="replace"), float(logits[each]) - norm

    top: tuple[tuple[str, float], ...] = ()
    if alternatives:
        likely = np.argpartition(logits, -alternatives)[-alternatives:]
        top = tuple(named(int(each)) for each in likely[np.argsort(-logits[likely])])
    return TokenLogprob(*named(token), top)
