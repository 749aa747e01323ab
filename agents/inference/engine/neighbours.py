"""Which sequences to move so that those that compute are neighbours.

llama.cpp computes sequences together whose numbers follow each other, and all others one after the other.
"""

from __future__ import annotations

from collections.abc import Collection, Set

Copies = list[tuple[int, int]]


def groups(sequences: Collection[int], beside: Collection[int] = ()) -> int:
    """How many times llama.cpp computes for these sequences, but for those that go with others `beside`."""
    known = {*sequences, *beside}
    return sum(sequence - 1 not in known for sequence in sequences)


def copies_together(computing: Set[int], free: Set[int], count: int) -> Copies:
    """The fewest copies, each from a sequence to a free one, after which those that compute are neighbours.

    They are made in this order, and the source of each is free then. What else holds something may have to
    move too. Of `count` sequences; none if nothing has to move, or nothing can.
    """
    windows = (set(range(first, first + len(computing))) for first in range(count - len(computing) + 1))
    found = (_into(window, computing, free) for window in windows)
    return min((copies for copies in found if copies is not None), key=len, default=[])


def _into(window: Set[int], computing: Set[int], free: Set[int]) -> Copies | None:
    """The copies after which all that compute are in this window; None if there is nowhere to put others."""
    copies: Copies = []
    elsewhere = sorted(free - window)
    places = sorted(window - computing, key=lambda place: (place not in free, place))
    for source, place in zip(sorted(computing - window), places, strict=True):
        if place not in free:
            if not elsewhere:
                return None
            copies.append((place, elsewhere.pop()))
        copies.append((source, place))
        elsewhere.append(source)
    return copies
