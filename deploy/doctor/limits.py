"""What this process is granted: files it may open, and processor time."""

from __future__ import annotations

import resource
from collections.abc import Iterator

from xnai.agents.inference.control_groups import quotas
from xnai.agents.inference.cores import cpus
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
    whole = len(cpus())
    granted = min(quotas(case.root), default=float(whole))
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
