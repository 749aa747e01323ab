"""What the engine does about a machine that others use too: turns, threads, memory. All of it is pure."""

from __future__ import annotations

import os
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xnai.agents.inference.cores import cpus
from xnai.agents.inference.engine.governor import (
    HALF_KEPT,
    HALF_SLOTS,
    NONE_IDLE,
    NONE_KEPT,
    NOTHING,
    ONE_SLOT,
    ROOM,
    Governor,
    Look,
    Pressure,
    affordable,
    eased,
)
from xnai.agents.inference.engine.machine import Neighbours, Stalls, Times, busy_cores
from xnai.agents.inference.engine.swapping import Standing, make_room
from xnai.agents.inference.engine.turns import Turns

GIB = 1 << 30
NAMES = ("generation", "embedding", "other")


# Turns


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sets(st.sampled_from(NAMES), min_size=1), st.floats(0.001, 1.0)), min_size=1, max_size=80
    )
)
def test_models_that_have_work_all_the_while_share_the_time(
    history: list[tuple[set[str], float]],
) -> None:
    turns, chosen = Turns(), []
    for waiting, seconds in history:
        name = turns.choose(dict.fromkeys(sorted(waiting), False))
        turns.charge(name, seconds)
        chosen.append((waiting, name, seconds))
    for start in range(len(chosen)):
        used: Counter[str] = Counter()
        always = set(NAMES)
        for waiting, name, seconds in chosen[start:]:
            always &= waiting
            used[name] += seconds  # type: ignore[assignment]
            shares = [used[each] for each in always]
            assert not shares or max(shares) - min(shares) <= 2.0 + 1e-9


def test_a_model_that_comes_back_claims_nothing_for_the_time_in_which_it_had_no_work() -> None:
    turns = Turns()
    for _ in range(1_000):
        turns.charge(turns.choose({"generation": False}), 1.0)
    chosen = []
    for _ in range(10):
        chosen.append(turns.choose({"generation": False, "embedding": False}))
        turns.charge(chosen[-1], 1.0)
    assert chosen.count("generation") == chosen.count("embedding") == 5


def test_a_model_that_comes_and_goes_with_each_request_takes_no_more_than_its_share() -> None:
    turns, spent = Turns(), Counter[str]()
    for number in range(100):
        waiting = {"generation": False} if number % 2 else {"generation": False, "embedding": False}
        name = turns.choose(waiting)
        turns.charge(name, 1.0)
        spent[name] += 1
    assert spent["generation"] >= 50


def test_urgent_work_goes_first_whoever_computed_how_much() -> None:
    turns = Turns()
    for _ in range(20):
        assert turns.choose({"generation": False, "embedding": True}) == "embedding"
        turns.charge("embedding", 1.0)
    assert turns.choose({"generation": False, "embedding": False}) == "generation"


# Which models go


@settings(max_examples=60, deadline=None)
@given(
    short=st.integers(-5, 60),
    loaded=st.lists(
        st.builds(
            lambda takes, working, used, since: Standing(
                name="", takes=takes, working=working, used=used, since=since
            ),
            st.integers(1, 20),
            st.booleans(),
            st.floats(0, 100),
            st.floats(0, 100),
        ),
        max_size=5,
    ),
    waited=st.floats(0, 30),
    patience=st.floats(0, 20),
)
def test_only_idle_models_go_at_once_and_only_as_many_as_make_room(
    short: int, loaded: list[Standing], waited: float, patience: float
) -> None:
    named = {
        str(number): Standing(
            name=str(number), takes=one.takes, working=one.working, used=one.used, since=one.since
        )
        for number, one in enumerate(loaded)
    }
    swap = make_room(short, list(named.values()), now=100.0, waited=waited, patience=patience)
    if swap is None:
        assert sum(one.takes for one in loaded) < short
        return
    freed = sum(named[name].takes for name in swap.unload)
    assert not any(named[name].working for name in swap.unload)
    assert all(named[name].working for name in swap.rest)
    assert swap.ready == (freed >= short)
    assert not swap.unload or swap.ready
    assert all(freed - named[name].takes < short for name in swap.unload)
    if waited < patience:
        assert not swap.rest
    assert all(100.0 - named[name].since >= patience for name in swap.rest)


