"""A supervisor that is killed in the middle of a change: nothing stays behind, and no task is lost."""

from __future__ import annotations

import signal
from pathlib import Path

import anyio
import pytest
from stacks import visitor, write_agent, write_stack
from terminal import PATIENCE, processes_of, program, until, up

_ENV = {"XNAI_LIMITS_ACK_WAIT": "1s"}  # after which the tasks of the killed ones go to others
_SOURCE = """
import anyio
print("importing", flush=True)
@agent.skill
async def rest(number: int) -> int:
    await anyio.sleep(0.2)
    return number
"""
_TASKS = 60


@pytest.mark.parametrize(
    ("words", "moment", "times"),
    [
        (("restart", "own"), "| importing", 3),  # beside two that run, the first new one is starting
        (("restart", "own"), "| ready own", 3),  # it takes tasks, and the old one is to leave
        (("scale", "own", "4"), "| importing", 3),
        (("scale", "own", "1"), "| own is leaving", 1),
    ],
)
async def test_a_supervisor_killed_in_a_change_leaves_nothing_and_loses_no_task(
    tmp_path: Path, words: tuple[str, ...], moment: str, times: int
) -> None:
    write_agent(tmp_path, "own", _SOURCE)
    write_stack(tmp_path, own="replicas = 2\nconcurrency = 2")
    async with up(tmp_path, env=_ENV) as stack:
        async with visitor(tmp_path) as bus:
            ids = [await bus.send("own.rest", number) for number in range(_TASKS)]
        async with program(*words, folder=tmp_path):
            await stack.says(moment, times=times)
            await stack.stop(signal.SIGKILL)
        await until(lambda: processes_of(tmp_path) == {})
    async with up(tmp_path, env=_ENV) as stack, visitor(tmp_path) as bus:
        with anyio.fail_after(PATIENCE):
            for id in ids:
                kinds = [event.kind async for event in bus.subscribe(id)]
                assert kinds.count("outcome") == 1
        answers = [await bus.answer(await bus.task(id), int) for id in ids]
        assert answers == list(range(_TASKS))
        assert await stack.stop() == 0
    assert processes_of(tmp_path) == {}
