"""What holds for the scheduler whatever arrives: found out with a simulated engine."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated_engine import Engine, Story, new_job

from xnai.agents.inference.engine.admission import positions
from xnai.agents.inference.engine.jobs import BACKGROUND, NORMAL, URGENT, Job, Limits, order
from xnai.agents.inference.engine.scheduling import Plan
from xnai.agents.inference.engine.slots import yielding
from xnai.agents.inference.engine.speeds import Figures

SENDERS = "abcd"
WEIGHTS = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 0.5}
PROMPT, ANSWER = 400, 30  # tokens, at most
LONG = 1e9  # seconds: never

# A machine may be busy with something else: how long an example takes says nothing.
PATIENT = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])

some_limits = st.builds(
    Limits,
    slots=st.integers(1, 5),
    batch=st.integers(16, 512),
    gap=st.sampled_from([0.05, 0.1]),
    lead=st.sampled_from([0.0, 200.0, 1024.0]),
    overtaking=st.sampled_from([0.1, 1.0]),
    aging=st.sampled_from([0.2, 1.0, 20.0]),
    share=st.integers(1, 8),
    aside=st.integers(0, 3),
)


@st.composite
def jobs(
    draw: st.DrawFn, *, lanes: tuple[int, ...] = (0, 1, 2), deadlines: bool = True
) -> list[tuple[Job, int]]:
    """Jobs with the lengths of their answers."""
    found = []
    for id in range(draw(st.integers(1, 10))):
        prompt = draw(st.integers(1, PROMPT))
        sender = draw(st.sampled_from(SENDERS))
        arrived = draw(st.integers(0, 20)) / 10
        patience = draw(st.none() | st.integers(0, 30)) if deadlines else None
        limit = draw(st.integers(0, ANSWER))
        job = new_job(
            id,
            prompt,
            limit,
            sender=sender,
            weight=WEIGHTS[sender],
            lane=draw(st.sampled_from(lanes)),
            cached=draw(st.sampled_from([0, prompt // 2, prompt])),
            arrived=arrived,
            deadline=None if patience is None else arrived + patience / 10,
            pausable=draw(st.booleans()),
        )
        found.append((job, draw(st.integers(0, limit))))
    return found


def engine_with(arrivals: list[tuple[Job, int]], limits: Limits, *, informed: bool = True) -> Engine:
    engine = Engine(limits, informed=informed)
    for job, answer in arrivals:
        engine.send(job, answer)
    return engine


def holds_always(engine: Engine) -> Callable[[Plan], None]:
    """What is true of each plan once it has been enacted."""

    def check(made: Plan) -> None:
        running = {job.id: job for job in engine.jobs.running}
        slots = engine.limits.slots
        assert len(running) <= slots
        assert len(running) == slots or not engine.jobs.waiting, "a free slot, and someone waits"
        assert bool(made.rows) == bool(running), "somebody has a slot, and nothing is computed"
        assert sum(tokens or 1 for _, tokens in made.rows) <= engine.limits.batch
        assert len({id for id, _ in made.rows}) == len(made.rows)
        for id, tokens in made.rows:
            assert tokens <= running[id].todo
            assert bool(tokens) == bool(running[id].todo)
            deadline = running[id].deadline
            assert deadline is None or engine.now < deadline
        if any(job.lane == URGENT for job in engine.jobs.waiting):
            assert all(job.lane == URGENT or job.aged or not job.pausable for job in running.values())
        first = next(order(engine.jobs, engine.speeds, engine.now, engine.limits), None)
        if first and first.lane != URGENT:
            room = engine.limits.aside - engine.jobs.aside
            several = yielding(first, engine.jobs.running, engine.ledger, aside=room)
            assert all(job.id in made.start for job in several), "one has several slots, and another one none"

    return check


@given(jobs(), some_limits, st.booleans())
@PATIENT
def test_slots_are_never_exceeded_and_never_idle_and_urgent_work_yields_to_nobody(
    arrivals: list[tuple[Job, int]], limits: Limits, informed: bool
) -> None:
    engine = engine_with(arrivals, limits, informed=informed)
    engine.watch = holds_always(engine)
    engine.run(most=5000)


@given(jobs(), some_limits)
@PATIENT
def test_everything_ends_and_nothing_is_computed_twice_or_left_out(
    arrivals: list[tuple[Job, int]], limits: Limits
) -> None:
    engine = engine_with(arrivals, limits)
    saved = {job.id: min(job.cached, job.prompt - 1) for job, _ in arrivals}
    engine.run(most=5000)
    for story in engine.stories.values():
        assert story.finish in ("stop", "deadline")
        assert story.job.made == len(story.tokens) <= story.answer
        if story.finish == "stop":
            assert len(story.tokens) == story.answer
            assert story.read == story.job.prompt - saved[story.job.id]


@given(jobs(), some_limits)
@PATIENT
def test_a_deadline_ends_a_job_at_the_next_step_and_only_a_deadline_does(
    arrivals: list[tuple[Job, int]], limits: Limits
) -> None:
    engine = engine_with(arrivals, limits)
    dropped: list[int] = []
    engine.watch = lambda made: dropped.extend(made.drop)
    engine.run(most=5000)
    for story in engine.stories.values():
        if story.finish == "deadline":
            assert story.job.deadline is not None
            assert story.ended is not None
            assert story.ended >= story.job.deadline
            assert (story.job.id in dropped) == (story.started is None)


@given(jobs(deadlines=False), st.integers(1, 5))
@PATIENT
def test_no_answer_waits_longer_than_the_gap_beside_prompts(
    arrivals: list[tuple[Job, int]], slots: int
) -> None:
    limits = Limits(slots=slots, gap=0.1, background_gap=0.2)
    engine = engine_with(arrivals, limits)
    engine.run(most=5000)
    for story in engine.stories.values():
        if not story.pauses:
            bound = limits.gap if story.job.lane < BACKGROUND else limits.background_gap
            assert story.longest_gap <= bound


def flood(engine: Engine, kinds: list[tuple[int, str, int, int]]) -> Callable[[Plan], None]:
    """Have more waiting at all times than there are slots, of these kinds in turn."""
    count = 0

    def refill(made: Plan) -> None:
        nonlocal count
        while sum(job.id >= 1000 for job in engine.jobs.waiting) <= engine.limits.slots:
            lane, sender, prompt, limit = kinds[count % len(kinds)]
            name = sender or f"new {count}"
            job = new_job(1000 + count, prompt, limit, lane=lane, sender=name, arrived=engine.now)
            engine.stories[job.id] = Story(job, limit)
            engine.jobs.add(job)
            count += 1

    return refill


kinds = st.tuples(
    st.sampled_from([URGENT, NORMAL, BACKGROUND]),
    st.sampled_from(["", "", "a", "flood"]),
    st.integers(1, 200),
    st.integers(1, 20),
)


@given(jobs(deadlines=False), st.lists(kinds, min_size=1, max_size=4), st.integers(1, 4), st.integers(1, 8))
@PATIENT
def test_every_job_starts_within_a_bound_whatever_else_arrives(
    arrivals: list[tuple[Job, int]], others: list[tuple[int, str, int, int]], slots: int, share: int
) -> None:
    limits = Limits(slots=slots, share=share, aging=1.0)
    engine = engine_with([(job, answer) for job, answer in arrivals], limits)
    engine.watch = flood(engine, others)
    # Of a prompt at least every third gap reads something, and no step lasts longer than a gap.
    steps = 3 * (PROMPT / limits.least + 1) + ANSWER
    longest = steps * limits.background_gap
    bound = 2 + limits.aging + len(arrivals) * (share + 1) * longest
    while any(story.started is None for story in engine.stories.values() if story.job.id < 1000):
        assert engine.now <= bound
        assert engine.step()


@given(
    st.lists(st.tuples(st.integers(1, 200), st.integers(1, 30)), min_size=12, max_size=24),
    st.sampled_from([1.0, 2.0, 4.0]),
    st.integers(1, 4),
    st.booleans(),
)
@PATIENT
def test_two_senders_with_enough_to_do_use_their_weights_worth(
    sizes: list[tuple[int, int]], weight: float, slots: int, informed: bool
) -> None:
    engine = Engine(Limits(slots=slots, aging=LONG), informed=informed)
    weights = {"a": 1.0, "b": weight}
    for id, (prompt, limit) in enumerate(sizes):
        sender = "ab"[id % 2]
        engine.send(new_job(id, prompt, limit, sender=sender, weight=weights[sender]))
    # What is in the slots may be all of one sender, and is estimated before it is counted.
    most = slots * 2 * max(prompt + max(limit, 128) for prompt, limit in sizes)
    while engine.step():
        backlog = {job.sender for job in engine.jobs.waiting}
        if backlog != {"a", "b"}:
            break
        used = {job.sender: engine.ledger.used(job) for job in engine.jobs.waiting}
        assert abs(used["a"] - used["b"]) <= most


@given(jobs(lanes=(1, 2), deadlines=False), st.integers(1, 4))
@PATIENT
def test_jobs_start_in_the_order_that_was_foretold(arrivals: list[tuple[Job, int]], slots: int) -> None:
    limits = Limits(slots=slots, aging=LONG, overtaking=LONG)
    engine = Engine(limits)
    for job, _ in arrivals:
        job.arrived = 0.0
        engine.send(job)  # its answer reaches its limit, as an informed scheduler expects
    engine.watch = lambda made: None
    assert engine.step()
    foretold = [place.id for place in positions(engine.jobs, engine.speeds, engine.now, limits)]
    begun = len(engine.starts)
    engine.run(most=5000)
    assert engine.starts[begun:] == foretold


@given(
    st.lists(st.integers(1, 20), min_size=2, max_size=8, unique=True), st.integers(1, 3), st.integers(0, 2)
)
@PATIENT
def test_of_one_senders_equal_jobs_the_earliest_deadline_starts_first(
    deadlines: list[int], slots: int, lane: int
) -> None:
    engine = Engine(Limits(slots=slots, aging=LONG))
    for id, deadline in enumerate(deadlines):
        engine.send(new_job(id, sender="a", lane=lane, deadline=100.0 + deadline, limit=5))
    engine.run()
    assert engine.starts == sorted(range(len(deadlines)), key=lambda id: deadlines[id])


@given(
    st.floats(0.0005, 0.01),
    st.floats(0.0005, 0.006),
    st.floats(0.0, 0.01),
    st.floats(0.0001, 0.004),
    st.floats(0.0, 1 / 1000),
)
@PATIENT
def test_the_cost_of_steps_is_learned_on_any_machine(
    fixed: float, each: float, start: float, token: float, rise: float
) -> None:
    """After one prompt beside an answer, a chunk's seconds are foretold wherever in the next prompt it is."""
    costs = Figures(fixed=fixed, each=each, start=start, token=token, attend=token * rise)
    engine = Engine(Limits(), costs=costs, informed=False)
    engine.send(new_job(1, limit=2000))
    prompt = engine.send(new_job(2, prompt=2000, limit=1, arrived=0.5))
    while prompt.ended is None:
        engine.step()
    for depth in (0, 500, 1500):
        chunk = max(1, engine.truth.chunk(0.1, depth, 1))
        truth = engine.truth.decode(1) + engine.truth.prefill(chunk, depth)
        learned = engine.speeds.decode(1) + engine.speeds.prefill(chunk, depth)
        assert abs(learned - truth) <= 0.2 * truth
