"""The settings of a stack, read by a process of their own: the model that checks them takes 8 MB."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import msgspec

from xnai.deploy.environment import variables
from xnai.deploy.output import show
from xnai.protocol.errors import InvalidSettings

if TYPE_CHECKING:
    from xnai.deploy.plan import Plan
    from xnai.deploy.starting import Started, Starter


async def read_plan(starter: Starter, file: Path | None) -> Plan:
    """What the settings in `file`, and our variables above them, want a stack to be.

    Raises:
        InvalidSettings: one cannot be used.
    """
    from xnai.deploy.plan import Plan

    words = [str(file)] if file else []
    process = await starter.start(__name__, words, cwd=os.getcwd(), env={})
    try:
        said, complaint = await _listen(process)
    finally:
        if process.returncode is None:
            process.terminate()
            with anyio.CancelScope(shield=True):
                await process.wait()
    try:
        answer = msgspec.json.decode(said, type=Plan | str)
    except msgspec.MsgspecError as error:
        raise InvalidSettings(f"The settings could not be read: {complaint or error}.") from error
    if isinstance(answer, str):
        raise InvalidSettings(answer)
    return answer


async def _listen(process: Started) -> tuple[bytes, str]:
    """What it printed, and its last line on stderr."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    async with process.stdin, process.stdout, process.stderr:
        said = b"".join([data async for data in process.stdout])
        rest = b"".join([data async for data in process.stderr])
    await process.wait()
    return said, rest.decode(errors="replace").strip().rpartition("\n")[2]


def main(words: Sequence[str]) -> None:
    """Print the plan, or the sentence that says what is wrong, as JSON."""
    from xnai.deploy.settings import read_settings

    try:
        show(read_settings(Path(words[0]) if words else None, variables()).plan(), as_json=True)
    except InvalidSettings as error:
        show(str(error), as_json=True)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
