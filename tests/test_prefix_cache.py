"""Which sequence of the KV cache holds which tokens: the bookkeeping, against plain lists."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from xnai.agents.inference.engine.prefixes import Costs, Evicted, Streams
from xnai.agents.inference.engine.radix import Tokens

short = st.lists(st.integers(0, 2), max_size=12)


def tokens(*values: int) -> Tokens:
    return np.array(values, np.int32)


def shared(one: list[int], other: list[int]) -> int:
    """How many tokens at the beginning of both are the same."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


class Plain(RuleBasedStateMachine):
    """Does to dictionaries of lists what the bookkeeping decides, as the engine does to the KV cache."""

    @initialize(count=st.integers(1, 6), pins=st.integers(0, 3), copy=st.sampled_from([0.0, 3.0]))
    def begin(self, count: int, pins: int, copy: float) -> None:
        costs = Costs(prefill=1.0, copy=copy, save=0.0, restore=0.1)
        self.streams = Streams(count, pins=pins, costs=costs)
        self.count, self.pins, self.most = count, pins, count
        self.running: dict[int, list[int]] = {}
        self.private: dict[int, list[int]] = {}
        self.kept: dict[int, list[int]] = {}
        self.saved: dict[str, list[int]] = {}

    def known(self) -> list[list[int]]:
        return [*self.running.values(), *self.kept.values(), *self.saved.values()]

    def clear(self, gone: Evicted) -> None:
        held = self.kept.pop(gone.seq)
        if gone.tokens is not None:
            assert gone.tokens.tolist() == held

    @rule(prompt=short.filter(bool))
    def open(self, prompt: list[int]) -> None:
        opening = self.streams.open(tokens(*prompt))
        if opening is None:
            assert len(self.running) + len(self.private) == self.count
            return
        for gone in opening.evicted:
            self.clear(gone)
        seq, keep = opening.seq, opening.keep
        assert seq not in self.running
        assert seq not in self.private
        if opening.copy_from is not None:
            content = (self.running | self.kept)[opening.copy_from]
        elif opening.restore is not None:
            content = self.saved[opening.restore]
        else:
            content = self.kept.pop(seq, [])
        assert opening.copy_from != seq
        assert seq not in self.kept
        assert content[:keep] == prompt[:keep]
        assert keep < len(prompt)
        self.running[seq] = content[:keep]

    @rule()
    def open_without_cache(self) -> None:
        opening = self.streams.open(tokens(0, 1, 0), cache=False)
        if opening:
            for gone in opening.evicted:
                self.clear(gone)
            assert opening.keep == 0
            assert opening.seq not in (self.running | self.private | self.kept)
            self.private[opening.seq] = []

    @precondition(lambda self: self.running or self.private)
    @rule(data=st.data(), more=short)
    def extend(self, data: st.DataObject, more: list[int]) -> None:
        seq = data.draw(st.sampled_from([*self.running, *self.private]))
        if data.draw(st.booleans()):
            self.streams.extend(seq, tokens(*more))
        else:
            for token in more:
                self.streams.append(seq, token)
        (self.running if seq in self.running else self.private)[seq].extend(more)

    @precondition(lambda self: self.running or self.private)
    @rule(data=st.data(), length=st.integers(0, 12))
    def truncate(self, data: st.DataObject, length: int) -> None:
        seq = data.draw(st.sampled_from([*self.running, *self.private]))
        self.streams.truncate(seq, length)
        del (self.running if seq in self.running else self.private)[seq][length:]

    @precondition(lambda self: self.running)
    @rule(data=st.data(), pin=st.booleans())
    def keep(self, data: st.DataObject, pin: bool) -> None:
        seq = data.draw(st.sampled_from(list(self.running)))
        self.kept[seq] = self.running.pop(seq)
        for gone in self.streams.keep(seq, pin=pin):
            self.clear(gone)

    @precondition(lambda self: self.private)
    @rule()
    def end_a_private_one(self) -> None:
        seq, _ = self.private.popitem()
        assert self.streams.keep(seq) == (Evicted(seq),)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(list(self.running)))
        self.streams.drop(seq)
        del self.running[seq]

    @rule()
    def evict(self) -> None:
        gone = self.streams.evict()
        assert (gone is None) == (not self.kept)
        if gone:
            self.clear(gone)

    @rule(most=st.integers(0, 6))
    def shrink(self, most: int) -> None:
        self.most = most
        for gone in self.streams.shrink(most):
            self.clear(gone)
        assert len(self.kept) <= most

    @rule(key=st.sampled_from("abc"), content=short.filter(bool))
    def save(self, key: str, content: list[int]) -> None:
        self.saved[key] = content
        for useless in self.streams.remember(key, tokens(*content)):
            assert content[: len(self.saved[useless])] == self.saved.pop(useless)

    @rule(key=st.sampled_from("abc"))
    def forget(self, key: str) -> None:
        self.streams.forget(key)
        self.saved.pop(key, None)

    @rule(prompt=short.filter(bool))
    def ask_what_is_known(self, prompt: list[int]) -> None:
        longest = max((shared(prompt[:-1], content) for content in self.known()), default=0)
        assert self.streams.longest(tokens(*prompt)) == longest

    @invariant()
    def every_sequence_holds_what_was_put_into_it(self) -> None:
        for seq, content in (self.running | self.kept).items():
            assert self.streams.tokens(seq).tolist() == content
            assert self.streams.length(seq) == len(content)
        for seq, content in self.private.items():
            assert self.streams.length(seq) == len(content)

    @invariant()
    def the_figures_are_right(self) -> None:
        stats = self.streams.stats()
        assert self.streams.available == self.count - len(self.running) - len(self.private)
        assert stats.kept == len(self.kept) <= self.most
        assert stats.pinned <= self.pins
        beginnings = {tuple(held[: at + 1]) for held in self.kept.values() for at in range(len(held))}
        assert stats.kept_tokens == len(beginnings)


Plain.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
test_the_bookkeeping_agrees_with_plain_lists = pytest.mark.filterwarnings("default")(Plain.TestCase)
