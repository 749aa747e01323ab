"""`xnai up --detach`: the stack goes on in a session of its own when the command has returned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import anyio
import msgspec

from xnai.bus.background import background_tasks
from xnai.deploy.environment import for_child
from xnai.deploy.output import say
from xnai.deploy.signals import STOPPING
from xnai.deploy.statuses import Status
from xnai.deploy.supervisor.logfiles import FOLDER

_LAST_WORDS = "xnai.err"


async def start(folder: Path, *options: str) -> dict[str, Any] | int:
    """Start `xnai up` in `folder` and wait until it is ready.

    Until then it prints to our stderr, and SIGINT and SIGTERM are passed on to it. Returns what it says of
    itself, or if it does not come up the exit status.
    """
    command = [sys.executable, "-P", "-m", "xnai.deploy.cli", "up", "--background", *options]
    with anyio.open_signal_receiver(*STOPPING) as signals:
        process = subprocess.Popen(
            command, cwd=folder, env=for_child({}), stdin=DEVNULL, stdout=PIPE, start_new_session=True
        )
        assert process.stdout is not None
        interrupted = anyio.Event()
        async with background_tasks() as tasks:
            tasks.start_soon(_pass_on, signals, process, interrupted)
            said = await anyio.to_thread.run_sync(process.stdout.readline)
            if said and not interrupted.is_set():
                facts: dict[str, Any] = msgspec.json.decode(said)
                return facts
            status = await anyio.to_thread.run_sync(process.wait)
    if interrupted.is_set():
        say("The stack did not come up: it was interrupted, and all of it has ended.")
        return Status.INTERRUPTED
    return status


async def _pass_on(
    signals: AsyncIterator[signal.Signals], process: subprocess.Popen[bytes], interrupted: anyio.Event
) -> None:
    """Each signal to us is one to the stack: the first takes it down, the second kills what is left."""
    async for _ in signals:
        interrupted.set()
        process.terminate()


def let_go(folder: Path) -> None:
    """Leave the terminal: from now on what the interpreter itself says goes to a file in `folder`."""
    last_words = os.open(folder / FOLDER / _LAST_WORDS, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for handle, place in ((nowhere, 0), (nowhere, 1), (last_words, 2)):
        os.dup2(handle, place)
    os.close(nowhere)
    os.close(last_words)
