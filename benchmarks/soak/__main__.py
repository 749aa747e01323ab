"""`python -m benchmarks.soak`: ten minutes of everything, and a report; ends with 1 if something broke."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import anyio

from benchmarks.soak.run import Plan, Report, soak

_A_SECOND = 34  # requests: more than 20,000 in ten minutes
_KILL_EVERY = 50.0  # seconds


def told(report: Report) -> list[str]:
    """The lines of a report: figures, then what holds and what does not, and the verdict on all."""
    verdicts = [
        f"{'holds' if verdict.holds else 'BROKEN':<8}{verdict.name}: {verdict.seen}"
        for verdict in report.verdicts
    ]
    return [*report.lines, *verdicts, f"verdict: {'all holds' if report.holds else 'BROKEN'}"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--requests", type=int, help=f"at least; default: {_A_SECOND} for each second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path, help="a GGUF; default: the small shape of the benchmarks")
    given = parser.parse_args()
    if given.model is None:
        from benchmarks.inference.shapes import model

        given.model = model("small")
    requests = round(_A_SECOND * given.seconds) if given.requests is None else given.requests
    kills = max(1, round(given.seconds / _KILL_EVERY))
    plan = Plan(model=given.model, seconds=given.seconds, requests=requests, seed=given.seed, kills=kills)
    report = anyio.run(partial(soak, plan), backend_options={"use_uvloop": True})
    print(*told(report), sep="\n", flush=True)
    sys.exit(not report.holds)


if __name__ == "__main__":
    main()
