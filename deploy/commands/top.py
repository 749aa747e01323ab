"""`xnai top`: what the inference agent and the processes of a stack do, as it goes on."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xnai.deploy.output import show
from xnai.deploy.statuses import Status

if TYPE_CHECKING:
    from xnai.deploy.top.sample import Sample

LOG_LEVEL = logging.CRITICAL  # what is wrong stands on the screen, which a line of a log would tear
_EVERY = 2.0  # seconds
_SHORTEST, _LONGEST = 0.2, 3600.0
_EXAMPLES = """\
examples:
  xnai top
  xnai top --interval 500ms
  xnai top --json --watch
"""
_WIDEST = 200  # columns of what is not a terminal
Work = Callable[[], Coroutine[Any, Any, None]]


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "top",
        help="watch the inference agent and the processes at work",
        description=(
            "Show what the inference agent does (slots, queue, tokens a second, cache, engine, models) and "
            "the processes of this folder, again and again until q or Ctrl-C. Where the output is no "
            "terminal, one look is printed; with --watch one after the other. Each look is a task of the "
            "inference agent."
        ),
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "--interval",
        type=_interval,
        default=_EVERY,
        metavar="TIME",
        help=f"between two looks: 500ms, 10s; default: {_EVERY:g}s",
    )
    parser.add_argument(
        "--watch", action="store_true", help="go on also where the output is no terminal, or JSON"
    )


def _interval(text: str) -> float:
    from xnai.deploy.units import read_duration

    try:
        seconds = read_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not _SHORTEST <= seconds <= _LONGEST:
        raise argparse.ArgumentTypeError("it must be from 200ms to 1h")
    return seconds


async def run(arguments: argparse.Namespace) -> int:
    from xnai.deploy.environment import is_screen
    from xnai.deploy.supervisor.asking import view
    from xnai.deploy.top.sample import look_once

    if arguments.json or not is_screen(sys.stdout):
        if arguments.watch:
            await view(Path.cwd())
            return await _print_on(arguments.interval, as_json=arguments.json)
        _print(await look_once(Path.cwd()), None, as_json=arguments.json)
        return Status.DONE
    await view(Path.cwd())  # where no stack is up, there is nothing to open a screen for
    return await _live(arguments.interval)


def _print(sample: Sample, before: Sample | None, *, as_json: bool) -> None:
    from xnai.deploy.top.lines import page
    from xnai.deploy.top.screen import as_text

    if as_json:
        show(sample, as_json=True)
        return
    lines = page(sample, before, width=_WIDEST)
    show("\n".join(as_text(line, sys.stdout).rstrip() for line in lines), as_json=False)


async def _print_on(every: float, *, as_json: bool) -> int:
    before: Sample | None = None

    def tell(sample: Sample) -> None:
        nonlocal before
        if before is not None and not as_json:
            print()
        _print(sample, before, as_json=as_json)
        before = sample

    return await _until_told(lambda: _follow(tell, every), [])


async def _live(every: float) -> int:
    import signal

    import anyio

    from xnai.deploy.top.lines import page
    from xnai.deploy.top.screen import open_screen, pressed, single_keys

    seen: list[Sample] = []  # the last look, behind the one before

    def draw() -> None:
        if seen:
            size = screen.size()
            before = seen[0] if len(seen) > 1 else None
            screen.show(page(seen[-1], before, width=size.columns, height=size.lines))

    def tell(sample: Sample) -> None:
        seen[:] = [*seen[-1:], sample]
        draw()

    async def draw_again() -> None:
        with anyio.open_signal_receiver(signal.SIGWINCH) as changes:
            async for _ in changes:
                draw()

    with single_keys(sys.stdin) as keys, open_screen(sys.stdout) as screen:
        quits: list[Work] = [lambda: pressed("q", sys.stdin)] if keys else []

        async def work() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(draw_again)
                tasks.start_soon(_follow, tell, every)

        return await _until_told(work, quits)


async def _follow(tell: Callable[[Sample], None], every: float) -> None:
    from xnai.deploy.top.sample import follow

    await follow(Path.cwd(), tell, every=every)


async def _until_told(work: Work, quits: Sequence[Work]) -> int:
    """Work until a signal comes, or one of `quits` is over."""
    import signal

    import anyio

    from xnai.deploy.signals import STOPPING, first_of

    status = Status.INTERRUPTED

    async def quit_when(over: Work) -> None:
        nonlocal status
        await over()
        status = Status.DONE
        tasks.cancel_scope.cancel()

    with anyio.open_signal_receiver(*STOPPING, signal.SIGHUP) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            for over in quits:
                tasks.start_soon(quit_when, over)
            await first_of(signals)
            tasks.cancel_scope.cancel()
    return status
