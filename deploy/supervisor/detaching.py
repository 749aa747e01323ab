"""`xnai up --detach`: the stack goes on in a session of its own when the command has returned."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import anyio
import msgspec

from xnai.deploy.environment import for_child
from xnai.deploy.supervisor.logfiles import FOLDER

_LAST_WORDS = "xnai.err"


async def start(folder: Path, *options: str) -> dict[str, Any] | int:
    """Start `xnai up` in `folder` and wait until it is ready.

    Until then it prints to our stderr, and ends when we are cancelled. Returns what it says of itself, or its
    exit status if it does not come up.
    """
    command = [sys.executable, "-P", "-m", "xnai.deploy.cli", "up", "--background", *options]
    process = subprocess.Popen(
        command, cwd=folder, env=for_child({}), stdin=DEVNULL, stdout=PIPE, start_new_session=True
    )
    assert process.stdout is not None
    is_ready = False
    try:
        said = await anyio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)
        if not said:
            return await anyio.to_thread.run_sync(process.wait)
        is_ready = True
        facts: dict[str, Any] = msgspec.json.decode(said)
        return facts
    finally:
        if not is_ready and process.poll() is None:
            process.terminate()


def let_go(folder: Path) -> None:
    """Leave the terminal: from now on what the interpreter itself says goes to a file in `folder`."""
    last_words = os.open(folder / FOLDER / _LAST_WORDS, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for handle, place in ((nowhere, 0), (nowhere, 1), (last_words, 2)):
        os.dup2(handle, place)
    os.close(nowhere)
    os.close(last_words)
