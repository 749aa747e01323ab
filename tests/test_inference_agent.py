"""The inference agent on a real bus, with the real embedding model and small GGUFs that generate text."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import anyio
import numpy as np
import pytest
from anyio.abc import TaskStatus
from engines import engine
from gguf_models import write_model

from xnai.agents import serve
from xnai.agents.inference.agent import agent, configure
from xnai.agents.inference.errors import ModelInvalid, ModelMissing
from xnai.agents.inference.minilm import default_cache, prepare_minilm
from xnai.agents.inference.requests import MINILM, Answer, ChatMessage, Embeddings, GenerateRequest, Models
from xnai.agents.inference.wordpieces import WordPieces
from xnai.agents.testing import running
from xnai.bus import Bus, Server, open_bus
from xnai.protocol import InvalidSettings, TaskRejected, TaskState
from xnai.protocol.payload import codec_of

TALKS_FOR_EVER = GenerateRequest(prompt="?", max_tokens=1_000_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def random_model(folder: Path) -> Path:
    return write_model(folder / "random.gguf", seed=1)


@pytest.fixture(scope="module")
def endless_model(folder: Path) -> Path:
    """Says "nono…" until its context is full, which takes it far longer than a test may."""
    return write_model(folder / "endless.gguf", script=["?", "n", "o", "n"], context=1_000_000)


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path) -> None:
    configure({"threads": 1}, tmp_path)


def configure_model(model: Path, context: int = 512, **others: object) -> None:
    settings = {"model": str(model), "context": context, "threads": 1, "slots": 2, "kept": 2}
    configure(settings | others, model.parent / ".xnai")


async def state_at_the_end(bus: Bus, id: str) -> TaskState:
    async for event in bus.subscribe(id):
        if event.kind == "outcome":
            break
    return (await bus.task(id)).status.state


# Embedding


async def test_texts_become_the_vectors_that_the_model_gives_them() -> None:
    texts = ["What does a decorator do?", "한국어", ""]
    path = prepare_minilm(default_cache())
    with engine() as alone:
        alone.open(path, embeds=True)
        wanted = alone.vectors(await WordPieces(path).of(texts))
    with anyio.fail_after(20):
        async with running(agent) as bus:
            answer = await bus.call("inference.embed", texts, Embeddings)
    assert answer.model == MINILM
    assert np.allclose(answer.vectors, wanted, atol=1e-4)


async def test_no_texts_become_no_vectors() -> None:
    with anyio.fail_after(20):
        async with running(agent) as bus:
            assert (await bus.call("inference.embed", [], Embeddings)).vectors == []


async def test_a_caller_that_leaves_frees_the_model_at_once() -> None:
    with anyio.fail_after(20):
        async with running(agent) as bus:
            with anyio.move_on_after(0.5) as left:
                await bus.call("inference.embed", ["a long text " * 100] * 5_000, Embeddings, timeout=600)
            assert left.cancelled_caught
            assert len((await bus.call("inference.embed", ["short"], Embeddings)).vectors) == 1


# Generating


async def test_text_is_streamed_as_it_is_computed(random_model: Path) -> None:
    configure_model(random_model)
    request = GenerateRequest(prompt="Once", max_tokens=40)
    with anyio.fail_after(20):
        async with running(agent) as bus:
            pieces = [piece async for piece in bus.stream("inference.generate", request, str)]
            whole = await bus.call("inference.generate", request, Answer)
    assert len(pieces) > 1
    assert "".join(pieces) == whole.text


async def test_messages_are_answered_by_way_of_the_template_of_the_model(folder: Path) -> None:
    configure_model(write_model(folder / "polite.gguf", script=["\n", "y", "e", "s", "</s>"]))
    request = GenerateRequest(messages=(ChatMessage(role="user", content="Is this a question?"),))
    with anyio.fail_after(20):
        async with running(agent) as bus:
            answer = await bus.call("inference.generate", request, Answer)
    assert (answer.text, answer.finish, answer.tokens_out) == ("yes", "stop", 3)


async def test_a_reader_that_leaves_a_stream_frees_the_model_at_once(endless_model: Path) -> None:
    configure_model(endless_model, context=100_000)
    with anyio.fail_after(20):
        async with running(agent) as bus:
            async with aclosing(bus.stream("inference.generate", TALKS_FOR_EVER, str, id="left")) as pieces:
                assert await anext(pieces)
            assert len((await bus.call("inference.embed", ["next"], Embeddings)).vectors) == 1
            assert await state_at_the_end(bus, "left") is TaskState.CANCELED


async def test_a_deadline_ends_an_answer_with_the_text_there_is(endless_model: Path) -> None:
    configure_model(endless_model, context=100_000)
    with anyio.fail_after(20):
        async with running(agent) as bus:
            answer = await bus.call("inference.generate", TALKS_FOR_EVER, Answer, timeout=2)
            assert (answer.finish, answer.text[:4]) == ("deadline", "onon")
            assert len((await bus.call("inference.embed", ["next"], Embeddings)).vectors) == 1


async def test_a_stream_goes_on_in_the_process_that_takes_it_over(folder: Path, server: Server) -> None:
    configure_model(write_model(folder / "chatty.gguf", seed=1, context=10_000), context=10_000)
    by_chance = GenerateRequest(prompt="Once", max_tokens=2_000, temperature=1.0)

    async def serve_until(told: anyio.Event, *, task_status: TaskStatus[None]) -> None:
        async with (
            open_bus(server.url, token=server.token, name="inference") as own,
            serve(agent, own, drain=0.0),
        ):
            task_status.started()
            await told.wait()

    with anyio.fail_after(30):
        async with open_bus(server.url, token=server.token) as bus, anyio.create_task_group() as tasks:
            first, second = anyio.Event(), anyio.Event()
            await tasks.start(serve_until, first)
            heard = ""
            async for piece in bus.stream("inference.generate", by_chance, str, id="moving"):
                if not heard:
                    first.set()
                    await tasks.start(serve_until, second)
                heard += piece
            kinds = [event.kind async for event in bus.subscribe("moving")]
            second.set()
            (answer,) = (await bus.task("moving")).artifacts
    assert "returned" in kinds
    assert heard == codec_of(Answer).read(answer.parts).text


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (GenerateRequest(), "either a prompt or messages"),
        (GenerateRequest(prompt="a", messages=(ChatMessage(role="user", content="b"),)), "either a prompt"),
        (GenerateRequest(prompt="a" * 1000), "the prompt has"),
        (GenerateRequest(prompt="a", max_tokens=0), "max_tokens must be at least 1"),
    ],
)
async def test_a_request_that_can_never_succeed_is_refused_with_the_reason(
    random_model: Path, request_: GenerateRequest, reason: str
) -> None:
    configure_model(random_model)
    with anyio.fail_after(20):
        async with running(agent) as bus:
            with pytest.raises(TaskRejected, match=reason):
                await bus.call("inference.generate", request_, Answer)


# What is open


async def test_without_a_generation_model_a_request_is_refused_and_says_what_to_set() -> None:
    with anyio.fail_after(20):
        async with running(agent) as bus:
            found = await bus.call("inference.models", None, Models)
            assert (found.embedding, found.dimensions, found.generation) == (MINILM, 384, None)
            with pytest.raises(TaskRejected, match=r"\[agents.inference.settings\] model = "):
                await bus.call("inference.generate", GenerateRequest(prompt="Once"), Answer)


async def test_a_model_is_found_beside_the_folder_of_the_stack(random_model: Path) -> None:
    configure({"model": random_model.name, "context": 256, "threads": 1}, random_model.parent / ".xnai")
    with anyio.fail_after(20):
        async with running(agent) as bus:
            models = await bus.call("inference.models", None, Models)
    assert (models.generation, models.context) == ("random", 256)


async def test_a_damaged_model_is_an_error_of_the_start(folder: Path) -> None:
    damaged = folder / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + bytes(100))
    configure_model(damaged)
    with anyio.fail_after(20), pytest.raises(ModelInvalid, match=r"damaged\.gguf"):
        async with running(agent):
            pass


async def test_a_model_that_is_not_there_is_an_error_of_the_start(folder: Path) -> None:
    configure_model(folder / "missing.gguf")
    with anyio.fail_after(20), pytest.raises(ModelMissing, match=r"missing\.gguf"):
        async with running(agent):
            pass


@pytest.mark.parametrize("settings", [{"modle": "a.gguf"}, {"context": 0}, {"threads": "many"}])
def test_settings_that_cannot_be_used_are_refused_by_name(
    settings: dict[str, object], tmp_path: Path
) -> None:
    (name,) = settings
    with pytest.raises(InvalidSettings, match=rf"\[agents\.inference\.settings\] {name}: "):
        configure(settings, tmp_path)
