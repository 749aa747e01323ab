"""`xnai ingest`: take documents in, and show how far it is."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from xnai.deploy.statuses import Status

if TYPE_CHECKING:
    from xnai.agents.curation.requests import Progress, State
    from xnai.bus import Bus
    from xnai.bus.sending import Order
    from xnai.deploy.bar import Bar

_LONGEST = 7 * 86_400.0  # seconds
_LANE = "background"  # whoever asks something meanwhile goes first
_NOTED = 10  # documents left out of which the reason is shown; --json shows all
_IN_ORDER: tuple[State, ...] = ("stored", "unchanged", "duplicate", "forgotten", "skipped", "failed")
_TOPICS, _SCHEME = "pydoc_data.topics", "pydoc:"
_EXAMPLES = """\
examples:
  xnai ingest docs README.md
  xnai ingest pydoc_data.topics     # Python's own manual
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "ingest",
        help="take documents in, to be found by `xnai ask`",
        description=(
            "Take in files and folders of Markdown, HTML, reStructuredText and text. Doing it again costs "
            "next to nothing: only what has changed is stored anew, and what is gone from a folder is "
            "forgotten. Ctrl-C stops it; what is stored by then stays. The exit status is 1 when a document "
            "cannot be read."
        ),
        epilog=_EXAMPLES,
    )
    parser.add_argument("paths", metavar="PATH", nargs="+", help="a file, a folder, or pydoc_data.topics")


async def run(arguments: argparse.Namespace) -> int:
    from xnai.bus import open_bus
    from xnai.deploy.waiting import until_interrupted

    order = make_request(arguments.paths)
    async with open_bus() as bus:
        return await until_interrupted(bus, order.id, lambda: ingest(bus, order, as_json=arguments.json))


def make_request(paths: Iterable[str]) -> Order:
    """The order for these paths, made absolute: the agent has a working folder of its own."""
    from xnai.agents.curation.requests import IngestRequest
    from xnai.bus.sending import make_order

    request = IngestRequest(paths=tuple(map(_absolute, paths)))
    return make_order("curation.ingest", request, lane=_LANE, ttl=_LONGEST)


def _absolute(path: str) -> str:
    if path == _TOPICS or path.startswith(_SCHEME):
        return path
    return os.path.abspath(os.path.expanduser(path))


async def ingest(bus: Bus, order: Order, *, as_json: bool) -> int:
    """Wait for an ingestion and show it: a bar on a terminal, lines otherwise, or JSON."""
    from xnai.agents.curation.requests import Progress
    from xnai.deploy.bar import Bar
    from xnai.deploy.output import say, show

    began = time.monotonic()
    with Bar() as bar:
        async for step in bus.run_stream(order, Progress):
            if as_json:
                show(step, as_json=True)
            else:
                _show(step, bar)
                bar.draw(step.done, step.total, f"documents, {_rate(step, began)}")
    if not as_json:
        if (more := _left_out(step) - _NOTED) > 0:
            say(f"{more} more are left out; --json tells why")
        show(_summary(step, time.monotonic() - began), as_json=False)
    return Status.FAILURE if step.counts.get("failed") else Status.DONE


def _show(step: Progress, bar: Bar) -> None:
    """A line for what a bar does not tell: why documents are left out, and each one where there is no bar."""
    if step.state in ("failed", "skipped"):
        if _left_out(step) <= _NOTED:
            bar.note(f"{step.state}: {step.source} {step.reason}")
    elif not bar.shown and step.state not in ("finished", "unchanged"):
        bar.note(f"{step.state}: {step.source} ({step.done}/{step.total})")


def _left_out(step: Progress) -> int:
    return step.counts.get("failed", 0) + step.counts.get("skipped", 0)


def _rate(step: Progress, began: float) -> str:
    passages = step.passages / max(0.001, time.monotonic() - began)
    return f"{step.passages} passages, {passages:.0f}/s"


def _summary(last: Progress, seconds: float) -> str:
    """`97 documents in 12.1 s: 95 stored (1,021 passages), 1 duplicate, 1 skipped`."""
    facts = [f"{last.counts[state]} {state}" for state in _IN_ORDER if state in last.counts]
    facts = [f"{fact} ({last.passages:,} passages)" if "stored" in fact else fact for fact in facts]
    documents = f"{last.total} document{'' if last.total == 1 else 's'}"
    return f"{documents} in {seconds:.1f} s: {', '.join(facts) or 'nothing to do'}"
