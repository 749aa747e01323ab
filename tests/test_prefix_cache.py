"""Which sequence of the KV cache holds which tokens: the bookkeeping, against plain lists."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from xnai.agents.inference.engine.neighbours import groups
from xnai.agents.inference.engine.prefixes import Costs, Evicted, Opening, Streams, worth_saving
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

    @initialize(
        count=st.integers(1, 6), pins=st.integers(0, 3), copy=st.sampled_from([0.0, 3.0]), spare=st.booleans()
    )
    def begin(self, count: int, pins: int, copy: float, spare: bool) -> None:
        costs = Costs(prefill=1.0, copy=copy, save=0.0, restore=0.1)
        self.streams = Streams(count, pins=pins, costs=costs, spare=spare)
        self.count, self.pins, self.most, self.spare = count, pins, count, spare
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
        if gone.keep:
            self.kept[gone.seq] = held[: gone.keep]

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
        taken = len(self.running) + len(self.private) + len(self.kept)
        assert not self.spare or taken < self.count

    @rule(most=st.integers(0, 8))
    def bring_together(self, most: int) -> None:
        copies = self.streams.bring_together({*self.running, *self.private}, most)
        assert len(copies) <= most
        for source, target in copies:
            assert target not in (self.running | self.private | self.kept)
            place = next(each for each in (self.running, self.private, self.kept) if source in each)
            place[target] = place.pop(source)
        assert not copies or groups([*self.running, *self.private]) == 1

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


def opened(streams: Streams, prompt: Tokens) -> Opening:
    """Opens a prompt and computes all of it."""
    opening = streams.open(prompt)
    assert opening is not None
    streams.extend(opening.seq, prompt[opening.keep :])
    return opening


def asked(streams: Streams, prompt: Tokens, *, pin: bool = False) -> Opening:
    """The whole life of a request."""
    opening = opened(streams, prompt)
    assert streams.keep(opening.seq, pin=pin) == ()
    return opening


def text(seed: int, length: int = 500) -> Tokens:
    return np.random.default_rng(seed).integers(0, 32_000, length).astype(np.int32)


def test_a_conversation_goes_on_in_its_own_sequence() -> None:
    streams = Streams(4)
    first = asked(streams, text(1))
    longer = np.concatenate([text(1), text(2, 40)])
    assert streams.longest(longer) == 500
    assert opened(streams, longer) == Opening(seq=first.seq, keep=500)
    assert streams.stats().hit_tokens == 500


def test_the_last_token_of_a_prompt_is_computed_again() -> None:
    streams = Streams(2)
    first = asked(streams, text(1))
    assert opened(streams, text(1)) == Opening(seq=first.seq, keep=499)


def test_a_beginning_that_others_need_too_is_copied() -> None:
    streams = Streams(4)
    one, other = (np.concatenate([text(0), text(seed, 200)]) for seed in (1, 2))
    first = asked(streams, one)
    second = opened(streams, other)
    assert (second.copy_from, second.keep) == (first.seq, 500)
    assert streams.tokens(first.seq).tolist() == one.tolist()


def test_what_would_be_evicted_anyway_is_not_copied_but_taken() -> None:
    streams = Streams(2, costs=Costs(save=math.inf))
    seqs = [asked(streams, np.concatenate([text(0), text(seed, 200)])).seq for seed in (1, 2)]
    assert opened(streams, np.concatenate([text(0), text(3, 200)])) == Opening(seq=seqs[0], keep=500)


@pytest.mark.parametrize("copy", [0.0, 0.02])
def test_what_makes_room_leaves_what_it_shares_and_is_saved_where_that_is_worth_it(copy: float) -> None:
    before, after = (np.concatenate([text(0, 9), text(seed)]) for seed in (1, 2))
    for save in (0.0, math.inf):
        streams = Streams(1, costs=Costs(prefill=0.001, copy=copy, save=save, restore=0.0))
        asked(streams, before)
        opening = opened(streams, after)
        assert (opening.seq, opening.keep, opening.copy_from) == (0, 9, None)
        assert [(gone.seq, gone.keep) for gone in opening.evicted] == ([] if save else [(0, 9)])
        for gone in opening.evicted:
            assert gone.tokens is not None
            assert gone.tokens.tolist() == before.tolist()


def test_a_private_request_uses_nothing_of_what_makes_room_for_it() -> None:
    streams = Streams(1, costs=Costs(prefill=0.001, copy=0.02, save=1.0, restore=1.0))
    asked(streams, text(1))
    opening = streams.open(text(1), cache=False)
    assert opening is not None
    assert (opening.keep, len(opening.evicted)) == (0, 1)


def test_a_beginning_is_copied_from_a_running_sequence() -> None:
    streams = Streams(2)
    first = opened(streams, text(0))
    second = opened(streams, np.concatenate([text(0), text(1, 9)]))
    assert (second.copy_from, second.keep) == (first.seq, 500)


def test_a_short_beginning_is_not_worth_a_copy() -> None:
    streams = Streams(2, costs=Costs(prefill=0.001, copy=0.02))
    asked(streams, np.concatenate([text(0, 19), text(1)]))
    assert opened(streams, np.concatenate([text(0, 19), text(2)])).copy_from is None


def test_the_least_recently_used_prefix_makes_room() -> None:
    streams = Streams(3)
    seqs = [asked(streams, text(seed)).seq for seed in (1, 2, 3)]
    asked(streams, np.concatenate([text(1), text(9, 5)]))
    (gone,) = opened(streams, text(4)).evicted
    assert gone.seq == seqs[1]
    assert gone.tokens is not None
    assert gone.tokens.tolist() == text(2).tolist()


def test_a_prefix_that_another_holds_too_makes_room_first() -> None:
    streams = Streams(3)
    whole = asked(streams, np.concatenate([text(1), text(2)]))
    oldest = asked(streams, text(3))
    part = asked(streams, text(1))
    assert part.copy_from == whole.seq
    assert opened(streams, text(4)).evicted == (Evicted(part.seq),)
    assert streams.length(oldest.seq) == 500


def test_running_sequences_are_never_evicted() -> None:
    streams = Streams(2)
    for seed in (1, 2):
        opened(streams, text(seed))
    assert streams.available == 0
    assert streams.evict() is None
    assert streams.open(text(3)) is None


def test_pinned_prefixes_go_last() -> None:
    streams = Streams(3, pins=1)
    pinned = asked(streams, text(1), pin=True)
    for seed in (2, 3, 4, 5, 6):
        opened_now = opened(streams, text(seed))
        assert pinned.seq not in {opened_now.seq, *(gone.seq for gone in opened_now.evicted)}
        streams.keep(opened_now.seq)
    assert streams.stats().pinned == 1
    for seed in (7, 8, 9):
        assert opened(streams, text(seed)).copy_from is None
    assert streams.length(pinned.seq) == 500


def test_a_pin_gives_way_to_running_requests() -> None:
    streams = Streams(1, pins=1)
    asked(streams, text(1), pin=True)
    (gone,) = opened(streams, text(2)).evicted
    assert gone.seq == 0


def test_too_many_pins_unpin_the_least_recently_used() -> None:
    streams = Streams(3, pins=1)
    first = asked(streams, text(1), pin=True)
    asked(streams, text(2), pin=True)
    asked(streams, text(3))
    assert streams.stats().pinned == 1
    (gone,) = opened(streams, text(4)).evicted
    assert gone.seq == first.seq


def test_a_pinned_beginning_is_pinned_once() -> None:
    streams = Streams(8, pins=4)
    for seed in (1, 2, 3, 4):
        asked(streams, np.concatenate([text(0), text(seed, 50)]), pin=True)
    assert streams.stats().pinned == 1


def test_what_a_private_request_holds_is_of_no_use_to_others() -> None:
    streams = Streams(2)
    opening = streams.open(text(1), cache=False)
    assert opening is not None
    streams.extend(opening.seq, text(1))
    assert streams.longest(text(1)) == 0
    assert streams.keep(opening.seq) == (Evicted(opening.seq),)
    assert streams.length(opening.seq) == 0


def test_a_saved_state_is_restored_when_nothing_cheaper_is_there() -> None:
    streams = Streams(2)
    streams.remember("saved", text(1))
    opening = opened(streams, np.concatenate([text(1), text(2, 9)]))
    assert (opening.restore, opening.keep) == ("saved", 500)
    streams.keep(opening.seq)
    assert opened(streams, np.concatenate([text(1), text(2, 99)])).restore is None


def test_what_is_saved_already_is_not_saved_again() -> None:
    streams = Streams(1)
    asked(streams, text(1))
    streams.remember("saved", np.concatenate([text(1), text(2)]))
    assert opened(streams, text(3)).evicted == (Evicted(0),)


def test_a_state_is_not_saved_if_computing_it_again_is_cheap() -> None:
    assert worth_saving(1000, Costs())
    assert not worth_saving(10, Costs())
    assert not worth_saving(1000, Costs(prefill=3e-5))


def test_a_copy_is_not_saved_before_it_is_made() -> None:
    streams = Streams(2)
    first = opened(streams, text(0))
    second = streams.open(np.concatenate([text(0), text(1, 9)]))
    assert second is not None
    assert second.copy_from == first.seq
    streams.drop(first.seq)
    streams.keep(second.seq)
    assert streams.evict() == Evicted(second.seq)


def test_nothing_is_restored_into_what_is_about_to_be_copied() -> None:
    streams = Streams(2)
    first = opened(streams, text(0))
    streams.open(np.concatenate([text(0), text(1, 9)]))
    streams.drop(first.seq)
    streams.remember("saved", text(5))
    assert streams.open(text(5)) == Opening(seq=first.seq)


def test_fewer_prefixes_are_kept_when_memory_is_short() -> None:
    streams = Streams(4)
    for seed in (1, 2, 3):
        asked(streams, text(seed))
    assert [gone.seq for gone in streams.shrink(1)] == [0, 1]
    opening = opened(streams, text(4))
    assert [gone.seq for gone in streams.keep(opening.seq)] == [2]
    assert streams.stats().kept == 1


def test_a_spare_sequence_is_taken_only_when_all_others_run() -> None:
    streams = Streams(3, spare=True)
    first, second = asked(streams, text(1)), asked(streams, text(2))
    third, fourth = opened(streams, text(3)), opened(streams, text(4))
    assert (third.seq, fourth.seq) == (first.seq, second.seq)
    assert opened(streams, text(5)).seq not in (first.seq, second.seq)
    assert [gone.seq for gone in streams.keep(third.seq)] == [third.seq]
