"""The inference agent: the local models, for everybody on the bus.

Requests are handed to the engine at once, whose queue decides who goes first: hence the concurrency, which is
above the engine's limits, so that it can refuse what is too much instead of letting it wait here.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from xnai.agents import Agent, Context, Reject, Whole
from xnai.agents.inference.asking import LANES, begins, completed, prompt_pieces, read_request, same_answer
from xnai.agents.inference.catalogue import Catalogue
from xnai.agents.inference.computing import Answers
from xnai.agents.inference.engine_client import Engine, open_engine
from xnai.agents.inference.errors import InferenceError
from xnai.agents.inference.frames import Count, Embed, Open, Vectors
from xnai.agents.inference.memory import give_back
from xnai.agents.inference.minilm import default_cache, prepare_minilm
from xnai.agents.inference.requests import (
    MINILM,
    Answer,
    CountRequest,
    Embeddings,
    GenerateRequest,
    InferenceStatus,
    Models,
)
from xnai.agents.inference.reusing import AnswerCache, MemoryStore, Store
from xnai.agents.inference.settings import (
    InferenceSettings,
    ModelSettings,
    configure,
    open_frame,
    setup_frame,
)
from xnai.agents.inference.waiting import Waiting
from xnai.agents.inference.wordpieces import LONGEST, WordPieces
from xnai.bus.background import background_tasks
from xnai.protocol import InvalidPayload, InvalidSettings

__all__ = ["InferenceSettings", "ModelSettings", "agent", "configure"]

_LONGEST_ANSWER = 3600.0  # seconds
_COALESCE = 1.0  # seconds of chunks in a stored event; each has left at once, and storing takes the cores
_DECIMALS = 7  # of a vector's numbers: what float32 holds of them, in half of the bytes
_TEXTS = 256  # that are asked for in one frame

agent = Agent(
    "inference", description="The local models: text and embeddings", version="0.2.0", concurrency=512
)


class Service:
    """What the skills share."""

    def __init__(
        self,
        engine: Engine,
        catalogue: Catalogue,
        pieces: WordPieces,
        answers: Answers,
        *,
        weights: dict[str, float],
    ) -> None:
        self.engine, self.catalogue, self.pieces, self.answers = engine, catalogue, pieces, answers
        self.waiting = Waiting()
        self.answered = self.refused = 0
        self._weights = weights
        self._busy, self._looked = 0.0, time.monotonic()

    def weight(self, sender: str) -> float:
        return self._weights.get(sender, 1.0)

    def load(self, busy: float) -> float:
        """The share of the time since the last look in which the engine computed."""
        now = time.monotonic()
        share = (busy - self._busy) / max(now - self._looked, 1e-3)
        self._busy, self._looked = busy, now
        return min(1.0, max(0.0, share))

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count a request, and reject what can never succeed.

        Raises:
            Reject: it can not, or not now.
        """
        try:
            yield
        except Reject:
            self.refused += 1
            raise
        except (InferenceError, InvalidPayload) as error:
            if type(error) is InferenceError:  # trying again may help
                raise
            self.refused += 1
            raise Reject(str(error), code=error.code) from error
        self.answered += 1


@agent.lifespan
async def hold_models() -> AsyncIterator[Service]:
    """The first models are opened before the first task: a damaged file is an error of the start."""
    settings = configure.settings
    embedding = await anyio.to_thread.run_sync(_embedding_frame, settings)
    pieces = await anyio.to_thread.run_sync(_word_pieces, settings, Path(embedding.path))
    texts = {
        name: open_frame(name, model, later=number > 0)
        for number, (name, model) in enumerate(settings.all_models().items())
    }
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(open_engine(setup_frame(settings)))
        tasks = await stack.enter_async_context(background_tasks())
        store = await stack.enter_async_context(_open_store(settings))
        catalogue = Catalogue(engine, embedding, texts)
        for model in filter(None, (catalogue.embedding, catalogue.default)):
            await catalogue.open(model)
        answers = Answers(engine, AnswerCache(store) if store else None, tasks)
        service = Service(engine, catalogue, pieces, answers, weights=settings.weights)
        tasks.start_soon(service.waiting.run)
        give_back()
        yield service


def _embedding_frame(settings: InferenceSettings) -> Open:
    if settings.embedding_model is None:
        name, path = MINILM, prepare_minilm(default_cache())
    else:
        path = configure.path(settings.embedding_model)
        name = path.stem
    return Open(name, str(path), embeds=True, context=LONGEST)


def _word_pieces(settings: InferenceSettings, path: Path) -> WordPieces:
    pieces = WordPieces(path)
    if settings.embedding_model is not None:
        pieces.open()  # a damaged file is an error of the start; that of the default is our own
    return pieces


