"""From paths to stored passages: look at everything, ask what is stored, then embed and store the rest.

Every step is a sub-task whose id follows from this task's: a later attempt asks the same questions, gets the
answers that were given, and goes on where the one before was stopped. So nothing here may depend on the time
or on chance, and what it says comes in the same order each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice

import anyio.to_thread

from xnai.agents import Context, Reject
from xnai.agents.curation.chunk import RECIPE
from xnai.agents.curation.documents import Document, Skipped
from xnai.agents.curation.planning import Fingerprint, Plan, Stock, name_of, plan
from xnai.agents.curation.prepare import embedding_text, passages
from xnai.agents.curation.requests import Progress, State
from xnai.agents.curation.sources import UnknownSource, read_sources
from xnai.agents.inference.requests import Embeddings
from xnai.agents.retrieval.passages import Embedded, Passage, Stored, digest
from xnai.agents.retrieval.requests import KnownRequest, StoreRequest

_BATCH = 16  # passages in one request to the model: more cost more time each, fewer more messages
_SLICE = 500  # documents in one question to the store, which compares each point with all of them
_GLANCE = 16  # documents that a thread reads before it can be canceled
_PATIENCE = 600.0  # seconds that the model may be busy with others


class Ingestion:
    """One attempt at one request."""

    def __init__(self, paths: Sequence[str], ctx: Context) -> None:
        self._paths, self._ctx = paths, ctx
        self._documents: dict[str, Fingerprint] = {}
        self._skipped: list[Skipped] = []
        self._counts: Counter[State] = Counter()
        self._done = self._passages = 0

    async def run(self) -> AsyncIterator[Progress]:
        """Do it, and say what became of each document.

        Raises:
            Reject: something asked for does not exist.
            TaskFailed: a sub-task did not succeed.
        """
        await self._look()
        todo = plan(self._documents, self._skipped, await self._stock())
        for item in self._skipped:
            yield self._tell("failed" if item.code == "unreadable" else "skipped", item.source, item.reason)
        for source in todo.unchanged:
            yield self._settle("unchanged", source)
        for source, original in todo.repeated.items():
            yield self._settle("duplicate", source, f"says the same as {original}")
        async for progress in self._store(todo):
            yield progress
        await self._forget((*todo.gone, *todo.outdated))
        for source in todo.gone:
            yield self._tell("forgotten", source, "is no longer there")
        yield self._tell("finished")

    def _settle(self, state: State, source: str, reason: str = "") -> Progress:
        """One more document is dealt with."""
        self._done += 1
        return self._tell(state, source, reason)

    def _tell(self, state: State, source: str = "", reason: str = "") -> Progress:
        if state != "finished":
            self._counts[state] += 1
        return Progress(
            state=state,
            source=source,
            reason=reason,
            done=self._done,
            total=len(self._documents),
            passages=self._passages,
            counts=dict(self._counts),
        )

    # Looking

    def _read(self) -> Iterator[Document | Skipped]:
        try:
            return read_sources(self._paths)
        except UnknownSource as error:
            raise Reject(str(error)) from error

    async def _look(self) -> None:
        """Read everything once and keep what tells it apart: the texts of all would fill the memory."""
        items = self._read()
        while await anyio.to_thread.run_sync(self._look_at_some, items):
            pass

    def _look_at_some(self, items: Iterator[Document | Skipped]) -> bool:
        some = list(islice(items, _GLANCE))
        for item in some:
            if isinstance(item, Skipped):
                self._skipped.append(item)
            else:
                self._documents[item.source] = Fingerprint(item.sha256, digest(item.text))
        return bool(some)

    async def _stock(self) -> Stock:
        stored: set[str] = set()
        for name in dict.fromkeys(map(name_of, self._paths)):
            stored.update(await self._ctx.call("retrieval.sources", name, list[str], timeout=_PATIENCE))
        unchanged: set[str] = set()
        for some in _slices(list(self._documents)):
            asked = KnownRequest(
                documents={source: self._documents[source].sha256 for source in some}, recipe=RECIPE
            )
            unchanged.update(await self._ctx.call("retrieval.known", asked, list[str], timeout=_PATIENCE))
        holders: dict[str, str] = {}
        digests = [found.digest for source, found in self._documents.items() if source not in unchanged]
        for some in _slices(digests):
            holders |= await self._ctx.call("retrieval.holders", some, dict[str, str], timeout=_PATIENCE)
        return Stock(sources=stored, unchanged=unchanged, holders=holders)

    # Storing

    async def _store(self, todo: Plan) -> AsyncIterator[Progress]:
        """Store what is fresh, passages of several small documents together."""
        left = dict.fromkeys(todo.fresh)
        batch: list[Passage] = []
        whole: dict[str, tuple[str, ...]] = {}
        items = self._read() if left else iter(())
        while (item := await anyio.to_thread.run_sync(next, items, None)) is not None:
            if item.source not in left:
                continue
            del left[item.source]
            if isinstance(item, Skipped):
                yield self._settle("failed", item.source, item.reason)
                continue
            found = await anyio.to_thread.run_sync(passages, item)
            for passage in found:
                if len(batch) == _BATCH:
                    await self._keep(batch, whole)
                    for source in whole:
                        yield self._settle("stored", source)
                    batch, whole = [], {}
                batch.append(passage)
            whole[item.source] = tuple(passage.id for passage in found)
        await self._keep(batch, whole)
        for source in whole:
            yield self._settle("stored", source)
        for source in left:
            yield self._settle("failed", source, "vanished while it was read")

    async def _keep(self, batch: Sequence[Passage], whole: dict[str, tuple[str, ...]]) -> None:
        if not batch:
            return
        texts = [embedding_text(passage) for passage in batch]
        found: Embeddings = await self._ctx.call("inference.embed", texts, Embeddings, timeout=_PATIENCE)
        request = StoreRequest(
            model=found.model,
            passages=tuple(
                Embedded(passage=passage, vector=vector)
                for passage, vector in zip(batch, found.vectors, strict=True)
            ),
            whole=whole,
        )
        stored: Stored = await self._ctx.call("retrieval.store", request, Stored, timeout=_PATIENCE)
        self._passages += stored.new + stored.changed

    async def _forget(self, sources: Sequence[str]) -> None:
        for some in _slices(sources):
            request = StoreRequest(whole=dict.fromkeys(some, ()))
            await self._ctx.call("retrieval.store", request, Stored, timeout=_PATIENCE)


def _slices(items: Sequence[str]) -> Iterator[Sequence[str]]:
    return (items[start : start + _SLICE] for start in range(0, len(items), _SLICE))
