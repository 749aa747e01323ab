"""Which sequences move so that llama.cpp computes together those that run."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xnai.agents.inference.engine.neighbours import Copies, copies_together, groups


def test_sequences_whose_numbers_follow_each_other_are_computed_together() -> None:
    assert groups([2, 1, 3]) == 1
    assert groups([0, 2, 3, 5]) == 3
    assert groups([]) == 0
    assert groups([1, 4], beside=[0, 2]) == 1


@pytest.mark.parametrize(
    ("computing", "free", "copies"),
    [
        ({0, 1, 2}, {3, 4}, []),
        ({0, 1, 3}, {2}, [(3, 2)]),
        ({0, 1, 3}, {4}, [(2, 4), (3, 2)]),
        ({0, 2}, {3, 4}, [(0, 3)]),
        ({0, 1, 3}, set(), []),
    ],
    ids=["together already", "into the hole", "the hole is taken", "where it costs least", "nowhere to go"],
)
def test_as_little_moves_as_possible(computing: set[int], free: set[int], copies: Copies) -> None:
    assert copies_together(computing, free, 5) == copies


@given(held=st.lists(st.sampled_from(["computes", "kept", ""]), min_size=1, max_size=7))
def test_nothing_is_lost_and_those_that_compute_are_neighbours_in_the_end(held: list[str]) -> None:
    computing = {at for at, what in enumerate(held) if what == "computes"}
    free = {at for at, what in enumerate(held) if not what}
    places = {at: at for at in range(len(held)) if at not in free}
    copies = copies_together(computing, free, len(held))
    for source, target in copies:
        assert target not in places
        places[target] = places.pop(source)
    assert sorted(places.values()) == sorted(set(range(len(held))) - free)
    if free and computing:
        assert groups([place for place, was in places.items() if was in computing]) == 1


@given(held=st.lists(st.sampled_from(["computes", "kept", ""]), min_size=1, max_size=5))
def test_no_fewer_copies_would_do(held: list[str]) -> None:
    computing = {at for at, what in enumerate(held) if what == "computes"}
    free = {at for at, what in enumerate(held) if not what}
    full = [at for at in range(len(held)) if at not in free]
    copies = copies_together(computing, free, len(held))
    if not free:
        assert copies == []
        return
    least = min(
        sum(was != place for was, place in zip(full, places, strict=True))
        for places in permutations(range(len(held)), len(full))
        if groups([place for was, place in zip(full, places, strict=True) if was in computing]) <= 1
    )
    assert len(copies) == least
