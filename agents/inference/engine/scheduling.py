"""What the next step computes: a function of the jobs, the measured speed and the time. No I/O, no clock.

docs/scheduling.md says how it decides, and why.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from xnai.agents.inference.engine.jobs import BACKGROUND, FOREVER, URGENT, Job, Jobs, Limits, Phase, order
from xnai.agents.inference.engine.slots import uneven, yielding
from xnai.agents.inference.engine.speeds import Speeds

MARGIN = 0.85  # of the gap is planned for: a step also samples, and sends what it made


class Plan(msgspec.Struct, kw_only=True):
    """What to do now. All but the last two name jobs by id, and are done in this order.

    Attributes:
        drop: their deadline passed before anything was computed.
        end: their deadline passed in the middle: what there is is the answer.
        pause: they yield their slots.
        aside: those of `pause` that yield to another sender, not to an urgent request.
        start: they have slots from now on, for the first time or again.
        aged: those of `start` that go first out of their turn.
        rows: the step: a job, and how many tokens of its prompt; 0 is the next token of its answer.
        wake: when to plan again if there are no rows and nothing arrives; None for not before something does.
    """

    drop: list[int] = []
    end: list[int] = []
    pause: list[int] = []
    aside: list[int] = []
    start: list[int] = []
    aged: list[int] = []
    rows: list[tuple[int, int]] = []
    wake: float | None = None

    def enact(self, jobs: Jobs, now: float) -> None:
        """Pause and start what it says, as a step begins; who is to drop and to end was removed before."""
        for id in self.pause:
            jobs.pause(jobs.by_id[id], now, aside=id in self.aside)
        for id in self.start:
            jobs.start(jobs.by_id[id], now, aged=id in self.aged)
        jobs.ledger.begin()


def plan(jobs: Jobs, speeds: Speeds, now: float, limits: Limits) -> Plan:
    """What to do now. No job is changed; the rows assume that the rest of the plan is enacted.

    Costs microseconds while nobody waits, or all slots are taken and nobody who waits may take one away.
    """
    made = Plan()
    running = jobs.running
    if now >= jobs.soonest:
        running = _expire(jobs, now, made)
    if jobs.waiting and (len(running) < limits.slots or jobs.urgent or uneven(jobs, running, limits)):
        running = _fill_slots(jobs, speeds, now, limits=limits, made=made, running=running)
    made.rows = batch_rows(running, speeds, now, limits)
    if not made.rows and jobs.soonest < FOREVER:
        made.wake = jobs.soonest
    return made


def _expire(jobs: Jobs, now: float, made: Plan) -> list[Job]:
    """Name those whose deadline has passed, and return those that go on running."""
    soonest = FOREVER
    running = []
    for job in (*jobs.waiting, *jobs.running):
        if job.deadline is not None and job.deadline <= now:
            (made.drop if job.phase is Phase.QUEUED and not job.made else made.end).append(job.id)
            soonest = min(soonest, job.deadline)
            continue
        if job.deadline is not None:
            soonest = min(soonest, job.deadline)
        if job.phase is Phase.RUNNING:
            running.append(job)
    jobs.soonest = soonest
    return running


def _fill_slots(
    jobs: Jobs, speeds: Speeds, now: float, *, limits: Limits, made: Plan, running: list[Job]
) -> list[Job]:
    """Give free slots to those whose turn it is, and slots of others to urgent jobs; return who runs then."""
    running = list(running)
    gone = {*made.drop, *made.end}
    old = _overdue(jobs, running, now, limits=limits, gone=gone) if len(running) < limits.slots else None
    if old is not None:
        made.start.append(old.id)
        made.aged.append(old.id)
        gone.add(old.id)
        running.append(old)
    for job in order(jobs, speeds, now, limits):
        if job.id in gone:
            continue
        if len(running) >= limits.slots:
            victim = _victim(job, running, made, jobs=jobs, limits=limits)
            if victim is None:
                break
            running.remove(victim)
            made.pause.append(victim.id)
            if job.lane != URGENT:
                made.aside.append(victim.id)
        made.start.append(job.id)
        running.append(job)
    return running


def _overdue(jobs: Jobs, running: Iterable[Job], now: float, *, limits: Limits, gone: set[int]) -> Job | None:
    """Who goes first out of its turn: who waited longest and too long, if the last was enough starts ago.

    One at a time runs that did, so that long answers of the background do not fill the slots.
    """
    if jobs.turns < limits.share - 1 or any(job.aged for job in running):
        return None
    waiting = (job for job in jobs.waiting if job.id not in gone)
    oldest = min(waiting, key=lambda job: (job.since, job.lane, job.id), default=None)
    return oldest if oldest is not None and now - oldest.since > limits.aging else None


def _victim(job: Job, running: list[Job], made: Plan, *, jobs: Jobs, limits: Limits) -> Job | None:
    """Who yields to this job: background first, then whose sender used most, then who came last."""
    aside = limits.aside - jobs.aside - len(made.aside)
    able = [each for each in yielding(job, running, jobs.ledger, aside=aside) if each.id not in made.start]
    return max(
        able, key=lambda each: (each.lane, jobs.ledger.used(each), each.arrived, each.id), default=None
    )


def batch_rows(running: list[Job], speeds: Speeds, now: float, limits: Limits) -> list[tuple[int, int]]:
    """The step of those that run: the next token of every answer, and as much of the prompts as fits.

    That is decided by the time until the first answer is due, and by the room in a batch.
    """
    decoding = [job for job in running if not job.todo]
    if len(decoding) == len(running):
        return [(job.id, 0) for job in decoding]
    filling = sorted((job for job in running if job.todo), key=lambda job: _rank(job, now, limits))
    if not decoding:
        return _chunks(filling, speeds, seconds=limits.alone, room=limits.batch, least=limits.least)
    first = filling[0]
    oldest = min(job.served for job in decoding)
    due = min(job.served + MARGIN * _gap(job, limits) for job in decoding)
    # The answers below it have their tokens in time in the step after it, in which its own goes on too.
    fits = min(limits.batch, speeds.chunk(due - now, first.depth, len(decoding) + 1))
    if first.unread <= fits and all(job.lane > first.lane for job in decoding):
        return [(first.id, first.unread)]
    rows = [(job.id, 0) for job in decoding]
    chunk = speeds.chunk(due - now, first.depth, len(decoding))
    if min(job.lane for job in decoding) < first.lane and now - max(first.served, first.since) < limits.gap:
        return rows  # below an answer, a prompt has every other gap
    read = max(job.served for job in filling) >= oldest or max(job.served for job in decoding) > oldest
    if chunk < limits.least and read:
        return rows  # the last step was for prompts
    cost = speeds.decode(len(decoding)) * speeds.caution
    room = limits.batch - len(decoding)
    return rows + _chunks(filling, speeds, seconds=due - now - cost, room=room, least=limits.least)


def _gap(job: Job, limits: Limits) -> float:
    return limits.gap if job.lane < BACKGROUND else max(limits.gap, limits.background_gap)


def _rank(job: Job, now: float, limits: Limits) -> tuple[int, float, int]:
    """Whose prompt is read first: by lane and time in the slot, unless it was passed over for long."""
    if now - max(job.served, job.since) > limits.aging:
        return URGENT - 1, job.since, job.id
    lane = min(job.lane, URGENT + 1) if now - job.since > limits.aging else job.lane
    return lane, job.since, job.id


def _chunks(
    filling: list[Job], speeds: Speeds, *, seconds: float, room: int, least: int
) -> list[tuple[int, int]]:
    """As much of these prompts as fits into the time and the tokens; of the first one at least something.

    A prompt of a lower lane, or a mere part of one, would delay the first token of another: it waits for the
    next step.
    """
    rows: list[tuple[int, int]] = []
    for job in filling:
        tokens = min(speeds.chunk(seconds, job.depth), job.unread, room)
        if not rows:
            tokens = max(tokens, min(least, job.unread, room))
        if tokens <= 0 or job.lane > filling[0].lane or (rows and tokens < job.unread):
            break
        rows.append((job.id, tokens))
        seconds -= speeds.prefill(tokens, job.depth) * speeds.caution
        room -= tokens
    return rows
