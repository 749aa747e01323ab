"""Who yields a slot to whom: to an urgent request, or to a sender that has none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from xnai.agents.inference.engine.jobs import URGENT, Job, Jobs, Ledger, Limits


def yielding(job: Job, running: Sequence[Job], ledger: Ledger, *, aside: int) -> list[Job]:
    """Those of whom one may yield its slot to this job; so many more may be set aside.

    An urgent job takes one of any that is not urgent. Any other takes one of its own lane, if its sender has
    none, of a sender that has several and used no less.
    """
    able = [each for each in running if each.lane != URGENT and each.pausable and not each.aged]
    if job.lane == URGENT:
        return able
    held = Counter(each.sender for each in running if each.lane == job.lane)
    if aside <= 0 or job.sender in held:
        return []
    used = ledger.used(job)
    return [
        each for each in able if each.lane == job.lane and held[each.sender] > 1 and ledger.used(each) >= used
    ]


def uneven(jobs: Jobs, running: Sequence[Job], limits: Limits) -> bool:
    """Whether a sender waits without a slot while another one has several: cheap, and asked at each plan."""
    held = Counter((job.lane, job.sender) for job in running if job.lane != URGENT)
    lanes = {lane for (lane, _), count in held.items() if count > 1}
    if not lanes or jobs.aside >= limits.aside:
        return False
    return any(job.lane in lanes and (job.lane, job.sender) not in held for job in jobs.waiting)
