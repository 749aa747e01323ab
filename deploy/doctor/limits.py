"""What this process is granted: files it may open, and processor time."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

from xnai.deploy.doctor.control_groups import texts
from xnai.deploy.doctor.finding import Case, Finding, fine, problem, warning

_FEW, _TOO_FEW = 1024, 256
_WHOLE = 1.0  # a processor


def open_files(case: Case) -> Iterator[Finding]:
    """How many files and connections a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    what = f"A process may open {'any number of' if soft == resource.RLIM_INFINITY else soft} files"
    do = f"Raise it with `ulimit -n {_FEW * 4}`, or LimitNOFILE= of the service"
    do += "." if hard == resource.RLIM_INFINITY or hard >= _FEW * 4 else f", or as root: the limit is {hard}."
    if soft == resource.RLIM_INFINITY or soft >= _FEW:
        yield fine("open_files", f"{what}.")
    elif soft >= _TOO_FEW:
        yield warning("open_files", f"{what}, which a dozen agents can use up.", do)
    else:
        yield problem("open_files", f"{what}: too few for a broker.", do)


def processors(case: Case) -> Iterator[Finding]:
    """How much processor time we get, and whether the model's threads fit into that."""
    whole = _processors()
    granted = min((quota for quota in _quotas(case)), default=float(whole))
    threads = (
        case.settings.agents["inference"].settings.get("threads")
        if "inference" in case.settings.agents
        else None
    )
    do = "Give the container more (docker run --cpus, cpu.max, CPUQuota=)"
    if granted < _WHOLE:
        what = (
            f"The container is granted {granted:.2g} of a processor: whatever computes longer stands still."
        )
        yield warning("processors", what, f"{do}.")
    elif isinstance(threads, int) and threads > granted:
        what = f"The model has {threads} threads on {granted:.3g} processors: they wait for each other."
        yield warning("processors", what, f"{do}, or lower threads in [agents.inference.settings].")
    else:
        limited = f" of {whole}" if granted < whole else ""
        yield fine("processors", f"{granted:.3g}{limited} processors may be used.")


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(case: Case) -> Iterator[float]:
    """The limits of our control groups, in processors."""
    for text in texts(case, "cpu", "cpu.max", version=2):
        quota, _, period = text.partition(" ")
        if quota.isdecimal() and period.isdecimal():
            yield int(quota) / int(period)
    quotas = texts(case, "cpu", "cpu.cfs_quota_us", version=1)
    periods = texts(case, "cpu", "cpu.cfs_period_us", version=1)
    for quota, period in zip(quotas, periods, strict=False):
        if quota.isdecimal() and period.isdecimal():
            yield int(quota) / int(period)
