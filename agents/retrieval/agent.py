"""The retrieval agent: alone opens the passage store, keeps passages in it, and finds them by meaning."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from xnai.agents import Agent, Context, Reject
from xnai.agents.inference.requests import MINILM, Embeddings
from xnai.agents.retrieval.errors import StoreDamaged, StoreMismatch
from xnai.agents.retrieval.passages import Hit, Stored
from xnai.agents.retrieval.requests import KnownRequest, SearchRequest, StoreRequest
from xnai.agents.retrieval.store import Store, open_store
from xnai.agents.settings import AgentSettings, Configuration, Positive
from xnai.bus.locating import STACK_FOLDER
from xnai.protocol import InvalidArgument, InvalidSettings

_HOPELESS = (InvalidArgument, StoreDamaged, StoreMismatch)
_EMBED_TIMEOUT = 120.0  # seconds that the model may be busy with others

T = TypeVar("T")


class RetrievalSettings(AgentSettings):
    """`[agents.retrieval.settings]`.

    Attributes:
        url: of a Qdrant server; without one the store is a folder of the stack.
        api_key: for a server that wants one.
        model, dimensions: whose vectors the store holds, and how long they are.
    """

    url: str | None = None
    api_key: str | None = None
    model: str = MINILM
    dimensions: Positive = 384


agent = Agent("retrieval", description="Passages of documents, by meaning", version="0.1.0", concurrency=16)
configure = Configuration("retrieval", RetrievalSettings)


class Library:
    """The open store, and one thread at a time that uses it: the embedded one bears no two."""

    def __init__(self, store: Store, model: str) -> None:
        self._store, self._model = store, model
        self._one = anyio.CapacityLimiter(1)

    async def use(self, function: Callable[[Store], T]) -> T:
        """What the function makes of the store, in a thread.

        Raises:
            Reject: the request can never succeed.
            StoreError: the store cannot be used now.
        """
        try:
            return await anyio.to_thread.run_sync(function, self._store, limiter=self._one)
        except _HOPELESS as error:
            raise Reject(str(error)) from error

    def check(self, model: str) -> None:
        """Raises Reject for vectors of another model than the store's: to compare them means nothing."""
        if model != self._model:
            raise Reject(
                f"These are vectors of {model}, and the passage store holds those of {self._model}. "
                "Name the same model in the settings of inference and of retrieval."
            )


@agent.lifespan
async def hold_store() -> AsyncIterator[Library]:
    """The store is opened before the first task; one that cannot be is an error of the start."""
    settings = configure.settings
    opening = open_store(
        settings.url or str(_folder() / agent.name),
        settings.dimensions,
        model=settings.model,
        api_key=settings.api_key,
    )
    with ExitStack() as stack:
        store = await anyio.to_thread.run_sync(stack.enter_context, opening)
        yield Library(store, settings.model)


def _folder() -> Path:
    """The `.xnai` folder that was configured, else the nearest one in the working folder or above it."""
    if configure.folder is not None:
        return configure.folder
    here = Path.cwd()
    for place in (here, *here.parents):
        if (place / STACK_FOLDER).is_dir():
            return place / STACK_FOLDER
    raise InvalidSettings(
        f"There is no {STACK_FOLDER} folder in {here} or above it to keep passages in. Start the agents with "
        "xnai up, or set [agents.retrieval.settings] url."
    )


@agent.skill(tags=["documents"])
async def store(request: StoreRequest, ctx: Context) -> Stored:
    """Keep passages with their vectors, and forget those that their documents no longer have."""
    library: Library = ctx.state
    if request.passages:
        library.check(request.model)

    def keep(store: Store) -> Stored:
        stored = store.put(request.passages)
        for source, ids in request.whole.items():
            store.forget(source, keep=ids)
        return stored

    return await library.use(keep)


@agent.skill(tags=["documents"])
async def known(request: KnownRequest, ctx: Context) -> list[str]:
    """Which of these documents are stored whole, as they are, and by this recipe."""
    library: Library = ctx.state
    found = await library.use(lambda store: store.known(request.documents, recipe=request.recipe))
    return sorted(found)


@agent.skill(tags=["documents"])
async def holders(digests: list[str], ctx: Context) -> dict[str, str]:
    """For each digest of a whole document the source that is stored with it, if one is."""
    library: Library = ctx.state
    return await library.use(lambda store: store.holders(digests))


@agent.skill(tags=["documents"])
async def sources(under: str, ctx: Context) -> list[str]:
    """The documents that are stored at this name or below it: `docs`, `docs/guide`, `pydoc:`."""
    library: Library = ctx.state
    return await library.use(lambda store: sorted(store.sources(under)))


@agent.skill(tags=["documents"])
async def search(request: SearchRequest, ctx: Context) -> list[Hit]:
    """The passages that come nearest to a question, best first, each with its source."""
    library: Library = ctx.state
    asked: Embeddings = await ctx.call("inference.embed", [request.query], Embeddings, timeout=_EMBED_TIMEOUT)
    library.check(asked.model)
    (vector,) = asked.vectors
    return await library.use(lambda store: store.search(vector, request.limit, under=request.under))