def test_of_idle_models_the_least_recently_used_goes() -> None:
    loaded = [Standing(name=name, takes=10, used=used) for name, used in (("a", 3.0), ("b", 1.0), ("c", 2.0))]
    swap = make_room(12, loaded, now=10.0, waited=0.0, patience=5.0)
    assert swap
    assert (swap.unload, swap.ready) == (("b", "c"), True)


def test_a_model_that_works_goes_on_until_another_has_waited_long_enough() -> None:
    loaded = [Standing(name="a", takes=10, working=True, since=3.0), Standing(name="b", takes=1, used=1.0)]

    def rest(now: float, waited: float) -> tuple[str, ...]:
        swap = make_room(10, loaded, now=now, waited=waited, patience=5.0)
        assert swap
        assert not swap.ready
        return swap.rest

    assert rest(20.0, 4.9) == ()
    assert rest(7.0, 6.0) == ()  # it was loaded just now
    assert rest(20.0, 5.0) == ("a",)


# Threads


def looks(governor: Governor, hogs: int, paces: dict[int, float], count: int, cores: int = 2) -> list[int]:
    """The threads of so many looks, beside so many processes that compute without end."""
    found = []
    for _ in range(count):
        threads = governor.threads
        crowded = hogs + threads > cores
        others = hogs * cores / (hogs + threads) if crowded else float(hogs)
        found.append(governor.look(Look(cores=cores, others=others, pace=paces[threads])))
    return found


@pytest.mark.parametrize(("paces", "best"), [({2: 0.2, 1: 0.45}, 1), ({2: 0.5, 1: 0.2}, 2)])
def test_as_many_threads_compute_as_are_fastest_and_others_are_tried_ever_more_seldom(
    paces: dict[int, float], best: int
) -> None:
    found = looks(Governor(2), 2, paces, 800)
    assert found.count(best) >= 800 * 0.93
    changes = [number for number, (before, after) in enumerate(pairwise(found)) if before != after]
    assert len(changes) <= 14
    assert changes[-1] - changes[-3] > changes[3] - changes[1]


def test_where_threads_make_no_difference_they_stay() -> None:
    assert looks(Governor(2), 3, {2: 0.4, 1: 0.4}, 800).count(2) >= 800 * 0.93


def test_threads_come_back_when_the_others_are_gone() -> None:
    governor = Governor(8)
    assert looks(governor, 16, {8: 0.2, 4: 0.3, 2: 0.4, 1: 0.3}, 100, cores=8)[-1] == 2
    assert looks(governor, 0, {8: 1.0, 4: 0.6, 2: 0.4, 1: 0.2}, 20, cores=8)[-1] == 8


def test_a_core_that_another_keeps_is_left_to_it() -> None:
    assert looks(Governor(2), 1, {2: 0.5, 1: 0.65}, 800).count(1) >= 800 * 0.93


def test_a_slow_engine_on_a_quiet_machine_keeps_its_threads() -> None:
    assert looks(Governor(2), 0, {2: 0.3, 1: 0.1}, 100) == [2] * 100


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 8), st.one_of(st.none(), st.floats(0, 3))), min_size=1, max_size=200),
    st.integers(1, 8),
)
def test_there_is_always_a_thread_and_never_more_than_allowed(
    seen: list[tuple[float, float | None]], most: int
) -> None:
    governor = Governor(most)
    for others, pace in seen:
        assert 1 <= governor.look(Look(cores=most, others=others, pace=pace)) <= most
    quiet = Look(cores=most, others=ROOM / 2, pace=1.0)
    assert [governor.look(quiet) for _ in range(20)][-1] == most


def test_threads_spin_briefly_at_once_on_a_busy_machine_and_for_long_later_on_a_quiet_one() -> None:
    governor, short = Governor(2), []
    for others in (0.1, 1.0, *(0.1,) * 20):
        governor.look(Look(cores=2, others=others))
        short.append(governor.short)
    assert short[:5] == [False, True, True, True, True]
    assert short[1:] == sorted(short[1:], reverse=True)
    assert not short[-1]


def test_as_many_sequences_compute_as_leave_a_step_within_its_bound() -> None:
    def step(count: int) -> float:
        return 0.01 * count

    assert affordable(8, step, 0.055) == 5
    assert affordable(8, step, 1.0) == 8
    assert affordable(8, step, 0.001) == 1


# Memory


