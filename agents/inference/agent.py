"""The inference agent: alone owns llama.cpp, and takes one request at a time.

Requests wait in the agent's queue at the broker, where lanes order them, rather than in this process: hence
a concurrency of one. Whoever sets another one gets turns all the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
import numpy as np

from xnai.agents import Agent, Context, Reject
from xnai.agents.inference.embedding import EmbeddingModel, open_embedding_model
from xnai.agents.inference.errors import ModelInvalid, ModelMissing, PromptTooLong, TemplateFailed
from xnai.agents.inference.generation import Generation, GenerationModel, open_generation_model
from xnai.agents.inference.llama import CancelFlag
from xnai.agents.inference.minilm import default_cache, prepare_minilm
from xnai.agents.inference.requests import MINILM, Embeddings, GenerateRequest, Models
from xnai.agents.settings import AgentSettings, Configuration, Positive
from xnai.protocol import InvalidPayload

NO_MODEL = (
    "No generation model is configured. Name one in xnai.toml: "
    '[agents.inference.settings] model = "path/to/model.gguf"'
)
_HOPELESS = (ModelMissing, ModelInvalid, TemplateFailed, PromptTooLong, InvalidPayload)
_DECIMALS = 7  # of a vector's numbers: what float32 holds of them, in half of the bytes

T = TypeVar("T")


class InferenceSettings(AgentSettings):
    """`[agents.inference.settings]`.

    Attributes:
        model: a GGUF that generates text; without one the agent only embeds.
        context: the most tokens of a prompt and its answer together.
        threads: of a computation; by default as many as there are physical cores.
        embedding_model: a GGUF made for embeddings, its tokenizer beside it, in the place of the default.
    """

    model: Path | None = None
    context: Positive = 4096
    threads: Positive | None = None
    embedding_model: Path | None = None


agent = Agent("inference", description="The local model: embeddings and text", version="0.1.0", concurrency=1)
configure = Configuration("inference", InferenceSettings)


class Engine:
    """The open models, and a thread that computes with them.

    Attributes:
        turn: held by the request that computes, from its first token to its last.
    """

    def __init__(self, models: Models, embedding: EmbeddingModel, generation: GenerationModel | None) -> None:
        self.models, self.embedding, self.generation = models, embedding, generation
        self.turn = anyio.Semaphore(1)
        self._threads = anyio.CapacityLimiter(1)

    async def compute(self, function: Callable[[], T], flag: CancelFlag) -> T:
        """What the function returns, in a thread. Canceled, it sets the flag and waits for the thread's end.

        Raises:
            Reject: the request can never succeed.
        """
        ended = anyio.Event()
        result: T | Exception

        async def work() -> None:
            nonlocal result
            try:
                result = await anyio.to_thread.run_sync(function, limiter=self._threads)
            except Exception as error:  # raised again below, where it does not become an ExceptionGroup
                result = error
            finally:
                ended.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            try:
                await ended.wait()
            except anyio.get_cancelled_exc_class():
                flag.set()
                raise
        if isinstance(result, _HOPELESS):
            raise Reject(str(result)) from result
        if isinstance(result, Exception):
            raise result
        return result


@agent.lifespan
async def hold_models() -> AsyncIterator[Engine]:
    """Both models are opened before the first task; a missing or damaged file is an error of the start."""
    with ExitStack() as stack:
        yield await anyio.to_thread.run_sync(stack.enter_context, _open_models(configure.settings))


@contextmanager
def _open_models(settings: InferenceSettings) -> Iterator[Engine]:
    if settings.embedding_model is None:
        name, path = MINILM, prepare_minilm(default_cache())
    else:
        path = configure.path(settings.embedding_model)
        name = path.stem
    with ExitStack() as stack:
        embedding = stack.enter_context(open_embedding_model(path, threads=settings.threads))
        generation = None
        if settings.model is not None:
            opening = open_generation_model(
                configure.path(settings.model), context=settings.context, threads=settings.threads
            )
            generation = stack.enter_context(opening)
        models = Models(
            embedding=name,
            dimensions=embedding.dimensions,
            generation=settings.model.stem if settings.model else None,
            context=generation.context if generation else 0,
        )
        yield Engine(models, embedding, generation)


@agent.skill(tags=["model"])
async def models(ctx: Context) -> Models:
    """Which models are open here."""
    engine: Engine = ctx.state
    return engine.models


@agent.skill(tags=["model"])
async def embed(texts: list[str], ctx: Context) -> Embeddings:
    """A vector for each text, by the embedding model. Only the first 256 word pieces of a text count."""
    engine: Engine = ctx.state
    flag = CancelFlag()
    async with engine.turn:
        vectors = await engine.compute(lambda: engine.embedding.embed(texts, cancel=flag), flag)
    rounded: list[list[float]] = np.round(vectors.astype(np.float64), _DECIMALS).tolist()
    return Embeddings(model=engine.models.embedding, vectors=rounded)


@agent.skill(tags=["model"])
async def generate(request: GenerateRequest, ctx: Context) -> AsyncIterator[str]:
    """Text by the generation model, as it is computed."""
    engine: Engine = ctx.state
    model, flag = engine.generation, CancelFlag()
    if model is None:
        raise Reject(NO_MODEL)
    if (request.prompt is None) == (not request.messages):
        raise Reject("Give either a prompt or messages.")
    # A later attempt has to say the same again, or whoever reads the stream could not go on with it.
    seed = request.seed if request.seed is not None else _seed(ctx.task.id)

    def begin() -> Generation:
        return model.generate(
            request.prompt if request.prompt is not None else request.messages,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=seed,
            stop=request.stop,
            cancel=flag,
        )

    async with engine.turn:
        answer = await engine.compute(begin, flag)
        try:
            while piece := await engine.compute(lambda: next(answer, ""), flag):
                yield piece
        finally:
            answer.close()


def _seed(id: str) -> int:
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:3])
