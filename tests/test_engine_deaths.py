"""The real engine, killed wherever it may be: every answer is what it would have been.

An engine that is fast, or an agent that is slow, may have said all before the signal comes: then the answer
is right too, so how often it was started again is not asked.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path

import anyio
import pytest
from gguf_models import write_model
from terminal import is_there, until

from xnai.agents.inference.engine_client import Engine, open_engine
from xnai.agents.inference.frames import Done, Generate, Open, Sampling, Setup, Text
from xnai.protocol import Reject

SMILING = ["?", "H", "e", "l", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>", "w", "<0xC3>", "<0xB6>", "r", "</s>"]


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bytes are mostly no text at all."""
    return write_model(tmp_path_factory.mktemp("models") / "random.gguf", seed=3, context=2_000)


@pytest.fixture(scope="module")
def smiling_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "smiling.gguf", script=SMILING)


@pytest.fixture(scope="module")
def endless_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says "nono…" for longer than a signal can take."""
    folder = tmp_path_factory.mktemp("models")
    return write_model(folder / "endless.gguf", script=["?", "n", "o", "n"], context=100_000)


def engine_with(path: Path, slots: int = 2, context: int = 1_000) -> AbstractAsyncContextManager[Engine]:
    """Whatever it says leaves at once."""
    model = Open("m", str(path), context=context, slots=slots, kept=0)
    return open_engine(Setup(threads=1, flush=0.0), [model], patience=600.0)


def ask(prompt: str, tokens: int, **options: object) -> Generate:
    return Generate(0, "m", (prompt,), True, tokens, **options)  # type: ignore[arg-type]


async def answer(
    engine: Engine, frame: Generate, after: Callable[[Text], object] = lambda _: None
) -> tuple[str, tuple[int, ...], Done]:
    """The text, the tokens and the end of an answer; `after` is called after each piece."""
    text, tokens = "", ()
    async with aclosing(engine.generate(frame)) as said:
        async for one in said:
            if isinstance(one, Text):
                text += one.text
                tokens += one.tokens  # type: ignore[assignment]
                after(one)
            elif isinstance(one, Done):
                return text, tokens, one
    raise AssertionError("an answer without an end")


def kill(engine: Engine) -> None:
    if engine.pid is not None:
        os.kill(engine.pid, signal.SIGKILL)


def once(do: Callable[[], None], when: Callable[[Text], bool]) -> Callable[[Text], None]:
    """Does it after the first piece of this kind."""
    done = False

    def after(piece: Text) -> None:
        nonlocal done
        if not done and when(piece):
            done = True
            do()

    return after


async def test_an_answer_that_the_engine_died_in_is_the_one_it_would_have_been(random_model: Path) -> None:
    with anyio.fail_after(60):
        async with engine_with(random_model) as engine:
            for options in ({}, {"sampling": Sampling(temperature=0.8, seed=7, repeat_penalty=1.2)}):
                frame = ask("Once", 60, **options)
                wanted = await answer(engine, frame)
                found = await answer(engine, frame, once(lambda: kill(engine), lambda piece: True))
                assert found[2].tokens_out == len(found[1])
                if not options:
                    assert found[:2] == wanted[:2]


async def test_half_a_character_that_the_engine_died_with_is_whole_afterwards(smiling_model: Path) -> None:
    with anyio.fail_after(60):
        async with engine_with(smiling_model) as engine:
            held_back = once(lambda: kill(engine), lambda piece: bool(piece.tokens) and not piece.text)
            text, tokens, done = await answer(engine, ask("?", 50), held_back)
    assert (text, len(tokens), done.finish) == ("Hel🙂wör", 11, "stop")


async def test_a_stop_string_that_the_engine_died_within_is_found(smiling_model: Path) -> None:
    with anyio.fail_after(60):
        async with engine_with(smiling_model) as engine:
            begun = once(lambda: kill(engine), lambda piece: len(piece.tokens) == 1 and piece.text == "")
            text, _, done = await answer(engine, ask("?", 50, stop=("el🙂",)), begun)
    assert (text, done.finish) == ("H", "stop")


async def test_requests_that_ran_and_waited_have_all_their_answers(random_model: Path) -> None:
    prompts = [f"{number} times" for number in range(6)]
    texts: dict[str, str] = {}

    async def one(engine: Engine, prompt: str, after: Callable[[Text], object]) -> None:
        texts[prompt], *_ = await answer(engine, ask(prompt, 40), after)

    with anyio.fail_after(60):
        async with engine_with(random_model, slots=1) as engine:
            wanted = {prompt: (await answer(engine, ask(prompt, 40)))[0] for prompt in prompts}
            after = once(lambda: kill(engine), lambda piece: True)
            async with anyio.create_task_group() as tasks:
                for prompt in prompts:
                    tasks.start_soon(one, engine, prompt, after)
    assert texts == wanted


async def test_a_request_that_the_engine_dies_of_twice_is_refused(endless_model: Path) -> None:
    with anyio.fail_after(60):
        async with engine_with(endless_model, slots=1, context=100_000) as engine:
            deaths: set[int | None] = set()

            def die(piece: Text) -> None:
                if engine.pid not in deaths:
                    deaths.add(engine.pid)
                    kill(engine)

            with pytest.raises(Reject, match="SHA-256") as caught:
                await answer(engine, ask("?", 90_000), die)
            assert caught.value.code == "poison"
            assert (await answer(engine, ask("?", 5)))[2].finish == "length"


async def test_an_engine_that_is_killed_while_it_loads_loads_again(random_model: Path) -> None:
    with anyio.fail_after(60):
        async with open_engine(Setup(threads=1), patience=600.0) as engine:
            model = Open("m", str(random_model), context=1_000, slots=2, kept=1)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(engine.open, model)
                await until(lambda: engine.pid is not None)
                kill(engine)
            assert (await answer(engine, ask("Once", 5)))[2].finish == "length"


async def test_an_agent_that_is_killed_takes_a_busy_engine_along(endless_model: Path) -> None:
    script = f"""
import anyio
from xnai.agents.inference.engine_client import open_engine
from xnai.agents.inference.frames import Generate, Open, Setup

async def main():
    model = Open("m", {str(endless_model)!r}, context=100_000, slots=1, kept=0)
    async with open_engine(Setup(threads=1), [model]) as engine:
        async for _ in engine.generate(Generate(0, "m", ("?",), True, 90_000)):
            print(engine.pid, flush=True)

anyio.run(main)
"""
    with anyio.fail_after(60):
        async with await anyio.open_process([sys.executable, "-c", script], stderr=None) as agent:
            assert agent.stdout is not None
            pid = int((await agent.stdout.receive()).split()[0])
            agent.send_signal(signal.SIGKILL)
            await agent.wait()
            await until(lambda: not is_there(pid))
