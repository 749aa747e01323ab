"""How the scheduler decides, case by case, with a simulated engine."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from simulated_engine import MEDIUM, Engine, Story, new_job

from xnai.agents.inference.engine.admission import admit, positions
from xnai.agents.inference.engine.jobs import BACKGROUND, NORMAL, URGENT, Job, Ledger, Limits, Phase
from xnai.agents.inference.engine.scheduling import plan
from xnai.agents.inference.engine.speeds import Speeds

LIMITS = Limits()
PAGE = Path(__file__).resolve().parent.parent / "docs" / "scheduling.md"


def alone(job: Job, limits: Limits = LIMITS) -> Story:
    """What becomes of a job on an engine that has nothing else to do."""
    engine = Engine(limits)
    story = engine.send(job)
    engine.run()
    return story


def waiting(engine: Engine) -> list[int]:
    """Who waits, in the order of starting."""
    return [place.id for place in positions(engine.jobs, engine.speeds, engine.now, engine.limits)]


def test_a_lone_prompt_is_read_in_large_chunks_and_answered_token_by_token() -> None:
    engine = Engine(Limits(batch=256, alone=1.0))
    engine.send(new_job(1, prompt=300, limit=3))
    steps: list[list[tuple[int, int]]] = []
    engine.watch = lambda made: steps.append(made.rows)
    engine.run()
    assert steps[:4] == [[(1, 256)], [(1, 44)], [(1, 0)], [(1, 0)]]


def test_short_prompts_that_come_together_are_read_in_one_step() -> None:
    engine = Engine(LIMITS)
    for id in range(4):
        engine.send(new_job(id, prompt=20))
    assert engine.step()
    assert all(story.tokens for story in engine.stories.values())


def test_a_long_prompt_beside_an_answer_is_late_by_a_little_and_the_answer_keeps_its_gap() -> None:
    engine = Engine(LIMITS, informed=False)
    stream = engine.send(new_job(1, limit=2500))
    prompt = engine.send(new_job(2, prompt=4000, limit=5, arrived=1.0))
    engine.run()
    assert stream.longest_gap <= 1.1 * LIMITS.gap
    assert prompt.first <= 1.2 * alone(new_job(2, prompt=4000)).first


@pytest.mark.parametrize("slots", [8, 16, 17])
def test_an_urgent_request_hardly_feels_sixteen_background_answers(slots: int) -> None:
    limits = Limits(slots=slots)
    engine = Engine(limits)
    for id in range(16):
        engine.send(new_job(id, limit=600, lane=BACKGROUND))
    urgent = engine.send(new_job(99, prompt=64, lane=URGENT, arrived=5.0))
    engine.run()
    assert urgent.first <= 1.3 * alone(new_job(99, prompt=64)).first


def test_an_urgent_answer_is_not_slowed_to_the_gap_by_a_prompt_below_it() -> None:
    engine = Engine(LIMITS)
    engine.send(new_job(1, prompt=4000))
    urgent = engine.send(new_job(2, lane=URGENT, limit=50, arrived=0.5))
    engine.run()
    usual = alone(new_job(2, limit=50)).tokens
    assert urgent.tokens[-1] - urgent.tokens[0] <= 3 * (usual[-1] - usual[0])


def test_an_urgent_prompt_is_not_read_together_with_one_below_it() -> None:
    engine = Engine(LIMITS)
    engine.send(new_job(1, prompt=1000))
    urgent = engine.send(new_job(2, prompt=64, lane=URGENT))
    engine.run()
    assert urgent.first == alone(new_job(2, prompt=64)).first


def test_after_a_step_for_an_urgent_prompt_alone_the_answers_come_first() -> None:
    engine = Engine(Limits(slots=3))
    answer = engine.send(new_job(1, limit=50))
    engine.send(new_job(2, prompt=54, lane=URGENT, limit=2, arrived=0.2))
    engine.send(new_job(3, prompt=4, lane=BACKGROUND, arrived=0.13))
    steps: list[list[tuple[int, int]]] = []
    engine.watch = lambda made: steps.append(made.rows)
    engine.run()
    urgent = steps.index([(2, 54)])
    assert steps[urgent + 1] == [(1, 0), (2, 0)]
    assert answer.longest_gap <= LIMITS.gap


def test_a_prompt_in_a_slot_moves_while_urgent_prompts_never_end() -> None:
    engine = Engine(Limits(slots=2, aging=1.0, share=1000))
    below = engine.send(new_job(1, prompt=1000, limit=1, lane=BACKGROUND, pausable=False))
    for id in range(2, 300):
        engine.send(new_job(id, prompt=200, limit=1, lane=URGENT, arrived=0.01))
    engine.run(until=10.0)
    assert below.read >= 8 * 100


def test_on_a_machine_too_slow_for_the_gap_prompts_and_answers_take_turns() -> None:
    engine = Engine(Limits(gap=0.01))
    engine.send(new_job(1, limit=1000))
    engine.send(new_job(2, prompt=100, arrived=0.5))
    steps: list[bool] = []
    engine.watch = lambda made: steps.append(any(tokens for _, tokens in made.rows))
    while engine.stories[2].job.todo:
        engine.step()
    reading = steps[steps.index(True, 30) :]
    assert reading == [True, False] * (len(reading) // 2) + [True]


def test_an_urgent_request_takes_a_slot_and_the_answer_that_yields_goes_on_first() -> None:
    engine = Engine(Limits(slots=2))
    old = engine.send(new_job(1, lane=BACKGROUND))
    young = engine.send(new_job(2, lane=BACKGROUND, arrived=0.1))
    urgent = engine.send(new_job(3, lane=URGENT, arrived=0.5))
    normal = engine.send(new_job(4, arrived=0.5))
    engine.run(until=0.6)
    assert young.job.phase is Phase.PAUSED
    assert waiting(engine) == [2, 4]
    engine.run()
    assert (old.pauses, young.pauses, urgent.pauses, normal.pauses) == (0, 1, 0, 0)
    assert young.read == young.job.prompt
    assert len(young.tokens) == 100
    assert young.tokens[-1] < normal.tokens[-1]


def test_a_sender_without_a_slot_takes_one_of_a_sender_that_has_several() -> None:
    engine = Engine(Limits(slots=2))
    older = engine.send(new_job(1, sender="greedy", limit=500))
    younger = engine.send(new_job(2, sender="greedy", limit=500, arrived=0.1))
    other = engine.send(new_job(3, arrived=1.0, limit=20))
    engine.run()
    assert other.first <= 2 * alone(new_job(3)).first
    assert (older.pauses, younger.pauses, other.pauses) == (0, 1, 0)
    assert (younger.read, len(younger.tokens)) == (younger.job.prompt, 500)


def test_a_sender_keeps_its_only_slot() -> None:
    engine = Engine(Limits(slots=2))
    for id, sender in enumerate("abc"):
        engine.send(new_job(id, sender=sender, arrived=id / 10))
    engine.run()
    assert [engine.stories[id].pauses for id in range(3)] == [0, 0, 0]


def test_what_was_set_aside_goes_on_when_it_is_the_turn_of_its_sender() -> None:
    engine = Engine(Limits(slots=2))
    for id, sender in enumerate(["greedy", "greedy", "greedy", "b", "c"]):
        engine.send(new_job(id, sender=sender, limit=300, arrived=max(0, id - 2) / 10))
    engine.run(until=0.5)
    assert waiting(engine) == [4, 1, 2]
    engine.run()
    assert engine.stories[1].ended <= engine.stories[2].started  # type: ignore[operator]


def test_no_more_are_set_aside_than_there_is_room_for() -> None:
    engine = Engine(Limits(slots=4, aside=1))
    for id in range(4):
        engine.send(new_job(id, sender="greedy", limit=500))
    others = [engine.send(new_job(10 + id, arrived=0.5, limit=500)) for id in range(2)]
    engine.run(until=0.7)
    assert [story.started is not None for story in others] == [True, False]
    assert engine.jobs.aside == 1


def test_a_deadline_that_only_a_slot_of_a_greedy_sender_can_meet_is_met() -> None:
    engine = Engine(Limits(slots=2))
    full(engine, 3, sender="greedy", limit=1000)
    wanted = new_job(9, limit=10, arrived=engine.now, deadline=engine.now + 0.3)
    assert admit(wanted, engine.jobs, engine.speeds, now=engine.now, limits=engine.limits) is None
    assert engine.send(wanted).finish == ""
    engine.run(until=engine.now + 1.0)
    assert engine.stories[9].finish == "stop"


def test_what_is_not_pausable_keeps_its_slot() -> None:
    engine = Engine(Limits(slots=1))
    engine.send(new_job(1, lane=BACKGROUND, pausable=False))
    engine.send(new_job(2, lane=URGENT, arrived=0.1))
    engine.run()
    assert engine.stories[1].ended == engine.stories[2].started


def test_a_normal_request_goes_before_background_but_takes_no_slot_away() -> None:
    engine = Engine(Limits(slots=1))
    for id, lane in enumerate([BACKGROUND, BACKGROUND, NORMAL]):
        engine.send(new_job(id, lane=lane, arrived=id / 100))
    engine.run()
    assert engine.starts == [0, 2, 1]
    assert engine.stories[0].pauses == 0


def test_ten_senders_of_which_one_sends_fifty_times_as_much_all_get_their_part() -> None:
    def slowest(extra: int) -> float:
        engine = Engine(Limits(slots=4, aging=2.0), informed=False)
        for id in range(40):
            engine.send(new_job(id, prompt=50, limit=40, sender=str(id % 10)))
        for id in range(40, 40 + extra):
            engine.send(new_job(id, prompt=50, limit=40, sender="0"))
        others = [story for story in engine.stories.values() if story.job.sender != "0"]
        while any(story.ended is None for story in others):
            engine.step()
        return engine.now

    assert slowest(extra=196) <= 1.1 * slowest(extra=0)


def test_a_sender_of_twice_the_weight_is_served_twice_as_much() -> None:
    engine = Engine(Limits(slots=2))
    for id in range(60):
        sender = "ab"[id % 2]
        engine.send(new_job(id, prompt=10, limit=10, sender=sender, weight={"a": 1.0, "b": 2.0}[sender]))
    while len(engine.starts) < 30:
        engine.step()
    assert sum(id % 2 for id in engine.starts) == pytest.approx(20, abs=2)


def test_resting_earns_nothing() -> None:
    ledger = Ledger()
    busy, fresh = new_job(1, sender="busy"), new_job(2, sender="fresh")
    ledger.arrive(busy)
    ledger.charge(busy, 1000)
    ledger.begin()
    ledger.arrive(fresh)
    assert ledger.used(fresh) == ledger.used(busy) == 1000


def test_the_step_during_which_somebody_comes_counts() -> None:
    ledger = Ledger()
    busy, fresh = new_job(1, sender="busy"), new_job(2, sender="fresh")
    ledger.arrive(busy)
    ledger.begin()
    ledger.charge(busy, 128)
    ledger.arrive(fresh)
    assert (ledger.used(fresh), ledger.used(busy)) == (0, 128)


def test_leaving_earns_nothing_either() -> None:
    ledger = Ledger()
    heavy, light = new_job(1, sender="heavy"), new_job(2, sender="light")
    ledger.arrive(heavy)
    ledger.arrive(light)
    ledger.charge(heavy, 5000)
    ledger.leave(heavy)
    ledger.charge(light, 100)
    ledger.arrive(heavy)
    assert (ledger.used(heavy), ledger.used(light)) == (5000, 100)


def test_lanes_are_accounted_apart() -> None:
    ledger = Ledger()
    urgent, normal = new_job(1, sender="a", lane=URGENT), new_job(2, sender="a")
    ledger.arrive(urgent)
    ledger.arrive(normal)
    ledger.charge(urgent, 500)
    assert (ledger.used(urgent), ledger.used(normal)) == (500, 0)


def test_a_cached_prefix_goes_first_within_the_lead_and_for_a_while() -> None:
    engine = Engine(Limits(slots=1, lead=500.0, overtaking=1.0))
    engine.send(new_job(0, limit=500))
    engine.send(new_job(1, prompt=800, arrived=0.1))
    engine.send(new_job(2, prompt=800, arrived=0.2, cached=700))
    engine.run(until=0.5)
    assert waiting(engine) == [2, 1]
    engine.ledger.charge(engine.stories[2].job, 600)
    assert waiting(engine) == [1, 2]
    engine.ledger.charge(engine.stories[1].job, 600)
    assert waiting(engine) == [2, 1]
    engine.run(until=1.3)
    assert waiting(engine) == [1, 2]


def test_background_moves_while_normal_work_never_ends() -> None:
    engine = Engine(Limits(slots=2, aging=5.0, share=4))
    for id in range(400):
        engine.send(new_job(id, limit=20, arrived=max(0, id - 10) / 100))
    late = [engine.send(new_job(1000 + id, limit=300, lane=BACKGROUND)) for id in range(3)]
    at_once: list[int] = []
    engine.watch = lambda made: at_once.append(sum(job.lane == BACKGROUND for job in engine.jobs.running))
    engine.run(until=15.0)
    assert late[0].started == pytest.approx(5.0, abs=1.0)
    assert late[1].started is not None
    assert max(at_once) == 1


def test_what_went_first_out_of_its_turn_is_not_paused() -> None:
    engine = Engine(Limits(slots=1, aging=1.0, share=2))
    for id in range(300):
        engine.send(new_job(id, limit=20, lane=URGENT, arrived=id / 100))
    patient = engine.send(new_job(1000, limit=50))
    engine.run(until=4.0)
    assert patient.ended is not None
    assert patient.pauses == 0


def test_a_deadline_drops_what_waits_and_ends_what_runs() -> None:
    engine = Engine(Limits(slots=1))
    running = engine.send(new_job(1, limit=1000, deadline=1.0))
    dropped = engine.send(new_job(2, deadline=0.5))
    engine.run()
    assert (running.finish, dropped.finish) == ("deadline", "deadline")
    assert dropped.started is None
    assert 0 < len(running.tokens) < 1000
    assert running.ended == pytest.approx(1.0, abs=0.01)


def test_an_engine_without_slots_wakes_for_the_first_deadline() -> None:
    engine = Engine(Limits(slots=0))
    engine.jobs.add(new_job(1))
    assert plan(engine.jobs, engine.speeds, 0.0, engine.limits).wake is None
    engine.jobs.add(new_job(2, deadline=3.0))
    assert plan(engine.jobs, engine.speeds, 0.0, engine.limits).wake == 3.0


def test_what_was_said_before_a_restart_is_read_again_behind_the_prompt() -> None:
    engine = Engine(LIMITS)
    job = new_job(1, prompt=50, made=30, limit=40)
    job.todo = 80
    assert job.depth == 0
    story = engine.send(job)
    engine.run()
    assert story.read == 80
    assert len(story.tokens) == 10


def full(engine: Engine, count: int, **facts: object) -> None:
    """An engine of which all slots are taken, and so many wait."""
    for id in range(engine.limits.slots + count):
        engine.send(new_job(id, **facts))  # type: ignore[arg-type]
    engine.step()


def test_a_full_queue_is_busy_until_the_next_start() -> None:
    engine = Engine(Limits(slots=1, queue=4))
    full(engine, 4)
    refusal = admit(new_job(9), engine.jobs, engine.speeds, now=engine.now, limits=engine.limits)
    assert refusal is not None
    assert (refusal.kind, refusal.waiting, refusal.own) == ("busy", 4, False)
    engine.run(until=refusal.retry_after or 0.0)
    while engine.stories[1].started is None:
        engine.step()
    assert engine.now == pytest.approx(refusal.retry_after, rel=0.1)
    assert admit(new_job(9), engine.jobs, engine.speeds, now=engine.now, limits=engine.limits) is None


def test_a_queue_is_full_by_its_tokens_too_but_takes_one_of_any_length() -> None:
    engine = Engine(Limits(slots=1, queue_tokens=1000))
    full(engine, 0)
    long = new_job(8, prompt=5000)
    assert admit(long, engine.jobs, engine.speeds, now=engine.now, limits=engine.limits) is None
    engine.jobs.add(long)
    refusal = admit(new_job(9), engine.jobs, engine.speeds, now=engine.now, limits=engine.limits)
    assert refusal is not None
    assert (refusal.kind, refusal.tokens) == ("busy", 5000)


def test_the_rest_of_a_queue_is_kept_from_a_sender_that_filled_it() -> None:
    engine = Engine(Limits(slots=1, queue=8))
    full(engine, 6, sender="many")
    mine, yours = new_job(20, sender="many"), new_job(21, sender="few")
    refusal = admit(mine, engine.jobs, engine.speeds, now=engine.now, limits=engine.limits)
    assert refusal is not None
    assert refusal.own
    assert admit(yours, engine.jobs, engine.speeds, now=engine.now, limits=engine.limits) is None


def test_a_deadline_that_cannot_be_met_is_refused_with_the_estimate() -> None:
    engine = Engine(Limits(slots=1))
    engine.speeds.answer = 100
    full(engine, 2)

    def refusal(deadline: float) -> object:
        job = new_job(9, prompt=1000, deadline=deadline)
        return admit(job, engine.jobs, engine.speeds, now=engine.now, limits=engine.limits)

    early = refusal(engine.now + 2.0)
    assert early is not None
    estimate = msgspec.to_builtins(early)["first"]
    assert estimate > 3.0
    assert refusal(engine.now + estimate + 0.01) is None
    assert refusal(engine.now - 1.0) is not None


def test_an_urgent_job_is_foretold_to_start_at_once() -> None:
    engine = Engine(Limits(slots=1))
    full(engine, 2, lane=BACKGROUND)
    engine.jobs.add(new_job(9, lane=URGENT))
    place = positions(engine.jobs, engine.speeds, engine.now, engine.limits)[0]
    assert (place.id, place.position, place.start) == (9, 0, 0.0)


def test_starts_are_foretold_about_right() -> None:
    engine = Engine(Limits(slots=2))
    full(engine, 6, prompt=100, limit=50)
    foretold = positions(engine.jobs, engine.speeds, engine.now, engine.limits)
    asked = engine.now
    engine.run()
    for place in foretold:
        started = engine.stories[place.id].started
        assert started is not None
        assert place.start == pytest.approx(started - asked, rel=0.3)


def test_a_surprise_cuts_the_next_chunk_at_once_and_is_forgiven_slowly() -> None:
    speeds = Speeds(MEDIUM)
    usual = speeds.chunk(0.1, 0, 1)

    def read(chunk: int, times: float) -> None:
        truth = Speeds(MEDIUM)
        speeds.observe(1, chunk, 0, times * (truth.decode(1) + truth.prefill(chunk)))

    for _ in range(60):
        read(usual, 1.0)
    read(usual, 2.0)
    cut = speeds.chunk(0.1, 0, 1)
    assert cut < 0.6 * usual
    for _ in range(60):
        read(cut, 1.0)
    assert speeds.chunk(0.1, 0, 1) > 0.9 * usual


def test_what_was_learned_can_be_remembered() -> None:
    engine = Engine(LIMITS, informed=False)
    assert (engine.speeds.decode_rate, engine.speeds.prefill_rate) == (0.0, 0.0)
    engine.send(new_job(1, prompt=900, limit=50))
    engine.run()
    again = Speeds(msgspec.json.decode(msgspec.json.encode(engine.speeds.figures), type=type(MEDIUM)))
    assert again.chunk(0.1, 100, 2) == engine.speeds.chunk(0.1, 100, 2)
    assert engine.speeds.decode_rate == pytest.approx(1 / 0.006, rel=0.01)
    assert 300 < engine.speeds.prefill_rate < 800


def test_steps_that_are_learned_from_at_once_count_as_many() -> None:
    one, together = Speeds(), Speeds()
    for _ in range(40):
        one.observe(4, 0, 0, 0.03)
    for _ in range(5):
        together.observe(4, 0, 0, 0.03, steps=8)
    assert together.figures == one.figures
    assert together.decode_rate == pytest.approx(one.decode_rate)


def test_nothing_is_learned_from_a_step_that_computed_nothing() -> None:
    speeds = Speeds()
    speeds.observe(0, 0, 0, 0.1)
    speeds.observe(1, 0, 0, 0.0)
    assert speeds.figures == Speeds().figures
    assert speeds.prefill(0) == speeds.decode(0) == 0.0


def worked_example() -> Engine:
    engine = Engine(Limits(slots=2))
    engine.send(new_job(1, 200, 400, sender="nightly", lane=BACKGROUND))
    engine.send(new_job(2, 1500, 60, sender="writer", arrived=1.0))
    engine.send(new_job(3, 300, 30, sender="writer", arrived=1.2))
    engine.send(new_job(4, 60, 30, sender="reader", arrived=1.4))
    engine.send(new_job(5, 64, 20, sender="person", lane=URGENT, arrived=2.0))
    return engine


def test_the_table_of_the_worked_example_is_what_happens() -> None:
    engine = worked_example()
    lengths = {story.job.id: story.job.prompt for story in engine.stories.values()}
    engine.run()
    rows = [
        f"| {job.id} | {job.sender} | {job.lane} | {lengths[job.id]} | {job.limit} | {job.arrived:.1f} "
        f"| {story.started:.2f} | {story.tokens[0]:.2f} | {story.ended:.2f} |"
        for story in engine.stories.values()
        for job in [story.job]
    ]
    assert "\n".join(rows) in PAGE.read_text()


def test_the_estimates_of_the_worked_example_are_what_is_told() -> None:
    engine = worked_example()
    engine.run(until=1.7)
    text = " ".join(PAGE.read_text().split())
    next_one, after = positions(engine.jobs, engine.speeds, engine.now, engine.limits)
    assert (next_one.id, after.id) == (4, 3)
    told = f"request 4 is told the position 0 and that it starts in {next_one.start:.1f} s, and request 3 "
    assert f"At {engine.now:.2f}, {told}the position 1 and {after.start:.1f} s." in text
    job = new_job(9, 100, deadline=engine.now + 1.0)
    refusal = admit(job, engine.jobs, engine.speeds, now=engine.now, limits=engine.limits)
    assert refusal is not None
    assert f"its first token would come after {refusal.first:.1f} s." in text
    lone, took = alone(new_job(2, 1500)).first, 4.10 - 1.0
    assert f"would take {lone:.2f} s alone and takes {took:.2f} s" in text
    writer = engine.stories[2].job
    engine.run(until=4.65)
    assert f"the other one {engine.ledger.used(writer):,.0f} tokens" in text
