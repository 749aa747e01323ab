"""Which models to unload for one that is wanted, and when: pure, no clock."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How a loaded model stands.

    Attributes:
        takes: bytes that are free without it.
        working: it has requests.
        used: when it last had something to do.
        since: when it was loaded.
    """

    name: str
    takes: int
    working: bool = False
    used: float = 0.0
    since: float = 0.0


class Swap(msgspec.Struct, frozen=True, kw_only=True):
    """What makes room for a model.

    Attributes:
        unload: those that go now.
        ready: there is room for it then.
        rest: those that start nothing new, and go once their answers have ended.
    """

    unload: tuple[str, ...] = ()
    ready: bool = False
    rest: tuple[str, ...] = ()


def make_room(
    short: int, loaded: Sequence[Standing], *, now: float, waited: float, patience: float
) -> Swap | None:
    """How to free `short` bytes for a model whose requests have `waited` so many seconds.

    Idle models go, the least recently used first. If they are not enough, those that work go on as long as
    nobody waits for longer than `patience`, and each for so long at least: what is asked of one model
    meanwhile is computed together, instead of loading one after the other for each request. Then the least
    recently loaded start nothing more. None if all of them together are not enough.
    """
    if short <= 0:
        return Swap(ready=True)
    if sum(each.takes for each in loaded) < short:
        return None
    idle = sorted((each for each in loaded if not each.working), key=lambda each: (each.used, each.name))
    gone = _enough(idle, short)
    short -= sum(each.takes for each in gone)
    if short <= 0:
        return Swap(unload=tuple(each.name for each in gone), ready=True)
    # The idle ones stay as long as they make no room.
    if waited < patience:
        return Swap()
    busy = sorted((each for each in loaded if each.working), key=lambda each: (each.since, each.name))
    rest = [each for each in _enough(busy, short) if now - each.since >= patience]
    return Swap(rest=tuple(each.name for each in rest))


def _enough(models: Sequence[Standing], short: int) -> list[Standing]:
    """As many of the first as are needed, and none that the others make needless."""
    chosen: list[Standing] = []
    for each in models:
        if sum(one.takes for one in chosen) >= short:
            break
        chosen.append(each)
    for each in list(chosen):
        if sum(one.takes for one in chosen if one is not each) >= short:
            chosen.remove(each)
    return chosen
