"""The engine in its process: what dies is started again, nothing is lost, no token comes twice.

Faults that are hard to make real come from `scripted_engine.py`, which speaks the same frames.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from terminal import is_there, until

from xnai.agents.inference.engine_client import Engine, open_engine
from xnai.agents.inference.errors import EngineLost
from xnai.agents.inference.frames import Count, Done, Embed, Generate, Open, Setup, Text
from xnai.protocol import Reject

SCRIPTED = (sys.executable, str(Path(__file__).with_name("scripted_engine.py")))
MODEL = Open("m", "/models/m")


def scripted(folder: Path, *models: Open, patience: float = 600.0) -> AbstractAsyncContextManager[Engine]:
    return open_engine(Setup(folder=str(folder)), models or (MODEL,), command=SCRIPTED, patience=patience)


def ask(prompt: str, max_tokens: int = 1000) -> Generate:
    return Generate(0, "m", (prompt,), True, max_tokens)


async def text_of(engine: Engine, prompt: str) -> str:
    """The whole answer, of which no piece may be half a character."""
    pieces = []
    async with aclosing(engine.generate(ask(prompt))) as answers:
        async for answer in answers:
            if isinstance(answer, Text):
                pieces.append(answer.text)
    return "".join(pieces)


def kill(engine: Engine) -> None:
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)


async def test_an_answer_comes_in_whole_characters_and_ends_with_its_figures(tmp_path: Path) -> None:
    with anyio.fail_after(20):
        async with scripted(tmp_path) as engine:
            answers = [answer async for answer in engine.generate(ask("héé"))]
            assert engine.opened["m"].slots == 1
    assert [answer.text for answer in answers if isinstance(answer, Text)] == ["h", "", "é", "", "é"]
    assert isinstance(answers[-1], Done)
    assert (answers[-1].finish, answers[-1].tokens_out) == ("stop", 5)


async def test_the_other_questions_have_their_answers_too(tmp_path: Path) -> None:
    with anyio.fail_after(20):
        async with scripted(tmp_path) as engine:
            assert len((await engine.embed(Embed(0, "m", ((1, 2), (3,))))).data) == 8
            assert len((await engine.count(Count(0, "m", ("abc",)))).data) == 12
            assert (await engine.status()).running == 0


async def test_what_an_engine_refuses_is_rejected_with_its_code_and_its_time(tmp_path: Path) -> None:
    with anyio.fail_after(20):
        async with scripted(tmp_path) as engine:
            with pytest.raises(Reject) as caught:
                await text_of(engine, "busy")
            assert (caught.value.code, caught.value.retry_after) == ("busy", 2.5)


async def test_a_model_that_cannot_be_opened_is_an_error_of_the_start(tmp_path: Path) -> None:
    with anyio.fail_after(20):
        with pytest.raises(Reject, match="no /models/missing") as caught:
            async with scripted(tmp_path, Open("m", "/models/missing")):
                pass
    assert caught.value.code == "model_missing"


async def test_a_model_that_is_asked_for_later_is_opened_then(tmp_path: Path) -> None:
    with anyio.fail_after(20):
        async with scripted(tmp_path) as engine:
            assert (await engine.open(Open("n", "/models/n", context=77))).context == 77
            with pytest.raises(Reject):
                await engine.open(Open("o", "/models/missing"))
            assert set(engine.opened) == {"m", "n"}


# Its death


@pytest.mark.parametrize(
    "prompt", ["so far|, and on", "half a character: ½.", "🙂🙂|🙂", "|at once", "? in the queue"]
)
async def test_what_a_dead_engine_had_in_hand_goes_on_where_it_stood(tmp_path: Path, prompt: str) -> None:
    answers: list[str] = []

    async def listen(engine: Engine) -> None:
        answers.append(await text_of(engine, prompt))

    with anyio.fail_after(30):
        async with scripted(tmp_path) as engine:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen, engine)
                await until((tmp_path / "held").exists)
                kill(engine)
            assert engine.restarts == 1
    assert answers == [prompt]


async def test_an_engine_that_dies_as_it_opens_a_model_opens_it_again(tmp_path: Path) -> None:
    with anyio.fail_after(30):
        async with scripted(tmp_path, MODEL, Open("n", "/models/deadly-once")) as engine:
            assert set(engine.opened) == {"m", "n"}
            assert engine.restarts == 1


async def test_a_model_that_the_engine_dies_of_twice_is_refused_and_the_others_stay(tmp_path: Path) -> None:
    with anyio.fail_after(30):
        async with scripted(tmp_path) as engine:
            with pytest.raises(Reject, match="died 2 times while it opened /models/deadly") as caught:
                await engine.open(Open("n", "/models/deadly"))
            assert caught.value.code == "model_invalid"
            assert await text_of(engine, "still here") == "still here"


async def test_a_request_that_the_engine_dies_of_twice_is_refused_and_named_by_its_hash(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with anyio.fail_after(30), caplog.at_level(logging.ERROR):
        async with scripted(tmp_path) as engine:
            with pytest.raises(Reject) as caught:
                await text_of(engine, "so far †")
            assert caught.value.code == "poison"
            assert engine.restarts == 2
            assert await text_of(engine, "still here") == "still here"
    digest = str(caught.value).rsplit(" ", 1)[1].strip(").")
    assert len(digest) == 64
    assert digest in caplog.text
    assert any(
        "was ended by SIGKILL: it does not like this prompt" in record.getMessage()
        for record in caplog.records
    )


async def test_requests_that_only_waited_are_not_blamed(tmp_path: Path) -> None:
    waited: list[str] = []

    async def wait(engine: Engine) -> None:
        waited.append(await text_of(engine, "? patient"))

    with anyio.fail_after(30):
        async with scripted(tmp_path) as engine, anyio.create_task_group() as tasks:
            tasks.start_soon(wait, engine)
            await until((tmp_path / "held").exists)
            with pytest.raises(Reject):
                await text_of(engine, "†")
    assert waited == ["? patient"]


async def test_bytes_that_are_no_frame_end_the_engine_and_then_the_request(
    tmp_path: Path,
) -> None:
    with anyio.fail_after(30):
        async with scripted(tmp_path) as engine:
            with pytest.raises(Reject) as caught:
                await text_of(engine, "a~b")
            assert caught.value.code == "poison"
            assert await text_of(engine, "still here") == "still here"


async def test_an_engine_that_says_nothing_any_more_is_killed(tmp_path: Path) -> None:
    with anyio.fail_after(30):
        async with scripted(tmp_path, patience=3.0) as engine:
            assert await text_of(engine, "so … far") == "so … far"
            assert engine.restarts >= 1


async def test_an_engine_that_dies_whenever_it_starts_is_given_up(tmp_path: Path) -> None:
    script = "import sys; sys.exit('no library')"
    with anyio.fail_after(30):
        with pytest.raises(BaseExceptionGroup) as caught:
            async with open_engine(Setup(), [MODEL], command=(sys.executable, "-c", script)):
                pass
    (error,) = leaves(caught.value)
    assert isinstance(error, EngineLost)
    assert "died 6 times in a row" in str(error)
    assert "exited with status 1: no library" in str(error)


def leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for one in error.exceptions for leaf in leaves(one)]


# Leaving


async def test_whoever_leaves_an_answer_drops_it(tmp_path: Path) -> None:
    with anyio.fail_after(20):
        async with scripted(tmp_path) as engine:
            with anyio.move_on_after(0) as scope:
                await text_of(engine, "|")
            assert scope.cancelled_caught
            async with aclosing(engine.generate(ask("so far|, and on"))) as answers:
                await anext(answers)
                assert (await engine.status()).running == 1
            assert (await engine.status()).running == 0


async def test_an_engine_that_is_closed_is_gone(tmp_path: Path) -> None:
    with anyio.fail_after(20):
        async with scripted(tmp_path) as engine:
            pid = engine.pid
            assert pid is not None
        assert not is_there(pid)


async def test_an_agent_that_is_killed_takes_its_engine_along(tmp_path: Path) -> None:
    script = f"""
import anyio
from pathlib import Path
from xnai.agents.inference.engine_client import open_engine
from xnai.agents.inference.frames import Open, Setup

async def main():
    async with open_engine(Setup(folder={str(tmp_path)!r}), [Open("m", "m")], command={SCRIPTED!r}) as engine:
        print(engine.pid, flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""
    with anyio.fail_after(30):
        async with await anyio.open_process([sys.executable, "-c", script], stderr=None) as agent:
            assert agent.stdout is not None
            pid = int(await agent.stdout.receive())
            assert is_there(pid)
            agent.send_signal(signal.SIGKILL)
            await agent.wait()
            await until(lambda: not is_there(pid))