@asynccontextmanager
async def _open_store(settings: InferenceSettings) -> AsyncIterator[Store | None]:
    """Where answers are remembered, if they are."""
    size = settings.cache_size << 20
    if not settings.cache:
        yield None
    elif settings.redis is None:
        yield MemoryStore(ttl=settings.cache, size=size)
    else:
        from xnai.agents.inference.redis_store import open_redis_store  # an extra that few install

        async with AsyncExitStack() as stack:
            try:
                opening = open_redis_store(settings.redis, ttl=settings.cache, size=size)
                store = await stack.enter_async_context(opening)
            except ValueError as error:
                raise InvalidSettings(f"[agents.inference.settings] redis: {error}.") from error
            yield store


@agent.skill(tags=["model"], cap=_LONGEST_ANSWER, coalesce=_COALESCE)
async def generate(request: GenerateRequest, ctx: Context) -> AsyncIterator[str | Whole[Answer]]:
    """Text by a model, as it is computed, and at last all that is to be said of it."""
    service: Service = ctx.state
    task = ctx.task
    with service.counting(), service.waiting.place(ctx) as place:
        model = await service.catalogue.text(request.model)
        weight = service.weight(task.sender)
        asked = read_request(request, model, task, weight=weight, left=ctx.time_left)
        answer = service.answers.stream(
            asked,
            model,
            same_answer(request, asked.frame, model),
            tell=place,
            complete=partial(completed, request=request),
        )
        async with aclosing(answer) as parts:
            async for part in parts:
                yield part if isinstance(part, str) else Whole(part)


@agent.skill(tags=["model"])
async def embed(texts: list[str], ctx: Context) -> Embeddings:
    """A vector for each text, by the embedding model. Only the first 256 word pieces of a text count."""
    service: Service = ctx.state
    task, model = ctx.task, service.catalogue.embedding
    vectors: list[list[float]] = []
    with service.counting():
        await service.catalogue.open(model)
        for at in range(0, len(texts), _TEXTS):
            frame = Embed(
                0,
                model.name,
                await service.pieces.of(texts[at : at + _TEXTS]),
                sender=task.sender,
                lane=LANES[task.lane],
                weight=service.weight(task.sender),
                deadline=ctx.time_left,
            )
            vectors += _numbers(await service.engine.embed(frame))
    return Embeddings(model=model.name, vectors=vectors)


def _numbers(said: Vectors) -> list[list[float]]:
    numbers = array("f", said.data)
    rounded = [round(number, _DECIMALS) for number in numbers]
    return [rounded[at : at + said.dimensions] for at in range(0, len(rounded), said.dimensions)]


@agent.skill(tags=["model"])
async def tokenize(request: CountRequest, ctx: Context) -> list[int]:
    """The tokens that a text, or a conversation, is for a model."""
    service: Service = ctx.state
    with service.counting():
        model = await service.catalogue.text(request.model)
        pieces = prompt_pieces(request.text, request.messages, model)
        found = await service.engine.count(Count(0, model.name, pieces, begins(pieces, model)))
    return list(array("i", found.data))


@agent.skill(tags=["model"])
async def count(request: CountRequest, ctx: Context) -> int:
    """How many tokens that are."""
    return len(await tokenize(request, ctx))


@agent.skill(tags=["model"])
async def models(ctx: Context) -> Models:
    """Which models there are, and which are open."""
    catalogue: Catalogue = ctx.state.catalogue
    default, embedding = catalogue.default, catalogue.embedding
    return Models(
        embedding=embedding.name,
        dimensions=embedding.opened.dimensions if embedding.opened else 0,
        generation=default.name if default else None,
        context=default.opened.context if default and default.opened else 0,
        models=catalogue.facts(),
    )


@agent.skill(tags=["model"])
async def status(ctx: Context) -> InferenceStatus:
    """How things stand: who computes, who waits, how fast it goes."""
    service: Service = ctx.state
    said = await service.engine.status()
    return InferenceStatus(
        running=said.running,
        waiting=said.waiting,
        paused=said.paused,
        waiting_tokens=said.waiting_tokens,
        slots=said.slots,
        threads=said.threads,
        prefill=said.prefill,
        decode=said.decode,
        answered=service.answered,
        refused=service.refused,
        generated=said.generated,
        prompts=said.prompts,
        prompt_hits=said.hits,
        prompt_tokens=said.prompt_tokens,
        hit_tokens=said.hit_tokens,
        shared=service.answers.shared,
        reused=service.answers.reused,
        memory=said.memory,
        restarts=service.engine.restarts,
        load=service.load(said.busy),
    )