def test_what_is_given_back_grows_while_memory_is_short_and_comes_back_later() -> None:
    pressure = Pressure(GIB)
    down = [pressure.look(GIB * 2 // 5, 0.0) for _ in range(80)]
    assert down[0] == HALF_KEPT
    assert down == sorted(down)
    assert down[-1] == NONE_IDLE
    assert [pressure.look(2 * GIB, 0.0) for _ in range(10)] == [NONE_IDLE] * 10
    up = [pressure.look(2 * GIB, 0.0) for _ in range(800)]
    assert up == sorted(up, reverse=True)
    assert up[-1] == NOTHING


def test_where_hardly_any_memory_is_left_all_is_given_back_within_seconds() -> None:
    pressure = Pressure(GIB)
    assert [pressure.look(GIB // 8, 0.0) for _ in range(5)][-1] == NONE_IDLE


def test_between_short_and_enough_nothing_changes() -> None:
    pressure = Pressure(GIB)
    assert [pressure.look(GIB * 3 // 4, 0.0) for _ in range(100)] == [NOTHING] * 100
    pressure.look(GIB // 3, 0.0)
    assert [pressure.look(GIB * 3 // 4, 0.0) for _ in range(100)] == [HALF_KEPT] * 100


def test_what_came_back_too_soon_comes_back_later_the_next_time() -> None:
    pressure, waits = Pressure(GIB), []
    for _ in range(3):
        pressure.look(GIB // 3, 0.0)
        count = 0
        while pressure.look(4 * GIB, 0.0):
            count += 1
        waits.append(count)
        pressure.look(4 * GIB, 0.0)
    assert waits == sorted(waits)


def test_stalls_count_only_where_memory_is_scarce() -> None:
    assert Pressure(GIB).look(GIB * 3 // 2, 0.5) == HALF_KEPT
    assert Pressure(GIB).look(16 * GIB, 0.5) == NOTHING


@pytest.mark.parametrize(
    ("level", "size"),
    [(NOTHING, (4, 6)), (HALF_KEPT, (4, 3)), (NONE_KEPT, (4, 0)), (HALF_SLOTS, (2, 0)), (ONE_SLOT, (1, 0))],
)
def test_what_is_kept_goes_before_what_computes(level: int, size: tuple[int, int]) -> None:
    assert eased(level, 4, 6) == size


# What the machine says


def test_what_others_compute_is_what_all_compute_less_what_is_ours() -> None:
    before, now = Times(all=100.0, own=10.0, clock=1.0), Times(all=103.0, own=11.0, clock=3.0)
    assert busy_cores(before, now) == 1.0
    assert busy_cores(now, now) == 0.0
    assert busy_cores(before, Times(all=100.5, own=11.0, clock=2.0)) == 0.0


def test_only_the_cores_that_the_engine_may_use_are_looked_at(tmp_path: Path) -> None:
    path, second = tmp_path / "proc/stat", os.sysconf("SC_CLK_TCK")
    path.parent.mkdir()
    ours = sorted(cpus())
    path.write_text("\n".join(["cpu  0 0 0 0", *(f"cpu{cpu} 0 0 0 0" for cpu in ours), "cpu9999 0 0 0 0"]))
    neighbours = Neighbours(tmp_path)
    busy = 1_000_000_000 * second
    path.write_text(
        "\n".join([f"cpu  {busy} 0 0 0", *(f"cpu{cpu} 0 0 0 0" for cpu in ours), f"cpu9999 {busy} 0"])
    )
    assert neighbours.cores() == 0.0
    path.write_text(f"cpu  0 0 0 0\ncpu{ours[0]} {busy} 0 0 0 7 0 0 0\n")
    assert neighbours.cores() > 1.0


def test_a_machine_that_says_nothing_is_quiet(tmp_path: Path) -> None:
    assert Stalls(tmp_path).share() == 0.0
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text("cpu  1 2 3\n")
    assert Neighbours(tmp_path).cores() == 0.0


def test_waiting_for_memory_is_read_from_the_kernel(tmp_path: Path) -> None:
    path = tmp_path / "proc/pressure/memory"
    path.parent.mkdir(parents=True)
    path.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=1000\nfull total=5\n")
    stalls = Stalls(tmp_path)
    path.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=9000000000\nfull total=5\n")
    assert stalls.share() == 1.0
    assert stalls.share() == 0.0
