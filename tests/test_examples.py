"""The examples as their readers run them: beside a stack's settings, with the commands that stand in them."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from pathlib import Path

import msgspec
import pytest
from gguf_models import write_model
from terminal import EXAMPLES, SMALL, Done, command, copy_examples, program, up

PYTHON = (sys.executable,)
TRIED = {"caller.py", "critic.py", "hello.py", "maths.py"}
CALLER = re.compile(
    r"double of 21: 42\n"
    r"event \d+: outcome\n"
    r"task: TASK_STATE_COMPLETED\n"
    r"chunk: 1 \nchunk: 2 \nchunk: 3 \n"
    r"task: TASK_STATE_CANCELED\n"
).fullmatch


def commands_in(example: str) -> list[list[str]]:
    """The words of the commands that the docstring of an example shows, without `xnai` or `python`."""
    shown = ast.get_docstring(ast.parse((EXAMPLES / example).read_text())) or ""
    return [shlex.split(line) for line in re.findall(r"`(?:xnai|python) ([^`]+)`", shown.replace("\n", " "))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the examples, whose stack runs the one that serves."""
    copy_examples(tmp_path)
    (tmp_path / "xnai.toml").write_text(f'{SMALL}\n[agents.maths]\nmodule = "examples/maths.py"\n')
    (tmp_path / "notes" / "today").mkdir(parents=True)
    return tmp_path


def test_no_example_is_without_a_test() -> None:
    assert {file.name for file in EXAMPLES.iterdir() if file.suffix == ".py"} == TRIED


async def test_the_caller_prints_what_it_promises_from_any_folder_of_the_stack(folder: Path) -> None:
    below = folder / "notes" / "today"
    async with up(folder), program("run", "examples/maths.py", folder=folder) as another:
        await another.prints("ready maths")
        for place, file in ((folder, "examples/caller.py"), (below, "../../examples/caller.py")):
            done = await command(file, folder=place, program=PYTHON)
            assert (done.status, done.err) == (0, "")
            assert CALLER(done.out), done.out
        assert await another.stop() == 0


async def test_without_a_stack_the_caller_says_how_to_start_one(folder: Path) -> None:
    done = await command("examples/caller.py", folder=folder, program=PYTHON)
    assert done.status == 1
    assert "Start one with: xnai up" in done.err.splitlines()[-1]


async def test_each_command_that_stands_in_an_example_works(folder: Path) -> None:
    (folder / "xnai.toml").write_text(f"{SMALL}\n[agents]\n")
    below = folder / "notes"
    (run_maths, call_maths), (run_hello, call_hello) = commands_in("maths.py"), commands_in("hello.py")
    run, caller = commands_in("caller.py")
    assert run == run_maths
    async with (
        up(folder),
        program(*run_maths, folder=folder) as maths,
        program(*run_hello, folder=folder) as hello,
    ):
        await maths.prints("ready maths")
        await hello.prints("ready hello")
        assert await command(*call_maths, folder=folder) == Done(0, "42\n", "")
        assert await command(*call_hello, folder=below) == Done(0, "Hello, World!\n", "")
        done = await command("call", "maths.count", "3", "--stream", folder=below)
        assert done == Done(0, "1 2 3 \n", "")
        done = await command(*caller, folder=folder, program=PYTHON)
        assert (done.status, done.err) == (0, "")
        assert CALLER(done.out), done.out
        assert (await maths.stop(), await hello.stop()) == (0, 0)
    assert (maths.out, maths.err) == (["ready maths"], ["maths is leaving"])
    assert (hello.out, hello.err) == (["ready hello"], ["hello is leaving"])


async def test_the_critic_streams_what_the_shared_model_writes_and_ends_with_a_judgement(
    folder: Path,
) -> None:
    write_model(folder / "random.gguf", seed=1)
    model = '[agents.inference.settings]\nmodel = "random.gguf"\ncontext = 512\nslots = 2\n'
    (folder / "xnai.toml").write_text(f"{SMALL}\n{model}")
    run, call = commands_in("critic.py")
    async with up(folder), program(*run, folder=folder) as critic:
        await critic.prints("ready critic")
        streamed = await command(*call, folder=folder)
        assert (streamed.status, streamed.err) == (0, "")
        called = await command(*(word for word in call if word != "--stream"), folder=folder)
        judgement = msgspec.json.decode(called.out)
        assert msgspec.json.decode(streamed.out) == judgement
        assert judgement["mood"] in ("good", "bad", "mixed")
        assert judgement["stars"] in range(1, 6)
